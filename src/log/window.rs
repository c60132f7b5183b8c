//! The frames that a log holds: the latest ones within limits, and the first one if it tells of the run's life.

use super::limits::Limits;
use crate::wire::{EventId, Frame};
use std::collections::VecDeque;
use std::sync::Arc;

/// Frames in the order of their sequence numbers. Pure: without a lock, a clock or a reader.
///
/// A window may begin at any sequence number, and numbers may be missing in it. What is evicted is always the oldest
/// frame. An evicted `lifecycle` event of sequence number 1 is kept aside: it is in no limit, and stands before the
/// others.
pub(super) struct Window {
    aside: Option<Arc<Frame>>,
    held: VecDeque<Arc<Frame>>,
    /// The bytes of the held frames, without the one that is kept aside.
    bytes: usize,
    next: u64,
}

impl Window {
    /// An empty window, whose first frame will have at least this sequence number.
    pub(super) const fn starting_at(next: u64) -> Self {
        Self {
            aside: None,
            held: VecDeque::new(),
            bytes: 0,
            next,
        }
    }

    /// The least sequence number that the next frame may have.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// The sequence number of the oldest frame, the one that is kept aside apart; [`next`](Self::next) if there is
    /// none.
    pub(super) fn oldest(&self) -> u64 {
        self.held
            .front()
            .map_or(self.next, |frame| frame.sequence())
    }

    /// The newest frame.
    pub(super) fn last(&self) -> Option<&Arc<Frame>> {
        self.held.back()
    }

    /// The first frame of all, as far as it is held.
    pub(super) fn first(&self) -> Option<&Arc<Frame>> {
        self.aside.as_ref().or(self.held.front())
    }

    /// The number of frames.
    pub(super) fn len(&self) -> usize {
        self.held.len() + usize::from(self.aside.is_some())
    }

    /// The bytes of all frames.
    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.aside.as_ref().map_or(0, |frame| frame.len())
    }

    /// Appends a frame whose sequence number is at least [`next`](Self::next).
    pub(super) fn push(&mut self, frame: Arc<Frame>) {
        debug_assert!(frame.sequence() >= self.next);
        self.next = frame.sequence() + 1;
        self.bytes += frame.len();
        self.held.push_back(frame);
    }

    /// The sequence number before which all frames must be evicted to make room for one more frame of this length.
    pub(super) fn room_for(&self, len: usize, limits: Limits) -> u64 {
        let (mut events, mut bytes) = (self.held.len(), self.bytes);
        for frame in &self.held {
            if events < limits.events && bytes.saturating_add(len) <= limits.bytes {
                return frame.sequence();
            }
            events -= 1;
            bytes -= frame.len();
        }
        self.next
    }

    /// Evicts all frames before this sequence number.
    pub(super) fn evict_before(&mut self, sequence: u64) {
        while self.oldest() < sequence
            && let Some(frame) = self.held.pop_front()
        {
            self.bytes -= frame.len();
            // A later event of a lifecycle kind is a user's, and an event like any other.
            if frame.is_lifecycle() && frame.sequence() == 1 {
                self.aside = Some(frame);
            }
        }
    }

    /// The frame of this id.
    pub(super) fn find(&self, id: EventId) -> Option<&Arc<Frame>> {
        let frame = self.range(id.sequence).next();
        frame.filter(|frame| frame.id() == id)
    }

    /// The frames from this sequence number on, oldest first, with the one that is kept aside.
    pub(super) fn range(&self, from: u64) -> impl Iterator<Item = &Arc<Frame>> {
        let aside = self.aside.iter().filter(move |it| it.sequence() >= from);
        aside.chain(self.held.range(self.index(from)..))
    }

    /// The place of the first held frame whose sequence number is not less.
    fn index(&self, sequence: u64) -> usize {
        let oldest = self.oldest();
        if sequence <= oldest {
            return 0;
        }
        if sequence >= self.next {
            return self.held.len();
        }
        // Where no number is missing, this is the place.
        let guess = usize::try_from(sequence - oldest).unwrap_or(usize::MAX);
        match self.held.get(guess) {
            Some(frame) if frame.sequence() == sequence => guess,
            _ => self.held.partition_point(|it| it.sequence() < sequence),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::wire::{EncodedBody, EventKind, FrameEncoder};
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Operation {
        /// Leaves out so many numbers, then appends a frame with so many bytes of text.
        Push {
            hole: u64,
            text: usize,
        },
        EvictBefore(u64),
        MakeRoom {
            len: usize,
            limits: Limits,
        },
    }

    fn operation() -> impl Strategy<Value = Operation> {
        let limits = (1..6_usize, 1..2_000_usize);
        prop_oneof![
            6 => (prop_oneof![4 => Just(0_u64), 1 => 1..4_u64], 0..300_usize)
                .prop_map(|(hole, text)| Operation::Push { hole, text }),
            2 => (0..40_u64).prop_map(Operation::EvictBefore),
            2 => (0..600_usize, limits).prop_map(|(len, (events, bytes))| Operation::MakeRoom {
                len,
                limits: Limits { events, bytes },
            }),
        ]
    }

    fn frame(encoder: &mut FrameEncoder, sequence: u64, text: usize) -> Arc<Frame> {
        let kind = if sequence == 1 {
            EventKind::STARTED
        } else {
            EventKind::LLM_STREAM
        };
        let data = format!(r#"{{"content":"{}"}}"#, "a".repeat(text));
        let body = EncodedBody::from_json(kind, b"null", data.as_bytes());
        Arc::new(encoder.encode(1_000, sequence, &body))
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 2 } else { 256 },
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// A window holds what a plain list of the same frames holds, wherever it begins and whichever numbers it
        /// leaves out: evictions take the oldest, and only what does not fit; a lifecycle event of number 1 stays.
        #[test]
        fn a_window_is_a_list(begin in prop_oneof![Just(1_u64), 1..30_u64], operations in prop::collection::vec(operation(), 1..60)) {
            let (mut window, mut encoder) = (Window::starting_at(begin), FrameEncoder::new(&1.into()));
            let (mut aside, mut list) = (None, Vec::<Arc<Frame>>::new());
            for operation in operations {
                let evicted = match operation {
                    Operation::Push { hole, text } => {
                        let frame = frame(&mut encoder, window.next() + hole, text);
                        window.push(Arc::clone(&frame));
                        list.push(frame);
                        0
                    }
                    Operation::EvictBefore(sequence) => sequence,
                    Operation::MakeRoom { len, limits } => {
                        let sequence = window.room_for(len, limits);
                        let fits = |rest: &[Arc<Frame>]| {
                            let bytes: usize = rest.iter().map(|frame| frame.len()).sum();
                            rest.len() < limits.events && bytes + len <= limits.bytes
                        };
                        let evicted = list.partition_point(|frame| frame.sequence() < sequence);
                        prop_assert!(evicted == list.len() || fits(&list[evicted..]));
                        prop_assert!(evicted == 0 || !fits(&list[evicted - 1..]));
                        sequence
                    }
                };
                window.evict_before(evicted);
                let evicted = list.partition_point(|frame| frame.sequence() < evicted);
                aside = list.drain(..evicted).find(|frame| frame.sequence() == 1).or(aside);

                let all: Vec<_> = aside.iter().chain(&list).cloned().collect();
                let bytes: usize = all.iter().map(|frame| frame.len()).sum();
                prop_assert_eq!((window.len(), window.bytes()), (all.len(), bytes));
                prop_assert_eq!(window.first().map(|it| it.id()), all.first().map(|it| it.id()));
                prop_assert_eq!(window.last().map(|it| it.id()), list.last().map(|it| it.id()));
                let oldest = list.first().map_or(window.next(), |frame| frame.sequence());
                prop_assert_eq!(window.oldest(), oldest);
                for from in 0..=window.next() + 1 {
                    let expected = all.iter().filter(|frame| frame.sequence() >= from);
                    prop_assert!(window.range(from).map(|it| it.id()).eq(expected.map(|it| it.id())));
                    let id = EventId { ms: 1_000, sequence: from };
                    let is_held = all.iter().any(|frame| frame.id() == id);
                    prop_assert_eq!(window.find(id).is_some(), is_held);
                    let other = EventId { ms: 999, ..id };
                    prop_assert!(window.find(other).is_none());
                }
            }
        }
    }

    /// A frame that alone is larger than the limits evicts all others.
    #[test]
    fn room_for_a_large_frame() {
        let (mut window, mut encoder) = (Window::starting_at(5), FrameEncoder::new(&1.into()));
        window.push(frame(&mut encoder, 7, 10));
        let limits = Limits {
            events: 10,
            bytes: 1,
        };
        window.evict_before(window.room_for(1_000, limits));
        assert_eq!((window.len(), window.oldest()), (0, 8));
        window.push(frame(&mut encoder, 9, 1_000));
        assert_eq!(window.last().unwrap().sequence(), 9);
    }
}
