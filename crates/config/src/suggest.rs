//! Which name was meant by a misspelt one.

/// The name that is nearest to `word`, if any is near enough to be meant.
pub(crate) fn nearest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    names
        .into_iter()
        .filter_map(|name| Some((distance(&word, &name.to_lowercase())?, name)))
        .min()
        .map(|(_, name)| name)
}

/// A third of the letters may differ. The beginning of a name counts as near
/// (`idle` for `idle_timeout`, `warning` for `warn`), but behind a misspelling.
fn distance(word: &str, name: &str) -> Option<usize> {
    let edits = strsim::osa_distance(word, name);
    let allowed = (word.chars().count().max(3)) / 3;
    if edits <= allowed {
        return Some(edits);
    }
    let short = word.len().min(name.len());
    let begins = word.starts_with(name) || name.starts_with(word);
    (begins && short >= 3).then_some(100 + edits)
}

/// The section of a key that is often looked for elsewhere.
pub(crate) fn home(key: &str) -> Option<&'static str> {
    match key {
        "host" | "path" | "idle_timeout" | "send_timeout" | "max_age" | "ping_interval" => {
            Some("[[route]]")
        }
        "balance" | "connect_timeout" | "retries" | "servers" | "source" => Some("[upstream.NAME]"),
        _ => None,
    }
}

/// What is called so elsewhere, and is nearer to another name by its letters.
pub(crate) fn synonym(key: &str) -> Option<&'static str> {
    matches!(key, "ping_timeout" | "ping-timeout").then_some("ping_interval")
}

/// `a, b, c`, each in backticks.
pub(crate) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_name_is_recognised_and_a_strange_one_is_not() {
        let names = ["grace", "close_rate", "close_code", "idle_timeout"];
        assert_eq!(nearest("grase", names), Some("grace"));
        assert_eq!(nearest("closerate", names), Some("close_rate"));
        assert_eq!(nearest("close-code", names), Some("close_code"));
        assert_eq!(nearest("Idle", names), Some("idle_timeout"));
        assert_eq!(nearest("zebra", names), None);
        assert_eq!(nearest("", names), None);
    }
}
