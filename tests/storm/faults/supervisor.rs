//! The supervisor's death, and its successor.

use std::io;
use std::time::Duration;

use wsgate_protocol::admin::ServerState;

use super::Faults;
use crate::wait::pass;

/// So long there is no supervisor.
const ABSENT: Duration = Duration::from_secs(2);

impl Faults<'_> {
    /// The operator's word must outlive it: that is part of being settled.
    pub(super) fn kill_supervisor(&mut self, bad_file: bool) -> io::Result<()> {
        self.gateway.set_server(ServerState::Drain)?;
        if bad_file {
            let text = self.gateway.site.text(&self.gateway.shape);
            self.gateway.write_text(&format!("workers = = 2\n{text}"))?;
        }
        self.gateway.kill_supervisor()?;
        pass(ABSENT);
        let started = self.gateway.start_again();
        // Whatever came of it: the next fault wants a gateway.
        self.gateway.write(self.gateway.shape.clone())?;
        if started.is_err() {
            self.gateway.start_again()?;
        }
        let shape = self.gateway.next_shape();
        self.gateway.take(shape)?;
        started
    }
}
