//! What the sections say of each other: names that must exist, things that must
//! not be there twice.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::decode::{Problems, Spot};
use crate::error::Complaint;
use crate::sections::{Draft, DraftRoute};
use crate::{HostPattern, ListenAddress, PathPattern, suggest};

/// Notes what does not fit together; returns what is hardly meant.
pub(crate) fn check(draft: &Draft, problems: &Problems<'_>) -> Vec<String> {
    something_is_there(draft, problems);
    listeners_differ(draft, problems);
    routes_differ(&draft.routes, problems);
    let upstreams = upstreams_differ(draft, problems);
    routes_lead_somewhere(&draft.routes, &upstreams, problems);
    let mut warnings = unused(draft, problems);
    warnings.extend(late_pings(&draft.routes, problems));
    warnings
}

fn something_is_there(draft: &Draft, problems: &Problems<'_>) {
    if !draft.any_listener {
        let help = "write `[[listener]]` and below it address = \"0.0.0.0:8080\"";
        problems.add_lacking("there is no listener", help);
    }
    if !draft.any_route {
        let help = "write `[[route]]` and below it upstream = \"NAME\"";
        problems.add_lacking("there is no route", help);
    }
}

fn listeners_differ(draft: &Draft, problems: &Problems<'_>) {
    let admin = &draft.globals.admin;
    let mut taken: HashMap<ListenAddress, String> = HashMap::new();
    taken.insert(
        ListenAddress::Unix(admin.socket.clone()),
        "as admin.socket".to_owned(),
    );
    if let Some(http) = admin.http {
        taken.insert(ListenAddress::Tcp(http), "as admin.http".to_owned());
    }
    for listener in &draft.listeners {
        let address = &listener.value.address;
        if let Some(first) = taken.get(address) {
            let message = format!("`{address}` is in use already: {first}");
            problems.add(
                &listener.spot,
                Complaint::new(message, "choose another address"),
            );
        } else {
            let here = format!("by the listener at {}", problems.name_of(&listener.spot));
            taken.insert(address.clone(), here);
        }
    }
}

fn routes_differ(routes: &[DraftRoute], problems: &Problems<'_>) {
    let mut taken: HashMap<(Option<&HostPattern>, &PathPattern), &Spot> = HashMap::new();
    for draft in routes.iter().filter(|draft| draft.matches) {
        let hosts = draft.route.hosts.iter().map(Some);
        let any = draft.route.hosts.is_empty().then_some(None);
        for host in hosts.chain(any) {
            let path = &draft.route.path;
            let Some(first) = taken.insert((host, path), &draft.spot) else {
                continue;
            };
            let shown = host.map_or_else(|| "any host".to_owned(), |host| format!("host `{host}`"));
            let message = format!(
                "{shown} and path `{path}` have a route already, at {}",
                problems.name_of(first)
            );
            let help = "change its `host` or its `path`, or remove one of the two";
            problems.add(&draft.spot, Complaint::new(message, help));
            taken.insert((host, path), first);
        }
    }
}

/// Within one file TOML itself sees to it.
fn upstreams_differ<'d>(draft: &'d Draft, problems: &Problems<'_>) -> BTreeMap<&'d str, &'d Spot> {
    let mut known: BTreeMap<&str, &Spot> = BTreeMap::new();
    for upstream in &draft.upstreams {
        let name = upstream.value.0.as_str();
        if let Some(first) = known.get(name) {
            let message = format!(
                "upstream `{name}` exists already, at {}",
                problems.name_of(first)
            );
            let help = "give one of them another name, or remove it";
            problems.add(&upstream.spot, Complaint::new(message, help));
        } else {
            known.insert(name, &upstream.spot);
        }
    }
    known
}

fn routes_lead_somewhere(
    routes: &[DraftRoute],
    upstreams: &BTreeMap<&str, &Spot>,
    problems: &Problems<'_>,
) {
    if !problems.knows_all_sections() {
        return;
    }
    for draft in routes {
        let name = draft.route.upstream.as_str();
        let Some(spot) = draft.upstream.as_ref() else {
            continue;
        };
        if upstreams.contains_key(name) {
            continue;
        }
        let names = || upstreams.keys().copied();
        let help = match suggest::nearest(name, names()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None if upstreams.is_empty() => {
                "write `[upstream.NAME]` and below it `servers`".to_owned()
            }
            None => format!("there are {}", suggest::list(names())),
        };
        let message = format!("there is no upstream `{name}`");
        problems.add(spot, Complaint::new(message, help));
    }
}

fn unused(draft: &Draft, problems: &Problems<'_>) -> Vec<String> {
    let used: HashSet<&str> = draft
        .routes
        .iter()
        .map(|draft| draft.route.upstream.as_str())
        .collect();
    let unused = draft
        .upstreams
        .iter()
        .filter(|it| !used.contains(it.value.0.as_str()));
    unused
        .map(|upstream| {
            let place = problems.name_of(&upstream.spot);
            format!("{place}: no route leads to upstream `{}`", upstream.value.0)
        })
        .collect()
}

/// Without a byte from anybody such a tunnel is idle before its client is silent for long enough.
fn late_pings(routes: &[DraftRoute], problems: &Problems<'_>) -> Vec<String> {
    let warn = |draft: &DraftRoute| {
        let interval = draft.route.ping_interval?;
        let place = problems.name_of(draft.ping.as_ref()?);
        (interval >= draft.route.idle_timeout).then(|| {
            let idle = humantime::format_duration(draft.route.idle_timeout);
            format!(
                "{place}: `ping_interval` is no shorter than `idle_timeout` ({idle}): a silent tunnel is closed before its client is pinged"
            )
        })
    };
    routes.iter().filter_map(warn).collect()
}
