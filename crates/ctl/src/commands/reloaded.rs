//! What a reload that went well has come to, for people: one line, and one more for whatever does not simply go on.

use wsgate_protocol::admin::Reloaded;

use super::reload::held;
use crate::units;

/// The lines, the first of which says it all where nothing is special.
pub(super) fn lines(reloaded: &Reloaded) -> Vec<String> {
    let active = format!(
        "generation {} is active after {:.1} ms",
        reloaded.generation, reloaded.milliseconds
    );
    let Some(milliseconds) = reloaded.handover_milliseconds else {
        return vec![format!("{active}; {}", left(reloaded))];
    };
    let mut lines = vec![format!("{active}; {}", moved(reloaded, milliseconds))];
    lines.extend(
        details(reloaded)
            .into_iter()
            .map(|line| format!("  {line}")),
    );
    lines
}

/// Without a handover.
fn left(reloaded: &Reloaded) -> String {
    match (reloaded.draining_generations, reloaded.draining_tunnels) {
        (0, _) => "no older generation is left".to_owned(),
        (_, 0) => "older generations hold no tunnels".to_owned(),
        (_, tunnels) => held(tunnels, reloaded.deadline_at.as_deref()),
    }
}

fn moved(reloaded: &Reloaded, milliseconds: f64) -> String {
    if reloaded.moved == 0 && !reloaded.stays.is_empty() {
        return "no tunnel has moved".to_owned();
    }
    if reloaded.moved == 0 {
        return "no tunnel had to move".to_owned();
    }
    let tunnels = units::count(reloaded.moved, "tunnel");
    let moved = format!("{tunnels} moved within {milliseconds:.0} ms");
    match reloaded.longest_pause_milliseconds {
        Some(pause) => format!("{moved}, none was paused for more than {pause:.1} ms"),
        None => moved,
    }
}

fn details(reloaded: &Reloaded) -> Vec<String> {
    let fates = &reloaded.fates;
    let deadline = reloaded.deadline_at.as_deref();
    let until = deadline.map_or_else(String::new, |at| {
        format!(", until {} at the latest", units::moment(at))
    });
    let drained = fates.reasons().into_iter();
    let mut lines: Vec<String> = drained.map(|line| format!("{line}{until}")).collect();
    if fates.ending > 0 {
        let tunnels = units::count(fates.ending, "tunnel");
        lines.push(format!(
            "{tunnels} beyond the new idle_timeout or max_age: these end now"
        ));
    }
    if fates.draining > 0 {
        let tunnels = units::count(fates.draining, "tunnel");
        lines.push(format!("{tunnels} with a deadline already, which stays"));
    }
    lines.extend(reloaded.stays.iter().map(|stays| {
        let tunnels = units::count(stays.tunnels, "tunnel");
        format!("not moved, {}: {tunnels}{until}", stays.reason)
    }));
    lines
}

#[cfg(test)]
mod tests {
    use wsgate_protocol::admin::{Fates, Loss, LossReason, NotMoved};

    use super::*;

    fn reloaded(moved: u64) -> Reloaded {
        Reloaded {
            generation: 7,
            milliseconds: 12.34,
            draining_tunnels: 0,
            draining_generations: 1,
            deadline_at: None,
            warnings: Vec::new(),
            moved,
            fates: Fates {
                kept: moved,
                ..Fates::default()
            },
            stays: Vec::new(),
            handover_milliseconds: Some(84.9),
            longest_pause_milliseconds: Some(3.21),
        }
    }

    #[test]
    fn where_all_tunnels_go_on_one_line_says_so() {
        let line = "generation 7 is active after 12.3 ms; 2000 tunnels moved within 85 ms, none was paused for more than 3.2 ms";
        assert_eq!(lines(&reloaded(2_000)), [line]);
        let line = "generation 7 is active after 12.3 ms; no tunnel had to move";
        assert_eq!(lines(&reloaded(0)), [line]);
    }

    #[test]
    fn whatever_does_not_simply_go_on_has_a_line_of_its_own() {
        let mut reloaded = reloaded(100);
        reloaded.deadline_at = Some("2001-02-03T10:20:30.000Z".to_owned());
        reloaded.fates.why = vec![Loss {
            reason: LossReason::ServerRemoved,
            listener: "0.0.0.0:8080".to_owned(),
            route: "chat.example.com/ver".to_owned(),
            upstream: "chat".to_owned(),
            server: "10.0.12.108:9000".to_owned(),
            tunnels: 84,
        }];
        reloaded.fates.ending = 3;
        reloaded.fates.draining = 1;
        reloaded.stays = vec![NotMoved {
            reason: "the polite close is under way".to_owned(),
            tunnels: 2,
        }];
        let expected = [
            "  route chat.example.com/ver: upstream chat: server 10.0.12.108:9000 removed: 84 tunnels, until 2001-02-03 10:20:30 UTC at the latest",
            "  3 tunnels beyond the new idle_timeout or max_age: these end now",
            "  1 tunnel with a deadline already, which stays",
            "  not moved, the polite close is under way: 2 tunnels, until 2001-02-03 10:20:30 UTC at the latest",
        ];
        assert_eq!(lines(&reloaded)[1..], expected);
        (reloaded.moved, reloaded.fates) = (0, Fates::default());
        let line = "generation 7 is active after 12.3 ms; no tunnel has moved";
        assert_eq!(lines(&reloaded)[0], line);
    }
}
