//! A JSON object as text, and fields put into it: what is in it stays as it is spelt, to the last byte.
//!
//! Not over `serde_json::Value`, which refuses lone surrogates, that Python's strings can hold.

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use std::fmt;

/// The text of one object.
pub(crate) struct Object(String);

impl Object {
    /// Without fields.
    pub(crate) fn empty() -> Self {
        Self("{}".to_owned())
    }

    /// `value`, if it is an object; what is none becomes the only field, `name`, of one.
    pub(crate) fn encode(
        value: &(impl Serialize + ?Sized),
        name: &str,
    ) -> serde_json::Result<Self> {
        let text = serde_json::to_string(value)?;
        let text = text.trim_ascii();
        Ok(Self(if text.starts_with('{') {
            text.to_owned()
        } else {
            format!("{{{}:{text}}}", json!(name))
        }))
    }

    /// The same with these fields, which are text too, at its end; fields of the same names go.
    pub(crate) fn with(self, fields: &[(&str, String)]) -> Self {
        if fields.is_empty() {
            return self;
        }
        let Fields(own) = serde_json::from_str(&self.0).expect("it is an object");
        let mut text = String::with_capacity(self.0.len() + 64);
        let mut put = |name: &str, value: &str| {
            text.push(if text.is_empty() { '{' } else { ',' });
            text.push_str(name);
            text.push(':');
            text.push_str(value);
        };
        for (name, value) in own {
            // A name may be spelt with escapes; one that is no Rust string is none of ours.
            let plain: Option<String> = serde_json::from_str(name.get()).ok();
            if !fields
                .iter()
                .any(|(ours, _)| plain.as_deref() == Some(*ours))
            {
                put(name.get(), value.get());
            }
        }
        for (name, value) in fields {
            put(&json!(name).to_string(), value);
        }
        text.push('}');
        Self(text)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// The fields of an object, in their order, also those of one name.
struct Fields<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;

        impl<'de> Visitor<'de> for All {
            type Value = Vec<(&'de RawValue, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(All).map(Self)
    }
}

#[cfg(all(test, not(loom)))]
#[expect(clippy::unwrap_used, reason = "a test may, and its helpers")]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.to_owned()).unwrap()
    }

    /// An object stays as it is spelt; what is none becomes a field.
    #[test]
    fn objects_stay() {
        let spelt = r#"{"b" : "\ud800", "a":1.0e2}"#;
        assert_eq!(Object::encode(&raw(spelt), "result").unwrap().0, spelt);
        let encode = |value: &RawValue| Object::encode(value, "result").unwrap().0;
        assert_eq!(encode(&raw("[1]")), r#"{"result":[1]}"#);
        assert_eq!(encode(&raw(r#"["\udfff"]"#)), r#"{"result":["\udfff"]}"#);
        assert_eq!(
            Object::encode("text", "error").unwrap().0,
            r#"{"error":"text"}"#
        );
    }

    /// Fields are put at the end, in place of those of the same name, however these are spelt; the others stay.
    #[test]
    fn fields_are_put() {
        let put = |object: &str| {
            let object = Object::encode(&raw(object), "").unwrap();
            object.with(&[("kind", "\"user\"".to_owned())]).0
        };
        assert_eq!(put("{}"), r#"{"kind":"user"}"#);
        assert_eq!(
            put(r#"{"\ud800": "\udfff", "kind": {"a":[]}, "k\u0069nd": 1, "z":-0.0}"#),
            r#"{"\ud800":"\udfff","z":-0.0,"kind":"user"}"#
        );
        assert_eq!(Object::empty().with(&[]).0, "{}");
        let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(5_000), "]".repeat(5_000));
        assert!(put(&deep).starts_with(&deep[..deep.len() - 1]));
    }
}
