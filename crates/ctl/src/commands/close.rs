//! `wsctl close`: tunnels, one after the other, each by its id.

use http::Method;
use wsgate_protocol::admin::{CloseRequest, Tunnel};

use crate::args::CloseArgs;
use crate::client::{Answer, Client, encoded};
use crate::console::Console;
use crate::error::{self, CtlError};
use crate::units;

/// A tunnel that is refused does not keep the others open.
pub(crate) async fn close(
    client: &Client,
    args: &CloseArgs,
    json: bool,
    console: &mut Console<'_>,
) -> Result<(), CtlError> {
    let request = CloseRequest {
        code: args.code,
        reason: args.reason.clone(),
    };
    let mut refused = 0;
    for id in &args.ids {
        match one(client, id, &request).await {
            Ok(answer) if json => console.json(&answer.json)?,
            Ok(answer) => console.line(outcome(&answer.value))?,
            Err(error @ CtlError::Refused { .. }) if args.ids.len() > 1 => {
                error::tell(&error, json, console);
                refused += 1;
            }
            Err(error) => return Err(error),
        }
    }
    match refused {
        0 => Ok(()),
        refused => Err(CtlError::NotClosed {
            refused,
            of: args.ids.len(),
        }),
    }
}

async fn one(
    client: &Client,
    id: &str,
    request: &CloseRequest,
) -> Result<Answer<Tunnel>, CtlError> {
    let path = format!("/v1/tunnels/{}", encoded(id));
    client.send_json(Method::DELETE, &path, request).await
}

fn outcome(tunnel: &Tunnel) -> String {
    format!(
        "{} closes: {} to {}/{}, open for {}",
        tunnel.id,
        tunnel.client,
        tunnel.upstream,
        tunnel.server,
        units::duration(tunnel.age_seconds)
    )
}
