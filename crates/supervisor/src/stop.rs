//! The stop of the gateway, as it is asked for.

use std::time::{Duration, Instant};

use wsgate_lifecycle::Phase;
use wsgate_os::systemd;
use wsgate_protocol::admin::{EventKind, Stopping};

use crate::supervisor::{Supervisor, notify_systemd, seconds};

impl Supervisor {
    /// Begins to stop, or stops faster.
    pub(crate) fn request_stop(&mut self, now: bool) -> Stopping {
        let stop = self
            .running
            .as_ref()
            .map(|running| running.config.stop.clone());
        let (accept_for, grace) = match stop {
            Some(stop) if !now => (stop.accept_for, stop.grace),
            _ => (Duration::ZERO, Duration::ZERO),
        };
        // A second request without `now` changes nothing.
        if now || self.lifecycle.phase() == Phase::Running {
            notify_systemd(systemd::stopping());
            let all = accept_for + grace;
            notify_systemd(systemd::extend_timeout(all + Duration::from_secs(10)));
            tracing::info!(
                tunnels = self.figures.tunnels(),
                accept_for_seconds = seconds(accept_for),
                grace_seconds = seconds(grace),
                "wsgate stops"
            );
            self.stop_deadline = Some(Instant::now() + all);
            self.news.tell(EventKind::Stop {
                tunnels: self.figures.tunnels(),
                deadline_in_seconds: all.as_secs_f64(),
            });
            self.fail_queued_reloads("wsgate stops");
            self.apply(wsgate_lifecycle::Event::Stop { accept_for, grace });
        }
        let left = self
            .stop_deadline
            .map(|at| at.saturating_duration_since(Instant::now()));
        Stopping {
            pid: std::process::id(),
            tunnels: self.figures.tunnels(),
            deadline_in_seconds: left.unwrap_or_default().as_secs_f64(),
        }
    }
}
