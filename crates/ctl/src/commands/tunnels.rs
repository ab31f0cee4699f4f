//! `wsctl tunnels`: the live tunnels, printed as they come.

use http_body_util::BodyExt;
use hyper::body::Incoming;
use wsgate_protocol::admin::{Tunnel, TunnelFilter, TunnelState, UNRESPONSIVE_HEADER};

use crate::args::TunnelsArgs;
use crate::client::{Client, encoded};
use crate::console::Console;
use crate::elements::Elements;
use crate::error::CtlError;
use crate::table::{Column, Grid, Text, Tone, figures, words};
use crate::units;

/// Rows looked at together: the first ones decide how wide the columns are.
const PART: usize = 500;

const COLUMNS: [Column; 12] = [
    words("ID"),
    words("CLIENT"),
    words("ROUTE"),
    words("SERVER"),
    figures("GEN"),
    words("STATE"),
    figures("AGE"),
    figures("IDLE"),
    figures("IN"),
    figures("OUT"),
    figures("MESSAGES IN/OUT"),
    figures("HANDOVERS"),
];

/// Columns in the order in which a narrow terminal loses them.
const LEAST_FIRST: [&str; 8] = [
    "HANDOVERS",
    "MESSAGES IN/OUT",
    "IDLE",
    "GEN",
    "ROUTE",
    "OUT",
    "IN",
    "AGE",
];

pub(crate) async fn tunnels(
    client: &Client,
    args: &TunnelsArgs,
    json: bool,
    console: &mut Console<'_>,
) -> Result<(), CtlError> {
    let response = client.stream(&path(&args.filter())).await?;
    let unresponsive = response.headers().get(UNRESPONSIVE_HEADER).cloned();
    let body = response.into_body();
    if json {
        pass_through(body, console).await?;
    } else {
        print_table(body, console).await?;
    }
    match unresponsive {
        Some(pids) => Err(CtlError::Incomplete {
            pids: String::from_utf8_lossy(pids.as_bytes()).into_owned(),
        }),
        None => Ok(()),
    }
}

/// The query has the filter's fields by their names in the JSON.
fn path(filter: &TunnelFilter) -> String {
    let mut path = "/v1/tunnels".to_owned();
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(filter) else {
        return path;
    };
    for (index, (name, value)) in fields.iter().enumerate() {
        let value = match value {
            serde_json::Value::String(text) => encoded(text),
            other => encoded(&other.to_string()),
        };
        path.push(if index == 0 { '?' } else { '&' });
        path += &format!("{name}={value}");
    }
    path
}

async fn pass_through(mut body: Incoming, console: &mut Console<'_>) -> Result<(), CtlError> {
    let mut last = b'\n';
    while let Some(frame) = body.frame().await {
        if let Some(piece) = frame?.data_ref() {
            console.out.write_all(piece)?;
            last = piece.last().copied().unwrap_or(last);
        }
    }
    if last != b'\n' {
        console.out.write_all(b"\n")?;
    }
    console.flush()
}

async fn print_table(mut body: Incoming, console: &mut Console<'_>) -> Result<(), CtlError> {
    let (mut elements, mut rows, mut printer) =
        (Elements::default(), Vec::new(), Printer::default());
    let ended = loop {
        match body.frame().await {
            None => break Ok(()),
            Some(Err(error)) => break Err(error),
            Some(Ok(frame)) => {
                if let Some(piece) = frame.data_ref() {
                    elements.push(piece, &mut rows).map_err(not_understood)?;
                }
            }
        }
        if rows.len() >= PART {
            printer.print(&rows, console)?;
            rows.clear();
        }
    };
    // What has come is shown, even if the rest never does.
    printer.print(&rows, console)?;
    console.flush()?;
    ended?;
    if !elements.finished() {
        let source = serde::de::Error::custom("the array has no end");
        return Err(not_understood(source));
    }
    printer.note_count(console);
    Ok(())
}

fn not_understood(source: serde_json::Error) -> CtlError {
    CtlError::NotUnderstood {
        path: "/v1/tunnels".to_owned(),
        source,
    }
}

/// A table in parts whose columns stay where they are.
#[derive(Default)]
struct Printer {
    count: u64,
    widths: Vec<u16>,
    left_out: Vec<&'static str>,
}

impl Printer {
    fn print(&mut self, tunnels: &[Tunnel], console: &mut Console<'_>) -> Result<(), CtlError> {
        if tunnels.is_empty() {
            return Ok(());
        }
        let first = self.count == 0;
        self.count += tunnels.len() as u64;
        let mut grid = Grid::new(COLUMNS);
        for tunnel in tunnels {
            grid.row(cells(tunnel));
        }
        if first {
            self.left_out = grid.fit(console.width, &LEAST_FIRST);
            self.widths = grid.widths();
        } else {
            for title in &self.left_out {
                grid.remove_column(title);
            }
        }
        let text = grid.render_part(console, first, &self.widths);
        for (width, now) in self.widths.iter_mut().zip(grid.widths()) {
            *width = now.max(*width);
        }
        Ok(console.out.write_all(text.as_bytes())?)
    }

    fn note_count(&self, console: &mut Console<'_>) {
        let count = units::count(self.count, "tunnel");
        if self.left_out.is_empty() {
            console.note(count);
        } else {
            let columns = self.left_out.join(", ");
            console.note(format_args!("{count} (no room for: {columns})"));
        }
    }
}

fn cells(tunnel: &Tunnel) -> [Text; COLUMNS.len()] {
    let messages = if tunnel.unframed {
        "unframed".to_owned()
    } else {
        format!(
            "{}/{}",
            tunnel.messages_from_client, tunnel.messages_from_server
        )
    };
    [
        Text::from(&tunnel.id),
        Text::from(&tunnel.client),
        Text::from(&tunnel.route),
        Text::from(&tunnel.server),
        Text::from(tunnel.generation),
        state(tunnel),
        Text::from(units::duration(tunnel.age_seconds)),
        Text::from(units::duration(tunnel.idle_seconds)),
        Text::from(units::bytes(tunnel.bytes_from_client)),
        Text::from(units::bytes(tunnel.bytes_from_server)),
        Text::from(messages),
        Text::from(tunnel.handovers),
    ]
}

fn state(tunnel: &Tunnel) -> Text {
    match (tunnel.state, tunnel.deadline_in_seconds) {
        (TunnelState::Open, _) => Text::toned("open", Tone::Good),
        (TunnelState::Draining, Some(seconds)) => {
            let left = units::duration(seconds);
            Text::toned(format!("draining {left}"), Tone::Careful)
        }
        (TunnelState::Draining, None) => Text::toned("draining", Tone::Careful),
        (TunnelState::Closing, _) => Text::toned("closing", Tone::Bad),
    }
}
