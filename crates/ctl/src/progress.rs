//! What a wait shows: a bar on a terminal, plain lines elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use crate::console::Console;
use crate::units;

/// How often a wait asks the supervisor.
pub(crate) const POLL: Duration = Duration::from_millis(250);

/// Plain lines come this far apart at least.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// What a wait still waits for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Left {
    pub(crate) tunnels: u64,
    pub(crate) workers: u64,
    /// Seconds until what is left is ended.
    pub(crate) deadline_in: Option<f64>,
}

/// One wait, from its first look on.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    lines: Lines,
    begun: Instant,
    /// The most tunnels seen, which is the bar's full length.
    most: u64,
    /// Tunnels at the first look.
    first: Option<u64>,
}

impl Progress {
    pub(crate) fn new(console: &Console<'_>) -> Self {
        Self {
            bar: console.bar.then(new_bar),
            lines: Lines::default(),
            begun: Instant::now(),
            most: 0,
            first: None,
        }
    }

    /// Shows what is left now.
    pub(crate) fn show(&mut self, left: Left, console: &mut Console<'_>) {
        let now = Instant::now();
        let first = *self.first.get_or_insert(left.tunnels);
        self.most = self.most.max(left.tunnels);
        let ended = first.saturating_sub(left.tunnels);
        let text = describe(left, ended, now - self.begun);
        match &self.bar {
            Some(bar) => {
                // Both in one step, so that it is drawn once for the two.
                bar.update(|state| {
                    state.set_len(self.most);
                    state.set_pos(self.most - left.tunnels);
                });
                bar.set_message(text);
            }
            None if self.lines.due(left, now) => console.note(text),
            None => {}
        }
    }

    /// How long it took.
    pub(crate) fn finish(self) -> Duration {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.begun.elapsed()
    }
}

/// Which plain lines are worth showing: those that say something new, and not too often.
#[derive(Debug, Default)]
struct Lines {
    shown: Option<(u64, u64, Instant)>,
}

impl Lines {
    fn due(&mut self, left: Left, now: Instant) -> bool {
        let due = self.shown.is_none_or(|(tunnels, workers, at)| {
            (tunnels, workers) != (left.tunnels, left.workers) && now - at >= LINE_EVERY
        });
        if due {
            self.shown = Some((left.tunnels, left.workers, now));
        }
        due
    }
}

/// `84 tunnels left, 12.0/s, deadline in 48s`
fn describe(left: Left, ended: u64, elapsed: Duration) -> String {
    let mut text = format!("{} left", units::count(left.tunnels, "tunnel"));
    if left.tunnels == 0 {
        text = format!(
            "no tunnels left, {} finishing",
            units::count(left.workers, "worker")
        );
    }
    if ended > 0 && !elapsed.is_zero() {
        text += &format!(", {:.1}/s", ended as f64 / elapsed.as_secs_f64());
    }
    if let Some(seconds) = left.deadline_in {
        text += &format!(", deadline in {}", units::duration(seconds));
    }
    text
}

fn new_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:24} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr()).with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(tunnels: u64, deadline_in: Option<f64>) -> Left {
        Left {
            tunnels,
            workers: 2,
            deadline_in,
        }
    }

    #[test]
    fn progress_names_what_is_left_its_rate_and_the_deadline() {
        let after = Duration::from_secs(10);
        assert_eq!(
            describe(left(84, Some(48.2)), 120, after),
            "84 tunnels left, 12.0/s, deadline in 48s"
        );
        assert_eq!(describe(left(1, None), 0, after), "1 tunnel left");
        assert_eq!(
            describe(left(0, None), 0, after),
            "no tunnels left, 2 workers finishing"
        );
    }

    #[test]
    fn a_plain_line_says_something_new_and_comes_once_a_second_at_most() {
        let (mut lines, start) = (Lines::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        assert!(lines.due(left(9, Some(5.0)), at(0)));
        assert!(!lines.due(left(8, Some(4.7)), at(250)));
        assert!(lines.due(left(7, Some(3.9)), at(1000)));
        assert!(!lines.due(left(7, Some(1.0)), at(3000)));
    }
}
