//! What the table tells of one run's log: the news for the sinks, and the lags for the observers.

use super::observer::Observers;
use crate::log::{Lagged, Listener};
use crate::run_id::RunId;
use crate::sink::Follows;

/// Tells the sinks and the observers what happens to one run's log.
pub(super) struct RunListener {
    pub(super) follows: Follows,
    pub(super) observers: Observers,
    pub(super) id: RunId,
}

impl Listener for RunListener {
    fn appended(&self, is_end: bool) {
        self.follows.tell(is_end);
    }

    fn lagged(&self, lagged: Lagged) {
        self.observers
            .tell(|observer| observer.lagged(&self.id, lagged));
    }
}
