//! Import cycles between the files of one module.
//!
//! The rule: the files below one top-level module of `src` do not import each other in a cycle.
//! What counts as an import of another file:
//!
//! | in `src/m/a.rs` | counts as an import of |
//! |---|---|
//! | `use super::b::B;` or `crate::m::b::f()`, also in groups and macros | `b` |
//! | `super::B`, where `src/m/mod.rs` imports `b::B` or `b::*` | `b` |
//! | `super::M`, where `src/m/mod.rs` defines `M` | nothing |
//! | anything under `#[cfg(test)]` | nothing |
//!
//! Imports between a `mod.rs` and the files below it do not count in either direction: in Rust a
//! parent declares, assembles and re-exports its children, and a child uses the types that its
//! parent defines. A name that the parent only re-exports is not the parent's, so it counts as
//! imported from the file that defines it. The table of layers excludes cycles between modules.
//!
//! Not seen: calls of methods. Two files that each add methods to one type, and call each other's,
//! have no cycle here. Nor have two directories, if no files of theirs form one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::slice;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

use super::{is_punct, is_word, line_of, module_of};

/// The words of a path from the crate's root, without `crate`.
type Path = Vec<String>;

/// An import cycle.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Cycle {
    /// The top-level module that the files are in.
    pub(super) module: String,
    /// Each import in the cycle with its file and line, and the remedy.
    pub(super) what: String,
}

/// Finds the cycles in all modules. `files` are paths from the crate's directory, and texts.
pub(super) fn find(files: &[(String, String)]) -> Vec<Cycle> {
    let tree = Tree::parse(files);
    let imports = tree.imports();
    let cycles = shortest_cycles(&imports).into_iter().map(|cycle| {
        let steps = cycle.iter().zip(cycle.iter().cycle().skip(1));
        let steps = steps.map(|(from, to)| {
            let line = imports[from][to];
            format!("{}:{line} imports {}", tree.0[from].path, tree.0[to].path)
        });
        let what = format!(
            "import cycle: {}: move what they share into a file that imports neither, or let one \
             of them be given a value or a closure",
            steps.collect::<Vec<_>>().join(", ")
        );
        let module = cycle[0][0].clone();
        Cycle { module, what }
    });
    cycles.collect()
}

/// Which file imports which, by their modules, and the first line that does so.
type Imports = BTreeMap<Path, BTreeMap<Path, usize>>;

/// All files by their modules.
struct Tree(BTreeMap<Path, File>);

/// What one file contains, without test code.
#[derive(Default)]
struct File {
    path: String,
    /// Every path in the file, from the crate's root, and its line.
    references: Vec<(Path, usize)>,
    /// The names that `use` brings into the file's own scope, and the paths behind them.
    /// The name is `*` for a glob.
    imports: Vec<(String, Path)>,
    /// The items that the file's own scope defines.
    items: BTreeSet<String>,
    /// The modules that the file declares under `#[cfg(test)]`.
    test_children: Vec<Path>,
}

impl Tree {
    fn parse(files: &[(String, String)]) -> Self {
        let mut tree = BTreeMap::new();
        for (path, source) in files {
            let module: Path = module_of(path).into_iter().map(str::to_owned).collect();
            let mut file = File {
                path: path.clone(),
                ..File::default()
            };
            // `check` reports a file that is not Rust.
            file.walk(source.parse().unwrap_or_default(), &module, true);
            tree.insert(module, file);
        }
        let tests: Vec<Path> = tree
            .values()
            .flat_map(|f| f.test_children.clone())
            .collect();
        tree.retain(|module, _| !tests.iter().any(|test| module.starts_with(test)));
        Self(tree)
    }

    /// The imports between files of the same top-level module that count.
    fn imports(&self) -> Imports {
        let mut imports = Imports::new();
        for (module, file) in &self.0 {
            for (path, line) in &file.references {
                for target in self.resolve(&[], path, 0) {
                    let is_related = module.starts_with(&target) || target.starts_with(module);
                    if !is_related && module.first() == target.first() {
                        let imports = imports.entry(module.clone()).or_default();
                        imports.entry(target).or_insert(*line);
                    }
                }
            }
        }
        imports
    }

    /// The modules that define what `words` name in the scope of `module`. There are several for a
    /// glob, and for a name that depends on the platform.
    fn resolve(&self, module: &[String], words: &[String], hops: usize) -> Vec<Path> {
        let own = vec![module.to_vec()];
        let (Some((word, rest)), Some(file)) = (words.split_first(), self.0.get(module)) else {
            return own;
        };
        let below = child(module, word);
        if self.0.contains_key(&below) {
            return self.resolve(&below, rest, hops);
        }
        if file.items.contains(word) || hops > MOST_HOPS {
            return own;
        }
        let follow = |path: &Path| self.resolve(&[], &[path, rest].concat(), hops + 1);
        if word == "*" {
            let imports = file.imports.iter().flat_map(|(_, path)| follow(path));
            return imports.chain(own).collect();
        }
        let named = file.imports.iter().filter(|(name, _)| name == word);
        let named: Vec<Path> = named.flat_map(|(_, path)| follow(path)).collect();
        if !named.is_empty() {
            return named;
        }
        let mut sources = self.glob_sources(file, hops).into_iter();
        let source = sources.find(|source| source != module && self.knows(source, word, hops));
        source.map_or(own, |source| self.resolve(&source, words, hops + 1))
    }

    /// Whether a name is in the scope of a module's file.
    fn knows(&self, module: &Path, word: &String, hops: usize) -> bool {
        self.0.get(module).is_some_and(|file| {
            let sources = || self.glob_sources(file, hops).into_iter();
            file.items.contains(word)
                || file.imports.iter().any(|(name, _)| name == word)
                || hops <= MOST_HOPS && sources().any(|source| self.knows(&source, word, hops + 1))
        })
    }

    /// The modules from which a file imports everything.
    fn glob_sources(&self, file: &File, hops: usize) -> Vec<Path> {
        let globs = file.imports.iter().filter(|(name, _)| name == "*");
        let modules = globs.filter_map(|(_, path)| path.split_last());
        let modules = modules.flat_map(|(_, module)| self.resolve(&[], module, hops + 1));
        modules.collect()
    }
}

/// The number of `use` declarations that one name is followed through at most.
const MOST_HOPS: usize = 8;

/// The keywords that are followed by the name of an item.
const ITEMS: [&str; 9] = [
    "const", "enum", "fn", "mod", "static", "struct", "trait", "type", "union",
];

impl File {
    /// Reads code in the module `scope`. With `is_top` it is the top level of the file.
    fn walk(&mut self, tokens: TokenStream, scope: &[String], is_top: bool) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            let (before, path, rest) = (&tokens[..at], &tokens[at..], &tokens[at + 1..]);
            at += 1;
            let word = match token {
                TokenTree::Group(group) => {
                    self.walk(group.stream(), scope, false);
                    continue;
                }
                TokenTree::Ident(word) => word.to_string(),
                TokenTree::Punct(_) if is_punct(token, '#') && is_for_tests(rest) => {
                    let item = &rest[..item_len(rest)];
                    at += item.len();
                    if let [.., keyword, TokenTree::Ident(name), _] = item {
                        if is_word(keyword, "mod") {
                            self.test_children.push(child(scope, &name.to_string()));
                        }
                    }
                    continue;
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => continue,
            };
            if let ("mod", [TokenTree::Ident(name), TokenTree::Group(body), ..]) = (&*word, rest) {
                self.walk(body.stream(), &child(scope, &name.to_string()), false);
                at += 2;
            }
            if is_top && word == "use" {
                let paths = paths(rest).into_iter();
                self.imports
                    .extend(paths.map(|path| (path.name.clone(), path.absolute(scope))));
            }
            if let (true, [TokenTree::Ident(name), ..]) = (is_top, rest) {
                if ITEMS.contains(&&*word) {
                    self.items.insert(name.to_string());
                }
            }
            if !ends_in_colons(before) && begins_with_colons(rest) {
                let paths = paths(path).into_iter();
                self.references
                    .extend(paths.map(|path| (path.absolute(scope), path.line)));
            }
        }
    }
}

/// Whether an attribute follows that compiles its item for tests only, such as `[cfg(test)]`.
fn is_for_tests(rest: &[TokenTree]) -> bool {
    /// Whether `test` is a part of a condition, outside of `not(...)`.
    fn has_test(condition: TokenStream) -> bool {
        let mut is_negated = false;
        condition.into_iter().any(|token| match token {
            TokenTree::Group(group) => !std::mem::take(&mut is_negated) && has_test(group.stream()),
            token => {
                is_negated = is_word(&token, "not");
                is_word(&token, "test")
            }
        })
    }
    let [TokenTree::Group(attribute), ..] = rest else {
        return false;
    };
    let mut tokens = attribute.stream().into_iter();
    let is_cfg = tokens.next().is_some_and(|token| is_word(&token, "cfg"));
    is_cfg && has_test(tokens.collect())
}

/// The number of tokens of an item, from its attributes to its body or semicolon.
fn item_len(tokens: &[TokenTree]) -> usize {
    let is_end = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        token => is_punct(token, ';'),
    };
    let end = tokens.iter().position(is_end);
    end.map_or(tokens.len(), |end| end + 1)
}

fn begins_with_colons(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [a, b, ..] if is_punct(a, ':') && is_punct(b, ':'))
}

fn ends_in_colons(tokens: &[TokenTree]) -> bool {
    matches!(tokens, [.., a, b] if is_punct(a, ':') && is_punct(b, ':'))
}

fn child(module: &[String], name: &str) -> Path {
    [module, &[name.to_owned()]].concat()
}

/// A path as the code has it.
struct WrittenPath {
    words: Path,
    /// The name that a `use` of the path brings into scope.
    name: String,
    line: usize,
}

impl WrittenPath {
    /// The same path from the crate's root, if it is written in the module `scope`.
    fn absolute(&self, scope: &[String]) -> Path {
        let mut path = scope.to_vec();
        for word in &self.words {
            match word.as_str() {
                "crate" => path.clear(),
                "super" => drop(path.pop()),
                "self" => {}
                _ => path.push(word.clone()),
            }
        }
        path
    }
}

/// The paths of the path or use tree that `tokens` begin with.
fn paths(tokens: &[TokenTree]) -> Vec<WrittenPath> {
    let (mut words, mut line, mut rest) = (Path::new(), 0, tokens);
    while let [token, after @ ..] = rest {
        match token {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                return branches(group, &words);
            }
            TokenTree::Ident(_) => {}
            _ if is_punct(token, '*') => {}
            _ => break,
        }
        line = line_of(token);
        words.push(token.to_string());
        rest = after;
        if !begins_with_colons(rest) {
            break;
        }
        rest = &rest[2..];
    }
    let alias = match rest {
        [word, TokenTree::Ident(alias), ..] if is_word(word, "as") => Some(alias.to_string()),
        _ => None,
    };
    let name = alias.or_else(|| words.last().cloned());
    let path = name.map(|name| WrittenPath { words, name, line });
    path.into_iter().collect()
}

/// The paths of a group in a use tree, given the words before the group.
fn branches(group: &Group, before: &[String]) -> Vec<WrittenPath> {
    let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
    let branches = tokens.split(|token| is_punct(token, ','));
    let written = branches.flat_map(paths).map(|path| WrittenPath {
        // `a::b::{self}` brings `b` into scope.
        name: match (path.name.as_str(), before.last()) {
            ("self", Some(last)) => last.clone(),
            _ => path.name,
        },
        words: [before, &path.words].concat(),
        line: path.line,
    });
    written.collect()
}

/// A shortest cycle through each file that is in one; each cycle once.
fn shortest_cycles(imports: &Imports) -> Vec<Vec<Path>> {
    let mut seen = BTreeSet::new();
    let cycles = imports.keys().filter_map(|start| {
        let cycle = cycle_through(start, imports)?;
        let members: BTreeSet<Path> = cycle.iter().cloned().collect();
        seen.insert(members).then_some(cycle)
    });
    cycles.collect()
}

/// The shortest way along imports from a file back to itself, by breadth-first search.
fn cycle_through(start: &Path, imports: &Imports) -> Option<Vec<Path>> {
    let mut ways = VecDeque::from([vec![start.clone()]]);
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        let targets = imports.get(way.last()?);
        for next in targets.into_iter().flat_map(BTreeMap::keys) {
            if next == start {
                return Some(way);
            }
            if seen.insert(next) {
                ways.push_back([way.as_slice(), slice::from_ref(next)].concat());
            }
        }
    }
    None
}

/// The cycles among the files of `src/m`, given their names and code. `mod.rs` is empty unless it
/// is given.
fn cycles_of(files: &[(&str, &str)]) -> Vec<String> {
    let files = [("../lib", "mod m;"), ("mod", "")].iter().chain(files);
    let files = files.map(|(name, code)| {
        let path = format!("src/m/{name}.rs").replace("m/../", "");
        (path, (*code).to_owned())
    });
    let cycles = find(&files.collect::<Vec<_>>());
    cycles.into_iter().map(|cycle| cycle.what).collect()
}

#[test]
fn two_files_that_import_each_other_are_named_with_the_remedy() {
    let cycles = cycles_of(&[
        ("mod", "mod a;\nmod b;"),
        ("a", "use super::b::B;\npub(super) struct A;"),
        ("b", "//! B.\nuse std::fmt;\nuse crate::m::a::A;"),
    ]);
    let what = "import cycle: src/m/a.rs:1 imports src/m/b.rs, src/m/b.rs:3 imports src/m/a.rs: \
                move what they share into a file that imports neither, or let one of them be given \
                a value or a closure";
    assert_eq!(cycles, [what]);
}

#[test]
fn a_cycle_of_three_files_is_found_in_groups_inline_paths_and_macros() {
    let cycles = cycles_of(&[
        ("mod", "mod a; mod b; mod c;"),
        ("a", "use {std::fmt, super::{super::clock, b::{self, B}}};"),
        ("b", "fn f() -> u8 { super::c::f::<u8>() }"),
        ("c", "macro_rules! m { () => { $crate::m::a::f() } }"),
    ]);
    assert_eq!(cycles.len(), 1, "{cycles:?}");
    for step in [
        "a.rs:1 imports src/m/b",
        "b.rs:1 imports src/m/c",
        "c.rs:1 imports src/m/a",
    ] {
        assert!(cycles[0].contains(step), "{cycles:?}");
    }
}

#[test]
fn a_diamond_is_no_cycle_and_two_cycles_are_two() {
    let diamond = [
        ("mod", "mod a; mod b; mod c; mod d;"),
        ("a", "use super::{b, c::C};"),
        ("b", "use super::d::D;"),
        ("c", "use super::d::D;"),
        ("d", "use crate::clock::Deadline;"),
    ];
    assert_eq!(cycles_of(&diamond), [] as [&str; 0]);
    let two = cycles_of(&[
        ("a", "use super::b;"),
        ("b", "use super::a;"),
        ("c", "use super::d;"),
        ("d", "use super::c;"),
    ]);
    assert_eq!(two.len(), 2, "{two:?}");
}

#[test]
fn parent_and_child_are_no_cycle_unless_the_parent_only_passes_a_name_on() {
    let cycles = |a, b| {
        cycles_of(&[
            (
                "mod",
                "mod a;\nmod b;\npub(crate) use {a::*, b::B as Beta};\nstruct M;",
            ),
            ("a", a),
            ("b", b),
        ])
        .len()
    };
    let b = "use super::M; pub(super) struct B;";
    assert_eq!(cycles("use super::{M, Beta}; pub(super) struct A;", b), 0);
    let b = "use super::A; pub(super) struct B;";
    assert_eq!(cycles("use super::M; pub(super) struct A;", b), 0);
    assert_eq!(cycles("use super::Beta; pub(super) struct A;", b), 1);
    assert_eq!(cycles("use super::*; pub(super) struct A;", b), 1);
    assert_eq!(cycles("use crate::m; fn f(_: m::Beta) {} struct A;", b), 1);
}

#[test]
fn files_in_directories_form_cycles_and_directories_do_not() {
    let cycles = |a, x| {
        cycles_of(&[
            ("mod", "mod a; mod b;"),
            ("a", a),
            ("b/mod", "mod x; mod y; use y::Y;"),
            ("b/x", x),
            ("b/y", "struct Y;"),
        ])
    };
    let x = "use super::Y; use crate::m::a::A;";
    let found = cycles("use super::b::x::X;", x);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains("src/m/b/x.rs:1 imports src/m/a.rs"),
        "{found:?}"
    );
    assert_eq!(cycles("use super::b::Y;", x), [] as [&str; 0]);
}

#[test]
fn test_code_does_not_count_and_other_conditions_do() {
    let cycles = |a| cycles_of(&[("a", a), ("b", "use super::a::A;"), ("t", "use super::a;")]);
    for code in [
        "#[cfg(test)] mod tests { use crate::m::b::B; }",
        "#[cfg(test)] #[derive(Debug)] fn f() -> super::b::B { super::b::f() }",
        "#[cfg(all(unix, test))] use super::{b::B, c::C};",
        "#[cfg(test)] const N: usize = super::b::N;",
    ] {
        assert_eq!(cycles(code), [] as [&str; 0], "{code}");
    }
    for code in [
        "#[cfg(test)] use super::c; use super::b::B;",
        "#[cfg(not(test))] use super::b::B;",
        "#[cfg(unix)] use super::b::B;",
        "mod inner { use super::super::b::B; }",
    ] {
        assert_eq!(cycles(code).len(), 1, "{code}");
    }
    let with_test_file = [
        ("mod", "mod a; #[cfg(test)] mod t;"),
        ("a", "use super::t::T;"),
        ("t", "use super::a;"),
    ];
    assert_eq!(cycles_of(&with_test_file), [] as [&str; 0]);
}
