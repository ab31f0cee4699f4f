//! `wsctl drain`, `undrain` and `maint`: the operator's word about one server.

use http::Method;
use wsgate_protocol::admin::{ServerState, ServerStateChanged, ServerStateRequest};

use crate::args::Target;
use crate::client::{Client, encoded};
use crate::console::Console;
use crate::error::CtlError;
use crate::units;

pub(crate) async fn set(
    client: &Client,
    target: &Target,
    request: &ServerStateRequest,
    json: bool,
    console: &mut Console<'_>,
) -> Result<(), CtlError> {
    let path = format!(
        "/v1/upstreams/{}/servers/{}",
        encoded(&target.upstream),
        encoded(&target.server)
    );
    let answer = client
        .send_json::<ServerStateChanged>(Method::PUT, &path, request)
        .await?;
    if json {
        return console.json(&answer.json);
    }
    console.line(outcome(&answer.value))?;
    for warning in &answer.value.warnings {
        console.warn(warning);
    }
    Ok(())
}

fn outcome(changed: &ServerStateChanged) -> String {
    let server = format!("{}/{}", changed.upstream, changed.server);
    let tunnels = units::count(changed.tunnels, "tunnel");
    let now = match changed.state {
        ServerState::Ready => format!("{server} is ready: it gets new tunnels and requests"),
        ServerState::Maint if changed.tunnels == 0 => {
            format!("{server} is in maint: it gets nothing new and holds no tunnels")
        }
        ServerState::Maint => {
            format!("{server} is in maint: it gets nothing new, its {tunnels} may stay")
        }
        ServerState::Drain => format!("{server} drains: {}", drain(changed, &tunnels)),
    };
    if changed.was == changed.state {
        format!("{now} (as before)")
    } else {
        format!("{now} (was {})", word(changed.was))
    }
}

fn drain(changed: &ServerStateChanged, tunnels: &str) -> String {
    let mut text = "it gets nothing new".to_owned();
    if changed.tunnels == 0 {
        return text + " and holds no tunnels";
    }
    text += &format!(", its {tunnels} may stay");
    if let Some(at) = &changed.deadline_at {
        text += &format!(" until {}", units::moment(at));
    }
    if let Some(seconds) = changed.deadline_in_seconds {
        text += &format!(" at the latest, {} from now", units::duration(seconds));
    }
    text
}

/// The state as the JSON has it.
pub(crate) fn word(state: ServerState) -> &'static str {
    match state {
        ServerState::Ready => "ready",
        ServerState::Drain => "drain",
        ServerState::Maint => "maint",
    }
}
