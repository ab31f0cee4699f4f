//! The budget of file descriptors: what the workers' tunnels may take, and what the supervisor
//! itself needs for a reload.
//!
//! Workers inherit the supervisor's limit, which is raised to its hard one at the start. What does not fit
//! is told: as a warning where fewer tunnels are served, as a refusal where a reload would fail half-way.

use wsgate_config::Config;
use wsgate_os::limits::Budget;
use wsgate_protocol::admin::{LimitsStatus, TunnelsBy};

use crate::supervisor::Supervisor;

/// What the supervisor needs whatever is configured: the board, the log, the lock, signals, file
/// watches, the admin sockets and their connections.
const BESIDE: u64 = 128;

/// Of each worker: the control channel, the pidfd, and the pipe of a listing.
const PER_WORKER: u64 = 3;

/// What to raise.
pub(crate) const ADVICE: &str = "LimitNOFILE in the systemd unit, `ulimit -n` elsewhere";

/// Tunnels that fit into the descriptors of all workers, and into those of each.
fn fits(config: &Config, descriptors: u64) -> u64 {
    let each = Budget::new(descriptors, sockets(config)).tunnels;
    each.saturating_mul(config.workers as u64)
}

/// Those that one worker may come to hold.
fn sockets(config: &Config) -> u64 {
    (config.workers * config.listeners.len()) as u64
}

/// What the operator is told if `limits.tunnels` is more than fits, or hardly anything does.
pub(crate) fn warning(config: &Config, descriptors: u64) -> Option<String> {
    let least = Budget::descriptors_for(1, sockets(config));
    if Budget::is_beyond(descriptors, sockets(config)) {
        return Some(format!(
            "each worker may open {descriptors} descriptors, and needs {least} for a single tunnel and all else: there is room for hardly any; raise that ({ADVICE})"
        ));
    }
    let fits = fits(config, descriptors);
    let wanted = config.limits.tunnels.filter(|wanted| *wanted > fits)?;
    let each = wanted.div_ceil(config.workers as u64);
    let needed = Budget::descriptors_for(each, sockets(config));
    let workers = config.workers;
    Some(format!(
        "limits.tunnels is {wanted}, but only {fits} fit: each of the workers ({workers}) may open {descriptors} descriptors; raise that to {needed} ({ADVICE})"
    ))
}

/// What holds.
pub(crate) fn status(config: &Config, descriptors: u64) -> LimitsStatus {
    let fits = fits(config, descriptors);
    let configured = config.limits.tunnels.filter(|wanted| *wanted <= fits);
    LimitsStatus {
        tunnels: configured.unwrap_or(fits),
        tunnels_by: if configured.is_some() {
            TunnelsBy::Config
        } else {
            TunnelsBy::Descriptors
        },
        descriptors_per_worker: descriptors,
    }
}

impl Supervisor {
    /// That a generation with this configuration can be started beside those that live.
    pub(crate) fn check_descriptors(&self, config: &Config) -> Result<(), String> {
        let workers = (self.links.len() + config.workers) as u64;
        let sockets = self.sockets.count_with(config);
        let generations = self.generations.len() as u64 + 1;
        // Each worker that is there may give its tunnels away: both ends of a channel, until they are sent.
        let channels = if config.drain.handover {
            2 * self.links.len() as u64
        } else {
            0
        };
        let needed = BESIDE + sockets + PER_WORKER * workers + generations + channels;
        let has = self.descriptors;
        if needed <= has {
            return Ok(());
        }
        Err(format!(
            "the supervisor needs {needed} descriptors for this ({sockets} listening sockets, {workers} workers with those that drain) and may open {has}: raise that ({ADVICE}), or configure fewer workers or listeners"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(workers: usize, tunnels: &str) -> Config {
        let text = format!(
            "workers = {workers}\n[limits]\ntunnels = {tunnels}\n[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nupstream = \"a\"\n[upstream.a]\nservers = [\"127.0.0.1:9\"]\n"
        );
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("wsgate.toml");
        std::fs::write(&path, text).expect("a file");
        wsgate_config::load(&path).expect("no mistakes").config
    }

    #[test]
    fn a_number_that_fits_holds_and_no_warning_comes() {
        let config = config(2, "1000");
        assert_eq!(warning(&config, 20_000), None);
        let status = status(&config, 20_000);
        assert_eq!(
            (status.tunnels, status.tunnels_by),
            (1_000, TunnelsBy::Config)
        );
    }

    #[test]
    fn a_number_that_does_not_fit_is_told_with_the_one_that_does() {
        let config = config(2, "100000");
        let told = warning(&config, 1_024).expect("a warning");
        let status = status(&config, 1_024);
        assert_eq!(status.tunnels_by, TunnelsBy::Descriptors);
        assert!(told.contains("100000") && told.contains(&format!("only {} fit", status.tunnels)));
        let needed = told.split("raise that to ").nth(1).expect("what to do");
        let needed: u64 = needed
            .split(' ')
            .next()
            .and_then(|it| it.parse().ok())
            .expect("a number");
        assert_eq!(warning(&config, needed), None);
        assert!(warning(&config, needed - 6).is_some());
    }

    #[test]
    fn where_not_even_one_tunnel_fits_that_is_told_whatever_is_configured() {
        for tunnels in ["1", "\"auto\""] {
            let config = config(4, tunnels);
            let told = warning(&config, 263).expect("a warning");
            assert!(
                told.contains("may open 263") && told.contains("needs 264"),
                "{told}"
            );
            assert_eq!(warning(&config, 264), None);
        }
    }

    #[test]
    fn auto_follows_the_descriptors() {
        let config = config(4, "\"auto\"");
        assert_eq!(warning(&config, 1_024), None);
        let few = status(&config, 1_024);
        let many = status(&config, 20_000);
        assert!(few.tunnels < 2_000 && many.tunnels > 30_000);
        assert_eq!(many.descriptors_per_worker, 20_000);
    }
}
