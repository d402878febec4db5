//! Environment files, in the format of `EnvironmentFile=` in systemd.exec(5).
//!
//! Each line is empty, a comment (`#` or `;` first), or `NAME=VALUE`. White space around a line and
//! around a value is removed. In a value:
//!
//! - quotes count at the beginning of a value and after other quotes only,
//! - between single quotes, every character stands for itself,
//! - between double quotes, a backslash before `"`, `\`, `` ` `` or `$` stands for that character,
//! - outside of quotes, a backslash before any character stands for that character,
//! - a backslash at the end of a line, outside of single quotes, continues the value on the next
//!   line; between quotes, a value may also have line breaks.
//!
//! Variables in values are not expanded.

use std::fmt;

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

/// Reads the text of a file: names and values, in the order of the file.
pub(super) fn parse(text: &str) -> Result<Vec<(String, String)>, SyntaxError> {
    let mut variables = Vec::new();
    let mut input = Input {
        rest: text.chars().peekable(),
        line: 1,
    };
    loop {
        input.skip(char::is_whitespace);
        let line = input.line;
        match input.rest.peek() {
            None => return Ok(variables),
            Some('#' | ';') => input.skip(|char| char != '\n'),
            Some(_) => {
                let fault = |what| SyntaxError { line, what };
                let name = input.take_name().map_err(fault)?;
                variables.push((name, input.take_value().map_err(fault)?));
            }
        }
    }
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

    fn take_name(&mut self) -> Result<String, &'static str> {
        let mut name = String::new();
        let end = loop {
            match self.next() {
                Some(char) if char != '=' && char != '\n' => name.push(char),
                end => break end,
            }
        };
        let name = name.trim_end();
        let is_plain = |char: char| char.is_ascii_alphanumeric() || char == '_';
        match name.chars().next() {
            Some(first)
                if end == Some('=') && !first.is_ascii_digit() && name.chars().all(is_plain) =>
            {
                Ok(name.to_owned())
            }
            _ => Err("not NAME=VALUE, with a name of letters, digits and underscores"),
        }
    }

    fn take_value(&mut self) -> Result<String, &'static str> {
        let mut value = String::new();
        // How long the value is without white space at its end that is not quoted.
        let mut length = 0;
        // Quotes count only before other characters.
        let mut is_plain = false;
        self.skip(|char| char.is_whitespace() && char != '\n');
        while let Some(char) = self.next() {
            match char {
                '\n' => break,
                '\0' => return Err("a value cannot have a null character"),
                '\'' if !is_plain => {
                    self.take_quoted(&mut value, '\'')?;
                    length = value.len();
                }
                '"' if !is_plain => {
                    self.take_quoted(&mut value, '"')?;
                    length = value.len();
                }
                '\\' => {
                    value.extend(self.next().filter(|char| *char != '\n'));
                    is_plain = true;
                    length = value.len();
                }
                char if char.is_whitespace() && !is_plain => {}
                char => {
                    is_plain = true;
                    value.push(char);
                    length = if char.is_whitespace() {
                        length
                    } else {
                        value.len()
                    };
                }
            }
        }
        value.truncate(length);
        Ok(value)
    }

    fn take_quoted(&mut self, value: &mut String, quote: char) -> Result<(), &'static str> {
        loop {
            match self.next().ok_or("a quote is not closed")? {
                '\0' => return Err("a value cannot have a null character"),
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
        ] {
            let variables = parse(text).unwrap();
            let found = variables
                .iter()
                .map(|(name, value)| format!("{name}={value}"));
            assert_eq!(found.collect::<Vec<_>>().join("|"), expected, "{text:?}");
        }
    }

    #[test]
    fn a_bad_line_is_named() {
        for (text, line) in [
            ("A", 1),
            ("A=1\n\nno equals\nB=2", 3),
            ("export A=1", 1),
            ("=1", 1),
            ("1A=1", 1),
            ("A=1\n-B=2", 2),
            ("A=1\nB='not closed\nC=3", 2),
            ("A=\"x\\", 1),
            ("A=\0", 1),
        ] {
            assert_eq!(parse(text).unwrap_err().line, line, "{text:?}");
        }
    }
}
