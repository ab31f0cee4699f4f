//! What the figures were measured on.

use std::io;

use crate::args::Args;
use crate::host::{hardware, said};
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
    if args.production.is_none() {
        lines.push(format!(
            "{rounds} rounds of {time:?} for each case: median (least–greatest)"
        ));
    }
    Ok(format!("- {}\n\n", lines.join("\n- ")))
}
