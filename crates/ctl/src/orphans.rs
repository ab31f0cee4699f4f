//! Workers that serve on although their supervisor is gone, by what can be seen from outside: their
//! rendezvous sockets beside the admin socket, and their names.

use std::path::Path;

/// What a rendezvous socket's name begins and ends with; between the two is the worker's pid.
const RENDEZVOUS: (&str, &str) = ("worker-", ".sock");

/// Their pids with their names, as `4711 (worker 0 gen 3)`, by pid.
pub(crate) fn serving_on(socket: &Path) -> Vec<String> {
    let directory = socket.parent().unwrap_or_else(|| Path::new("/"));
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| pid(entry.file_name().to_str()?));
    let mut workers: Vec<(u32, String)> = pids.filter_map(|pid| Some((pid, name(pid)?))).collect();
    workers.sort_unstable();
    let shown = workers.into_iter();
    shown.map(|(pid, name)| format!("{pid} ({name})")).collect()
}

fn pid(file: &str) -> Option<u32> {
    let (begin, end) = RENDEZVOUS;
    file.strip_prefix(begin)?.strip_suffix(end)?.parse().ok()
}

/// A worker says what it is in its first argument.
fn name(pid: u32) -> Option<String> {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let first = line.split(|byte| *byte == 0).next()?;
    let name = std::str::from_utf8(first).ok()?.strip_prefix("wsgate: ")?;
    name.starts_with("worker ").then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_of_workers_count_and_only_those_that_live() {
        assert_eq!(pid("worker-4711.sock"), Some(4711));
        for other in [
            "admin.sock",
            "worker-.sock",
            "worker-x.sock",
            "worker-1.sock.new",
        ] {
            assert_eq!(pid(other), None, "{other}");
        }
        let dir = tempfile::tempdir().unwrap();
        // This process lives, and is no worker.
        let mine = format!("worker-{}.sock", std::process::id());
        std::fs::write(dir.path().join(mine), "").unwrap();
        assert_eq!(serving_on(&dir.path().join("admin.sock")), [""; 0]);
    }
}
