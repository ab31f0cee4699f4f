//! Wrong files: what is said, and where it points.

use proptest::prelude::*;

use super::{SMALL, errors, mistake, read};

const FIVE: &str = r#"workers = "many"

[drain]
grace = 10
close_rat = 5

[[listener]]
address = "localhost:8080"

[[route]]
host = "chat.example.com"
path = "/vér"
upstream = "caht"

[upstream.chat]
servers = ["127.0.0.1:9001"]
"#;

fn places(text: &str) -> Vec<(usize, usize)> {
    let place = |error: &wsgate_config::Error| error.line().zip(error.column());
    errors(text).iter().filter_map(place).collect()
}

#[test]
fn all_mistakes_are_reported_in_order_with_line_and_column() {
    assert_eq!(
        places(FIVE),
        [(1, 11), (4, 9), (5, 1), (8, 11), (12, 8), (13, 12)]
    );
    let shown = errors(FIVE).to_string();
    for expected in [
        "`workers` must be a number, not text",
        "write \"10s\"",
        "did you mean `close_rate`?",
        "\"127.0.0.1:8080\"",
        "did you mean \"chat\"?",
        "4 | grace = 10\n  |         ^^\n",
        "--> wsgate.toml:13:12",
    ] {
        assert!(shown.contains(expected), "{expected} is not in\n{shown}");
    }
}

#[test]
fn mistakes_of_syntax_do_not_hide_the_others() {
    let text = "[drain]\ngrace = 10m\nfoo\nclose_code = 1005\n\n[stop]\ngrace = 5\n\
        servers = [\n  'a',\n\n[log]\nlevle = 'info'\n";
    let text = format!("{text}{SMALL}");
    assert_eq!(
        places(&text),
        [(2, 9), (3, 4), (4, 14), (7, 9), (8, 11), (12, 1)]
    );
}

#[test]
fn what_a_damaged_line_may_have_said_is_not_missed() {
    for text in [
        SMALL.replace("\"0.0.0.0:8080\"", "0.0.0.0:8080"),
        SMALL.replace("upstream = \"chat\"", "upstream \"chat\""),
        SMALL.replace("[upstream.chat]", "[upstream.chat"),
        SMALL.replace("[[listener]]", "[[listener]"),
        SMALL.replace("9001\"]", "9001\""),
    ] {
        assert_eq!(errors(&text).len(), 1, "{}", errors(&text));
    }
}

#[test]
fn text_of_every_kind_in_the_wrong_place_says_what_to_write() {
    for (line, message, help) in [
        ("workers = 0", "cannot be 0", "from 1 to 256"),
        (
            "workers = '4'",
            "must be a number",
            "write 4 without quotes",
        ),
        ("workers = 1.5", "with a point", "from 1 to 256"),
        ("drain = 5", "`drain` must be a section", "[drain]"),
        ("drain.grace = '10'", "has no unit", "\"10s\""),
        ("drain.grace = '0s'", "too short", "1ms"),
        ("reload.max_drained = '5'", "no percent sign", "\"5%\""),
        (
            "reload.max_drained = 0.5",
            "must be a percentage",
            "\"0.5%\"",
        ),
        (
            "reload.max_drained = 101",
            "must be a percentage",
            "to \"100%\"",
        ),
        ("reload.max_drained = '101%'", "more than 100%", "\"0%\""),
        (
            "reload.max_drained = true",
            "must be a percentage",
            "\"5%\"",
        ),
        ("drain.handover = 'no'", "must be true or false", "true or"),
        ("drain.close_rate = 0", "cannot be 0", "from 1"),
        ("drain.close_code = 1006", "1006 may not be sent", "1012"),
        ("drain.close_code = 999", "999 may not", "3000 to 4999"),
        ("log.level = 'warning'", "`warning` is no level", "\"warn\""),
        (
            "log.level = 'loud'",
            "`loud` is no level",
            "`error`, `warn`",
        ),
        (
            "log.access = 'true'",
            "must be true or false",
            "without quotes",
        ),
        (
            "log.file = 'a.log'",
            "not an absolute path",
            "\"/var/log/wsgate/a.log\"",
        ),
        (
            "log.file = '/var/log/'",
            "not a file's path",
            "\"/var/log/wsgate/wsgate.log\"",
        ),
        (
            "admin.socket = 'a.sock'",
            "not an absolute path",
            "\"/run/wsgate/a.sock\"",
        ),
        (
            "admin.socket = 'unix:/run/a'",
            "not an absolute path",
            "\"/run/a\"",
        ),
        ("limits.header_bytes = 100", "100 bytes", "\"8KiB\""),
        ("limits.header_bytes = '16k'", "not a size", "\"16KiB\""),
        ("limits.tunnels = 'all'", "must be a number", "\"auto\""),
        (
            "include = 'conf.d/*.toml'",
            "must be a list",
            "[\"conf.d/*.toml\"]",
        ),
        ("include = [1]", "must be a list of paths", "conf.d"),
    ] {
        let (said, helped) = mistake(&format!("{line}\n{SMALL}"));
        assert!(said.contains(message), "{line}: {said}");
        assert!(helped.contains(help), "{line}: {helped}");
    }
}

#[test]
fn a_file_without_the_necessary_says_what_is_missing() {
    let all = errors("");
    let messages: Vec<_> = all.iter().map(|error| error.message.as_str()).collect();
    assert_eq!(messages, ["there is no listener", "there is no route"]);
    let (said, _) = mistake(&SMALL.replace("address =", "# address ="));
    assert_eq!(said, "`address` is missing in `[[listener]]`");
    let (said, _) = mistake(&SMALL.replace("upstream = ", "# upstream ="));
    assert_eq!(said, "`upstream` is missing in `[[route]]`");
    let (said, _) = mistake(&SMALL.replace("servers", "# servers"));
    assert_eq!(said, "`servers` is missing in `[upstream.chat]`");
    let (said, _) = mistake(&SMALL.replace("[\"127.0.0.1:9001\"]", "[]"));
    assert_eq!(said, "an upstream has at least one server");
}

#[test]
fn sections_of_the_wrong_shape_say_how_to_write_them() {
    let (_, help) = mistake(&SMALL.replace("[[listener]]", "[listener]"));
    assert!(help.contains("`[[listener]]`"), "{help}");
    let (_, help) = mistake(&SMALL.replace("[\"127.0.0.1:9001\"]", "\"127.0.0.1:9001\""));
    assert!(help.contains("[\"127.0.0.1:9001\"]"), "{help}");
    let wrong = errors(&SMALL.replace("[upstream.chat]", "[upstream]"));
    let shown = wrong.to_string();
    assert!(shown.contains("[upstream.NAME]"), "{shown}");
}

#[test]
fn an_upstream_that_does_not_exist_is_said_to() {
    let (said, help) = mistake(&SMALL.replace("= \"chat\"", "= \"zebra\""));
    assert_eq!(said, "there is no upstream `zebra`");
    assert_eq!(help, "there are `chat`");
}

#[test]
fn two_routes_for_the_same_are_refused_with_the_first_ones_place() {
    let second = "[[route]]\nhost = ['b', 'A']\npath = '/ver/'\nupstream = 'chat'\n";
    let text = format!("{SMALL}[[route]]\nhost = 'a'\npath = '/ver'\nupstream = 'chat'\n{second}");
    let (said, _) = mistake(&text);
    assert_eq!(
        said,
        "host `a` and path `/ver` have a route already, at wsgate.toml:10:1"
    );
    let (said, _) = mistake(&format!(
        "{SMALL}[[route]]\npath = '/'\nupstream = 'chat'\n"
    ));
    assert!(said.starts_with("any host and path `/`"), "{said}");
    let other = "[[route]]\nhost = 'a'\npath = '=/ver'\nupstream = 'chat'\n";
    assert!(read(&format!("{SMALL}{other}")).is_ok());
}

#[test]
fn an_address_is_taken_once() {
    let (said, _) = mistake(&format!("{SMALL}[[listener]]\naddress = '0.0.0.0:8080'\n"));
    assert_eq!(
        said,
        "`0.0.0.0:8080` is in use already: by the listener at wsgate.toml:3:11"
    );
    let (said, _) = mistake(&format!("{SMALL}[admin]\nhttp = '0.0.0.0:8080'\n"));
    assert!(said.ends_with("as admin.http"), "{said}");
    let (said, _) = mistake(&SMALL.replace("9001\"", "9001\", \"127.0.0.1:9001\""));
    assert!(said.contains("named twice"), "{said}");
    let (said, _) = mistake(&SMALL.replace("\"127.0.0.1:9001\"", "'a:1', { address = 'A:1' }"));
    assert!(said.contains("named twice"), "{said}");
}

#[test]
fn names_and_weights_have_limits() {
    let text = SMALL
        .replace("\"chat\"", "\"a/b\"")
        .replace("[upstream.chat]", "[upstream.'a/b']");
    assert!(mistake(&text).0.contains("cannot be the name"), "{text}");
    let heavy = SMALL.replace("\"127.0.0.1:9001\"", "{ address = 'a:1', weight = 1001 }");
    assert!(mistake(&heavy).1.contains("from 1 to 1000"));
}

#[test]
fn sources_are_own_addresses_each_once() {
    for (source, message, help) in [
        ("[]", "`source` is empty", "leave it out"),
        ("5", "`source` must be text", "as \"10.0.0.5\""),
        ("[5]", "`source` must be text", "as \"10.0.0.5\""),
        ("'fe80::1'", "not an address to connect from", "link-local"),
        ("['10.0.0.5', '10.0.0.5']", "named twice", "remove one"),
        (
            "['::1', '0:0:0:0:0:0:0:1']",
            "`::1` is named twice",
            "remove one",
        ),
        (
            "'10.0.0.5:1'",
            "not an address to connect from",
            "\"10.0.0.5\"",
        ),
        (
            "['::1', 'eth0']",
            "`eth0` is not an address",
            "of this machine",
        ),
        (
            "'0.0.0.0'",
            "not an address to connect from",
            "the kernel chooses",
        ),
    ] {
        let (said, helped) = mistake(&format!("{SMALL}source = {source}\n"));
        assert!(said.contains(message), "{source}: {said}");
        assert!(helped.contains(help), "{source}: {helped}");
    }
    let text = format!("{SMALL}source = ['::1', 'eth0', '::']\n");
    assert_eq!(places(&text), [(10, 18), (10, 26)]);
}

#[test]
fn the_timers_of_a_route_are_durations_and_never_zero() {
    for key in ["idle_timeout", "send_timeout", "max_age", "ping_interval"] {
        let with = |value| SMALL.replace("= \"chat\"", &format!("= \"chat\"\n{key} = {value}"));
        let (said, help) = mistake(&with("60"));
        assert!(
            said.contains("has no unit") && help.contains("\"60s\""),
            "{said}"
        );
        let (said, help) = mistake(&with("'1us'"));
        assert!(
            said.contains("too short") && help.contains("\"1ms\""),
            "{said}"
        );
        assert!(mistake(&with("'soon'")).0.contains("not a duration"));
        let without = match key {
            "max_age" => "leave `max_age` out: tunnels may live as long as they like",
            "ping_interval" => "leave `ping_interval` out: wsgate sends no pings then",
            _ => "it cannot be turned off; at most \"365d\"",
        };
        for nothing in ["0", "0.0", "'0'", "'0s'", "'off'", "'none'", "false"] {
            let (said, help) = mistake(&with(nothing));
            assert_eq!(help, without, "{key} = {nothing}");
            assert!(said.starts_with(&format!("`{key}` cannot be ")), "{said}");
        }
    }
}

#[test]
fn what_help_advises_is_not_refused_next() {
    for (line, refused) in [
        ("drain.grace = 0", "\"0s\""),
        ("drain.grace = '0'", "\"0s\""),
        ("drain.grace = 99999999", "\"99999999s\""),
        ("workers = '1000'", "write 1000"),
        ("log.level = 5", "\"5\""),
        ("log.file = 5", "\"5\""),
        ("admin.http = 9180", "\"9180\""),
    ] {
        let (said, help) = mistake(&format!("{line}\n{SMALL}"));
        assert!(!help.contains(refused), "{line}: {help}");
        assert!(!help.is_empty() && !said.is_empty(), "{line}");
    }
    let number = SMALL.replace("= \"chat\"", "= \"chat\"\nhost = 5");
    assert_eq!(mistake(&number).1, "write it in quotes: \"5\"");
    let quoted = number.replace("host = 5", "host = \"5\"");
    assert!(read(&quoted).is_ok());
}

#[test]
fn a_key_in_the_wrong_section_is_shown_its_own() {
    let on_route = |line| SMALL.replace("= \"chat\"", &format!("= \"chat\"\n{line}"));
    let on_upstream = |line| format!("{SMALL}{line}\n");
    for (text, help) in [
        (
            on_route("source = '::1'"),
            "it belongs into `[upstream.NAME]`",
        ),
        (on_route("retries = 1"), "it belongs into `[upstream.NAME]`"),
        (
            on_upstream("ping_interval = '50s'"),
            "it belongs into `[[route]]`",
        ),
        (
            on_upstream("send_timeout = '50s'"),
            "it belongs into `[[route]]`",
        ),
        (
            on_route("ping_timeout = '50s'"),
            "did you mean `ping_interval`?",
        ),
        (
            on_upstream("ping_timeout = '50s'"),
            "did you mean `ping_interval`? It belongs into `[[route]]`",
        ),
    ] {
        assert_eq!(mistake(&text).1, help, "{text}");
    }
}

#[test]
fn a_link_local_source_is_for_a_server_with_an_interface() {
    let scoped = SMALL.replace("127.0.0.1:9001", "[fe80::2%3]:9001");
    assert!(read(&format!("{scoped}source = 'fe80::1'\n")).is_ok());
}

/// Files as people write them, with some lines broken.
fn broken_file() -> impl Strategy<Value = String> {
    let lines: Vec<&str> = FIVE.lines().chain(SMALL.lines()).collect();
    let count = lines.len();
    let lines: Vec<String> = lines.into_iter().map(str::to_owned).collect();
    proptest::collection::vec(
        (0..count, 0..40_usize, "[\\[\\]{}=\"'#,.a-c0-9é\\n]{0,3}"),
        0..30,
    )
    .prop_map(move |edits| {
        let mut text = String::new();
        for (line, at, insert) in edits {
            let mut line = lines[line].clone();
            let at = at.min(line.len());
            if line.is_char_boundary(at) {
                line.insert_str(at, &insert);
            }
            text.push_str(&line);
            text.push('\n');
        }
        text
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,200}|[\\[\\]a-c={}\"'\\n .,#]{0,80}") {
        if let Err(errors) = read(&text) {
            prop_assert!(errors.len() > 0 && !errors.to_string().is_empty());
        }
    }

    #[test]
    fn no_broken_file_makes_it_panic_and_what_is_shown_is_the_place(text in broken_file()) {
        let Err(errors) = read(&text) else { return Ok(()) };
        for error in &errors {
            let shown = error.render();
            if let Some((line, column)) = error.line().zip(error.column()) {
                let place = format!("wsgate.toml:{line}:{column}\n");
                prop_assert!(shown.contains(&place), "{} is not in\n{}", place, shown);
                let text = text.split('\n').nth(line - 1).unwrap_or_default();
                prop_assert!(column <= text.chars().count() + 1);
            }
        }
    }
}
