//! A JSON object as text, to which fields can be added: the others stay as they are spelt, to the last byte.
//!
//! Not a `serde_json::Value`, which refuses the lone surrogates that Python's strings may have.

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use std::collections::HashSet;
use std::fmt;

/// The text of one object.
#[derive(Clone, Debug)]
pub(crate) struct Object(String);

impl Object {
    /// Without fields.
    pub(crate) fn empty() -> Self {
        Self("{}".to_owned())
    }

    /// Encodes a value that is an object. Any other value becomes the only field, `name`, of an object.
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

    /// The object with these fields, which are JSON text, at its end, in place of fields of the same names.
    pub(crate) fn with(self, fields: &[(&str, String)]) -> Self {
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| format!("{}:{value}", json!(name)))
            .collect();
        self.and(&Self(format!("{{{}}}", fields.join(","))))
    }

    /// The object with the fields of another one at its end, in place of fields of the same names.
    pub(crate) fn and(self, other: &Self) -> Self {
        let (Fields(own), Fields(others)) = (self.fields(), other.fields());
        if others.is_empty() {
            return self;
        }
        let taken: HashSet<_> = others.iter().map(|(name, _)| plain(name)).collect();
        let kept = own.iter().filter(|(name, _)| !taken.contains(&plain(name)));
        let fields: Vec<_> = kept
            .chain(&others)
            .map(|(name, value)| format!("{}:{}", name.get(), value.get()))
            .collect();
        Self(format!("{{{}}}", fields.join(",")))
    }

    fn fields(&self) -> Fields<'_> {
        serde_json::from_str(&self.0).expect("it is an object")
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// The name of a field without escapes; a name that is no Rust string, as it is spelt.
fn plain(name: &RawValue) -> Result<String, &str> {
    serde_json::from_str(name.get()).map_err(|_| name.get())
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
        let both = Object::encode(&raw(r#"{"\ud800":1,"a":2}"#), "").unwrap();
        let both = both.and(&Object::encode(&raw(r#"{"b":3,"\ud800":4}"#), "").unwrap());
        assert_eq!(both.0, r#"{"a":2,"b":3,"\ud800":4}"#);
        let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(5_000), "]".repeat(5_000));
        assert!(put(&deep).starts_with(&deep[..deep.len() - 1]));
    }
}
