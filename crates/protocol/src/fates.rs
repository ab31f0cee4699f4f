//! What becomes of tunnels when the configuration changes, and how that is said.
//!
//! Part of [`crate::admin`]. Workers count it, the supervisor adds up what they say, `wsctl` prints it.

use std::collections::HashMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What becomes of the tunnels that live, when the configuration changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fates {
    /// Their route leads to their server still: they go on, with the new timeouts.
    pub kept: u64,
    /// Of these, those that a lower `idle_timeout` or `max_age` ends at once.
    pub ending: u64,
    /// Their route or server is gone: they have the grace, and then a polite close.
    pub drained: u64,
    /// Those that drain already, for another reason: they keep their deadline.
    pub draining: u64,
    /// Why tunnels are drained, most tunnels first. At most [`Fates::MOST_LOSSES`]; what is beyond is
    /// added up in the last one, as [`LossReason::More`].
    pub why: Vec<Loss>,
}

/// Tunnels that lose their way for one reason.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Loss {
    /// Why.
    pub reason: LossReason,
    /// The listener that they came in by.
    pub listener: String,
    /// The route that they came by.
    pub route: String,
    /// The upstream of their server.
    pub upstream: String,
    /// Their server.
    pub server: String,
    /// How many.
    pub tunnels: u64,
}

/// Why a tunnel loses its way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossReason {
    /// Its listener is gone.
    ListenerRemoved,
    /// No route is for its host and path any more.
    RouteRemoved,
    /// Its upstream does not have its server any more.
    ServerRemoved,
    /// Its host and path lead to another upstream, which does not have its server.
    OtherUpstream {
        /// That one.
        upstream: String,
    },
    /// Any of these: what a list has no room for. The other fields of such a [`Loss`] are empty.
    More {
        /// How many losses were added up.
        losses: u64,
    },
}

/// What a reload would do, asked before it is done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DryRun {
    /// The files say what runs already: a reload would do nothing.
    pub unchanged: bool,
    /// Tunnels would move to the new workers. If not (`drain.handover`), all of them would stay where they are and drain,
    /// and are counted so.
    pub handover: bool,
    /// The watch holds this content back, or would (`reload.max_drained`).
    #[serde(default)]
    pub held: bool,
    /// What would become of the tunnels.
    pub fates: Fates,
    /// Workers that did not answer: their tunnels are not in `fates`.
    pub unresponsive_workers: Vec<UnjudgedWorker>,
    /// From the request to the answer, in milliseconds.
    pub milliseconds: f64,
    /// What the operator would be told beside.
    pub warnings: Vec<String>,
}

/// A reload that would drain or end too many tunnels, and waits for a word.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// As in [`DryRun::handover`].
    pub handover: bool,
    /// What would become of the tunnels.
    pub fates: Fates,
    /// Workers that did not answer: their tunnels are not in `fates`, and count as drained.
    pub unresponsive_workers: Vec<UnjudgedWorker>,
    /// The part of all tunnels that would be drained, end at once, or could not be judged, from 0 to 1.
    pub share: f64,
    /// The most that a reload by itself may drain and end, from 0 to 1: `reload.max_drained` of what runs.
    pub max_drained: f64,
}

/// [`Held`], and since when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldReload {
    /// When it was held back first.
    pub at: String,
    /// Why.
    #[serde(flatten)]
    pub held: Held,
}

/// A worker that was asked what would become of its tunnels, and did not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnjudgedWorker {
    /// Its process.
    pub pid: u32,
    /// Its tunnels, by the board.
    pub tunnels: u64,
}

impl Held {
    /// In a line.
    #[must_use]
    pub fn message(&self) -> String {
        format!(
            "the reload is held back: {} ({}), and reload.max_drained is {}",
            self.what(),
            percent(self.share),
            percent(self.max_drained)
        )
    }

    /// What it would do, and what nobody could say.
    fn what(&self) -> String {
        let (
            Fates {
                drained, ending, ..
            },
            unjudged,
        ) = (&self.fates, self.unjudged());
        let all = counted(self.fates.tunnels() + unjudged);
        let would = match (drained, ending) {
            (0, 0) => None,
            (drained, 0) => Some(format!("it would drain {drained} of {all}")),
            (0, ending) => Some(format!("it would end {ending} of {all}")),
            _ => Some(format!(
                "it would drain {drained} and end {ending} of {all}"
            )),
        };
        let silent = (unjudged > 0).then(|| {
            let workers = &self.unresponsive_workers;
            let pids: Vec<String> = workers.iter().map(|it| it.pid.to_string()).collect();
            let plural = if pids.len() == 1 { "" } else { "s" };
            format!(
                "{unjudged} of {all} could not be judged (worker{plural} {} did not answer), which counts as drained",
                pids.join(", ")
            )
        });
        let parts: Vec<String> = would.into_iter().chain(silent).collect();
        parts.join(", and ")
    }

    /// Why, a line each.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        let stay = (!self.handover).then(|| NO_HANDOVER.to_owned());
        let silent = self
            .unresponsive_workers
            .iter()
            .map(UnjudgedWorker::to_string);
        let ending = self.fates.ending;
        let ends = (ending > 0).then(|| format!("{LOWER_LIMIT}: {}", counted(ending)));
        let lines = stay.into_iter().chain(self.fates.reasons()).chain(ends);
        lines.chain(silent).collect()
    }

    /// Tunnels of workers that did not answer.
    #[must_use]
    pub fn unjudged(&self) -> u64 {
        self.unresponsive_workers.iter().map(|it| it.tunnels).sum()
    }
}

/// Why tunnels that are kept end at once.
const LOWER_LIMIT: &str = "a lower idle_timeout or max_age";

/// What stands in place of reasons where tunnels are not to move.
pub const NO_HANDOVER: &str =
    "drain.handover is false: all tunnels would stay where they are, and drain";

impl fmt::Display for UnjudgedWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, tunnels } = self;
        write!(f, "worker {pid} did not answer: {}", counted(*tunnels))
    }
}

/// A part of 1, as `12.5%`: to a tenth; below one percent to as much as `reload.max_drained` can say.
fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let digits = if percent >= 1.0 { 1 } else { 4 };
    let text = format!("{percent:.digits$}");
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

impl Fates {
    /// So many losses are named at most.
    pub const MOST_LOSSES: usize = 300;

    /// All tunnels.
    #[must_use]
    pub const fn tunnels(&self) -> u64 {
        self.kept + self.drained + self.draining
    }

    /// Adds what another worker has said. Losses for the same reason become one, and stay in order.
    pub fn add(&mut self, other: Self) {
        self.kept += other.kept;
        self.ending += other.ending;
        self.drained += other.drained;
        self.draining += other.draining;
        self.why.extend(other.why);
        self.tidy();
    }

    /// Makes one of losses for the same reason, sorts them, and adds up those for which there is no room.
    pub fn tidy(&mut self) {
        let mut more = (0, 0);
        let mut tunnels: HashMap<Loss, u64> = HashMap::new();
        for mut loss in self.why.drain(..) {
            let n = std::mem::take(&mut loss.tunnels);
            match loss.reason {
                LossReason::More { losses } => more = (more.0 + losses, more.1 + n),
                _ => *tunnels.entry(loss).or_default() += n,
            }
        }
        self.why.extend(
            tunnels
                .into_iter()
                .map(|(loss, tunnels)| Loss { tunnels, ..loss }),
        );
        self.why.sort_unstable_by(|a, b| {
            let most_first = b.tunnels.cmp(&a.tunnels);
            most_first.then_with(|| a.cmp(b))
        });
        let room = Self::MOST_LOSSES - usize::from(more.0 > 0);
        if self.why.len() > room {
            for loss in self.why.drain(Self::MOST_LOSSES - 1..) {
                more = (more.0 + 1, more.1 + loss.tunnels);
            }
        }
        if more.0 > 0 {
            self.why.push(Loss::more(more.0, more.1));
        }
    }

    /// One line for each thing that was done to the configuration, and how many tunnels lose their way by
    /// it, most first: a listener that is gone is one line, however many routes came by it.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        let mut lines: Vec<(String, u64)> = Vec::new();
        let mut places: HashMap<String, usize> = HashMap::new();
        for loss in &self.why {
            let place = *places.entry(loss.what()).or_insert_with_key(|what| {
                lines.push((what.clone(), 0));
                lines.len() - 1
            });
            lines[place].1 += loss.tunnels;
        }
        // A stable sort: what was equal stays as it was.
        lines.sort_by_key(|(_, tunnels)| std::cmp::Reverse(*tunnels));
        let lines = lines.into_iter();
        lines
            .map(|(what, tunnels)| format!("{what}: {}", counted(tunnels)))
            .collect()
    }
}

impl Loss {
    fn more(losses: u64, tunnels: u64) -> Self {
        Self {
            reason: LossReason::More { losses },
            listener: String::new(),
            route: String::new(),
            upstream: String::new(),
            server: String::new(),
            tunnels,
        }
    }

    /// What was done to the configuration, without the number of tunnels.
    #[must_use]
    pub fn what(&self) -> String {
        let Self {
            listener,
            route,
            upstream,
            server,
            ..
        } = self;
        match &self.reason {
            LossReason::ListenerRemoved => format!("listener {listener} removed"),
            LossReason::RouteRemoved => format!("route {route} removed"),
            LossReason::ServerRemoved => {
                format!("route {route}: upstream {upstream}: server {server} removed")
            }
            LossReason::OtherUpstream { upstream } => format!(
                "route {route}: leads to upstream {upstream} now, which does not have server {server}"
            ),
            LossReason::More { losses: 1 } => "1 more reason".to_owned(),
            LossReason::More { losses } => format!("{losses} more reasons"),
        }
    }
}

/// As `route chat.example.com/ver: upstream chat: server 10.0.12.108:9000 removed: 84 tunnels`.
impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what(), counted(self.tunnels))
    }
}

fn counted(tunnels: u64) -> String {
    match tunnels {
        1 => "1 tunnel".to_owned(),
        n => format!("{n} tunnels"),
    }
}

#[cfg(test)]
mod tests {
    use super::{Fates, Held, Loss, LossReason, UnjudgedWorker, percent};

    fn loss(reason: LossReason, server: &str, tunnels: u64) -> Loss {
        Loss {
            reason,
            listener: "0.0.0.0:8081".to_owned(),
            route: "chat.example.com/ver".to_owned(),
            upstream: "chat".to_owned(),
            server: server.to_owned(),
            tunnels,
        }
    }

    #[test]
    fn every_reason_is_a_sentence() {
        let said = |reason, tunnels| loss(reason, "10.0.12.108:9000", tunnels).to_string();
        assert_eq!(
            said(LossReason::ServerRemoved, 84),
            "route chat.example.com/ver: upstream chat: server 10.0.12.108:9000 removed: 84 tunnels"
        );
        assert_eq!(
            said(LossReason::ListenerRemoved, 12),
            "listener 0.0.0.0:8081 removed: 12 tunnels"
        );
        assert_eq!(
            said(LossReason::RouteRemoved, 1),
            "route chat.example.com/ver removed: 1 tunnel"
        );
        let upstream = "games".to_owned();
        assert_eq!(
            said(LossReason::OtherUpstream { upstream }, 5),
            "route chat.example.com/ver: leads to upstream games now, which does not have server \
             10.0.12.108:9000: 5 tunnels"
        );
        assert_eq!(
            said(LossReason::More { losses: 7 }, 9),
            "7 more reasons: 9 tunnels"
        );
    }

    #[test]
    fn what_workers_say_adds_up_with_the_most_tunnels_first() {
        let fates = |why: &[Loss]| Fates {
            kept: 10,
            ending: 1,
            drained: why.iter().map(|loss| loss.tunnels).sum(),
            draining: 2,
            why: why.to_vec(),
        };
        let mut all = fates(&[
            loss(LossReason::ServerRemoved, "a", 3),
            loss(LossReason::ServerRemoved, "b", 2),
        ]);
        all.add(fates(&[
            loss(LossReason::ServerRemoved, "b", 2),
            loss(LossReason::RouteRemoved, "a", 9),
        ]));
        assert_eq!(
            (all.kept, all.ending, all.drained, all.draining),
            (20, 2, 16, 4)
        );
        assert_eq!(all.tunnels(), 40);
        let expected = [
            loss(LossReason::RouteRemoved, "a", 9),
            loss(LossReason::ServerRemoved, "b", 4),
            loss(LossReason::ServerRemoved, "a", 3),
        ];
        assert_eq!(all.why, expected);
    }

    #[test]
    fn what_a_list_has_no_room_for_is_added_up() {
        let many = |n: u64| Fates {
            why: (1..=n)
                .map(|n| loss(LossReason::ServerRemoved, &n.to_string(), n))
                .collect(),
            ..Fates::default()
        };
        let most = Fates::MOST_LOSSES as u64;
        let mut all = Fates::default();
        all.add(many(most));
        assert_eq!((all.why.len() as u64, all.why[0].tunnels), (most, most));
        assert!(
            all.why
                .iter()
                .all(|loss| loss.reason == LossReason::ServerRemoved)
        );
        all.add(many(most + 10));
        let sum = |fates: &Fates| fates.why.iter().map(|loss| loss.tunnels).sum::<u64>();
        let told = most * (most + 1) / 2 + (most + 10) * (most + 11) / 2;
        assert_eq!((all.why.len() as u64, sum(&all)), (most, told));
        let last = LossReason::More { losses: 11 };
        assert_eq!(all.why.last().unwrap().reason, last);
        // The rest stays the rest.
        all.add(many(1));
        assert_eq!((all.why.len() as u64, sum(&all)), (most, told + 1));
        assert_eq!(
            all.why.last().unwrap().reason,
            LossReason::More { losses: 12 }
        );
    }

    #[test]
    fn what_is_held_back_says_by_how_much() {
        let held = Held {
            handover: true,
            fates: Fates {
                kept: 9,
                drained: 3,
                draining: 3,
                why: vec![loss(LossReason::RouteRemoved, "a", 3)],
                ..Fates::default()
            },
            unresponsive_workers: vec![UnjudgedWorker { pid: 7, tunnels: 1 }],
            share: 4.0 / 16.0,
            max_drained: 0.005,
        };
        assert_eq!(
            held.message(),
            "the reload is held back: it would drain 3 of 16 tunnels, and 1 of 16 tunnels could not be judged \
             (worker 7 did not answer), which counts as drained (25%), and reload.max_drained is 0.5%"
        );
        let reasons = [
            "route chat.example.com/ver removed: 3 tunnels",
            "worker 7 did not answer: 1 tunnel",
        ];
        assert_eq!(held.reasons(), reasons);
    }

    #[test]
    fn what_is_held_back_tells_drained_ended_and_unjudged_apart() {
        let said = |drained, ending, silent: &[(u32, u64)]| {
            let silent = silent.iter();
            let held = Held {
                handover: true,
                fates: Fates {
                    kept: 120 - drained,
                    drained,
                    ending,
                    ..Fates::default()
                },
                unresponsive_workers: silent
                    .map(|&(pid, tunnels)| UnjudgedWorker { pid, tunnels })
                    .collect(),
                share: 0.75,
                max_drained: 0.05,
            };
            held.message()
        };
        let tail = "(75%), and reload.max_drained is 5%";
        assert_eq!(
            said(30, 60, &[]),
            format!("the reload is held back: it would drain 30 and end 60 of 120 tunnels {tail}")
        );
        assert_eq!(
            said(0, 90, &[]),
            format!("the reload is held back: it would end 90 of 120 tunnels {tail}")
        );
        assert_eq!(
            said(0, 0, &[(7, 300), (9, 60)]),
            format!(
                "the reload is held back: 360 of 480 tunnels could not be judged (workers 7, 9 did not answer), \
                 which counts as drained {tail}"
            )
        );
    }

    #[test]
    fn a_share_is_shown_to_its_first_digit_or_to_a_tenth() {
        let shown = [0.0, 0.000_001, 0.0005, 0.005, 0.05, 1.0 / 3.0, 0.9999, 1.0].map(percent);
        let expected = [
            "0%", "0.0001%", "0.05%", "0.5%", "5%", "33.3%", "100%", "100%",
        ];
        assert_eq!(shown, expected);
    }

    #[test]
    fn a_listener_that_is_gone_is_one_line_however_many_servers_it_led_to() {
        let all = Fates {
            why: vec![
                loss(LossReason::ServerRemoved, "a", 4),
                loss(LossReason::ListenerRemoved, "a", 3),
                loss(LossReason::ListenerRemoved, "b", 2),
            ],
            ..Fates::default()
        };
        let lines = [
            "listener 0.0.0.0:8081 removed: 5 tunnels",
            "route chat.example.com/ver: upstream chat: server a removed: 4 tunnels",
        ];
        assert_eq!(all.reasons(), lines);
    }
}
