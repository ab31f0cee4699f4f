//! One file per command (or kind of command): the call, then its outcome in words.

mod close;
mod events;
mod reload;
mod reloaded;
mod server;
mod status;
mod stop;
mod tunnels;

use std::time::Duration;

use clap::CommandFactory;
use wsgate_protocol::admin::{ServerState, ServerStateRequest};

use crate::args::{Command, CtlArgs, Target, Wsctl};
use crate::client::Client;
use crate::console::Console;
use crate::error::CtlError;

/// How long a supervisor may take for an answer that it has at hand.
const PATIENCE: Duration = Duration::from_secs(10);

/// Does what the command line asks for.
pub(crate) async fn dispatch(args: &CtlArgs, console: &mut Console<'_>) -> Result<(), CtlError> {
    let client = Client::new(&args.socket, patience(args));
    let json = args.json;
    match &args.command {
        Command::Status => status::status(&client, json, console).await,
        Command::Tunnels(tunnels) => tunnels::tunnels(&client, tunnels, json, console).await,
        Command::Close(close) => close::close(&client, close, json, console).await,
        Command::Reload(reload) => reload::reload(&client, *reload, json, console).await,
        Command::Events => events::events(&client, json, console).await,
        Command::Stop { now } => stop::stop(&client, *now, json, console).await,
        Command::Drain(drain) => {
            let request = ServerStateRequest {
                state: ServerState::Drain,
                grace_seconds: drain.grace.map(|grace| grace.as_secs_f64()),
                close_rate: drain.close_rate,
            };
            server::set(&client, &drain.target, &request, json, console).await
        }
        Command::Undrain { target } => {
            put(&client, target, ServerState::Ready, json, console).await
        }
        Command::Maint { target } => put(&client, target, ServerState::Maint, json, console).await,
        Command::Completions { shell } => completions(*shell, console),
    }
}

/// None where `--timeout` bounds the whole, and where the answer has to wait for something.
fn patience(args: &CtlArgs) -> Option<Duration> {
    match args.command {
        Command::Reload(_) | Command::Stop { .. } => None,
        _ => args.timeout.is_none().then_some(PATIENCE),
    }
}

async fn put(
    client: &Client,
    target: &Target,
    state: ServerState,
    json: bool,
    console: &mut Console<'_>,
) -> Result<(), CtlError> {
    let request = ServerStateRequest {
        state,
        grace_seconds: None,
        close_rate: None,
    };
    server::set(client, target, &request, json, console).await
}

fn completions(shell: clap_complete::Shell, console: &mut Console<'_>) -> Result<(), CtlError> {
    // Generated whole first: clap_complete panics where a write fails.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Wsctl::command(), "wsctl", &mut script);
    Ok(console.out.write_all(&script)?)
}
