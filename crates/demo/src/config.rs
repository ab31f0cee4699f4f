//! The configuration file that the demo writes: small, commented, and made to
//! be edited while the demo runs.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;

/// The text of a configuration with one listener, and one upstream of all
/// `servers`, given as name and address.
///
/// A configuration is UTF-8: other bytes in `admin_socket` are replaced, and
/// the path is then another one.
pub fn config(listen: SocketAddr, admin_socket: &Path, servers: &[(String, SocketAddr)]) -> String {
    TEMPLATE
        .replace("{listen}", &quoted(&listen.to_string()))
        .replace("{servers}", &lines(servers))
        // Last: a path may have braces in it.
        .replace("{socket}", &quoted(&admin_socket.to_string_lossy()))
}

const TEMPLATE: &str = r#"# The demo's wsgate. Edit this file while it runs: wsgate reads it again when
# it is saved, and chats go on. A mistake changes nothing; the terminal shows it.
#
# One edit to try: take a server out of the upstream at the end. New tabs then
# all meet the other one. Tabs on the server that is gone may stay for the
# grace below; then they get a Close frame (1012) and come back by themselves.

workers = 2

[admin]
socket = {socket}

[log]
access = false         # true: a line for each request and each tunnel

[drain]
grace = "10m"          # a tunnel whose route or server is gone may stay this long
close_rate = 100       # and so many are closed per second at most
orphan_grace = "1s"    # the demo's servers die with it, so workers need not wait for another wsgate

[stop]
grace = "1s"           # the same when wsgate stops: Ctrl-C need not wait

[[listener]]
address = {listen}

[[route]]
path = "/"
upstream = "chat"
idle_timeout = "1h"    # a tunnel without a byte for so long is closed

[upstream.chat]
balance = "least-tunnels"
servers = [
{servers}]
"#;

fn lines(servers: &[(String, SocketAddr)]) -> String {
    let mut lines = String::new();
    for (name, address) in servers {
        let address = quoted(&address.to_string());
        let name = name.replace(char::is_control, " ");
        // Writing to a String does not fail.
        let _ = writeln!(lines, "  {address},  # {name}");
    }
    lines
}

/// A TOML basic string. JSON's escapes are all TOML's too; only DEL may stand
/// in JSON as it is.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text)
        .to_string()
        .replace('\u{7f}', "\\u007F")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(socket: &str) -> toml::Table {
        let servers = [
            ("chat-a".to_owned(), "127.0.0.1:4001".parse().unwrap()),
            ("chat\nb".to_owned(), "127.0.0.1:4002".parse().unwrap()),
        ];
        let listen = "[::1]:8080".parse().unwrap();
        config(listen, Path::new(socket), &servers).parse().unwrap()
    }

    #[test]
    fn the_configuration_leads_from_the_listener_to_both_servers() {
        let config = parsed("/run/admin.sock");
        assert_eq!(config["workers"].as_integer(), Some(2));
        assert_eq!(
            config["listener"][0]["address"].as_str(),
            Some("[::1]:8080")
        );
        assert_eq!(config["route"][0]["upstream"].as_str(), Some("chat"));
        let servers = config["upstream"]["chat"]["servers"].as_array().unwrap();
        assert_eq!(
            servers
                .iter()
                .filter_map(toml::Value::as_str)
                .collect::<Vec<_>>(),
            ["127.0.0.1:4001", "127.0.0.1:4002"]
        );
    }

    #[test]
    fn any_path_of_the_admin_socket_survives_quoting() {
        for path in [
            "/tmp/a \"b\" \\ 'c'",
            "/tmp/{servers}",
            "/tmp/\u{7f}\t\u{1}é",
        ] {
            assert_eq!(parsed(path)["admin"]["socket"].as_str(), Some(path));
        }
    }
}
