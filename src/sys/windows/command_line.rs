//! Windows: the command line and the environment of a new process, as the system wants them.

use std::cmp::Ordering;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::windows::ffi::OsStrExt;

use windows_sys::Win32::Globalization::{CSTR_EQUAL, CSTR_LESS_THAN, CompareStringOrdinal};

const QUOTE: u16 = b'"' as u16;
const BACKSLASH: u16 = b'\\' as u16;
const SPACE: u16 = b' ' as u16;
const TAB: u16 = b'\t' as u16;
const EQUALS: u16 = b'=' as u16;

/// The units of a text, with a NUL behind them.
pub(super) fn wide(text: &OsStr) -> io::Result<Vec<u16>> {
    let mut units: Vec<u16> = text.encode_wide().collect();
    if units.contains(&0) {
        let text = "a null character in a path, an argument or the environment";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    units.push(0);
    Ok(units)
}

/// The command line of these arguments, of which the first is the program's name, as
/// CommandLineToArgvW and the runtimes of C and Rust read it.
///
/// # Errors
///
/// `InvalidInput` for a null character, and for a name with a quotation mark, which no command line
/// can hold.
pub(super) fn command_line(args: &[OsString]) -> io::Result<Vec<u16>> {
    let mut line = Vec::new();
    for (index, arg) in args.iter().enumerate() {
        let mut arg = wide(arg)?;
        arg.pop();
        if index > 0 {
            line.push(SPACE);
            push_argument(&mut line, &arg);
            continue;
        }
        // In the name, a backslash escapes nothing.
        if arg.contains(&QUOTE) {
            let text = "the name of a program has a quotation mark";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        line.push(QUOTE);
        line.extend(arg);
        line.push(QUOTE);
    }
    line.push(0);
    Ok(line)
}

/// Backslashes are doubled before a quotation mark, and only there.
fn push_argument(line: &mut Vec<u16>, arg: &[u16]) {
    let needs_quotes = arg.is_empty() || arg.iter().any(|unit| matches!(*unit, SPACE | TAB));
    if needs_quotes {
        line.push(QUOTE);
    }
    let mut backslashes = 0;
    for &unit in arg {
        match unit {
            BACKSLASH => backslashes += 1,
            QUOTE => {
                line.extend(std::iter::repeat_n(BACKSLASH, backslashes + 1));
                backslashes = 0;
            }
            _ => backslashes = 0,
        }
        line.push(unit);
    }
    if needs_quotes {
        line.extend(std::iter::repeat_n(BACKSLASH, backslashes));
        line.push(QUOTE);
    }
}

/// The entries `NAME=value` as one block, in the order of their names that Windows asks for. Of two
/// entries with one name, the last one counts.
pub(super) fn environment_block(entries: &[OsString]) -> io::Result<Vec<u16>> {
    let mut texts: Vec<Vec<u16>> = entries
        .iter()
        .map(|text| wide(text))
        .collect::<Result<_, _>>()?;
    // The sort is stable.
    texts.sort_by(|one, other| compare_names(name_of(one), name_of(other)));
    let mut block = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let next = texts.get(index + 1);
        if next.is_none_or(|next| compare_names(name_of(text), name_of(next)).is_ne()) {
            block.extend(text);
        }
    }
    // An empty block has two.
    if block.is_empty() {
        block.push(0);
    }
    block.push(0);
    Ok(block)
}

/// The name in an entry: the names of hidden entries begin with `=`, such as `=C:`.
fn name_of(entry: &[u16]) -> &[u16] {
    let end = entry.iter().skip(1).position(|unit| *unit == EQUALS);
    end.map_or(entry, |end| &entry[..end + 1])
}

#[allow(unsafe_code)]
fn compare_names(one: &[u16], other: &[u16]) -> Ordering {
    let length = |name: &[u16]| i32::try_from(name.len()).unwrap_or(i32::MAX);
    // SAFETY: both texts are alive, and as long as the call is told at least.
    let result = unsafe {
        CompareStringOrdinal(one.as_ptr(), length(one), other.as_ptr(), length(other), 1)
    };
    match result {
        CSTR_EQUAL => Ordering::Equal,
        CSTR_LESS_THAN => Ordering::Less,
        _ => Ordering::Greater,
    }
}

/// Whether an entry of an environment is that of the variable `name`: names differ by more than the
/// case of their letters.
pub(super) fn is_entry_of(entry: &OsStr, name: &OsStr) -> bool {
    let [entry, name] = [entry, name].map(|text| text.encode_wide().collect::<Vec<_>>());
    compare_names(name_of(&entry), &name).is_eq()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(units: &[u16]) -> String {
        String::from_utf16(units).unwrap()
    }

    #[test]
    fn arguments_are_quoted_where_they_have_to_be() {
        for (args, expected) in [
            (&["a"][..], r#""a""#),
            (&[r"C:\a b\c.exe", "x"], r#""C:\a b\c.exe" x"#),
            (&["a", ""], r#""a" """#),
            (&["a", "b c", "d\te"], "\"a\" \"b c\" \"d\te\""),
            (&["a", r"b\", r"c d\"], r#""a" b\ "c d\\""#),
            (&["a", r#"b"c"#, r#"\"d e"#], r#""a" b\"c "\\\"d e""#),
            (&["a", r#"\\"#, r#"b\\c"#], r#""a" \\ b\\c"#),
            (&["a", "ä€𝄞"], "\"a\" ä€𝄞"),
        ] {
            let args: Vec<OsString> = args.iter().map(OsString::from).collect();
            let line = command_line(&args).unwrap();
            assert_eq!(text(&line), format!("{expected}\0"), "{args:?}");
        }
        for name in ["a\"b", "a\0b"] {
            let error = command_line(&[name.into()]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn an_environment_is_sorted_and_has_each_name_once() {
        for (entries, expected) in [
            (&[][..], "\0\0"),
            (&["b=1", "A=2", "=C:=C:\\x"], "=C:=C:\\x\0A=2\0b=1\0\0"),
            (&["Path=1", "x=", "PATH=2=3"], "PATH=2=3\0x=\0\0"),
            (&["ab=1", "a=2", "a_b=3"], "a=2\0ab=1\0a_b=3\0\0"),
        ] {
            let entries: Vec<OsString> = entries.iter().map(OsString::from).collect();
            let block = environment_block(&entries).unwrap();
            assert_eq!(text(&block), expected, "{entries:?}");
        }
    }

    #[test]
    fn names_of_variables_are_the_same_in_either_case() {
        for (entry, name, expected) in [
            ("Path=x", "PATH", true),
            ("PATH=x", "PATHEXT", false),
            ("PATHEXT=x", "PATH", false),
            ("=C:=C:\\", "=c:", true),
            ("ä=1", "Ä", true),
        ] {
            assert_eq!(
                is_entry_of(entry.as_ref(), name.as_ref()),
                expected,
                "{entry}"
            );
        }
    }
}
