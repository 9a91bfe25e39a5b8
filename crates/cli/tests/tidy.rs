//! Rules of the house that the compiler does not check: sizes, which room may use which, who may touch the environment,
//! where object names are spelled, and that documents name what exists.
//!
//! The scanner reads lines, not syntax, and leans on rustfmt: a function ends at the brace in the column where it began, and
//! a file's test code starts at its first `#[cfg(test)]`.
#![allow(clippy::unwrap_used)] // clippy.toml excuses test functions only, and all of this file is tests

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// No file may be longer, in lines.
const FILE_LIMIT: usize = 500;
/// A longer file needs an entry in `LONG_FILES`.
const FILE_TARGET: usize = 350;
/// A longer function needs an entry in `LONG_FUNCTIONS`.
const FUNCTION_TARGET: usize = 70;

/// Files over `FILE_TARGET`. This list only shrinks: an entry for a file that has become short fails.
const LONG_FILES: &[&str] = &["crates/repository/src/repository.rs"];

/// Functions over `FUNCTION_TARGET`, as `path: name`. This list only shrinks too.
const LONG_FUNCTIONS: &[&str] = &[];

/// Which crates of the house each crate may use; `cli` may use all. Arrows point down only.
const ARROWS: &[(&str, &[&str])] = &[
    ("pg", &[]),
    ("storage", &[]),
    ("server", &["pg"]),
    ("repository", &["storage", "pg"]),
    ("mount", &["repository", "pg"]),
    ("operations", &["repository", "server", "pg", "storage"]),
    ("daemon", &["operations", "repository"]),
    ("cli", &["daemon", "mount", "operations", "server", "repository", "storage", "pg"]),
];

/// Names that say nothing: find the noun.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "types", "manager", "helpers", "helper", "misc"];

/// The first parts of object names, which only `repository::layout` spells.
const OBJECT_ROOMS: &[&str] = &["\"packs/", "\"keys/", "\"clusters/", "\"proofs/", "\"moved/", "\"leases/"];

#[test]
fn files_are_short() {
    let mut long = BTreeSet::new();
    for file in rust_files() {
        let lines = file.text.lines().count();
        assert!(lines <= FILE_LIMIT, "{} has {lines} lines, the limit is {FILE_LIMIT}", file.name);
        if lines > FILE_TARGET {
            long.insert(file.name);
        }
    }
    assert_only_exceptions(&long, LONG_FILES, "LONG_FILES");
}

#[test]
fn functions_fit_a_screen() {
    let mut long = BTreeSet::new();
    for file in rust_files() {
        for (function, lines) in functions(&file.text) {
            if lines > FUNCTION_TARGET {
                long.insert(format!("{}: {function}", file.name));
            }
        }
    }
    assert_only_exceptions(&long, LONG_FUNCTIONS, "LONG_FUNCTIONS");
}

#[test]
fn arrows_point_down() {
    for (room, manifest) in crates() {
        let allowed = ARROWS
            .iter()
            .find(|(name, _)| *name == room)
            .unwrap_or_else(|| panic!("{room} is not in ARROWS"))
            .1;
        let name = manifest["package"]["name"].as_str();
        assert_eq!(name, Some(room.as_str()), "the folder name is the crate name");
        let inherits = manifest.get("lints").and_then(|lints| lints.get("workspace"));
        assert_eq!(inherits.and_then(toml::Value::as_bool), Some(true), "{room} must inherit the lints");
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for used in
                manifest.get(section).and_then(toml::Value::as_table).into_iter().flat_map(|t| t.keys())
            {
                let ours = ARROWS.iter().any(|(name, _)| name == used);
                assert!(!ours || allowed.contains(&used.as_str()), "{room} may not use {used} ({section})");
            }
        }
    }
}

#[test]
fn crates_begin_with_what_they_are() {
    for file in rust_files() {
        if file.name.ends_with("/src/lib.rs") || file.name.ends_with("/src/main.rs") {
            assert!(file.text.starts_with("//! "), "{} must begin with what the crate is", file.name);
        }
    }
}

#[test]
fn names_are_nouns() {
    for name in tree() {
        for part in name.split('/') {
            let stem = part.split('.').next().unwrap_or(part);
            assert!(!EMPTY_NAMES.contains(&stem), "{name}: find the noun for {stem:?}");
        }
    }
}

#[test]
fn nothing_is_half_merged() {
    for name in tree() {
        let Ok(text) = fs::read_to_string(root().join(&name)) else { continue };
        let marks = ["<<<<<<< ", ">>>>>>> "];
        assert!(!text.lines().any(|line| marks.iter().any(|mark| line.starts_with(mark))), "{name}");
    }
}

#[test]
fn only_cli_reads_the_environment() {
    // Where PostgreSQL's programs are, the tests and the program ask in the same way.
    let finds = ["crates/server/src/throwaway", "crates/server/src/programs.rs"];
    let allowed = |name: &str| room(name) == "cli" || finds.iter().any(|one| name.starts_with(one));
    forbid(&["std::env", "env::"], allowed, "only cli reads the environment");
}

#[test]
fn only_cli_prints() {
    let prints = ["println!(", "print!(", "eprintln!(", "eprint!(", "process::exit("];
    forbid(&prints, |name| room(name) == "cli", "only cli prints and exits");
}

#[test]
fn only_layout_spells_object_names() {
    let is_layout = |name: &str| name.starts_with("crates/repository/src/layout");
    let makes = ["ObjectName::new(", "parse::<ObjectName>"];
    forbid(
        &makes,
        |name| is_layout(name) || room(name) == "storage",
        "object names come from repository::layout",
    );
    forbid(OBJECT_ROOMS, is_layout, "object names are spelled in repository::layout");
}

#[test]
fn documents_name_what_exists() {
    for name in tree() {
        // Decisions are dated and not rewritten: they may name what is gone.
        let dated = name.starts_with("docs/decisions/") && !name.ends_with("/README.md");
        if !name.ends_with(".md") || dated || name.starts_with("testdata/") {
            continue;
        }
        let text = fs::read_to_string(root().join(&name)).unwrap();
        for path in named_paths(&text) {
            let beside = root().join(&name).parent().unwrap().join(path);
            assert!(root().join(path).exists() || beside.exists(), "{name} names {path}, which is not there");
        }
    }
}

#[test]
fn nothing_names_a_machine() {
    // Split, so that this file does not name them either.
    let machine = [concat!("/wo", "rk"), concat!("/fa", "rm")];
    for name in tree() {
        let Ok(text) = fs::read_to_string(root().join(&name)) else { continue };
        for (number, line) in text.lines().enumerate() {
            for path in machine {
                assert!(!names_folder(line, path), "{name}:{}: a path of one machine: {line}", number + 1);
            }
        }
    }
}

#[test]
fn scanner_measures_functions() {
    let text = "impl A {\n    pub async fn one(\n        &self,\n    ) -> u8 {\n        1\n    }\n\n    fn two(&self);\n}\nfn three() {}\n";
    assert_eq!(functions(text), [("one", 5), ("three", 1)]);
}

#[test]
fn scanner_leaves_comments_and_tests_out() {
    let text = "//! std::env\nlet a = \"//\"; // println!\n#[cfg(test)]\nmod tests {}\n";
    assert_eq!(code_lines(text).collect::<Vec<_>>(), [(2, "let a = \"//\"; ")]);
    assert!(names_folder("see /data/x", "/data") && names_folder("`/data`", "/data"));
    assert!(!names_folder("my/data/x", "/data") && !names_folder("/database", "/data"));
    assert_eq!(
        named_paths("`docs/a.md` [x](b.md#c) `cargo test` `packs/<id>` [y](https://z)"),
        ["docs/a.md", "b.md"]
    );
}

/// A Rust file of the house: its path from the root, and its text.
struct RustFile {
    name: String,
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Every file that belongs to the tree, as a path from the root with `/`, in order.
fn tree() -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            let built = ["target", "node_modules", "__pycache__"].contains(&name.as_str());
            let hidden = name.starts_with('.') && ![".ci", ".config"].contains(&name.as_str());
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && !built && !hidden {
                folders.push(entry.path());
            } else if kind.is_file() && name != ".git" {
                // In a second working tree that is a file with a path, and not one of ours.
                found.push(entry.path().strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn rust_files() -> Vec<RustFile> {
    let names = tree().into_iter().filter(|name| name.starts_with("crates/") && name.ends_with(".rs"));
    // A file may go away between the listing and here while somebody moves it.
    names
        .filter_map(|name| Some(RustFile { text: fs::read_to_string(root().join(&name)).ok()?, name }))
        .collect()
}

/// Each crate's folder name and Cargo.toml.
fn crates() -> Vec<(String, toml::Table)> {
    let names =
        tree().into_iter().filter(|name| name.starts_with("crates/") && name.ends_with("/Cargo.toml"));
    names
        .map(|name| {
            (room(&name).to_owned(), fs::read_to_string(root().join(&name)).unwrap().parse().unwrap())
        })
        .collect()
}

/// The crate that a path below `crates/` belongs to.
fn room(name: &str) -> &str {
    name.split('/').nth(1).unwrap_or("")
}

/// Each function that has a body, and how many lines it takes from `fn` to its closing brace.
fn functions(text: &str) -> Vec<(&str, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let Some(signature) = lines[start..].iter().position(|line| line.ends_with(['{', '}', ';'])) else {
            continue;
        };
        let last = lines[start + signature];
        if last.ends_with(';') {
            continue; // a trait's method without a body
        }
        let closing = format!("{indent}}}");
        let body = lines[start + signature..].iter().position(|line| line.starts_with(&closing));
        let body = if last.ends_with('}') { Some(0) } else { body };
        found.push((name, signature + body.unwrap_or(0) + 1));
    }
    found
}

/// The name in a line that begins a function, as rustfmt writes it.
fn function_name(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let mut words = before.split_whitespace();
    let known = ["pub", "pub(crate)", "pub(super)", "async", "const", "unsafe", "extern", "\"C\"", "default"];
    if !(before.is_empty() || before.ends_with(' ')) || !words.all(|word| known.contains(&word)) {
        return None;
    }
    let end = after.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    (end > 0).then(|| &after[..end])
}

/// The lines of code with their numbers: no comments, and nothing from the file's first `#[cfg(test)]` on.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let code = text.lines().enumerate().take_while(|(_, line)| line.trim() != "#[cfg(test)]");
    code.map(|(number, line)| {
        // A `//` inside a string is followed by a quote: only one that leaves the quotes paired begins a comment.
        let comment =
            line.match_indices("//").find(|(at, _)| line[..*at].matches('"').count().is_multiple_of(2));
        (number + 1, comment.map_or(line, |(at, _)| &line[..at]))
    })
    .filter(|(_, line)| !line.trim().is_empty())
}

/// Fails if a word stands in code that is not a test's, in a file that is not `allowed` to use it.
fn forbid(words: &[&str], allowed: impl Fn(&str) -> bool, rule: &str) {
    for file in rust_files() {
        let test = file.name.contains("/tests/")
            || file.name.ends_with("/tests.rs")
            || file.name.contains("/benches/");
        if test || allowed(&file.name) {
            continue;
        }
        for (number, line) in code_lines(&file.text) {
            for word in words {
                let whole = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
                let found = line.match_indices(word).any(|(at, _)| whole(at));
                assert!(!found, "{}:{number}: {rule}: {}", file.name, line.trim());
            }
        }
    }
}

/// Fails on what is long without an exception, and on an exception for what is no longer long.
fn assert_only_exceptions(long: &BTreeSet<String>, exceptions: &[&str], list: &str) {
    let exceptions: BTreeSet<String> = exceptions.iter().map(|name| (*name).to_owned()).collect();
    let new: Vec<_> = long.difference(&exceptions).collect();
    let stale: Vec<_> = exceptions.difference(long).collect();
    assert!(new.is_empty(), "too long, split by what has a name of its own: {new:#?}");
    assert!(stale.is_empty(), "short now, take it out of {list}: {stale:#?}");
}

/// Paths of the tree that a document names: in backquotes below a folder of ours, or as a relative link.
fn named_paths(text: &str) -> Vec<&str> {
    let folders = ["crates/", "docs/", "scripts/", "bench/", "testdata/", ".ci/", "./test", "./try", "./lab"];
    let quoted =
        text.split('`').skip(1).step_by(2).filter(|word| folders.iter().any(|f| word.starts_with(f)));
    let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let links = links.filter(|link| !link.contains("://") && !link.starts_with('#'));
    let paths = quoted.map(|word| word.split_whitespace().next().unwrap_or(word)).chain(links);
    let plain = |path: &&str| !path.contains(['<', '*', '{', '…', '$']) && !path.contains("NNNN");
    paths.map(|path| path.split('#').next().unwrap_or(path)).filter(plain).collect()
}

/// Whether a line names this folder or something in it, and not a longer word.
fn names_folder(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let word = |c: char| c.is_alphanumeric() || "._-/".contains(c);
        let before = line[..at].chars().next_back().is_some_and(|c| word(c) || c == '}' || c == '>');
        let after = line[at + folder.len()..]
            .chars()
            .next()
            .is_some_and(|c| c.is_alphanumeric() || "._-".contains(c));
        !before && !after
    })
}
