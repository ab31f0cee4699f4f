//! Spreads the closes of drains over time, so that not all clients come back at once.
//!
//! As many clients come back as tunnels are closed, whichever drain closed them. So
//! drains that overlap share one timeline: each reserves the time that its closes
//! need, as late as its deadline allows, and no two reservations overlap. Only a
//! grace too short for the rate breaks that, and the plan says so.

use std::time::Duration;

use crate::Moment;

/// A span of time, from its first moment to its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First moment.
    pub from: Moment,
    /// Last moment.
    pub to: Moment,
}

impl Span {
    fn length(self) -> Duration {
        self.to.saturating_sub(self.from)
    }
}

/// The time reserved for closes, of all drains.
#[derive(Debug, Default)]
pub struct Closes {
    /// Disjoint, ordered.
    reserved: Vec<(u64, Span)>,
}

/// When the tunnels of one drain are closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Ordered and disjoint. Closes are spread evenly over these spans laid end to end.
    pub spans: Vec<Span>,
    /// The deadline leaves too little time for the rate: closes come faster.
    pub too_short: bool,
}

impl Closes {
    /// Reserves time before `deadline` for closing `tunnels` at most `rate` a second.
    ///
    /// `owner` names the drain for [`Closes::release`]; what it had reserved is given up.
    pub fn reserve(
        &mut self,
        owner: u64,
        now: Moment,
        deadline: Moment,
        tunnels: u64,
        rate: u32,
    ) -> Plan {
        self.release(owner);
        self.reserved.retain(|(_, span)| span.to > now);
        let needed = time_for(tunnels, rate);
        match self.latest_free(now, deadline, needed) {
            Some(spans) => {
                self.reserved
                    .extend(spans.iter().map(|span| (owner, *span)));
                self.reserved.sort_by_key(|(_, span)| span.from);
                Plan {
                    spans: if spans.is_empty() {
                        vec![Span {
                            from: deadline,
                            to: deadline,
                        }]
                    } else {
                        spans
                    },
                    too_short: false,
                }
            }
            None => Plan {
                spans: vec![Span {
                    from: now,
                    to: deadline.max(now),
                }],
                too_short: true,
            },
        }
    }

    /// The earliest deadline by which `owner` can close `tunnels` at `rate` a second in time
    /// that nobody else has reserved.
    #[must_use]
    pub fn soonest(&self, owner: u64, now: Moment, tunnels: u64, rate: u32) -> Moment {
        let mut missing = time_for(tunnels, rate);
        let mut from = now;
        for (_, taken) in self.reserved.iter().filter(|(by, _)| *by != owner) {
            let free = taken.from.saturating_sub(from);
            if missing <= free {
                break;
            }
            missing -= free;
            from = from.max(taken.to);
        }
        from.saturating_add(missing)
    }

    /// Gives up what `owner` had reserved.
    pub fn release(&mut self, owner: u64) {
        self.reserved.retain(|(by, _)| *by != owner);
    }

    /// Free time of the length `needed` between `now` and `deadline`, as late as possible.
    fn latest_free(&self, now: Moment, deadline: Moment, needed: Duration) -> Option<Vec<Span>> {
        let mut spans = Vec::new();
        let mut missing = needed;
        let mut to = deadline;
        for (_, taken) in self.reserved.iter().rev().chain([&(
            0,
            Span {
                from: Moment::ZERO,
                to: now,
            },
        )]) {
            let from = taken.to.clamp(now, to.max(now));
            let take = missing.min(to.saturating_sub(from));
            if !take.is_zero() {
                spans.push(Span {
                    from: to - take,
                    to,
                });
                missing -= take;
            }
            to = to.min(taken.from);
        }
        spans.reverse();
        missing.is_zero().then_some(spans)
    }
}

fn time_for(tunnels: u64, rate: u32) -> Duration {
    let seconds = tunnels as f64 / f64::from(rate.max(1));
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

impl Plan {
    /// Divides the time among several holders of tunnels, one after the other, by how
    /// many each holds. One that holds none gets the last moment, for what is still to come.
    #[must_use]
    pub fn split(&self, shares: &[u64]) -> Vec<Vec<Span>> {
        let total: u64 = shares.iter().sum();
        let length: Duration = self.spans.iter().map(|span| span.length()).sum();
        let at = |before: u64| length.mul_f64(before as f64 / total.max(1) as f64);
        let mut before = 0;
        shares
            .iter()
            .map(|share| {
                let (from, to) = (at(before), at(before + share));
                before += share;
                if *share == 0 {
                    self.last_moment()
                } else {
                    self.cut(from, to)
                }
            })
            .collect()
    }

    fn last_moment(&self) -> Vec<Span> {
        self.spans
            .last()
            .map(|span| Span {
                from: span.to,
                to: span.to,
            })
            .into_iter()
            .collect()
    }

    /// The part from `from` to `to`, measured along the spans laid end to end.
    fn cut(&self, from: Duration, to: Duration) -> Vec<Span> {
        let mut begun = Duration::ZERO;
        let mut part = Vec::new();
        for span in &self.spans {
            let ended = begun + span.length();
            let (first, last) = (from.max(begun), to.min(ended));
            if first < last {
                part.push(Span {
                    from: span.from + (first - begun),
                    to: span.from + (last - begun),
                });
            }
            begun = ended;
        }
        if part.is_empty() {
            self.last_moment()
        } else {
            part
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn secs(n: f64) -> Duration {
        Duration::from_secs_f64(n)
    }

    fn length(spans: &[Span]) -> Duration {
        spans.iter().map(|span| span.length()).sum()
    }

    #[test]
    fn closes_come_as_late_as_the_deadline_allows() {
        let plan = Closes::default().reserve(1, secs(0.0), secs(10.0), 200, 100);
        assert_eq!(
            plan.spans,
            [Span {
                from: secs(8.0),
                to: secs(10.0)
            }]
        );
        assert!(!plan.too_short);
    }

    #[test]
    fn a_second_drain_takes_the_time_that_the_first_left() {
        let mut closes = Closes::default();
        closes.reserve(1, secs(0.0), secs(5.0), 100, 100);
        let plan = closes.reserve(2, secs(0.5), secs(5.5), 200, 100);
        assert_eq!(
            plan.spans,
            [
                Span {
                    from: secs(2.5),
                    to: secs(4.0)
                },
                Span {
                    from: secs(5.0),
                    to: secs(5.5)
                }
            ]
        );
    }

    #[test]
    fn a_grace_too_short_for_the_rate_is_told_and_kept() {
        let plan = Closes::default().reserve(1, secs(1.0), secs(2.0), 1000, 100);
        assert!(plan.too_short);
        assert_eq!(
            plan.spans,
            [Span {
                from: secs(1.0),
                to: secs(2.0)
            }]
        );
    }

    #[test]
    fn the_soonest_deadline_is_behind_what_others_have_reserved() {
        let mut closes = Closes::default();
        assert_eq!(closes.soonest(1, secs(1.0), 200, 100), secs(3.0));
        closes.reserve(1, secs(0.0), secs(5.0), 100, 100);
        closes.reserve(2, secs(0.0), secs(3.0), 100, 100);
        assert_eq!(closes.soonest(3, secs(0.0), 300, 100), secs(4.0));
        assert_eq!(closes.soonest(3, secs(0.0), 400, 100), secs(6.0));
        assert_eq!(closes.soonest(2, secs(0.0), 300, 100), secs(3.0));
        assert_eq!(closes.soonest(3, secs(2.5), 100, 100), secs(4.0));
    }

    #[test]
    fn nothing_to_close_leaves_the_deadline_for_latecomers() {
        let plan = Closes::default().reserve(1, secs(0.0), secs(5.0), 0, 100);
        assert_eq!(
            plan.spans,
            [Span {
                from: secs(5.0),
                to: secs(5.0)
            }]
        );
    }

    #[test]
    fn a_figure_gone_wild_is_no_more_than_too_many() {
        let plan = Closes::default().reserve(1, secs(0.0), secs(5.0), u64::MAX, 1);
        assert!(plan.too_short);
    }

    #[test]
    fn holders_take_turns_by_what_they_hold() {
        let plan = Plan {
            spans: vec![Span {
                from: secs(0.0),
                to: secs(4.0),
            }],
            too_short: false,
        };
        let parts = plan.split(&[100, 0, 300]);
        assert_eq!(
            parts[0],
            [Span {
                from: secs(0.0),
                to: secs(1.0)
            }]
        );
        assert_eq!(
            parts[1],
            [Span {
                from: secs(4.0),
                to: secs(4.0)
            }]
        );
        assert_eq!(
            parts[2],
            [Span {
                from: secs(1.0),
                to: secs(4.0)
            }]
        );
    }

    proptest! {
        #[test]
        fn the_rate_holds_over_all_drains_that_are_not_too_short(
            drains in proptest::collection::vec((0u64..3000, 1u64..60_000, 0u64..2_000), 1..30)
        ) {
            let mut closes = Closes::default();
            let mut now = Duration::ZERO;
            let mut kept: Vec<Span> = Vec::new();
            for (owner, (tunnels, grace, pause)) in drains.into_iter().enumerate() {
                now += Duration::from_millis(pause);
                let deadline = now + Duration::from_millis(grace);
                let plan = closes.reserve(owner as u64, now, deadline, tunnels, 100);
                prop_assert!(plan.spans.iter().all(|span| span.from >= now && span.to <= deadline));
                if plan.too_short {
                    continue;
                }
                let needed = tunnels as f64 / 100.0;
                prop_assert!((length(&plan.spans).as_secs_f64() - needed).abs() < 1e-6);
                for span in plan.spans.iter().filter(|span| !span.length().is_zero()) {
                    prop_assert!(kept.iter().all(|other| span.to <= other.from || span.from >= other.to));
                    kept.push(*span);
                }
            }
        }

        #[test]
        fn the_soonest_deadline_is_never_too_short_and_none_is_sooner(
            drains in proptest::collection::vec((0u64..3000, 1u64..60_000, 0u64..2_000), 0..12),
            tunnels in 1u64..3_000,
        ) {
            let mut closes = Closes::default();
            let mut now = Duration::ZERO;
            for (owner, (tunnels, grace, pause)) in drains.into_iter().enumerate() {
                now += Duration::from_millis(pause);
                closes.reserve(owner as u64, now, now + Duration::from_millis(grace), tunnels, 100);
            }
            let soonest = closes.soonest(99, now, tunnels, 100);
            let sooner = soonest.saturating_sub(Duration::from_millis(1));
            prop_assert!(closes.reserve(99, now, sooner, tunnels, 100).too_short);
            prop_assert!(!closes.reserve(99, now, soonest, tunnels, 100).too_short);
        }

        #[test]
        fn splitting_loses_no_time_and_doubles_none(shares in proptest::collection::vec(0u64..500, 1..12)) {
            let plan = Plan {
                spans: vec![Span { from: secs(1.0), to: secs(2.0) }, Span { from: secs(3.0), to: secs(7.0) }],
                too_short: false,
            };
            let parts = plan.split(&shares);
            let total: Duration = parts.iter().map(|part| length(part)).sum();
            if shares.iter().sum::<u64>() > 0 {
                prop_assert!((total.as_secs_f64() - 5.0).abs() < 1e-6);
            }
            let mut spans: Vec<Span> = parts.into_iter().flatten().filter(|span| !span.length().is_zero()).collect();
            spans.sort_by_key(|span| span.from);
            prop_assert!(spans.windows(2).all(|pair| pair[0].to <= pair[1].from + Duration::from_nanos(2)));
        }
    }
}
