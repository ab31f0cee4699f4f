//! Durations, sizes, moments and counts as people read them.

use std::time::SystemTime;

/// Two units at most: `0.3s`, `48s`, `3m 20s`, `2h 5m`, `3d 4h`. To the nearest tenth of a
/// second below one, to the nearest second above.
pub(crate) fn duration(seconds: f64) -> String {
    let tenths = (seconds.max(0.0) * 10.0).round() / 10.0;
    if tenths < 1.0 {
        return format!("{tenths}s");
    }
    let whole = seconds.round() as u64;
    let (days, hours) = (whole / 86_400, whole / 3_600 % 24);
    let (minutes, rest) = (whole / 60 % 60, whole % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest}s"),
        (0, 0, _) => two(minutes, 'm', rest, 's'),
        (0, _, _) => two(hours, 'h', minutes, 'm'),
        _ => two(days, 'd', hours, 'h'),
    }
}

/// `340 B`, `1.2 KiB`, `12.0 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be shown as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `1 tunnel`, `84 tunnels`.
pub(crate) fn count(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// An RFC 3339 moment as `14:03:22 UTC`, with its date if that is not today's.
/// What is no such moment is shown as it is.
pub(crate) fn moment(at: &str) -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    moment_seen_from(at, &now)
}

/// Seconds from one RFC 3339 moment to a later one; `None` if either is not such a moment.
pub(crate) fn seconds_between(from: &str, to: &str) -> Option<f64> {
    let from = humantime::parse_rfc3339(from).ok()?;
    let to = humantime::parse_rfc3339(to).ok()?;
    Some(to.duration_since(from).unwrap_or_default().as_secs_f64())
}

fn moment_seen_from(at: &str, now: &str) -> String {
    let (Some(date), Some(time), true) = (at.get(..10), at.get(11..19), at.ends_with('Z')) else {
        return at.to_owned();
    };
    if now.starts_with(date) {
        format!("{time} UTC")
    } else {
        format!("{date} {time} UTC")
    }
}

fn two(large: u64, large_unit: char, small: u64, small_unit: char) -> String {
    if small == 0 {
        format!("{large}{large_unit}")
    } else {
        format!("{large}{large_unit} {small}{small_unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units_at_most() {
        let shown: Vec<String> = [0.0, 0.34, 0.97, 48.4, 59.9, 199.9, 7_500.0, 273_600.0, -3.0]
            .into_iter()
            .map(duration)
            .collect();
        assert_eq!(
            shown,
            [
                "0s", "0.3s", "1s", "48s", "1m", "3m 20s", "2h 5m", "3d 4h", "0s"
            ]
        );
    }

    #[test]
    fn sizes_never_show_1024_of_a_unit() {
        let shown: Vec<String> = [0, 1023, 1024, 1_048_575, 12_582_912, u64::MAX]
            .into_iter()
            .map(bytes)
            .collect();
        assert_eq!(
            shown,
            [
                "0 B", "1023 B", "1.0 KiB", "1.0 MiB", "12.0 MiB", "16.0 EiB"
            ]
        );
    }

    #[test]
    fn a_moment_has_its_date_only_when_it_is_not_today() {
        let now = "2030-05-01T10:00:00Z";
        assert_eq!(
            moment_seen_from("2030-05-01T14:03:22.123Z", now),
            "14:03:22 UTC"
        );
        assert_eq!(
            moment_seen_from("2030-05-02T00:03:22.123Z", now),
            "2030-05-02 00:03:22 UTC"
        );
        assert_eq!(moment_seen_from("soon", now), "soon");
    }

    #[test]
    fn one_is_no_plural() {
        assert_eq!(
            (count(1, "tunnel"), count(0, "tunnel")),
            ("1 tunnel".to_owned(), "0 tunnels".to_owned())
        );
    }
}
