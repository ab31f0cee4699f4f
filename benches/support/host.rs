//! What figures were measured on: lines for the top of a table.

use std::fs;
use std::io;
use std::process::Command;

/// Processor, cores and kernel.
pub(crate) fn hardware() -> io::Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let mut lines = cpus.lines();
    let model = lines.find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown", |model| model.trim_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!("{model}, {cores} cores; Linux {}", kernel.trim()))
}

/// The first line of what a program prints, on stdout or else on stderr.
pub(crate) fn said(program: &str, args: &[&str]) -> io::Result<String> {
    let output = Command::new(program).args(args).output()?;
    let text = String::from_utf8_lossy(if output.stdout.is_empty() {
        &output.stderr
    } else {
        &output.stdout
    })
    .into_owned();
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
