//! The TOML syntax of one file: all mistakes, and a text without them.
//!
//! The parser goes on after a mistake, but some make it lose the rest of the
//! file and others make it find mistakes that are none. So the first mistake
//! is taken, the statement that it is in is blanked out (every other byte keeps
//! its offset), and the text is parsed again.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::error::Complaint;

/// A file that is nothing but mistakes need not show them all.
const MOST_MISTAKES: usize = 50;

/// One file after its syntax was checked.
#[derive(Debug)]
pub(crate) struct Checked {
    /// Parses without a mistake, but for keys that are set twice.
    text: String,
    /// In the order of the file.
    pub(crate) mistakes: Vec<(Range<usize>, Complaint)>,
    /// What was blanked out: nothing is known of it.
    pub(crate) damage: Vec<Range<usize>>,
}

impl Checked {
    /// What the file holds, apart from the damaged statements.
    pub(crate) fn table(&self) -> DeTable<'_> {
        DeTable::parse_recoverable(&self.text).0.into_inner()
    }
}

pub(crate) fn check(original: &str) -> Checked {
    let mut text = original.to_owned();
    let mut mistakes = Vec::new();
    let mut damage = Vec::new();
    loop {
        let (table, errors) = DeTable::parse_recoverable(&text);
        let (twice, mut errors): (Vec<_>, Vec<_>) = errors
            .into_iter()
            .map(|error| (error.span().unwrap_or(0..0), error))
            .partition(|(_, error)| error.message().starts_with("duplicate key"));
        errors.sort_by_key(|(span, _)| span.start);
        let Some((span, error)) = errors.first() else {
            mistakes.extend(twice.into_iter().map(|(span, _)| set_twice(original, span)));
            break;
        };
        let value = value_around(table.get_ref(), span.start);
        let statement = statement(&text, span.start, value.as_ref());
        mistakes.push(explain(original, span, error.message(), value.as_ref()));
        blank(&mut text, &statement);
        damage.push(statement);
        if mistakes.len() == MOST_MISTAKES {
            let all = 0..text.len();
            blank(&mut text, &all);
            damage.push(all);
        }
    }
    mistakes.sort_by_key(|(span, _)| span.start);
    Checked {
        text,
        mistakes,
        damage,
    }
}

fn set_twice(text: &str, span: Range<usize>) -> (Range<usize>, Complaint) {
    let key = text.get(span.clone()).unwrap_or_default();
    let complaint = Complaint::new(format!("`{key}` is set twice"), "keep one of the two");
    (span, complaint)
}

/// The value that `at` lies in: the outermost one of its statement.
fn value_around(table: &DeTable<'_>, at: usize) -> Option<Range<usize>> {
    table.values().find_map(|value| outermost(value, at))
}

fn outermost(value: &Spanned<DeValue<'_>>, at: usize) -> Option<Range<usize>> {
    let span = value.span();
    let holds = !span.is_empty() && span.start <= at && at <= span.end;
    if holds {
        return Some(span);
    }
    // The spans of `[a]` and `[[a]]` are those of their headers.
    match value.get_ref() {
        DeValue::Table(table) => value_around(table, at),
        DeValue::Array(items) => items.iter().find_map(|item| outermost(item, at)),
        _ => None,
    }
}

/// The lines that are not to be trusted after a mistake at `at`; never blank ones alone.
fn statement(text: &str, at: usize, value: Option<&Range<usize>>) -> Range<usize> {
    let at_line = line_start(text, at);
    let first = value.map_or(at_line, |value| line_start(text, value.start).min(at_line));
    let several = value
        .and_then(|value| text.get(value.clone()))
        .is_some_and(|value| value.contains('\n'));
    let header = text[first..]
        .trim_start_matches([' ', '\t'])
        .starts_with('[');
    let end = if header && first == at_line {
        next_line(text, first, |line| line.starts_with('['))
    } else if several || first < at_line {
        next_line(text, first, begins_statement)
    } else {
        next_line(text, first, |_| true)
    };
    if text[first..end].trim().is_empty() {
        return 0..text.len();
    }
    first..end
}

fn line_start(text: &str, at: usize) -> usize {
    let at = at.min(text.len());
    text.as_bytes()[..at]
        .iter()
        .rposition(|&byte| byte == b'\n')
        .map_or(0, |newline| newline + 1)
}

/// Where the first line after the one at `from` begins that is as wanted.
fn next_line(text: &str, from: usize, wanted: impl Fn(&str) -> bool) -> usize {
    let mut at = from;
    for line in text[from..].split_inclusive('\n') {
        if at > from && wanted(line) {
            return at;
        }
        at += line.len();
    }
    text.len()
}

/// Whether a line at the margin looks like `key = …` or `[section]`.
fn begins_statement(line: &str) -> bool {
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let inner = line.trim_start_matches('[');
    let rest = inner.trim_start_matches(name);
    if inner.len() == rest.len() {
        return false;
    }
    if inner.len() < line.len() {
        rest.starts_with(']')
    } else {
        rest.trim_start().starts_with('=')
    }
}

/// Blanks keep lines and offsets as they are.
fn blank(text: &mut String, range: &Range<usize>) {
    let blanks: String = text[range.clone()]
        .bytes()
        .map(|byte| if byte == b'\n' { '\n' } else { ' ' })
        .collect();
    text.replace_range(range.clone(), &blanks);
}

/// The parser's message, and what to write instead.
fn explain(
    text: &str,
    span: &Range<usize>,
    message: &str,
    value: Option<&Range<usize>>,
) -> (Range<usize>, Complaint) {
    let line_at = line_start(text, span.start);
    let line = text[line_at..next_line(text, line_at, |_| true)].trim();
    if let Some(value) = value.filter(|value| value.start < line_at) {
        let margin = &text[line_at..];
        if margin.trim().is_empty() || begins_statement(margin) {
            return unclosed(text, value.start);
        }
        let begun = text[..value.start].matches('\n').count() + 1;
        let help = format!("is the value that begins in line {begun} closed?");
        return (span.clone(), Complaint::new(tidy(message), help));
    }
    let quotable = value.is_some() || message.starts_with("string values must be quoted");
    if let Some(explained) = quotable.then(|| unquoted(text, span.start)).flatten() {
        return explained;
    }
    let help = if message.starts_with("key with no value") {
        Some(format!("write `{line} = …`"))
    } else if line.starts_with('[') {
        Some("write `[name]` for a section, `[[name]]` for one of several".to_owned())
    } else {
        None
    };
    let message = tidy(message);
    (span.clone(), Complaint { message, help })
}

/// A value of several lines that something else begins in.
fn unclosed(text: &str, start: usize) -> (Range<usize>, Complaint) {
    let (what, end) = match text.as_bytes().get(start) {
        Some(b'[') => ("list", "]"),
        Some(b'{') => ("table", "}"),
        Some(b'\'') => ("text", "'''"),
        _ => ("text", "\"\"\""),
    };
    let complaint = Complaint::new(
        format!("this {what} is never closed"),
        format!("write `{end}` where it ends"),
    );
    (start..start + 1, complaint)
}

/// Without what the parser says to no avail.
fn tidy(message: &str) -> String {
    message
        .trim_end_matches(", expected nothing")
        .trim_end_matches(", expected literal string")
        .to_owned()
}

/// A value that lacks its quotes, or is no value at all.
fn unquoted(text: &str, at: usize) -> Option<(Range<usize>, Complaint)> {
    let (at, word) = bare_value(text, at)?;
    if word.is_empty() {
        let complaint = Complaint::new("a key without a value", "write `key = value`");
        return Some((at..at, complaint));
    }
    if word.contains(['"', '\'', '[', '{', '=']) {
        return None;
    }
    let complaint = Complaint::new(
        format!("`{word}` is neither a number nor `true` or `false`"),
        format!("text stands in quotes: \"{word}\""),
    );
    Some((at..at + word.len(), complaint))
}

/// What stands between `=` and the line's end or a comment, around `at`.
fn bare_value(text: &str, at: usize) -> Option<(usize, &str)> {
    let start = line_start(text, at);
    let line = text[start..next_line(text, start, |_| true)].trim_end_matches(['\n', '\r']);
    let equals = line.find('=')? + 1;
    if start + equals > at {
        return None;
    }
    let value = line[equals..].split('#').next().unwrap_or_default();
    let indent = value.len() - value.trim_start().len();
    Some((start + equals + indent, value.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Line and message of each mistake.
    fn mistakes(text: &str) -> Vec<(usize, String)> {
        check(text)
            .mistakes
            .into_iter()
            .map(|(span, complaint)| {
                let line = text[..span.start].matches('\n').count() + 1;
                (line, complaint.message)
            })
            .collect()
    }

    fn lines(text: &str) -> Vec<usize> {
        mistakes(text).into_iter().map(|(line, _)| line).collect()
    }

    #[test]
    fn a_text_without_mistakes_is_left_alone() {
        let text = "a = 1\n[b]\nc = [\n 1,\n 2 ]\n";
        let checked = check(text);
        assert_eq!(checked.text, text);
        assert!(checked.mistakes.is_empty() && checked.damage.is_empty());
    }

    #[test]
    fn a_missing_value_is_told_in_its_own_line() {
        assert_eq!(lines("a = \nb = 1\n"), [1]);
        assert_eq!(lines("a =\n[[b]\nc = 1\n"), [1, 2]);
    }

    #[test]
    fn what_follows_a_mistake_is_still_read() {
        for text in [
            "foo\nb = 1\n[x]\ny = 1\n",
            "a = 0.0.0.0:80\n[x]\ny = 1\n",
            "a = \"x\n[x]\ny = 1\n",
            "a = [1,\n  2\nb = 3\n[x]\ny = 1\n",
            "[a\nb = 1\n[x]\ny = 1\n",
            "a == 3\n[x]\ny = 1\n",
        ] {
            let checked = check(text);
            assert_eq!(
                checked.mistakes.len(),
                1,
                "{text:?}: {:?}",
                checked.mistakes
            );
            assert!(
                checked.table().contains_key("x"),
                "{text:?}: {}",
                checked.text
            );
            assert_eq!(checked.text.len(), text.len());
        }
    }

    #[test]
    fn each_mistake_is_found_in_its_line() {
        assert_eq!(lines("a = b\nc\nd = 10m # x\ne = 1\n"), [1, 2, 3]);
        assert_eq!(lines("a = [\n 1,\n 2\nb = 3\nc = ?\n"), [1, 5]);
        assert_eq!(lines("a = [\n 1,\n 2 3,\n]\nc = ?\n"), [3, 5]);
    }

    #[test]
    fn text_without_quotes_is_shown_with_them() {
        let checked = check("grace = 10m # ten\n");
        let (span, complaint) = &checked.mistakes[0];
        assert_eq!(*span, 8..11);
        assert_eq!(
            complaint.help.as_deref(),
            Some("text stands in quotes: \"10m\"")
        );
    }

    #[test]
    fn a_key_that_is_set_twice_is_named() {
        assert_eq!(
            mistakes("a = 1\na = 2\n"),
            [(2, "`a` is set twice".to_owned())]
        );
    }
}
