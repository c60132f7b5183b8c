//! Neighbouring tokens of one agent, joined into one frame for a reader that lags.

use super::frame::Frame;
use std::sync::Arc;

/// Joins each row of neighbouring tokens of one source into one frame. Other frames stay as they are, in their places.
///
/// A token is an `llm.stream` frame whose data is `{"content": <text>}` and nothing else. The joined frame has the
/// texts of all tokens, in order, and the id, sequence and timestamp of the last one, so that a reader resumes after
/// it. The texts are joined as they are encoded: lone surrogates survive, and two halves of a character that came in
/// two tokens become that character. The JSON of each token is read: use this for readers that lag, not for each frame.
pub fn coalesce(frames: &[Arc<Frame>]) -> Vec<Arc<Frame>> {
    let tokens: Vec<_> = frames.iter().map(|frame| (frame, frame.token())).collect();
    let rows = tokens.chunk_by(|(one, text), (next, more)| {
        text.is_some() && more.is_some() && one.source() == next.source()
    });
    rows.map(|row| {
        let (last, _) = row[row.len() - 1];
        if row.len() == 1 {
            return Arc::clone(last);
        }
        let texts: Vec<&[u8]> = row.iter().filter_map(|(_, text)| *text).collect();
        Arc::new(last.with_token(&texts.concat()))
    })
    .collect()
}
