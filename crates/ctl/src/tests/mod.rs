//! wsctl against a small admin server on a real Unix socket: what a user types,
//! sees, and gets as an exit code.

mod close;
mod failures;
mod fake;
mod fates;
mod servers;
mod status;
mod tunnels;
mod waits;

use std::future::{Future, pending};
use std::path::Path;

use clap::Parser;

use crate::args::Wsctl;
use crate::console::Console;
use fake::{Fake, Reply, Seen};

/// What a user has afterwards.
#[derive(Debug)]
struct Outcome {
    code: u8,
    out: String,
    err: String,
}

/// What the user's standard output is.
#[derive(Clone, Copy, Default)]
struct Screen {
    width: Option<u16>,
    colour: bool,
}

/// One command, as typed after `wsctl`, into a pipe.
async fn wsctl(socket: &Path, line: &str) -> Outcome {
    wsctl_on(socket, line, Screen::default(), pending()).await
}

async fn wsctl_on(
    socket: &Path,
    line: &str,
    screen: Screen,
    interrupt: impl Future<Output = ()>,
) -> Outcome {
    let socket = socket.to_str().unwrap();
    let line = ["wsctl", "--socket", socket]
        .into_iter()
        .chain(line.split_whitespace());
    let args = Wsctl::try_parse_from(line).unwrap().args;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut console = Console {
        out: &mut out,
        err: &mut err,
        width: screen.width,
        colour: screen.colour,
        bar: false,
    };
    let code = crate::execute(&args, &mut console, interrupt).await;
    Outcome {
        code,
        out: String::from_utf8(out).unwrap(),
        err: String::from_utf8(err).unwrap(),
    }
}
