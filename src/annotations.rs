//! What a run's terminal event says besides what comes with the end.

use crate::object::Object;

/// What a run's terminal event says besides.
pub(crate) enum Annotations {
    /// More may come.
    Open(Option<Object>),
    /// The event is made, or was. These stay until it is in the log: of two threads that end a run, either may be the one
    /// that does.
    Closed(Option<Object>),
}

impl Default for Annotations {
    fn default() -> Self {
        Self::Open(None)
    }
}

impl Annotations {
    /// Those of a run that has ended.
    pub(crate) const GONE: Self = Self::Closed(None);

    /// Whether they are taken.
    pub(crate) fn add(&mut self, fields: &Object) -> bool {
        let Self::Open(annotations) = self else {
            return false;
        };
        *annotations = Some(match annotations.take() {
            Some(earlier) => earlier.and(fields),
            None => fields.clone(),
        });
        true
    }

    /// Takes no more from now on; returns what there is.
    pub(crate) fn close(&mut self) -> Option<Object> {
        let (Self::Open(annotations) | Self::Closed(annotations)) = self;
        let annotations = annotations.take();
        *self = Self::Closed(annotations.clone());
        annotations
    }
}
