//! What there is of the gateway: processes, descriptors, files, memory. Counted at the beginning and at the end, each time
//! with one generation, the same number of workers and no tunnel; what is more at the end has been left over.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use serde::Serialize;

use crate::gateway::Gateway;

/// By how much the memory of the supervisor, and of a worker, may be larger at the end, in bytes. An allocator keeps what was
/// needed once, though wsgate gives back what is in whole pages: what grows with faults must show.
pub(crate) const MORE_MEMORY: [u64; 2] = [8 << 20, 4 << 20];

#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Census {
    pub(crate) processes: usize,
    /// Of the supervisor, by kind.
    pub(crate) descriptors: BTreeMap<String, usize>,
    /// Of all workers.
    pub(crate) worker_descriptors: BTreeMap<String, usize>,
    /// In the runtime directory, by name with `N` for numbers.
    pub(crate) files: BTreeMap<String, usize>,
    /// Anonymous memory of the supervisor, and of its largest worker.
    pub(crate) memory: u64,
    pub(crate) worker_memory: u64,
    /// Of all workers.
    pub(crate) all_workers_memory: u64,
}

impl Census {
    pub(crate) fn take(gateway: &Gateway) -> io::Result<Self> {
        let mut census = Self {
            processes: gateway.keeper.processes()?.len(),
            descriptors: descriptors(gateway.pid())?,
            files: files(&gateway.site.run)?,
            memory: memory(gateway.pid())?,
            ..Self::default()
        };
        for worker in gateway.status()?.workers {
            for (kind, count) in descriptors(worker.pid)? {
                *census.worker_descriptors.entry(kind).or_default() += count;
            }
            let memory = memory(worker.pid)?;
            census.worker_memory = census.worker_memory.max(memory);
            census.all_workers_memory += memory;
        }
        Ok(census)
    }

    /// What is more than before, in words.
    pub(crate) fn left_over(&self, before: &Self) -> Vec<String> {
        let mut left = Vec::new();
        if self.processes != before.processes {
            left.push(format!(
                "{} processes, {} before",
                self.processes, before.processes
            ));
        }
        more(
            &mut left,
            "descriptors of the supervisor",
            &self.descriptors,
            &before.descriptors,
        );
        more(
            &mut left,
            "descriptors of workers",
            &self.worker_descriptors,
            &before.worker_descriptors,
        );
        more(&mut left, "files", &self.files, &before.files);
        let memory = [
            ("supervisor", self.memory, before.memory),
            ("worker", self.worker_memory, before.worker_memory),
        ];
        for ((what, now, then), more) in memory.into_iter().zip(MORE_MEMORY) {
            if now > then + more {
                left.push(format!("memory of the {what}: {now} bytes, {then} before"));
            }
        }
        left
    }

    pub(crate) fn sum(of: &BTreeMap<String, usize>) -> usize {
        of.values().sum()
    }
}

fn more(
    left: &mut Vec<String>,
    what: &str,
    now: &BTreeMap<String, usize>,
    then: &BTreeMap<String, usize>,
) {
    for (kind, count) in now {
        let before = then.get(kind).copied().unwrap_or(0);
        if *count > before {
            left.push(format!("{what}: {count} × {kind}, {before} before"));
        }
    }
}

fn descriptors(pid: u32) -> io::Result<BTreeMap<String, usize>> {
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // One that was closed meanwhile is none.
        if let Ok(target) = fs::read_link(entry?.path()) {
            *kinds
                .entry(nameless(&target.to_string_lossy()))
                .or_default() += 1;
        }
    }
    Ok(kinds)
}

fn files(dir: &Path) -> io::Result<BTreeMap<String, usize>> {
    let mut names = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        *names.entry(nameless(&name.to_string_lossy())).or_default() += 1;
    }
    Ok(names)
}

/// The sockets in a directory: none may be there when nobody serves them.
pub(crate) fn sockets(dir: &Path) -> io::Result<Vec<String>> {
    let mut sockets = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_socket() {
            sockets.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(sockets)
}

/// Without the numbers that are another process's or inode's each time.
fn nameless(text: &str) -> String {
    let mut name = String::new();
    for letter in text.chars() {
        match (letter.is_ascii_digit(), name.ends_with('N')) {
            (true, true) => {}
            (true, false) => name.push('N'),
            (false, _) => name.push(letter),
        }
    }
    name
}

/// Memory that a process has written to, without the pages of its program.
fn memory(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Anonymous:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.map(|kib| kib * 1024)
        .ok_or_else(|| io::Error::other(format!("no memory of process {pid}")))
}
