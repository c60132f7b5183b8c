//! The fields of a run's terminal event that its code has added before the end.

use crate::wire::Object;

/// The JSON of all annotations of a run, in bytes, at most.
pub(super) const MAX_BYTES: usize = 64 << 10;

/// The annotations of one run.
pub(super) enum Annotations {
    /// More may be added.
    Open(Option<Object>),
    /// The terminal event is made, or was. The annotations stay until it is in the log: of two threads that end a run
    /// at once, either may be the one whose event is appended.
    Closed(Option<Object>),
}

impl Default for Annotations {
    fn default() -> Self {
        Self::Open(None)
    }
}

impl Annotations {
    /// The annotations of a run that has ended.
    pub(super) const GONE: Self = Self::Closed(None);

    /// Adds fields. Returns false if the run ends or has ended.
    ///
    /// # Errors
    ///
    /// A sentence for the user if the annotations would be larger than [`MAX_BYTES`]; then they stay as they are.
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

    /// Accepts no more from now on. Returns the annotations.
    pub(super) fn close(&mut self) -> Option<Object> {
        let (Self::Open(annotations) | Self::Closed(annotations)) = self;
        let annotations = annotations.take();
        *self = Self::Closed(annotations.clone());
        annotations
    }
}
