//! The guide: its tables name calls that are compiled, its pages are linked, and the files that it names exist.

use std::path::Path;

/// The text of a guide page.
const FROM_STD: &str = include_str!("../src/guide/from_std.md");

/// The code between backticks.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn each_call_in_the_tables_about_std_is_compiled() {
    let parts: Vec<&str> = FROM_STD.split("\n```").collect();
    let text: String = parts.iter().copied().step_by(2).collect();
    let code: String = parts.iter().copied().skip(1).step_by(2).collect();
    let (mut rows, mut calls) = (0, 0);
    let is_head = |row: &str| row.contains("std::net") || row.starts_with("|---");
    let table_rows = text.lines().filter(|line| line.starts_with('|'));
    for row in table_rows.filter(|row| !is_head(row)) {
        rows += 1;
        let cells: Vec<&str> = row[1..].split('|').map(str::trim).collect();
        let [_, here, how, ""] = cells[..] else {
            panic!("three cells: {row}");
        };
        assert!(!here.is_empty() || !how.is_empty(), "a reason: {row}");
        let is_call = |code: &&str| code.starts_with("conn.") || code.ends_with("\")");
        for call in code_spans(here).chain(code_spans(how).filter(is_call)) {
            calls += 1;
            assert!(code.contains(call), "not compiled: {call}");
        }
    }
    assert!(rows > 25 && calls > 25, "{rows} rows, {calls} calls");
}

/// The pages, by the names of their modules.
fn pages() -> Vec<String> {
    let source = include_str!("../src/guide.rs");
    let names = source.lines().filter_map(|line| {
        let name = line.strip_prefix("pub mod ")?;
        Some(name.strip_suffix(" {}")?.to_owned())
    });
    names.collect()
}

#[test]
fn the_guide_and_the_readme_link_every_page() {
    let (head, _) = include_str!("../src/guide.rs").split_once("\n\n").unwrap();
    let readme = include_str!("../README.md");
    let pages = pages();
    assert!(pages.len() >= 10, "{pages:?}");
    for page in pages {
        assert!(head.contains(&format!("[`{page}`]")), "{page}: guide.rs");
        let address =
            format!("\n[`guide::{page}`]: https://docs.rs/handover/latest/handover/guide/");
        assert!(readme.contains(&address), "{page}: README.md");
    }
}

/// The page for maintainers names files, without `src/` for those of the library.
#[test]
fn the_files_that_the_guide_names_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = code_spans(include_str!("../src/guide/internals.md"));
    let mut files = 0;
    for name in names.filter(|name| name.ends_with(".rs") && !name.contains('*')) {
        files += 1;
        let dir = if name.starts_with("tests/") {
            "."
        } else {
            "src"
        };
        assert!(root.join(dir).join(name).exists(), "{name}");
    }
    assert!(files > 30, "{files}");
}
