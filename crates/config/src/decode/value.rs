//! One value: what it can be read as, and what is said if it cannot.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::{Problems, Section, Spot};
use crate::Share;
use crate::error::Complaint;
use crate::{suggest, units};

/// One value and what it is called.
#[derive(Clone)]
pub(crate) struct Value<'r> {
    pub(super) problems: &'r Problems<'r>,
    pub(super) name: String,
    pub(super) spot: Spot,
    /// Of its key; of itself if it has none.
    pub(crate) key: Spot,
    pub(super) value: &'r DeValue<'r>,
}

impl<'r> Value<'r> {
    pub(crate) fn spot(&self) -> Spot {
        self.spot.clone()
    }

    /// `name` must be something else.
    pub(crate) fn wrong(&self, expected: &str, help: impl Into<String>) -> Complaint {
        let (name, found) = (&self.name, kind(self.value));
        Complaint::new(format!("`{name}` must be {expected}, not {found}"), help)
    }

    /// It is of the right kind, or means something, and is refused.
    pub(crate) fn cannot_be(&self, shown: &str, help: &str) -> Complaint {
        Complaint::new(format!("`{}` cannot be {shown}", self.name), help)
    }

    /// Notes a mistake of this value.
    pub(crate) fn complain(&self, complaint: Complaint) {
        self.problems.add(&self.spot, complaint);
    }

    /// Notes a mistake of its key.
    pub(crate) fn complain_of_key(&self, complaint: Complaint) {
        self.problems.add(&self.key, complaint);
    }

    pub(crate) fn as_text(&self) -> Option<&'r str> {
        self.value.as_str()
    }

    pub(crate) fn as_integer(&self) -> Option<i128> {
        let integer = self.value.as_integer()?;
        i128::from_str_radix(integer.as_str(), integer.radix()).ok()
    }

    pub(crate) fn is_text(&self) -> bool {
        self.value.is_str()
    }

    pub(crate) fn is_table(&self) -> bool {
        self.value.is_table()
    }

    pub(crate) fn text(&self) -> Result<&'r str, Complaint> {
        self.as_text().ok_or_else(|| {
            let help = match self.value {
                DeValue::Integer(number) => format!("write it in quotes: \"{number}\""),
                DeValue::Array(_) => "it takes one value, not several".to_owned(),
                _ => "text stands in quotes: \"…\"".to_owned(),
            };
            self.wrong("text", help)
        })
    }

    /// Text that `read` makes something of.
    pub(crate) fn read<T>(
        &self,
        read: impl FnOnce(&str) -> Result<T, Complaint>,
    ) -> Result<T, Complaint> {
        let DeValue::Integer(number) = self.value else {
            return read(self.text()?);
        };
        // Quotes are advised only if they are all that it takes.
        match read(&number.to_string()) {
            Ok(_) => Err(self.wrong("text", format!("write it in quotes: \"{number}\""))),
            Err(complaint) => Err(self.wrong("text", complaint.help.unwrap_or_default())),
        }
    }

    /// One of several words.
    pub(crate) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, Complaint> {
        let known = || words.iter().map(|(word, _)| *word);
        let Some(text) = self.as_text() else {
            let help = format!("write one of {}", suggest::list(known()));
            return Err(self.wrong("text", help));
        };
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return Ok(*value);
        }
        let help = match suggest::nearest(text, known()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("write one of {}", suggest::list(known())),
        };
        let name = &self.name;
        Err(Complaint::new(format!("`{text}` is no {name}"), help))
    }

    pub(crate) fn boolean(&self) -> Result<bool, Complaint> {
        let help = match self.as_text() {
            Some(text @ ("true" | "false")) => format!("write {text} without quotes"),
            _ => "write true or false".to_owned(),
        };
        let wrong = || self.wrong("true or false", help);
        self.value.as_bool().ok_or_else(wrong)
    }

    pub(crate) fn number(&self, range: RangeInclusive<u64>) -> Result<u64, Complaint> {
        let (least, most) = (range.start(), range.end());
        let Some(number) = self.as_integer() else {
            let help = match self.as_text().map(str::parse::<u64>) {
                Some(Ok(number)) if range.contains(&number) => {
                    format!("write {number} without quotes")
                }
                _ => format!("write a number from {least} to {most}"),
            };
            return Err(self.wrong("a number", help));
        };
        u64::try_from(number)
            .ok()
            .filter(|number| range.contains(number))
            .ok_or_else(|| {
                let name = &self.name;
                let message = format!("`{name}` cannot be {number}");
                Complaint::new(message, format!("write a number from {least} to {most}"))
            })
    }

    pub(crate) fn duration(&self, least: Duration) -> Result<Duration, Complaint> {
        if let Some(number) = self.as_integer() {
            let message = format!("`{}` must be a duration: {number} has no unit", self.name);
            let seconds = format!("{number}s");
            let help = match units::duration(&seconds, least) {
                Ok(_) => format!("write \"{seconds}\""),
                Err(complaint) => complaint.help.unwrap_or_default(),
            };
            return Err(Complaint::new(message, help));
        }
        if self.as_text().is_none() {
            return Err(self.wrong("a duration", "write for example \"10s\" or \"5m\""));
        }
        self.read(|text| units::duration(text, least))
    }

    /// A percentage as text: `"5%"`.
    pub(crate) fn share(&self) -> Result<Share, Complaint> {
        let number = match self.value {
            DeValue::Integer(number) => Some(number.as_str()),
            DeValue::Float(number) => Some(number.as_str()),
            _ => None,
        };
        if self.is_text() {
            return self.read(units::share);
        }
        // A percent sign is advised only if it is all that it takes.
        let whole = number.map(|number| format!("{number}%"));
        let whole = whole.filter(|text| units::share(text).is_ok());
        let help = whole.map_or_else(
            || units::A_SHARE.to_owned(),
            |text| format!("write \"{text}\""),
        );
        Err(self.wrong("a percentage", help))
    }

    /// What it says if it is one of the ways to say that there shall be none: 0, off, false.
    pub(crate) fn as_nothing(&self) -> Option<String> {
        let nothing = match self.value {
            DeValue::String(text) => {
                let word = text.trim().to_ascii_lowercase();
                let words = ["0", "off", "none", "never", "no", "false", "disabled"];
                words.contains(&word.as_str())
                    || units::duration(&word, Duration::ZERO).is_ok_and(|it| it.is_zero())
            }
            DeValue::Boolean(on) => !on,
            DeValue::Float(number) => number.as_str().parse() == Ok(0.0),
            _ => self.as_integer() == Some(0),
        };
        nothing.then(|| match self.value {
            DeValue::String(text) => format!("\"{text}\""),
            DeValue::Boolean(_) => "false".to_owned(),
            _ => "0".to_owned(),
        })
    }

    /// Bytes; a plain number is one of bytes.
    pub(crate) fn size(&self, range: RangeInclusive<u64>) -> Result<u64, Complaint> {
        let bytes = match (self.as_integer(), self.as_text()) {
            (Some(number), _) => u64::try_from(number).unwrap_or(0),
            (None, Some(text)) => units::size(text)?,
            _ => return Err(self.wrong("a size", "write for example \"16KiB\"")),
        };
        if range.contains(&bytes) {
            return Ok(bytes);
        }
        let name = &self.name;
        let (least, most) = (range.start() >> 10, range.end() >> 10);
        Err(Complaint::new(
            format!("`{name}` cannot be {bytes} bytes"),
            format!("write a size from \"{least}KiB\" to \"{most}KiB\""),
        ))
    }

    /// The elements of an array.
    pub(crate) fn items(&self) -> Option<Vec<Self>> {
        let items = self.value.as_array()?;
        Some(items.iter().map(|item| self.inner(item)).collect())
    }

    /// A table as a section; notes the mistake if it is none.
    pub(crate) fn section(&self, title: &str, help: &str) -> Option<Section<'r>> {
        let table = self.value.as_table();
        if table.is_none() {
            self.complain(self.wrong("a section", help));
        }
        table.map(|table| Section::new(self.problems, table, title, self.spot()))
    }

    fn inner(&self, value: &'r Spanned<DeValue<'r>>) -> Self {
        let spot = Spot {
            file: self.spot.file,
            span: value.span(),
        };
        Self {
            problems: self.problems,
            name: self.name.clone(),
            key: spot.clone(),
            spot,
            value: value.get_ref(),
        }
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}
