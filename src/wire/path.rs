//! Paths in records. A path need not be UTF-8, and JSON has no bytes.

use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};
use serde::{Serialize, Serializer};

/// The bytes of a path that is not empty and contains no NUL. A string in JSON, or an array of the
/// bytes if they are not UTF-8.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WirePath(Vec<u8>);

impl WirePath {
    /// `None` if no file can have this path.
    pub(crate) fn new(path: &Path) -> Option<Self> {
        Self::from_bytes(path.as_os_str().as_encoded_bytes().to_vec())
    }

    /// `None` if no file can have this path.
    pub(super) fn from_bytes(bytes: Vec<u8>) -> Option<Self> {
        (!bytes.is_empty() && !bytes.contains(&0)).then_some(Self(bytes))
    }

    /// The path as the system has it.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Serialize for WirePath {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => to.serialize_str(text),
            Err(_) => self.0.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for WirePath {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let bytes = from.deserialize_any(PathVisitor)?;
        Self::from_bytes(bytes).ok_or_else(|| D::Error::custom("no file can have this path"))
    }
}

struct PathVisitor;

impl<'de> Visitor<'de> for PathVisitor {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path, as a string or an array of bytes")
    }

    fn visit_str<E>(self, text: &str) -> Result<Vec<u8>, E> {
        Ok(text.as_bytes().to_vec())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut bytes: A) -> Result<Vec<u8>, A::Error> {
        let mut path = Vec::new();
        while let Some(byte) = bytes.next_element()? {
            path.push(byte);
        }
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{HandshakeMessage, Record};

    #[test]
    fn a_path_need_not_be_text() {
        let paths = |json: &str| {
            let text = format!(r#"{{"v":1,"type":"commit","paths":{json}}}"#);
            HandshakeMessage::decode(text.as_bytes())
                .map(|message| (message.encode().unwrap(), text))
        };
        for json in [r#"["/a b/ä\n"]"#, "[[47,255,10]]", r#"[[47,255],"x"]"#] {
            let (written, text) = paths(json).unwrap();
            assert_eq!(written, text);
        }
        for json in [
            r#"[""]"#,
            r#"["a\u0000"]"#,
            "[[1,0]]",
            "[[]]",
            "[[256]]",
            "[1]",
            "[{}]",
        ] {
            assert!(paths(json).is_err(), "{json}");
        }
        assert_eq!(WirePath::new(Path::new("")), None);
    }
}
