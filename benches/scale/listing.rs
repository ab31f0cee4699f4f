//! `wsctl tunnels` at its longest, and whether it tells the truth.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use wsgate_protocol::admin::Tunnel;

use crate::gateway::Gateway;

#[derive(Debug)]
pub(crate) struct Listing {
    /// Of the table, without its head.
    pub(crate) lines: usize,
    pub(crate) table: Duration,
    pub(crate) json: Duration,
    pub(crate) tunnels: Vec<Tunnel>,
}

impl Listing {
    /// Lists all tunnels as a table and as JSON. Nothing may be on its way meanwhile.
    ///
    /// # Errors
    /// If it is not these many, each once, or if one has not relayed `echoes` at least, each with its answer.
    pub(crate) fn of(gateway: &Gateway, open: u64, echoes: u64) -> io::Result<Self> {
        let table = gateway.ctl(&["tunnels"])?;
        let json = gateway.ctl(&["--json", "tunnels"])?;
        let text = String::from_utf8_lossy(&table.text);
        let listing = Self {
            lines: text.lines().count().saturating_sub(1),
            table: table.took,
            json: json.took,
            tunnels: serde_json::from_slice(&json.text)?,
        };
        listing.check(open, echoes).map_err(io::Error::other)?;
        Ok(listing)
    }

    fn check(&self, open: u64, echoes: u64) -> Result<(), String> {
        let ids: HashSet<&str> = self.tunnels.iter().map(|it| it.id.as_str()).collect();
        let counts = [self.lines, self.tunnels.len(), ids.len()];
        if counts.iter().any(|count| *count as u64 != open) {
            return Err(format!(
                "lines, tunnels in JSON and different ids are {counts:?}, with {open} tunnels"
            ));
        }
        let is_right = |it: &Tunnel| {
            it.messages_from_client >= echoes
                && it.messages_from_client == it.messages_from_server
                && !it.unframed
        };
        match self.tunnels.iter().find(|it| !is_right(it)) {
            None => Ok(()),
            Some(tunnel) => Err(format!("with {echoes} echoes in each tunnel: {tunnel:?}")),
        }
    }
}
