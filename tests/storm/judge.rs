//! Who broke what: every end of a tunnel that its client did not want is laid to one fault that named it, or to none.
//!
//! A fault that kills a worker names before which steady tunnels it holds: exactly those must end, by a reset or a FIN,
//! at that moment. In the midst of a handover nobody outside can know which tunnels a worker holds: there those that it held before, or that were on
//! their way to it, may end, and no others. Short tunnels come and go too fast to be named: one that a kill may have broken was begun before the
//! worker was gone, had not ended before the kill, and ended within [`LATE`] of it. (A connection that the worker had
//! accepted dies with it, and its handshake with it.) None may ever be refused, or wait in vain.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use wsgate_load::report::{End, Ending};

use crate::crowd::Seen;

/// A reset comes at once; a fleet that waits for its core sees it later.
const LATE: Duration = Duration::from_secs(5);

/// One kill, or one order to close tunnels.
#[derive(Clone, Debug)]
pub(crate) struct Break {
    pub(crate) fault: usize,
    /// Just after the list was made, just before the kill (or the stop), and when the process was gone; by the clock of
    /// [`wsgate_load::machine::now`].
    pub(crate) listed: Duration,
    pub(crate) from: Duration,
    pub(crate) gone: Duration,
    /// The steady tunnels that it held: all of them end.
    pub(crate) tunnels: Vec<SocketAddr>,
    /// Those that it held, or that were on their way to it, in the midst of a handover: they may end.
    pub(crate) moving: Vec<SocketAddr>,
    /// So many of these at most.
    pub(crate) most: usize,
    /// They are closed with this code, and their worker lives on.
    pub(crate) close: Option<u16>,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    /// Steady tunnels that faults named, and those of them that ended so.
    pub(crate) named: u64,
    pub(crate) broken: u64,
    /// Those that were in the midst of a handover, and those of them that ended.
    pub(crate) moving: u64,
    pub(crate) broken_moving: u64,
    /// By fault.
    pub(crate) by_fault: BTreeMap<usize, u64>,
    /// Messages in flight on them.
    pub(crate) unanswered: u64,
    /// Short ones that were in the hands of a worker that was killed.
    pub(crate) short: u64,
    /// Closed by the gateway with 1012, where the plan lets it.
    pub(crate) closed: u64,
    /// Messages in flight then: behind the frame at which the close began, so never relayed.
    pub(crate) unanswered_closed: u64,
    /// Steady ones that a kill may have broken though it did not name them; only where faults overlap.
    pub(crate) unnamed: u64,
    /// All others: what ended and how, how often, and the first of them.
    pub(crate) unexplained: BTreeMap<String, (u64, String)>,
}

/// What may be besides kills.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leave {
    /// Tunnels of the oldest generations may be closed.
    pub(crate) closes: bool,
    /// Lists may be out of date.
    pub(crate) overlap: bool,
}

/// Judges all ends.
pub(crate) fn judge(seen: &Seen, breaks: &[Break], leave: Leave) -> Verdict {
    let named = breaks.iter().map(|one| one.tunnels.len() as u64).sum();
    let mut verdict = Verdict {
        named,
        moving: breaks.iter().map(|one| one.moving.len() as u64).sum(),
        ..Verdict::default()
    };
    for ending in &seen.steady.endings {
        verdict.steady(ending, breaks, leave);
    }
    for ending in &seen.short.endings {
        match breaks.iter().any(|one| one.may_have_cut(ending)) {
            true => verdict.short += 1,
            false => verdict.cannot_explain("new connection", ending),
        }
    }
    for one in breaks.iter().filter(|one| !one.moving.is_empty()) {
        let broken = verdict.by_fault.get(&one.fault).copied().unwrap_or(0);
        if broken > one.most as u64 && !leave.overlap {
            let first = format!("fault {}: {broken} broke, {} may", one.fault, one.most);
            let kind = "tunnels that were with another worker".to_owned();
            let all = verdict.unexplained.entry(kind).or_insert((0, first));
            all.0 += broken - one.most as u64;
        }
    }
    if verdict.broken != named && !leave.overlap {
        let first = format!("{named} were named, {} of them ended so", verdict.broken);
        let kind = "tunnels that a fault must have broken live on".to_owned();
        verdict
            .unexplained
            .insert(kind, (named - verdict.broken, first));
    }
    verdict
}

impl Verdict {
    fn steady(&mut self, ending: &Ending, breaks: &[Break], leave: Leave) {
        let code = |code| ending.end == End::Closed(code);
        if leave.closes && code(1012) {
            self.closed += 1;
            self.unanswered_closed += ending.unanswered;
        } else if let Some(one) = breaks.iter().rfind(|one| one.named(ending)) {
            // The last of them: a tunnel that one may have broken can have lived on until the next.
            match one.was_moving(ending) {
                true => self.broken_moving += 1,
                false => self.broken += 1,
            }
            self.unanswered += ending.unanswered;
            *self.by_fault.entry(one.fault).or_default() += 1;
        } else if leave.overlap && breaks.iter().any(|one| one.may_have_cut(ending)) {
            self.unnamed += 1;
            self.unanswered += ending.unanswered;
        } else {
            self.cannot_explain("tunnel", ending);
        }
    }

    fn cannot_explain(&mut self, what: &str, ending: &Ending) {
        let all = self.unexplained.entry(format!("{what}: {}", ending.end));
        all.or_insert_with(|| (0, words(ending))).0 += 1;
    }
}

impl Break {
    fn named(&self, ending: &Ending) -> bool {
        let held = ending.opened && ending.began <= self.listed;
        let is_one = |local| self.tunnels.contains(local) || self.moving.contains(local);
        held && self.is_cut(ending) && ending.local.as_ref().is_some_and(is_one)
    }

    fn was_moving(&self, ending: &Ending) -> bool {
        ending
            .local
            .is_some_and(|local| self.moving.contains(&local))
    }

    /// Whether the worker that was killed may have held it.
    fn may_have_cut(&self, ending: &Ending) -> bool {
        self.close.is_none() && ending.began <= self.gone && self.is_cut(ending)
    }

    /// Whether it ended as this fault ends tunnels, and when this one did.
    fn is_cut(&self, ending: &Ending) -> bool {
        let kind = match self.close {
            Some(code) => ending.end == End::Closed(code),
            None => matches!(
                ending.end,
                End::Reset
                    | End::Fin
                    | End::NoAnswer
                    | End::ResetBeforeAnswer
                    | End::CloseUnanswered
            ),
        };
        kind && ending.ended >= self.from && ending.ended <= self.gone + LATE
    }
}

fn words(ending: &Ending) -> String {
    let local = ending
        .local
        .map_or_else(|| "?".to_owned(), |it| it.to_string());
    let age = ending.ended.saturating_sub(ending.began).as_secs_f64();
    let (when, unanswered) = (ending.ended.as_secs_f64(), ending.unanswered);
    format!("from {local}, {age:.3} s old, {unanswered} messages in flight, at {when:.3}")
}
