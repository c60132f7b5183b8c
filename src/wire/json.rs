//! The text of JSON strings, also of strings with lone surrogates, which Python's strings may have.

const HEX: &[u8; 16] = b"0123456789abcdef";

/// Appends `text` as it stands in a JSON string, without the quotes.
///
/// Quote, backslash and U+0000 to U+001F are escaped, as `serde_json` does it; all else is copied, also U+2028.
/// The result has no line breaks.
///
/// ```
/// let mut out = Vec::new();
/// llm_callback::json::escape_str(&mut out, "two\nlines, \"quoted\"");
/// assert_eq!(out, br#"two\nlines, \"quoted\""#);
/// ```
pub fn escape_str(out: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    out.reserve(rest.len());
    while let Some(plain) = plain_prefix(rest) {
        out.extend_from_slice(&rest[..plain]);
        escape_ascii(out, rest[plain]);
        rest = &rest[plain + 1..];
    }
    out.extend_from_slice(rest);
}

/// Appends these code points as they stand in a JSON string, without the quotes.
///
/// As [`escape_str`], for text that may have surrogates. A surrogate becomes `\udXXX`, as Python's `json` writes it, so
/// that a high surrogate right before a low one reads as the character that the two encode. A number above U+10FFFF
/// becomes U+FFFD.
///
/// ```
/// let mut out = Vec::new();
/// llm_callback::json::escape_code_points(&mut out, [0x61, 0xd800, 0xe9]);
/// assert_eq!(out, "a\\ud800é".as_bytes());
/// ```
pub fn escape_code_points(out: &mut Vec<u8>, code_points: impl IntoIterator<Item = u32>) {
    let code_points = code_points.into_iter();
    out.reserve(code_points.size_hint().0);
    for code_point in code_points {
        match u8::try_from(code_point) {
            Ok(byte) if byte.is_ascii() => {
                if is_plain(byte) {
                    out.push(byte);
                } else {
                    escape_ascii(out, byte);
                }
            }
            _ if matches!(code_point, 0xd800..=0xdfff) => {
                let hex = |shift: u32| HEX[((code_point >> shift) & 0xf) as usize];
                out.extend_from_slice(&[b'\\', b'u', hex(12), hex(8), hex(4), hex(0)]);
            }
            _ => {
                let character = char::from_u32(code_point).unwrap_or(char::REPLACEMENT_CHARACTER);
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
    }
}

/// Puts U+FFFD in the place of each escaped lone surrogate, which `serde_json` refuses. Returns whether there were any.
///
/// The text keeps its length: `\ud800` becomes `\ufffd`.
pub(crate) fn replace_lone_surrogates(json: &mut [u8]) -> bool {
    let (mut found, mut at) = (false, 0);
    // Outside its strings JSON has no backslash; inside, each begins an escape of two or of six bytes.
    while let Some(escape) = json[at..].iter().position(|byte| *byte == b'\\') {
        at += escape;
        let next = at + 6;
        match surrogate(json, at) {
            Some(0xd800..=0xdbff) if matches!(surrogate(json, next), Some(0xdc00..)) => {
                at = next + 6;
            }
            Some(_) => {
                json[at + 2..next].copy_from_slice(b"fffd");
                found = true;
                at = next;
            }
            None => at = json.len().min(at + 2),
        }
    }
    found
}

/// The surrogate whose escape begins at `at`.
fn surrogate(json: &[u8], at: usize) -> Option<u16> {
    let digits = json.get(at..at + 6)?.strip_prefix(br"\u")?;
    let unit = u16::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
    matches!(unit, 0xd800..=0xdfff).then_some(unit)
}

fn is_plain(byte: u8) -> bool {
    byte >= b' ' && byte != b'"' && byte != b'\\'
}

/// How many bytes come before the first one that needs an escape; None if none does.
///
/// Looks at eight bytes at a time, since a token seldom has anything to escape. Each of the three terms sets the high
/// bit of the bytes that it looks for, and perhaps of bytes above such a byte, but never of a byte below: the lowest is
/// right. <https://graphics.stanford.edu/~seander/bithacks.html#HasLessInWord>.
fn plain_prefix(text: &[u8]) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = ONES * 0x80;
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word & HIGH;
    let (words, rest) = text.as_chunks();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let quote = below(word ^ (ONES * u64::from(b'"')), 1);
        let backslash = below(word ^ (ONES * u64::from(b'\\')), 1);
        let found = below(word, u64::from(b' ')) | quote | backslash;
        if found != 0 {
            return Some(index * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    let in_rest = rest.iter().position(|byte| !is_plain(*byte))?;
    Some(words.len() * 8 + in_rest)
}

fn escape_ascii(out: &mut Vec<u8>, byte: u8) {
    let short = match byte {
        b'"' | b'\\' => byte,
        0x08 => b'b',
        b'\t' => b't',
        b'\n' => b'n',
        0x0c => b'f',
        b'\r' => b'r',
        _ => {
            let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 0xf)]);
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Each ASCII character is found at each place of a text, and at no other.
    #[test]
    fn what_needs_an_escape_is_found() {
        let longest = if cfg!(miri) { 9 } else { 20 };
        for byte in 0..=0x7f_u8 {
            for (length, at) in
                (1..=longest).flat_map(|length| (0..length).map(move |at| (length, at)))
            {
                let mut text = vec![b'a'; length];
                text[at] = byte;
                let expected = (!is_plain(byte)).then_some(at);
                assert_eq!(plain_prefix(&text), expected, "{byte:#x} at {at}");
            }
        }
    }

    /// Each ASCII character is written as `serde_json` writes it.
    #[test]
    fn ascii_is_escaped_as_elsewhere() {
        for character in '\0'..='\x7f' {
            let (mut from_str, mut from_code_points) = (Vec::new(), Vec::new());
            escape_str(&mut from_str, character.encode_utf8(&mut [0; 4]));
            escape_code_points(&mut from_code_points, [character.into()]);
            let expected = serde_json::to_vec(&character).unwrap();
            assert_eq!(from_str, expected[1..expected.len() - 1]);
            assert_eq!(from_code_points, from_str);
        }
    }

    /// Lone surrogates are replaced, pairs and escaped backslashes before a `u` are not.
    #[test]
    fn only_lone_surrogates_are_replaced() {
        for (json, expected) in [
            (r#""\ud800""#, r#""\ufffd""#),
            (r#""\uDFFF\uD800x""#, r#""\ufffd\ufffdx""#),
            (r#""\ud83d\ude00""#, r#""\ud83d\ude00""#),
            (r#""\ud83d\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#),
            (r#""\\ud800 \\\ud800""#, r#""\\ud800 \\\ufffd""#),
            (r#""\u00e9\n\"""#, r#""\u00e9\n\"""#),
            (r#""\ud8"#, r#""\ud8"#),
            (r"\", r"\"),
        ] {
            let mut bytes = json.as_bytes().to_vec();
            assert_eq!(replace_lone_surrogates(&mut bytes), json != expected);
            assert_eq!(bytes, expected.as_bytes(), "{json}");
        }
    }
}
