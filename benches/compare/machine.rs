//! What the figures were measured on.

use std::fs;
use std::io;
use std::process::Command;

use crate::args::Args;
use crate::peers::Peer;

/// A list for the top of the table.
pub(crate) fn describe(args: &Args) -> io::Result<String> {
    let wsgate = args.wsgate.to_string_lossy();
    let mut lines = vec![
        said("date", &["-u", "+%F"])?,
        hardware()?,
        said(&wsgate, &["--version"])?,
    ];
    if args.has(&[Peer::Nginx, Peer::Nginx64k]) {
        lines.push(said("nginx", &["-v"])?);
    }
    if args.has(&[Peer::Haproxy, Peer::HaproxySplice]) {
        lines.push(said("haproxy", &["-v"])?);
    }
    let (rounds, time) = (args.rounds(), args.time());
    lines.push(format!(
        "{rounds} rounds of {time:?} for each case: median (least–greatest)"
    ));
    Ok(format!("- {}\n\n", lines.join("\n- ")))
}

fn hardware() -> io::Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let mut lines = cpus.lines();
    let model = lines.find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown", |model| model.trim_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(format!("{model}, {cores} cores; Linux {}", kernel.trim()))
}

/// The first line of what a program prints, on stdout or else on stderr.
fn said(program: &str, args: &[&str]) -> io::Result<String> {
    let output = Command::new(program).args(args).output()?;
    let text = String::from_utf8_lossy(if output.stdout.is_empty() {
        &output.stderr
    } else {
        &output.stdout
    })
    .into_owned();
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
