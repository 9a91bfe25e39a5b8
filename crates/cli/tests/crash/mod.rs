//! What a folder may hold after power loss: a model of a file system that keeps only what POSIX promises, fed with the
//! calls that `strace` saw.
//!
//! A file keeps the bytes that it had when it was last fsynced, a directory the names that it had when *it* was last
//! fsynced; whatever else was done may be lost. What was there before the calls began is durable.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

/// The calls that change files, and those that would change them past the model.
const TRACED: &str = "open,openat,creat,close,dup,dup2,dup3,write,writev,pwrite64,pwritev,pwritev2,ftruncate,truncate,\
    fallocate,fsync,fdatasync,sync,syncfs,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,\
    mkdirat,rmdir,copy_file_range,sendfile,splice,io_uring_setup,execve";

/// One call that succeeded.
#[derive(Debug)]
pub struct Call {
    pub name: String,
    arguments: String,
    result: i64,
    /// Lines on which it began and ended.
    began: usize,
    ended: usize,
}

impl Call {
    /// The paths among the arguments.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.arguments.split('"').skip(1).step_by(2).map(PathBuf::from).collect()
    }

    fn number(&self) -> i64 {
        let digits = self.arguments.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        digits.parse().unwrap_or(-1)
    }

    fn last_number(&self) -> u64 {
        let last = self.arguments.trim_end().trim_end_matches(')').rsplit(", ").next().unwrap_or_default();
        last.parse().expect("the call ends with a number")
    }

    pub fn is_sync(&self) -> bool {
        matches!(self.name.as_str(), "fsync" | "fdatasync")
    }

    /// A write counts when it is done, and an fsync reaches what was done when it began. A number that is being closed may be given
    /// to another thread's file before the closing is told to be done.
    fn counts_at(&self) -> usize {
        if self.is_sync() || self.name == "close" { self.began } else { self.ended }
    }
}

/// Runs the command, which must succeed, and returns its calls in the order in which they count.
pub fn trace(command: &Command, log: &Path) -> Vec<Call> {
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-s", "0", "-e", "signal=none", "-e"]).arg(format!("trace={TRACED}"));
    traced.arg("-o").arg(log).arg(command.get_program()).args(command.get_args());
    traced.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if let Some(folder) = command.get_current_dir() {
        traced.current_dir(folder);
    }
    let done = traced.output().expect("strace is missing: ./test installs it");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    calls(&fs::read_to_string(log).unwrap())
}

fn calls(log: &str) -> Vec<Call> {
    let mut unfinished: HashMap<&str, (usize, String)> = HashMap::new();
    let mut calls = Vec::new();
    for (line, text) in log.lines().enumerate() {
        let (process, text) = text.split_once(' ').expect("a process id");
        let text = text.trim_start();
        if let Some(begun) = text.strip_suffix(" <unfinished ...>") {
            unfinished.insert(process, (line, begun.to_owned()));
            continue;
        }
        let (began, whole) = match text.strip_prefix("<... ") {
            Some(resumed) => {
                let (began, begun) = unfinished.remove(process).expect("it began");
                (began, begun + resumed.split_once("resumed>").expect("a resumed call").1)
            }
            None => (line, text.to_owned()),
        };
        let Some((call, result)) = whole.rsplit_once(" = ") else { continue };
        let (Some((name, arguments)), Some(Ok(result))) =
            (call.split_once('('), result.split(' ').next().map(str::parse))
        else {
            continue;
        };
        if result >= 0 {
            calls.push(Call {
                name: name.to_owned(),
                arguments: arguments.to_owned(),
                result,
                began,
                ended: line,
            });
        }
    }
    calls.sort_by_key(Call::counts_at);
    calls
}

#[derive(Clone)]
enum Node {
    File { length: u64, durable: u64 },
    Folder { names: BTreeMap<String, usize>, durable: BTreeMap<String, usize> },
}

/// The files below one folder.
#[derive(Clone)]
pub struct Model {
    root: PathBuf,
    nodes: Vec<Node>,
    open: HashMap<i64, usize>,
}

impl Model {
    /// As it is now, all of it durable.
    pub fn of(root: &Path) -> Self {
        let mut model = Self { root: root.to_owned(), nodes: Vec::new(), open: HashMap::new() };
        model.take_in(root);
        model
    }

    fn take_in(&mut self, path: &Path) -> usize {
        let id = self.nodes.len();
        if !path.is_dir() {
            let length = path.metadata().unwrap().len();
            self.nodes.push(Node::File { length, durable: length });
            return id;
        }
        self.nodes.push(Node::Folder { names: BTreeMap::new(), durable: BTreeMap::new() });
        for entry in fs::read_dir(path).unwrap().map(Result::unwrap) {
            let below = self.take_in(&entry.path());
            let name = entry.file_name().into_string().unwrap();
            let Node::Folder { names, durable } = &mut self.nodes[id] else { unreachable!() };
            names.insert(name.clone(), below);
            durable.insert(name, below);
        }
        id
    }

    /// The folder that a path is in and its name there, if it is below the root.
    fn place(&self, path: &Path) -> Option<(usize, String)> {
        assert!(path.is_absolute(), "the model knows absolute paths only: {path:?}");
        let below = path.strip_prefix(&self.root).ok()?;
        let mut parts: Vec<_> = below.components().collect();
        let Some(Component::Normal(name)) = parts.pop() else { return None };
        let folder = parts
            .iter()
            .try_fold(0, |folder, part| self.names(folder)?.get(part.as_os_str().to_str()?).copied());
        Some((folder?, name.to_str()?.to_owned()))
    }

    fn names(&self, folder: usize) -> Option<&BTreeMap<String, usize>> {
        match &self.nodes[folder] {
            Node::Folder { names, .. } => Some(names),
            Node::File { .. } => None,
        }
    }

    fn names_mut(&mut self, folder: usize) -> &mut BTreeMap<String, usize> {
        match &mut self.nodes[folder] {
            Node::Folder { names, .. } => names,
            Node::File { .. } => panic!("not a folder"),
        }
    }

    fn find(&self, path: &Path) -> Option<usize> {
        if path == self.root {
            return Some(0);
        }
        let (folder, name) = self.place(path)?;
        self.names(folder)?.get(&name).copied()
    }

    fn make(&mut self, path: &Path, node: Node) -> Option<usize> {
        let (folder, name) = self.place(path)?;
        self.nodes.push(node);
        let id = self.nodes.len() - 1;
        self.names_mut(folder).insert(name, id);
        Some(id)
    }

    /// Does what a call did.
    pub fn apply(&mut self, call: &Call) {
        let paths = call.paths();
        match call.name.as_str() {
            "open" | "openat" | "creat" => self.open(call, &paths[0]),
            "close" => drop(self.open.remove(&call.number())),
            "write" | "writev" => {
                if let Some(Node::File { length, .. }) = self.opened(call) {
                    *length += call.result as u64;
                }
            }
            "pwrite64" => {
                let offset = call.last_number();
                if let Some(Node::File { length, .. }) = self.opened(call) {
                    assert_eq!(offset, *length, "the model knows files that grow at their end: {call:?}");
                    *length += call.result as u64;
                }
            }
            // Past the page cache or not, a byte is durable once the file is synced.
            "fcntl" => {}
            "fsync" | "fdatasync" => match self.opened(call) {
                Some(Node::File { length, durable }) => *durable = *length,
                Some(Node::Folder { names, durable }) => durable.clone_from(names),
                None => {}
            },
            "mkdir" | "mkdirat" => {
                let empty = Node::Folder { names: BTreeMap::new(), durable: BTreeMap::new() };
                self.make(&paths[0], empty);
            }
            "rename" | "renameat" | "renameat2" | "link" | "linkat" => {
                let Some(id) = self.find(&paths[0]) else { return };
                let (folder, name) = self.place(&paths[1]).expect("it stays below the root");
                self.names_mut(folder).insert(name, id);
                if call.name.starts_with("rename") {
                    self.remove(&paths[0]);
                }
            }
            "unlink" | "unlinkat" | "rmdir" => self.remove(&paths[0]),
            "execve" => assert_eq!(call.began, 0, "a second program"),
            other => {
                let touches = self.open.contains_key(&call.number())
                    || paths.iter().any(|path| path.starts_with(&self.root));
                assert!(!touches && other != "io_uring_setup", "the model does not know {call:?}");
            }
        }
    }

    fn opened(&mut self, call: &Call) -> Option<&mut Node> {
        let id = self.open.get(&call.number())?;
        Some(&mut self.nodes[*id])
    }

    fn open(&mut self, call: &Call, path: &Path) {
        if !path.starts_with(&self.root) {
            return;
        }
        let empty = Node::File { length: 0, durable: 0 };
        let id = match self.find(path) {
            Some(id) => id,
            None => self.make(path, empty).expect("its folder is there"),
        };
        if call.arguments.contains("O_TRUNC")
            && let Node::File { length, durable } = &mut self.nodes[id]
        {
            (*length, *durable) = (0, 0);
        }
        self.open.insert(call.result, id);
    }

    fn remove(&mut self, path: &Path) {
        if let Some((folder, name)) = self.place(path) {
            self.names_mut(folder).remove(&name);
        }
    }

    /// How many bytes of the file survive; `None` if its name does not.
    pub fn surviving(&self, path: &Path) -> Option<u64> {
        let below = path.strip_prefix(&self.root).unwrap();
        let mut id = 0;
        for part in below.components() {
            let Node::Folder { durable, .. } = &self.nodes[id] else { return None };
            id = *durable.get(part.as_os_str().to_str()?)?;
        }
        match self.nodes[id] {
            Node::File { durable, .. } => Some(durable),
            Node::Folder { .. } => None,
        }
    }

    /// Makes a folder with what survives, the bytes taken from the files as they are now.
    pub fn materialise(&self, into: &Path) {
        let mut now = HashMap::new();
        self.paths(0, &self.root, &mut now);
        self.write(0, into, &now);
    }

    fn paths(&self, id: usize, path: &Path, found: &mut HashMap<usize, PathBuf>) {
        found.insert(id, path.to_owned());
        for (name, below) in self.names(id).into_iter().flatten() {
            self.paths(*below, &path.join(name), found);
        }
    }

    fn write(&self, id: usize, into: &Path, now: &HashMap<usize, PathBuf>) {
        match &self.nodes[id] {
            Node::File { durable, .. } => {
                let Some(path) = now.get(&id) else { return };
                let content = fs::read(path).unwrap();
                fs::write(into, &content[..*durable as usize]).unwrap();
            }
            Node::Folder { durable, .. } => {
                fs::create_dir(into).unwrap();
                durable.iter().for_each(|(name, below)| self.write(*below, &into.join(name), now));
            }
        }
    }
}
