//! The tables of the guide: each call that a table names is compiled by an example under it.

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
