//! What a configuration means, and what is said of a wrong one.

#![expect(
    clippy::unwrap_used,
    reason = "clippy.toml allows it in tests, but not in their helpers"
)]

mod includes;
mod keys;
mod mistakes;
mod whole;

use wsgate_config::{Config, Errors, Loaded, Sources, parse};

/// The smallest useful file.
const SMALL: &str = r#"
[[listener]]
address = "0.0.0.0:8080"

[[route]]
upstream = "chat"

[upstream.chat]
servers = ["127.0.0.1:9001"]
"#;

fn read(text: &str) -> Result<Loaded, Errors> {
    parse(Sources::from_text("wsgate.toml", text))
}

fn valid(text: &str) -> Config {
    match read(text) {
        Ok(loaded) => loaded.config,
        Err(errors) => panic!("{errors}"),
    }
}

fn errors(text: &str) -> Errors {
    match read(text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(errors) => errors,
    }
}

/// Message and help of the only mistake.
fn mistake(text: &str) -> (String, String) {
    let errors = errors(text);
    assert_eq!(errors.len(), 1, "{errors}");
    let error = errors.into_iter().next().unwrap();
    (error.message, error.help.unwrap_or_default())
}
