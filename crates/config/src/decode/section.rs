//! One table: which keys it may have, and what is said of the others.

use std::borrow::Cow;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Problems, Spot, Value};
use crate::error::Complaint;
use crate::suggest;

/// A table that is being read key by key.
pub(crate) struct Section<'r> {
    problems: &'r Problems<'r>,
    /// `None` stands for one that is absent.
    table: Option<&'r DeTable<'r>>,
    title: String,
    spot: Spot,
    /// What has been asked for: the keys that exist.
    asked: Vec<&'static str>,
    /// What is refused already.
    foreign: Vec<&'static str>,
}

impl<'r> Section<'r> {
    pub(crate) fn new(
        problems: &'r Problems<'r>,
        table: &'r DeTable<'r>,
        title: &str,
        spot: Spot,
    ) -> Self {
        Self {
            problems,
            table: Some(table),
            title: title.to_owned(),
            spot,
            asked: Vec::new(),
            foreign: Vec::new(),
        }
    }

    pub(crate) fn spot(&self) -> Spot {
        self.spot.clone()
    }

    /// The value of `key`, which is known from now on.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<Value<'r>> {
        self.asked.push(key);
        let (key, value) = self.table?.get_key_value(key)?;
        Some(self.value(key, value))
    }

    /// Whether anything stands there; an empty list is nothing.
    pub(crate) fn holds(&self, key: &str) -> bool {
        let value = self.table.and_then(|table| table.get(key));
        value.is_some_and(|value| {
            value
                .get_ref()
                .as_array()
                .is_none_or(|list| !list.is_empty())
        })
    }

    /// The keys that were asked for.
    pub(crate) fn asked(&self) -> &[&'static str] {
        &self.asked
    }

    /// The value of `key`, which does not belong here.
    pub(crate) fn take_foreign(&mut self, key: &'static str) -> Option<Value<'r>> {
        let (name, value) = self.table?.get_key_value(key)?;
        self.foreign.push(key);
        Some(self.value(name, value))
    }

    /// `default` if it is absent (or wrong, which is noted).
    pub(crate) fn read<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Value<'r>) -> Result<T, Complaint>,
    ) -> T {
        self.optional(key, read).unwrap_or(default)
    }

    /// `None` if it is absent (or wrong, which is noted).
    pub(crate) fn optional<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Value<'r>) -> Result<T, Complaint>,
    ) -> Option<T> {
        let value = self.take(key)?;
        read(&value)
            .map_err(|complaint| value.complain(complaint))
            .ok()
    }

    /// Notes that `key` is missing, unless one of `instead` is there, which is
    /// another mistake then.
    pub(crate) fn require(&self, key: &str, instead: &[&str], help: &str) {
        let Some(table) = self.table else { return };
        if !table.contains_key(key) && !instead.iter().any(|key| table.contains_key(*key)) {
            let message = format!("`{key}` is missing in `{}`", self.title);
            self.problems
                .add_missing(&self.spot, Complaint::new(message, help));
        }
    }

    /// `[key]`; an absent one is empty.
    pub(crate) fn section(&mut self, key: &'static str) -> Self {
        self.titled(key, &format!("[{key}]"))
    }

    /// `key`, a section whose header is `title`.
    pub(crate) fn titled(&mut self, key: &'static str, title: &str) -> Self {
        let help = format!("write `{title}` and its keys on lines of their own");
        let value = self.take(key);
        value
            .and_then(|value| value.section(title, &help))
            .unwrap_or_else(|| Self {
                problems: self.problems,
                table: None,
                title: title.to_owned(),
                spot: self.spot.clone(),
                asked: Vec::new(),
                foreign: Vec::new(),
            })
    }

    /// Each `[[key]]`.
    pub(crate) fn sections(&mut self, key: &'static str) -> Vec<Self> {
        let Some(value) = self.take(key) else {
            return Vec::new();
        };
        let title = format!("[[{key}]]");
        let help = format!("there may be several: write `{title}`");
        let Some(items) = value.items() else {
            value.complain(value.wrong("a list of sections", help));
            return Vec::new();
        };
        let sections = items.iter().map(|item| item.section(&title, &help));
        sections.flatten().collect()
    }

    /// Every key and its value: the keys are names that the operator chose.
    pub(crate) fn entries(&self) -> Vec<(&'r str, Value<'r>)> {
        let table = self.table.into_iter().flatten();
        let entry = |(key, value)| (key_text(key), self.value(key, value));
        table.map(entry).collect()
    }

    /// Notes each key that nobody asked for. `later`: those that are to come.
    pub(crate) fn finish(self, later: &[&str]) {
        for (name, value) in self.entries() {
            if self.asked.contains(&name) || self.foreign.contains(&name) {
                continue;
            }
            self.problems.add(&value.key, self.refuse(name, later));
        }
    }

    fn refuse(&self, name: &str, later: &[&str]) -> Complaint {
        let place = if self.title.is_empty() {
            "this version of wsgate does not know it".to_owned()
        } else {
            format!("`{}` of this version does not know it", self.title)
        };
        if later.contains(&name) {
            let help = format!("remove it: {place}");
            return Complaint::not_supported(&format!("`{name}`"), help);
        }
        let message = format!("unknown key `{name}`");
        if let Some(help) = self.known_elsewhere(name) {
            return Complaint::new(message, help);
        }
        let known = || self.asked.iter().copied();
        let help = match suggest::nearest(name, known().chain(later.iter().copied())) {
            Some(near) if later.contains(&near) => {
                format!("did you mean `{near}`? It is not supported yet")
            }
            Some(near) => format!("did you mean `{near}`?"),
            None if self.title.is_empty() => format!("known here are {}", suggest::list(known())),
            None => format!("known in `{}` are {}", self.title, suggest::list(known())),
        };
        Complaint::new(message, help)
    }

    /// What is said of a key that has another name, or another section.
    fn known_elsewhere(&self, name: &str) -> Option<String> {
        let synonym = suggest::synonym(name);
        let key = synonym.unwrap_or(name);
        if self.asked.contains(&key) {
            return Some(format!("did you mean `{key}`?"));
        }
        let home = suggest::home(key)?;
        Some(match synonym {
            Some(key) => format!("did you mean `{key}`? It belongs into `{home}`"),
            None => format!("it belongs into `{home}`"),
        })
    }

    fn value(&self, key: &'r Spanned<Cow<'r, str>>, value: &'r Spanned<DeValue<'r>>) -> Value<'r> {
        let file = self.spot.file;
        let at = |span| Spot { file, span };
        Value {
            problems: self.problems,
            name: key_text(key).to_owned(),
            spot: at(value.span()),
            key: at(key.span()),
            value: value.get_ref(),
        }
    }
}

fn key_text<'r>(key: &'r Spanned<Cow<'r, str>>) -> &'r str {
    key.get_ref()
}
