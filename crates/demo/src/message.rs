//! The chat's messages: JSON, one object in each WebSocket text message, with
//! its kind in `type`.
//!
//! Nothing here trusts a client: every text is checked for its length before
//! it goes on to others.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio_tungstenite::tungstenite::Utf8Bytes;

/// The longest text that may be said, in characters.
pub(crate) const TEXT_MAX: usize = 2_000;

/// The longest name, in characters.
pub(crate) const NAME_MAX: usize = 32;

/// What a client sends.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum Request {
    /// Tell all members `text`.
    Say { text: String },
    /// Be called `name` from now on.
    Rename { name: String },
    /// Answered with `pong`, so that the page can measure a round trip.
    Ping { id: u64 },
}

/// What a server sends.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum Reply<'a> {
    /// The first message on every socket.
    Welcome {
        server: &'a str,
        members: usize,
        you: &'a str,
        member: u64,
    },
    /// Somebody said something. Names may be equal; member numbers are not.
    Said {
        from: &'a str,
        member: u64,
        text: &'a str,
        server: &'a str,
        at: String,
    },
    /// The number of members of all servers, whenever it changes.
    Members { count: usize },
    /// The answer to `rename`: the name as it is used.
    Renamed { you: &'a str },
    /// The answer to `ping`.
    Pong { id: u64 },
    /// A message was not understood or not accepted. The socket stays open.
    Error { message: &'a str },
}

impl Request {
    /// Reads a client's message. The error is a sentence for its sender.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        match serde_json::from_str(text) {
            Ok(Self::Say { text }) => Ok(Self::Say {
                text: checked_text(text)?,
            }),
            Ok(Self::Rename { name }) => Ok(Self::Rename {
                name: checked_name(&name)?,
            }),
            Ok(ping @ Self::Ping { .. }) => Ok(ping),
            Err(error) => Err(format!("not a chat message: {error}")),
        }
    }
}

impl Reply<'_> {
    /// The text message to send.
    pub(crate) fn encode(&self) -> Utf8Bytes {
        // Strings and numbers only: these always serialize.
        serde_json::to_string(self).unwrap_or_default().into()
    }
}

/// The time of day as messages carry it: RFC 3339 in UTC, to the millisecond.
pub(crate) fn now() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

fn checked_text(text: String) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("a message needs a text".to_owned());
    }
    match text.chars().count() {
        length if length > TEXT_MAX => Err(format!(
            "a message has {TEXT_MAX} characters at most, this one had {length}"
        )),
        _ => Ok(text),
    }
}

fn checked_name(name: &str) -> Result<String, String> {
    let visible = name.replace(char::is_control, " ");
    let name = visible.split_whitespace().collect::<Vec<_>>().join(" ");
    match name.chars().count() {
        0 => Err("a name needs a letter at least".to_owned()),
        length if length > NAME_MAX => Err(format!("a name has {NAME_MAX} characters at most")),
        _ => Ok(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(text: &str) -> Result<Request, String> {
        Request::parse(&serde_json::json!({"type": "say", "text": text}).to_string())
    }

    #[test]
    fn a_text_is_counted_in_characters_not_bytes() {
        assert!(say(&"ß".repeat(TEXT_MAX)).is_ok());
        let error = say(&"ß".repeat(TEXT_MAX + 1)).unwrap_err();
        assert!(error.contains("2001"), "{error}");
    }

    #[test]
    fn a_text_of_blanks_is_refused() {
        assert!(say(" \n\t").is_err());
    }

    #[test]
    fn a_name_loses_control_characters_and_double_blanks() {
        let rename = r#"{"type":"rename","name":" Ada \u0000\n Lovelace "}"#;
        assert_eq!(
            Request::parse(rename),
            Ok(Request::Rename {
                name: "Ada Lovelace".to_owned()
            })
        );
    }

    #[test]
    fn nesting_without_end_is_an_error_not_a_stack_overflow() {
        let deep = format!(r#"{{"type":"say","text":{}"#, "[".repeat(500_000));
        assert!(Request::parse(&deep).is_err());
    }
}
