//! What a run's terminal event says besides what comes with the end.

use crate::wire::Object;

/// The JSON of all annotations of a run, in bytes, at most.
pub(super) const MAX_BYTES: usize = 64 << 10;

/// What a run's terminal event says besides.
pub(super) enum Annotations {
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
    pub(super) const GONE: Self = Self::Closed(None);

    /// Adds fields. Returns false if it is too late.
    ///
    /// # Errors
    ///
    /// A sentence for the user if the annotations would be larger than [`MAX_BYTES`]; they stay as they are.
    pub(super) fn add(&mut self, fields: &Object) -> Result<bool, String> {
        let Self::Open(annotations) = self else {
            return Ok(false);
        };
        // Before the work, which grows with the size of both.
        let refuse_above = |bytes: usize| {
            if bytes <= MAX_BYTES {
                return Ok(());
            }
            Err(format!(
                "the annotations of a run hold at most {MAX_BYTES} bytes of JSON, not {bytes}: put what is larger into the \
                 result, or into an event"
            ))
        };
        refuse_above(fields.as_bytes().len())?;
        let added = match annotations {
            Some(earlier) => earlier.clone().and(fields),
            None => fields.clone(),
        };
        refuse_above(added.as_bytes().len())?;
        *annotations = Some(added);
        Ok(true)
    }

    /// Takes no more from now on; returns what there is.
    pub(super) fn close(&mut self) -> Option<Object> {
        let (Self::Open(annotations) | Self::Closed(annotations)) = self;
        let annotations = annotations.take();
        *self = Self::Closed(annotations.clone());
        annotations
    }
}
