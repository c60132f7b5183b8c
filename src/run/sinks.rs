//! The sinks of a table.

use crate::sink::{Shared, SinkHandle};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The sinks of a table.
#[derive(Default)]
pub(super) struct Sinks {
    pub(super) handles: Vec<SinkHandle>,
    /// The same sinks, as the next run's log tells them of its events.
    pub(super) shared: Arc<[Arc<Shared>]>,
}

impl Sinks {
    /// To be called after each change of the handles.
    pub(super) fn share(&mut self) {
        self.shared = self.handles.iter().map(SinkHandle::shared).collect();
    }
}

/// How long the drop of a table's last handle waits for the sinks.
const PATIENCE: Duration = Duration::from_secs(5);

impl Drop for Sinks {
    fn drop(&mut self) {
        // Also sinks of which the host keeps a handle.
        let end = Instant::now().checked_add(PATIENCE);
        let stopping: Vec<_> = self.handles.iter().map(|sink| sink.stop(end)).collect();
        for sink in &stopping {
            sink.wait_until(end);
        }
    }
}
