//! The layers of `src`, and the checks that the code keeps to them:
//!
//! - a module imports only from lower layers;
//! - the files of one module do not import each other in a cycle, see [`cycles`];
//! - `unsafe` and platform code stay in `sys`;
//! - each file begins with a line that says its job;
//! - records go through `crate::log`, where a panic of the logger ends.
//!
//! Files are read as tokens, so comments and strings do not count, and macros do. Code under
//! `#[cfg(test)]` counts for the layers, and does not count for the cycles: the tests of a file
//! may import a file that imports it.

use std::fs;
use std::path::Path;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

#[path = "layering/cycles.rs"]
mod cycles;

/// The modules of `src`, from the bottom up: each may import only from the rows above its own. A
/// change of the structure changes this table in the same commit.
const LAYERS: [&[&str]; 10] = [
    &["guide", "panic"],
    &["log"],
    &["sys", "wire"],
    &["addr", "clock", "service_manager", "start_error"],
    &["drain", "listener", "notify", "signals", "stats"],
    &["connection"],
    &["parking", "restart", "service"],
    &["acceptor", "http", "supervisor", "worker"],
    &["moving"],
    &["server"],
];

/// The directory of the programs. Each program is a folder with a `main.rs`: a crate of its own above
/// all layers, which uses only the public interface of the library. Its files name each other by
/// `super`, and form no cycles.
const PROGRAMS: &str = "bin";

/// The words in a `cfg` that make code depend on the platform.
const PLATFORM: [&str; 4] = ["target_family", "target_os", "unix", "windows"];

#[test]
fn src_keeps_to_the_layers() {
    let mut report = String::new();
    for (path, source) in &sources() {
        for (line, what) in check(path, source) {
            report += &format!("\n{path}:{line}: {what}");
        }
    }
    assert!(report.is_empty(), "src breaks the layers:{report}");
}

#[test]
fn files_of_a_module_do_not_import_each_other_in_a_cycle() {
    let found = cycles::find(&sources());
    let mut report = String::new();
    for cycle in found {
        report += &format!("\n{}", cycle.what);
    }
    assert!(report.is_empty(), "src has import cycles:{report}");
}

/// The path and the text of every .rs file in `src`.
fn sources() -> Vec<(String, String)> {
    let mut files = Vec::new();
    list(Path::new(env!("CARGO_MANIFEST_DIR")), "src", &mut files);
    assert!(!files.is_empty(), "there is no .rs file in src");
    files.sort();
    files
}

/// Adds the path and the text of every .rs file under `dir` to `files`.
fn list(root: &Path, dir: &str, files: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(root.join(dir)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{dir}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            list(root, &path, files);
        } else if path.ends_with(".rs") {
            files.push((path, fs::read_to_string(entry.path()).unwrap()));
        }
    }
}

/// The path of the module that a file contains, from the crate's root.
fn module_of(path: &str) -> Vec<&str> {
    let parts = path
        .strip_prefix("src/")
        .and_then(|path| path.strip_suffix(".rs"));
    let parts = parts.unwrap_or(path).split('/');
    parts
        .filter(|part| !["lib", "main", "mod"].contains(part))
        .collect()
}

/// The faults of one file: the line, and what is wrong with the remedy.
fn check(path: &str, source: &str) -> Vec<(usize, String)> {
    let module = module_of(path);
    let top = module.first().copied();
    let mut file = File {
        top,
        faults: Vec::new(),
    };
    if !source.starts_with("//!") {
        file.fault(
            1,
            "the first line is no `//!` line: write one that says the file's one job",
        );
    }
    if let Some(top) = top.filter(|&top| top != PROGRAMS && layer(top).is_none()) {
        let what = format!("`{top}` has no layer: add it to the table in tests/layering.rs");
        file.fault(1, what);
    }
    let is_record = |level| source.contains(&format!("log::{level}!"));
    let writes_records = ["error", "warn", "info", "debug", "trace"]
        .iter()
        .any(is_record);
    let is_outside = top == Some("log") || top == Some(PROGRAMS);
    if writes_records && !is_outside && !source.contains("use crate::log;") {
        file.fault(
            1,
            "the macros of the `log` crate may panic: add `use crate::log;`",
        );
    }
    match source.parse::<TokenStream>() {
        Ok(tokens) => file.walk(tokens, module.len()),
        Err(e) => file.fault(e.span().start().line, "this is not valid Rust: fix it"),
    }
    file.faults
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

struct File<'a> {
    /// The top-level module that the file is in. `None` for `lib.rs`, which may import all.
    top: Option<&'a str>,
    faults: Vec<(usize, String)>,
}

impl File<'_> {
    fn fault(&mut self, line: usize, what: impl Into<String>) {
        self.faults.push((line, what.into()));
    }

    /// Checks code in a module that is `depth` levels below the crate's root.
    fn walk(&mut self, tokens: TokenStream, depth: usize) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let in_sys = self.top == Some("sys");
        let in_program = self.top == Some(PROGRAMS);
        let mut body_of_mod = false;
        for (at, token) in tokens.iter().enumerate() {
            let (line, rest) = (line_of(token), &tokens[at + 1..]);
            let word = match token {
                TokenTree::Group(group) => {
                    let below = body_of_mod && group.delimiter() == Delimiter::Brace;
                    self.walk(group.stream(), depth + usize::from(below));
                    body_of_mod = false;
                    continue;
                }
                TokenTree::Ident(word) => word.to_string(),
                _ => continue,
            };
            match word.as_str() {
                "mod" => body_of_mod = matches!(rest, [_, TokenTree::Group(_), ..]),
                "path" if in_program && matches!(rest, [_, TokenTree::Literal(_)]) => {
                    self.fault(
                        line,
                        "a program has files of its own only: put what it shares with others into \
                         the library",
                    );
                }
                "crate" if in_program => {
                    self.fault(
                        line,
                        "a program uses only what is public: write the path from `handover`, or \
                         from `super` for its own files",
                    );
                }
                "crate" => self.check_root(line, rest),
                "super" => {
                    if heads_behind(rest).iter().any(|(head, _)| head == "super") {
                        self.fault(line, "`super::super`: write the path from `crate`");
                    }
                    if depth == 1 {
                        self.check_root(line, rest);
                    }
                }
                "unsafe" if !in_sys => {
                    self.fault(
                        line,
                        "`unsafe` outside `sys`: call a safe function in `sys` instead",
                    );
                }
                "cfg" | "cfg_attr" if !in_sys && asks_for_platform(rest) => {
                    self.fault(
                        line,
                        "platform code outside `sys`: call one function in `sys` instead",
                    );
                }
                _ => {}
            }
        }
    }

    /// Checks a path from the crate's root. `rest` follows its first word, `crate` or `super`.
    fn check_root(&mut self, line: usize, rest: &[TokenTree]) {
        let Some(top) = self.top else { return };
        if rest.first().is_some_and(|token| is_word(token, "as")) {
            self.fault(
                line,
                "an alias for the crate's root hides what is imported: name the module",
            );
        }
        for (head, line) in heads_behind(rest) {
            match (layer(top), layer(&head)) {
                _ if head == top || head == "super" => {}
                (Some(own), Some(other)) if other >= own => {
                    let what = format!(
                        "`{top}` (layer {own}) imports `{head}` (layer {other}): move what both \
                         need to a lower layer, or pass `{top}` a closure or a `Sender`"
                    );
                    self.fault(line, what);
                }
                (_, None) => {
                    let what = format!("`{head}` is not in the table: import from a module in it");
                    self.fault(line, what);
                }
                _ => {}
            }
        }
    }
}

/// The next word of each branch of a path or use tree that goes on at `rest`, and its line.
fn heads_behind(rest: &[TokenTree]) -> Vec<(String, usize)> {
    match rest {
        [colon, second, tree, ..] if is_punct(colon, ':') && is_punct(second, ':') => heads(tree),
        _ => Vec::new(),
    }
}

fn heads(tree: &TokenTree) -> Vec<(String, usize)> {
    let TokenTree::Group(group) = tree else {
        return vec![(tree.to_string(), line_of(tree))];
    };
    let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
    let branches = tokens.split(|token| is_punct(token, ','));
    branches
        .filter_map(|branch| branch.first())
        .flat_map(heads)
        .collect()
}

/// Whether the condition that follows `cfg`, `cfg!` or `cfg_attr` depends on the platform.
fn asks_for_platform(rest: &[TokenTree]) -> bool {
    fn any(tokens: TokenStream) -> bool {
        tokens.into_iter().any(|token| match token {
            TokenTree::Group(group) => any(group.stream()),
            token => PLATFORM.iter().any(|word| is_word(&token, word)),
        })
    }
    match rest {
        [TokenTree::Group(group), ..] => any(group.stream()),
        [bang, TokenTree::Group(group), ..] if is_punct(bang, '!') => any(group.stream()),
        _ => false,
    }
}

fn is_word(token: &TokenTree, word: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident == word)
}

fn is_punct(token: &TokenTree, char: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == char)
}

fn line_of(token: &TokenTree) -> usize {
    token.span().start().line
}

/// Asserts that in a file of a `//!` line and `code` the faulty lines are those that end in `//~`.
#[track_caller]
fn probe(path: &str, code: &str) {
    let source = format!("//! A file.{code}");
    let mut faults = check(path, &source);
    faults.dedup_by_key(|(line, _)| *line);
    let lines: Vec<usize> = faults.iter().map(|(line, _)| *line).collect();
    let numbered = source.lines().zip(1..);
    let marked = numbered
        .filter(|(text, _)| text.ends_with("//~"))
        .map(|(_, line)| line);
    assert_eq!(lines, marked.collect::<Vec<usize>>(), "{path}: {faults:?}");
}

#[test]
fn imports_point_to_strictly_lower_layers() {
    let code = "
        use crate::clock;
        use crate::connection::Connection;
        use crate::parking::Lot;
        use crate::service::Next; //~
        use crate::server::Server; //~
    ";
    probe("src/parking.rs", code);
    probe("src/parking/lot.rs", code);
    probe("src/lib.rs", &code.replace("//~", ""));
}

#[test]
fn a_fault_says_what_to_do() {
    let faults = check("src/panic.rs", "//! Threads.\n\nuse crate::worker::Turn;\n");
    let what = format!(
        "`panic` (layer {}) imports `worker` (layer {}): move what both need to a lower layer, or \
         pass `panic` a closure or a `Sender`",
        layer("panic").unwrap(),
        layer("worker").unwrap()
    );
    assert_eq!(faults, [(3, what)]);
}

#[test]
fn use_trees_are_followed() {
    let code = "
        use crate::{
            clock::{self, Deadline},
            server::{Builder, clock}, //~
            {sys, http}, //~
        };
        use {std::fmt, crate::server}; //~
        use crate
            ::
            server; //~
    ";
    probe("src/drain.rs", code);
}

#[test]
fn inline_paths_and_tests_and_macros_count() {
    let code = r#"
        fn f() -> crate::server::Server { //~
            crate::http::g() //~
        }
        macro_rules! m { () => { $crate::server::f() } } //~
        fn g() { println!("{}", crate::http::N); } //~
        #[cfg(test)]
        mod tests {
            use crate::server::Server; //~
        }
    "#;
    probe("src/panic.rs", code);
}

#[test]
fn comments_and_strings_do_not_count() {
    let code = r###"
        // use crate::server;
        /* unsafe /* crate::server */ crate::server */
        /// See [`crate::server`].
        const A: (&str, &[u8]) = ("crate::server \" unsafe", b"unsafe");
        const B: &str = r#"" unsafe
            #[cfg(unix)] crate::server"#;
        fn f<'a>(_: &'a str) -> char { '"' }
        use crate::server; //~
    "###;
    probe("src/panic.rs", code);
}

#[test]
fn super_is_the_root_only_at_the_top_of_a_module() {
    let code = "
        mod sub;
        mod tests { use super::*; }
        pub(super) fn f() {}
        pub(crate) fn g() {}
        use super::{clock, server}; //~
        use super::*; //~
    ";
    probe("src/restart.rs", code);
    probe("src/restart/mod.rs", code);
    probe("src/restart/spawn.rs", &code.replace("//~", ""));
}

#[test]
fn super_super_is_refused() {
    let code = "
        use super::super::clock; //~
        mod tests {
            use super::{super::clock}; //~
        }
    ";
    probe("src/restart/spawn.rs", code);
}

#[test]
fn the_root_is_neither_renamed_nor_taken_whole() {
    let code = "
        use crate as root; //~
        use crate::*; //~
        use crate::{self as root, clock}; //~
        use crate::Connection; //~
    ";
    probe("src/server.rs", code);
}

#[test]
fn unsafe_is_in_sys_only() {
    let code = "
        #![deny(unsafe_code)]
        unsafe impl Send for S {} //~
        fn f() {
            unsafe { g() } //~
        }
    ";
    probe("src/panic.rs", code);
    probe("src/lib.rs", code);
    probe("src/sys/unix.rs", &code.replace("//~", ""));
}

#[test]
fn platform_code_is_in_sys_only() {
    let code = r#"
        use std::os::unix;
        #[cfg(feature = "unix")]
        mod a;
        #[cfg(unix)] //~
        mod b;
        #[cfg(all(test, not(target_os = "linux")))] //~
        mod c;
        #[cfg_attr(windows, path = "w.rs")] //~
        mod d;
        fn f() -> bool { cfg!(target_family = "unix") } //~
    "#;
    probe("src/signals.rs", code);
    probe("src/lib.rs", code);
    probe("src/sys/mod.rs", &code.replace("//~", ""));
}

#[test]
fn a_program_knows_the_public_interface_only() {
    let code = "
        use handover::{Bind, Supervisor};
        use crate::supervisor::Supervisor; //~
        #[path = \"../../clock.rs\"] //~
        mod clock;
        mod run;
        use super::request::Target;
        #[cfg(unix)] //~
        fn f() {
            unsafe { g() } //~
        }
        mod tests {
            use super::*;
        }
    ";
    probe("src/bin/handover/main.rs", code);
    probe("src/bin/handover/run.rs", code);
}

#[test]
fn a_module_has_its_layer_and_a_file_its_job() {
    for (path, source, faults) in [
        ("src/http/head.rs", "//! Heads.", 0),
        (
            "src/http/head.rs",
            "//! Heads.\nuse crate::log;\nfn f() { log::info!(); }",
            0,
        ),
        (
            "src/http/head.rs",
            "//! Heads.\nfn f() { log::info!(); }",
            1,
        ),
        ("src/helpers.rs", "//! This and that.", 1),
        ("src/helpers/mod.rs", "//! This and that.", 1),
        ("src/panic.rs", "use std::fmt;", 1),
        ("src/panic.rs", "//! Threads.\nfn f( {", 1),
    ] {
        assert_eq!(check(path, source).len(), faults, "{path}");
    }
}

#[test]
fn the_table_names_a_module_once() {
    let mut names = LAYERS.concat();
    names.sort_unstable();
    assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
}
