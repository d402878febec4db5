//! Paths in records. A path need not be UTF-8, and JSON has no bytes.

use std::path::Path;

use serde::{Deserialize, Serialize, Serializer};

/// The bytes of a path that is not empty and contains no NUL. A string in JSON, or an array of the
/// bytes if they are not UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "TextOrBytes")]
pub(crate) struct WirePath(Vec<u8>);

#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrBytes {
    Text(String),
    Bytes(Vec<u8>),
}

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

impl TryFrom<TextOrBytes> for WirePath {
    type Error = &'static str;

    fn try_from(path: TextOrBytes) -> Result<Self, Self::Error> {
        let bytes = match path {
            TextOrBytes::Text(text) => text.into_bytes(),
            TextOrBytes::Bytes(bytes) => bytes,
        };
        Self::from_bytes(bytes).ok_or("no file can have this path")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{HandshakeMessage, Record};

    #[test]
    fn a_path_need_not_be_text() {
        let paths = |json: &str| {
            let text = format!(r#"{{"v":1,"type":"commit","paths":{json},"drain_millis":null}}"#);
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
