//! Which route a request takes.
//!
//! Hosts first: the exact one, then the wildcards from the longest to the shortest, then
//! routes for any host. Within a host the exact path, then the longest match; of two
//! equally long ones the one on segment borders. Where a host has routes but none for the path,
//! the less specific hosts are asked: routes are flat, and none hides another's paths.
//!
//! No lookup is linear in the number of routes.

#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashMap;

use wsgate_config::{HostPattern, PathPattern, Route};

/// All routes, by what they are for.
#[derive(Debug, Default)]
pub struct Routes {
    exact: HashMap<Box<str>, Paths>,
    below: HashMap<Box<str>, Paths>,
    any: Paths,
}

impl Routes {
    /// Each route is known by its place. Of two routes for the same the first one counts.
    pub fn new<'a>(routes: impl IntoIterator<Item = &'a Route>) -> Self {
        let mut all = Self::default();
        for (place, route) in routes.into_iter().enumerate() {
            if route.hosts.is_empty() {
                all.any.add(&route.path, place);
            }
            for host in &route.hosts {
                let (hosts, host) = match host {
                    HostPattern::Exact(host) => (&mut all.exact, host),
                    HostPattern::Below(host) => (&mut all.below, host),
                };
                let paths = hosts.entry(host.as_str().into()).or_default();
                paths.add(&route.path, place);
            }
        }
        let hosts = all.exact.values_mut().chain(all.below.values_mut());
        hosts.chain([&mut all.any]).for_each(Paths::link);
        all
    }

    /// The place of the route for a host, in lower case and without a port, and a path as it was sent.
    pub fn find(&self, host: &str, path: &str) -> Option<usize> {
        let above = host.match_indices('.').map(|(dot, _)| &host[dot + 1..]);
        self.exact
            .get(host)
            .into_iter()
            .chain(above.filter_map(|above| self.below.get(above)))
            .chain([&self.any])
            .find_map(|paths| paths.find(path))
    }
}

/// The paths of one host: sorted, each linked to the longest other one that it begins with.
///
/// The last entry not greater than a path begins with every entry that the path begins
/// with, so these are that entry and the ones that its links lead to.
#[derive(Debug, Default)]
struct Paths {
    entries: Vec<Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    text: Box<str>,
    exact: Option<usize>,
    segments: Option<usize>,
    prefix: Option<usize>,
    shorter: Option<usize>,
}

impl Paths {
    fn add(&mut self, pattern: &PathPattern, place: usize) {
        let (PathPattern::Exact(text) | PathPattern::Segments(text) | PathPattern::Prefix(text)) =
            pattern;
        let mut entry = Entry {
            text: text.as_str().into(),
            ..Entry::default()
        };
        match pattern {
            PathPattern::Exact(_) => entry.exact = Some(place),
            PathPattern::Segments(_) => entry.segments = Some(place),
            PathPattern::Prefix(_) => entry.prefix = Some(place),
        }
        self.entries.push(entry);
    }

    /// Sorts, merges entries of the same text, and links them. To be called once, after the last `add`.
    fn link(&mut self) {
        // A stable sort: of two equal entries the first one stays first.
        self.entries.sort_by(|a, b| a.text.cmp(&b.text));
        self.entries.dedup_by(|later, first| {
            let same = later.text == first.text;
            if same {
                first.exact = first.exact.or(later.exact);
                first.segments = first.segments.or(later.segments);
                first.prefix = first.prefix.or(later.prefix);
            }
            same
        });
        let mut open: Vec<usize> = Vec::new();
        for at in 0..self.entries.len() {
            let text = &self.entries[at].text;
            while open
                .pop_if(|last| !text.starts_with(&*self.entries[*last].text))
                .is_some()
            {}
            self.entries[at].shorter = open.last().copied();
            open.push(at);
        }
    }

    fn find(&self, path: &str) -> Option<usize> {
        let after = self.entries.partition_point(|entry| &*entry.text <= path);
        let last = after.checked_sub(1)?;
        let entry = &self.entries[last];
        if let Some(place) = entry.exact.filter(|_| &*entry.text == path) {
            return Some(place);
        }
        std::iter::successors(Some(last), |at| self.entries[*at].shorter)
            .find_map(|at| self.entries[at].match_beginning(path))
    }
}

impl Entry {
    fn match_beginning(&self, path: &str) -> Option<usize> {
        let rest = path.strip_prefix(&*self.text)?;
        self.segments
            .filter(|_| rest.is_empty() || rest.starts_with('/'))
            .or(self.prefix)
    }
}
