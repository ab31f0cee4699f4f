//! Each section of the file: its keys, their defaults, and the keys that later
//! versions will have. What refers to something else is left to `validate`.

mod globals;
mod traffic;

use std::time::Duration;

use crate::decode::{Problems, Section, Spot};
use crate::error::Complaint;
use crate::syntax::Checked;
use crate::{Config, Listener, Upstream};

use globals::Globals;
pub(crate) use traffic::DraftRoute;

/// A timer that cannot be zero.
const POSITIVE: Duration = Duration::from_millis(1);

/// Something and where it was written.
#[derive(Clone, Debug)]
pub(crate) struct Placed<T> {
    pub(crate) value: T,
    pub(crate) spot: Spot,
}

/// All files together, not yet checked against each other.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) globals: Globals,
    pub(crate) listeners: Vec<Placed<Listener>>,
    /// Whether one was written, be it wrong.
    pub(crate) any_listener: bool,
    /// The same of routes.
    pub(crate) any_route: bool,
    pub(crate) routes: Vec<DraftRoute>,
    pub(crate) upstreams: Vec<Placed<(String, Upstream)>>,
}

impl Draft {
    /// Of a draft without mistakes.
    pub(crate) fn into_config(self) -> Config {
        let Globals {
            workers,
            admin,
            log,
            reload,
            drain,
            stop,
            watchdog,
            limits,
        } = self.globals;
        Config {
            workers,
            admin,
            log,
            reload,
            drain,
            stop,
            watchdog,
            limits,
            listeners: self.listeners.into_iter().map(|it| it.value).collect(),
            routes: self.routes.into_iter().map(|it| it.route).collect(),
            upstreams: self.upstreams.into_iter().map(|it| it.value).collect(),
        }
    }
}

/// Reads all files; the first one is the main file.
pub(crate) fn read(texts: &[Checked], problems: &Problems<'_>) -> Draft {
    let tables: Vec<_> = texts.iter().map(Checked::table).collect();
    let mut roots = tables.iter().enumerate().map(|(file, table)| {
        let span = 0..0;
        Section::new(problems, table, "", Spot { file, span })
    });
    let empty = toml::de::DeTable::new();
    let mut main = roots.next().unwrap_or_else(|| {
        let span = 0..0;
        Section::new(problems, &empty, "", Spot { file: 0, span })
    });
    let mut draft = Draft {
        globals: globals::read(&mut main),
        listeners: Vec::new(),
        any_listener: false,
        any_route: false,
        routes: Vec::new(),
        upstreams: Vec::new(),
    };
    shared(&mut draft, &mut main);
    let main_keys = main.asked().to_vec();
    main.finish(&["user"]);
    for mut root in roots {
        shared(&mut draft, &mut root);
        refuse_globals(&mut root, &main_keys, problems);
        root.finish(&[]);
    }
    draft
}

/// What every file may hold.
fn shared(draft: &mut Draft, root: &mut Section<'_>) {
    let listeners = root.sections("listener");
    draft.any_listener |= root.holds("listener");
    draft.any_route |= root.holds("route");
    draft
        .listeners
        .extend(listeners.into_iter().filter_map(traffic::listener));
    let routes = root.sections("route");
    draft.routes.extend(routes.into_iter().map(traffic::route));
    let upstreams = root.titled("upstream", "[upstream.NAME]").entries();
    let upstreams = upstreams
        .iter()
        .map(|(name, value)| traffic::upstream(name, value));
    draft.upstreams.extend(upstreams);
}

/// An included file with a section of the main file.
fn refuse_globals(root: &mut Section<'_>, main_keys: &[&'static str], problems: &Problems<'_>) {
    let main = problems.main_path().display();
    for key in main_keys.iter().copied().chain(["user"]) {
        if matches!(key, "listener" | "route" | "upstream") {
            continue;
        }
        let Some(value) = root.take_foreign(key) else {
            continue;
        };
        let complaint = if key == "include" {
            Complaint::new(
                "an included file may not include others",
                format!("name all of them in `include` of {main}"),
            )
        } else {
            Complaint::new(
                format!("`{key}` does not belong into an included file"),
                format!("move it to {main}; here may be `listener`, `route` and `upstream`"),
            )
        };
        problems.add(&value.key, complaint);
    }
}

/// Of a number whose range was checked.
fn narrow(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
