//! Environment files, in the format of `EnvironmentFile=` in systemd.exec(5).
//!
//! Each line is empty, a comment (`#` or `;` first), or `NAME=VALUE`. A line ends with a line feed
//! or a carriage return. White space (these two, spaces and tabs) around a line and around a value
//! is removed. In a value:
//!
//! - quotes count at the beginning of a value and after other quotes only,
//! - between single quotes, every character stands for itself,
//! - between double quotes, a backslash before `"`, `\`, `` ` `` or `$` stands for that character,
//! - outside of quotes, a backslash before any character stands for that character,
//! - a backslash at the end of a line, outside of single quotes, continues the value on the next
//!   line; between quotes, a value may also have line breaks.
//!
//! Variables in values are not expanded.
//!
//! A line of any other form is ignored. A line whose name has other characters than letters, digits
//! and underscores, or begins with a digit, is ignored too. systemd ignores the same lines. A null
//! character in the file is an error, also for systemd. A quote that is not closed is an error
//! here; systemd takes the rest of the file as the value.

use std::fmt;

/// What a file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct EnvironmentFile {
    /// Names and values, in the order of the file.
    pub(super) variables: Vec<(String, String)>,
    /// The lines that are ignored.
    pub(super) ignored: Vec<SyntaxError>,
}

/// A line that is not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    /// Counted from 1.
    line: usize,
    what: &'static str,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

/// Reads the text of a file.
///
/// # Errors
///
/// A fault that leaves open where the next line begins, or what was meant.
pub(super) fn parse(text: &str) -> Result<EnvironmentFile, SyntaxError> {
    if let Some((before, _)) = text.split_once('\0') {
        return Err(SyntaxError {
            line: 1 + before.matches('\n').count(),
            what: "there is a null character",
        });
    }
    let mut file = EnvironmentFile::default();
    let mut input = Input {
        rest: text.chars().peekable(),
        line: 1,
    };
    loop {
        input.skip(is_space);
        let line = input.line;
        let fault = |what| SyntaxError { line, what };
        match input.rest.peek() {
            None => return Ok(file),
            Some('#' | ';') => input.skip(|char| !is_line_end(char)),
            Some(_) => match input.take_name() {
                None => file.ignored.push(fault("there is no equals sign")),
                Some(name) => {
                    let value = input.take_value().map_err(fault)?;
                    match is_name(&name) {
                        true => file.variables.push((name, value)),
                        false => file.ignored.push(fault(NO_NAME)),
                    }
                }
            },
        }
    }
}

const NO_NAME: &str = "a name has letters, digits and underscores, and begins with no digit";

fn is_name(name: &str) -> bool {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || char == '_';
    let first = name.chars().next();
    first.is_some_and(|first| !first.is_ascii_digit()) && name.chars().all(is_plain)
}

fn is_line_end(char: char) -> bool {
    matches!(char, '\n' | '\r')
}

fn is_space(char: char) -> bool {
    matches!(char, ' ' | '\t') || is_line_end(char)
}

struct Input<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    line: usize,
}

impl Input<'_> {
    fn next(&mut self) -> Option<char> {
        let next = self.rest.next();
        self.line += usize::from(next == Some('\n'));
        next
    }

    fn skip(&mut self, skipped: impl Fn(char) -> bool) {
        while self.rest.peek().is_some_and(|char| skipped(*char)) {
            self.next();
        }
    }

    /// What stands before the equals sign. `None` if the line has none.
    fn take_name(&mut self) -> Option<String> {
        let mut name = String::new();
        loop {
            match self.next() {
                Some('=') => return Some(name.trim_end_matches(is_space).to_owned()),
                Some(char) if !is_line_end(char) => name.push(char),
                _ => return None,
            }
        }
    }

    fn take_value(&mut self) -> Result<String, &'static str> {
        let mut value = String::new();
        // How long the value is without white space at its end that is not quoted.
        let mut length = 0;
        // Quotes count only before other characters.
        let mut is_plain = false;
        self.skip(|char| is_space(char) && !is_line_end(char));
        while let Some(char) = self.next() {
            match char {
                char if is_line_end(char) => break,
                '\'' if !is_plain => {
                    self.take_quoted(&mut value, '\'')?;
                    length = value.len();
                }
                '"' if !is_plain => {
                    self.take_quoted(&mut value, '"')?;
                    length = value.len();
                }
                '\\' => {
                    value.extend(self.next().filter(|char| !is_line_end(*char)));
                    is_plain = true;
                    length = value.len();
                }
                char if is_space(char) && !is_plain => {}
                char => {
                    is_plain = true;
                    value.push(char);
                    length = if is_space(char) { length } else { value.len() };
                }
            }
        }
        value.truncate(length);
        Ok(value)
    }

    fn take_quoted(&mut self, value: &mut String, quote: char) -> Result<(), &'static str> {
        loop {
            match self.next().ok_or("a quote is not closed")? {
                char if char == quote => return Ok(()),
                '\\' if quote == '"' => match self.next().ok_or("a quote is not closed")? {
                    '\n' => {}
                    char if "\"\\`$".contains(char) => value.push(char),
                    char => value.extend(['\\', char]),
                },
                char => value.push(char),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_systemd_reads_them() {
        for (text, expected) in [
            ("", ""),
            ("\n# A=1\n  ; B=2\n\n", ""),
            ("A=1", "A=1"),
            ("A=1\r\nB=2\r\n", "A=1|B=2"),
            (" A =  two words \t\nB=", "A=two words|B="),
            ("A='a b  '", "A=a b  "),
            ("A='a'\"b\"c", "A=abc"),
            (r#"A="a\"b\\c\`\$\n""#, r#"A=a"b\c`$\n"#),
            (r"A='a\b'", r"A=a\b"),
            (r"A=a\ b\\\x", r"A=a b\x"),
            ("A=a\\\n b\nC=d", "A=a b|C=d"),
            ("A=\"a\nb\\\nc\"", "A=a\nbc"),
            ("A=x#y;z", "A=x#y;z"),
            ("A=pa\"ss\nB=it's up", "A=pa\"ss|B=it's up"),
            ("A='a' 'b'", "A=ab"),
            ("A=a=b", "A=a=b"),
            ("A=$B ${C}", "A=$B ${C}"),
            ("A=ä", "A=ä"),
            ("A=1\nA=2", "A=1|A=2"),
            ("A=1\rB=2", "A=1|B=2"),
            ("# a \\\nA=1", "A=1"),
            // Only ASCII's white space is removed.
            ("A=1\u{a0}", "A=1\u{a0}"),
        ] {
            let file = parse(text).unwrap();
            assert_eq!(file.ignored, [], "{text:?}");
            let found = file
                .variables
                .iter()
                .map(|(name, value)| format!("{name}={value}"));
            assert_eq!(found.collect::<Vec<_>>().join("|"), expected, "{text:?}");
        }
    }

    #[test]
    fn a_line_that_is_no_variable_is_ignored_and_named() {
        for (text, ignored, expected) in [
            ("A", vec![1], ""),
            ("A=1\n\nno equals\nB=2", vec![3], "A=1|B=2"),
            ("export A=1\nB=2", vec![1], "B=2"),
            ("=1\n1A=1\r\nA=1\n-B='2\n'", vec![1, 2, 4], "A=1"),
            ("\u{a0}A=1\nB=2\nC-D=3\nE", vec![1, 3, 4], "B=2"),
        ] {
            let file = parse(text).unwrap();
            let lines: Vec<usize> = file.ignored.iter().map(|fault| fault.line).collect();
            assert_eq!(lines, ignored, "{text:?}");
            let found = file
                .variables
                .iter()
                .map(|(name, value)| format!("{name}={value}"));
            assert_eq!(found.collect::<Vec<_>>().join("|"), expected, "{text:?}");
        }
    }

    #[test]
    fn a_fault_without_an_end_is_an_error_and_its_line_named() {
        for (text, line) in [
            ("A=1\nB='not closed\nC=3", 2),
            ("A=\"x\\", 1),
            ("A=\0", 1),
            ("A=1\n# comment\nB=\"\0\"", 3),
        ] {
            assert_eq!(parse(text).unwrap_err().line, line, "{text:?}");
        }
    }
}
