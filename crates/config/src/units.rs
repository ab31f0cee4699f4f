//! Durations (`"10m"`), sizes (`"16KiB"`) and shares (`"5%"`).

use std::time::Duration;

use crate::Share;
use crate::error::Complaint;

/// More is a slip, and would overflow a deadline somewhere.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// As `humantime` reads them, at least `least` and at most a year.
pub(crate) fn duration(text: &str, least: Duration) -> Result<Duration, Complaint> {
    if !text.is_empty() && text.chars().all(|c| c.is_ascii_digit()) {
        let help = match duration(&format!("{text}s"), least) {
            Ok(_) => Some(format!("write \"{text}s\" for seconds")),
            Err(complaint) => complaint.help,
        };
        let message = format!("`{text}` has no unit");
        return Err(Complaint::new(message, help.unwrap_or_default()));
    }
    let value = plain_duration(text)?;
    if value > LONGEST {
        return Err(Complaint::new(
            format!("`{text}` is too long"),
            "a duration is at most a year: \"365d\"",
        ));
    }
    if value < least {
        let least = humantime::format_duration(least);
        return Err(Complaint::new(
            format!("`{text}` is too short"),
            format!("write at least \"{least}\""),
        ));
    }
    Ok(value)
}

fn plain_duration(text: &str) -> Result<Duration, Complaint> {
    let digits = text.chars().filter(char::is_ascii_digit).count();
    let wrong = || {
        let message = format!("`{text}` is not a duration");
        Complaint::new(
            message,
            "write for example \"500ms\", \"10s\", \"5m\", \"2h\" or \"1h 30m\"",
        )
    };
    // For humantime an upper case M is months.
    if text.contains('M') {
        return Err(Complaint::new(
            wrong().message,
            "minutes are written with a small m: \"10m\"",
        ));
    }
    // humantime 2.4 panics where the sum of its parts meets u64::MAX seconds:
    // with ten digits in all no sum comes near.
    if digits > 10 {
        return Err(wrong());
    }
    humantime::parse_duration(text).map_err(|_| wrong())
}

/// Bytes.
pub(crate) fn size(text: &str) -> Result<u64, Complaint> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim();
    let factor = factor(unit);
    let value = number.parse::<u64>().ok().zip(factor);
    if let Some(bytes) = value.and_then(|(number, factor)| number.checked_mul(factor)) {
        return Ok(bytes);
    }
    let help = match (number, unit) {
        ("", _) => "write for example \"16KiB\" (1024 bytes each) or \"16kB\" (1000)".to_owned(),
        (number, "k" | "K") => {
            format!("write \"{number}KiB\" (1024 bytes each) or \"{number}kB\" (1000)")
        }
        (number, "m" | "M") => format!("write \"{number}MiB\" or \"{number}MB\""),
        _ => "units are B, kB, MB, GB (thousands) and KiB, MiB, GiB (1024)".to_owned(),
    };
    Err(Complaint::new(format!("`{text}` is not a size"), help))
}

fn factor(unit: &str) -> Option<u64> {
    match unit.to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "kb" => Some(1_000),
        "mb" => Some(1_000_000),
        "gb" => Some(1_000_000_000),
        "kib" => Some(1 << 10),
        "mib" => Some(1 << 20),
        "gib" => Some(1 << 30),
        _ => None,
    }
}

/// What a share may be.
pub(crate) const A_SHARE: &str =
    "write a percentage from \"0%\" to \"100%\", as \"5%\" or \"0.5%\"";

/// A percentage, with at most four digits behind the point.
pub(crate) fn share(text: &str) -> Result<Share, Complaint> {
    let wrong = || Complaint::new(format!("`{text}` is not a percentage"), A_SHARE);
    let Some(number) = text.strip_suffix('%') else {
        return Err(match share(&format!("{text}%")) {
            Ok(_) => Complaint::new(
                format!("`{text}` has no percent sign"),
                format!("write \"{text}%\""),
            ),
            Err(_) => wrong(),
        });
    };
    let (whole, rest) = match number.split_once('.') {
        Some((whole, rest)) if !rest.is_empty() => (whole, rest),
        Some(_) => return Err(wrong()),
        None => (number, ""),
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(rest) {
        return Err(wrong());
    }
    if rest.len() > 4 {
        let message = format!("`{text}` has more than four digits behind the point");
        return Err(Complaint::new(message, A_SHARE));
    }
    let millionths = || {
        let whole: u32 = whole.parse().ok()?;
        let rest: u32 = format!("{rest:0<4}").parse().ok()?;
        whole.checked_mul(10_000)?.checked_add(rest)
    };
    let too_much = || Complaint::new(format!("`{text}` is more than 100%"), A_SHARE);
    millionths()
        .and_then(Share::from_millionths)
        .ok_or_else(too_much)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn help<T: std::fmt::Debug>(result: Result<T, Complaint>) -> String {
        result.unwrap_err().help.unwrap()
    }

    #[test]
    fn durations_are_read_with_their_unit() {
        let read = |text| duration(text, Duration::ZERO).unwrap();
        assert_eq!(read("500ms"), Duration::from_millis(500));
        assert_eq!(read("10m"), Duration::from_secs(600));
        assert_eq!(read("1h 30m"), Duration::from_secs(5400));
        assert_eq!(read("1.5s"), Duration::from_millis(1500));
        assert_eq!(read("0s"), Duration::ZERO);
        assert_eq!(read("365d"), LONGEST);
    }

    #[test]
    fn wrong_durations_say_what_to_write() {
        let read = |text| duration(text, Duration::from_millis(1));
        assert_eq!(help(read("10")), "write \"10s\" for seconds");
        assert_eq!(help(read("0")), "write at least \"1ms\"");
        assert!(help(read("99999999")).contains("365d"));
        assert!(help(read("99999999999")).contains("\"10s\""));
        assert!(help(read("ten minutes")).contains("\"10s\""));
        assert!(help(read("")).contains("\"10s\""));
        assert!(help(read("10M")).contains("\"10m\""));
        assert!(help(read("366d")).contains("365d"));
        assert_eq!(help(read("0s")), "write at least \"1ms\"");
        assert!(read("-5s").is_err());
        assert!(read("18446744073709551615s1000ms").is_err());
    }

    #[test]
    fn sizes_are_read_in_thousands_and_in_1024s() {
        assert_eq!(size("16KiB"), Ok(16_384));
        assert_eq!(size("64kB"), Ok(64_000));
        assert_eq!(size("64KB"), Ok(64_000));
        assert_eq!(size("2 MiB"), Ok(2 << 20));
        assert_eq!(size("16384"), Ok(16_384));
        assert_eq!(size("100B"), Ok(100));
    }

    #[test]
    fn wrong_sizes_say_what_to_write() {
        assert_eq!(
            help(size("16k")),
            "write \"16KiB\" (1024 bytes each) or \"16kB\" (1000)"
        );
        assert!(help(size("many")).contains("\"16KiB\""));
        assert!(size("99999999999GiB").is_err());
        assert!(size("-1").is_err());
        assert!(size("").is_err());
    }

    #[test]
    fn shares_are_exact() {
        for text in ["0%", "0.5%", "5%", "33.3333%", "99.9999%", "100%"] {
            assert_eq!(share(text).unwrap().to_string(), text);
        }
        assert_eq!(share("5.00%").unwrap().to_string(), "5%");
        assert_eq!(share("100%"), Ok(Share::ALL));
        let five = share("5%").unwrap();
        assert!(!five.is_exceeded(50, 1000) && five.is_exceeded(51, 1000));
        assert!(!five.is_exceeded(0, 0));
        let none = share("0%").unwrap();
        assert!(!none.is_exceeded(0, 7) && none.is_exceeded(1, u64::MAX));
        assert!(!Share::ALL.is_exceeded(u64::MAX, u64::MAX));
    }

    #[test]
    fn wrong_shares_say_what_to_write() {
        assert_eq!(help(share("5")), "write \"5%\"");
        assert_eq!(help(share("0.5")), "write \"0.5%\"");
        for text in [
            "",
            "%",
            "half",
            "-1%",
            "5 %",
            "1e1%",
            ".5%",
            "5.%",
            "101%",
            "100.0001%",
        ] {
            assert!(help(share(text)).contains("\"100%\""), "{text}");
        }
        assert!(
            share("99999999999%")
                .unwrap_err()
                .message
                .contains("more than 100%")
        );
        assert!(
            share("0.00001%")
                .unwrap_err()
                .message
                .contains("four digits")
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_them_panic(text in "\\PC{0,40}|[0-9]{0,21}[a-zM]{0,3}( ?[0-9]{1,20}[a-z]{1,2}){0,3}") {
            let _ = duration(&text, Duration::ZERO);
            let _ = size(&text);
            let _ = share(&text);
        }
    }
}
