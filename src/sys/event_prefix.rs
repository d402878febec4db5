//! The prefix of the names of the event objects by which other processes control this one on
//! Windows.

/// The longest prefix, in UTF-16 units. Windows allows names of 260 units, and the process id and
/// the request follow the prefix.
const LONGEST: usize = 200;

/// `Local\` or `Global\`, and the name of an application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EventPrefix(String);

impl EventPrefix {
    /// What a prefix is, for messages.
    pub(crate) const RULE: &str = r"a name without a backslash, alone or behind Local\ or Global\, of at most 200 UTF-16 units";

    /// A name without a prefix gets `Local\`. `None` if the text is not valid.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('\\').unwrap_or(("Local", text));
        let is_valid = ["Local", "Global"].contains(&namespace)
            && !name.is_empty()
            && !name.contains(['\\', '\0'])
            && text.encode_utf16().count() <= LONGEST;
        is_valid.then(|| Self(format!(r"{namespace}\{name}")))
    }

    #[cfg_attr(not(windows), allow(dead_code))]
    pub(crate) fn text(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_a_name_in_one_of_two_namespaces() {
        let long = "ü".repeat(LONGEST);
        for (text, wanted) in [
            ("shop", Some(r"Local\shop")),
            (r"Local\shop", Some(r"Local\shop")),
            (r"Global\shop of 7", Some(r"Global\shop of 7")),
            (&long, Some(&*format!(r"Local\{long}"))),
            (&format!("{long}."), None),
            ("", None),
            (r"Local\", None),
            (r"global\shop", None),
            (r"Session\1\shop", None),
            (r"Global\a\b", None),
            ("a\0b", None),
        ] {
            let prefix = EventPrefix::parse(text);
            assert_eq!(prefix.as_ref().map(EventPrefix::text), wanted, "{text:?}");
        }
    }
}
