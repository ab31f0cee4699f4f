//! Addresses: where clients come in and where servers are.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::error::Complaint;
use crate::pattern::is_host_name;
use crate::{ListenAddress, ServerAddress};

/// `sun_path` of unix(7) has room for 107 bytes and a NUL.
const LONGEST_SOCKET_PATH: usize = 107;

/// So that `/worker-4194304.sock` fits behind it: the kernel has no higher pid.
const LONGEST_DIRECTORY: usize = LONGEST_SOCKET_PATH - 20;

/// `0.0.0.0:80`, `[::]:80` or `unix:/run/x.sock`.
pub(crate) fn listen(text: &str) -> Result<ListenAddress, Complaint> {
    if let Some(path) = text.strip_prefix("unix:") {
        return socket_path(path, "unix:/run/wsgate/x.sock").map(ListenAddress::Unix);
    }
    ip_and_port(text).map(ListenAddress::Tcp)
}

/// An address of this machine and a port, 0 for any.
pub(crate) fn ip_and_port(text: &str) -> Result<SocketAddr, Complaint> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let help = match (text.rsplit_once(':'), text.parse::<IpAddr>()) {
        (_, Ok(IpAddr::V4(ip))) => format!("the port is missing: write \"{ip}:8080\""),
        (_, Ok(IpAddr::V6(ip))) => format!("address in brackets, then the port: \"[{ip}]:8080\""),
        (Some((_, port)), _) if port.parse::<u16>().is_ok() && text.contains("://") => {
            format!("write address and port alone: \"0.0.0.0:{port}\"")
        }
        (Some(("" | "*", port)), _) if port.parse::<u16>().is_ok() => {
            format!("write \"0.0.0.0:{port}\" (IPv4) or \"[::]:{port}\" (IPv6)")
        }
        (Some(("localhost", port)), _) if port.parse::<u16>().is_ok() => {
            format!("write \"127.0.0.1:{port}\" or \"[::1]:{port}\"")
        }
        (None, _) if text.parse::<u16>().is_ok() => format!("write \"0.0.0.0:{text}\""),
        (None, _) if text.starts_with('/') => format!("a Unix socket is written \"unix:{text}\""),
        _ => "write an IP address and a port, as \"0.0.0.0:8080\" or \"[::]:8080\"".to_owned(),
    };
    Err(Complaint::new(
        format!("`{text}` is not an address to listen on"),
        help,
    ))
}

/// An absolute path that fits a socket's address. `example`: see [`absolute_path`].
pub(crate) fn socket_path(text: &str, example: &str) -> Result<PathBuf, Complaint> {
    let path = absolute_path(text, example)?;
    if text.len() > LONGEST_SOCKET_PATH {
        return Err(Complaint::new(
            format!("`{text}` is too long for a Unix socket"),
            format!("its path has at most {LONGEST_SOCKET_PATH} bytes"),
        ));
    }
    Ok(path)
}

/// The admin socket's path: in its directory each worker has a socket as well, `worker-PID.sock`.
pub(crate) fn admin_socket_path(text: &str, example: &str) -> Result<PathBuf, Complaint> {
    let path = socket_path(text, example)?;
    let directory = path.parent().map_or(0, |parent| parent.as_os_str().len());
    if directory > LONGEST_DIRECTORY {
        return Err(Complaint::new(
            format!(
                "the directory of `{text}` has a name that is too long for the workers' sockets in it"
            ),
            format!(
                "the directory's path has at most {LONGEST_DIRECTORY} bytes; as in \"{example}\""
            ),
        ));
    }
    Ok(path)
}

/// A path that does not depend on where wsgate was started. `example` is what
/// such a value could be; its directory is suggested for a name alone.
pub(crate) fn absolute_path(text: &str, example: &str) -> Result<PathBuf, Complaint> {
    if !text.starts_with('/') {
        let (dir, name) = example.rsplit_once('/').unwrap_or(("", example));
        let own = Path::new(text).file_name().and_then(|name| name.to_str());
        let own = own.filter(|name| !name.contains(char::is_control));
        return Err(Complaint::new(
            format!("`{text}` is not an absolute path"),
            format!(
                "a path begins with a slash: write \"{dir}/{}\"",
                own.unwrap_or(name)
            ),
        ));
    }
    if text.contains('\0') || text.ends_with('/') {
        return Err(Complaint::new(
            format!("`{}` is not a file's path", text.escape_debug()),
            format!("write a path such as \"{example}\""),
        ));
    }
    Ok(PathBuf::from(text))
}

/// `10.0.0.1:9000`, `[::1]:9000`, `chat.internal:9000` or `unix:/run/chat.sock`.
pub(crate) fn server(text: &str) -> Result<ServerAddress, Complaint> {
    if let Some(path) = text.strip_prefix("unix:") {
        return socket_path(path, "unix:/run/chat.sock").map(ServerAddress::Unix);
    }
    let wrong = |help: String| {
        let message = format!("`{text}` is not a server's address");
        Err(Complaint::new(message, help))
    };
    if let Some((scheme, rest)) = text.split_once("://") {
        return wrong(without_scheme(scheme, rest));
    }
    if text.starts_with('/') {
        return wrong(format!("a Unix socket is written \"unix:{text}\""));
    }
    if let Some((address, _)) = text.split_once('/') {
        return wrong(format!("a server has no path: write \"{address}\""));
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => return wrong("no server has port 0".to_owned()),
        Ok(address) => return Ok(ServerAddress::Ip(address)),
        Err(_) => {}
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<Ipv6Addr>() {
        return wrong(format!("write it with its port: \"[{ip}]:9000\""));
    }
    let Some((name, port)) = text.rsplit_once(':') else {
        let name = if text.is_empty() { "127.0.0.1" } else { text };
        return wrong(format!("the port is missing: write \"{name}:9000\""));
    };
    let Some(port) = port.parse::<u16>().ok().filter(|port| *port > 0) else {
        return wrong(format!("the port is a number up to 65535: \"{name}:9000\""));
    };
    // `10.0.0.300` is no name: a top-level domain is never a number.
    let numeric = name
        .rsplit('.')
        .next()
        .is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
    if numeric || !is_host_name(name) {
        return wrong(
            "write host and port, as \"10.0.0.1:9000\" or \"chat.internal:9000\"".to_owned(),
        );
    }
    Ok(ServerAddress::Name(name.to_owned(), port))
}

/// An own address to connect from: `10.0.0.5` or `2001:db8::5`. A link-local one says nothing
/// without an interface, which is the server's: `scoped` tells whether a server has one.
pub(crate) fn source(text: &str, scoped: bool) -> Result<IpAddr, Complaint> {
    let wrong = |help: String| {
        let message = format!("`{text}` is not an address to connect from");
        Err(Complaint::new(message, help))
    };
    // Only what is not refused next is advised.
    let instead = |address: &str, help: String| match source(address, scoped) {
        Ok(_) => wrong(help),
        Err(complaint) => wrong(complaint.help.unwrap_or_default()),
    };
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    match text.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => {
            wrong("leave `source` out: the kernel chooses the address then".to_owned())
        }
        Ok(IpAddr::V4(ip)) if ip.is_multicast() || ip.is_broadcast() => wrong(of_one_host()),
        Ok(IpAddr::V6(ip)) if ip.is_multicast() => wrong(of_one_host()),
        Ok(IpAddr::V6(ip)) if ip.is_unicast_link_local() && !scoped => wrong(needs_interface()),
        Ok(IpAddr::V6(ip)) => match ip.to_ipv4_mapped() {
            Some(ip) => instead(&ip.to_string(), format!("write it as \"{ip}\"")),
            None => Ok(ip.into()),
        },
        Ok(ip) => Ok(ip),
        Err(_) if bare.parse::<Ipv6Addr>().is_ok() => {
            instead(bare, format!("write it without brackets: \"{bare}\""))
        }
        Err(_) => match (text.parse::<SocketAddr>(), text.split_once('/')) {
            (Ok(address), _) => {
                let ip = address.ip().to_string();
                instead(&ip, format!("the kernel chooses the port: write \"{ip}\""))
            }
            (_, Some((ip, _))) if ip.parse::<IpAddr>().is_ok() => {
                instead(ip, format!("name each address, without a prefix: \"{ip}\""))
            }
            _ => match bare.split_once('%') {
                Some((ip, _)) if ip.parse::<Ipv6Addr>().is_ok() => instead(
                    ip,
                    format!("write \"{ip}\": its interface is that of the server"),
                ),
                _ => wrong(of_one_host()),
            },
        },
    }
}

fn of_one_host() -> String {
    "write an IP address of this machine, as \"10.0.0.5\" or \"2001:db8::5\"".to_owned()
}

fn needs_interface() -> String {
    "a link-local address is for servers of its link, as \"[fe80::2%3]:9000\" on interface 3; \
     for others write another address of this machine, as \"2001:db8::5\""
        .to_owned()
}

fn without_scheme(scheme: &str, rest: &str) -> String {
    let secure = matches!(scheme, "https" | "wss");
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let has_port = authority
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let port = match (has_port, secure) {
        (true, _) => "",
        (false, false) => ":80",
        (false, true) => ":443",
    };
    let tls = if secure {
        "; TLS to servers is not supported yet"
    } else {
        ""
    };
    format!("write host and port alone: \"{authority}{port}\"{tls}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn help<T: std::fmt::Debug>(result: Result<T, Complaint>) -> String {
        result.unwrap_err().help.unwrap()
    }

    #[test]
    fn listeners_are_tcp_or_unix() {
        for text in ["0.0.0.0:80", "[::]:80", "127.0.0.1:0", "unix:/run/x.sock"] {
            assert_eq!(listen(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn wrong_listeners_say_what_to_write() {
        assert!(help(listen("8080")).contains("\"0.0.0.0:8080\""));
        assert!(help(listen(":8080")).contains("\"[::]:8080\""));
        assert!(help(listen("*:8080")).contains("\"0.0.0.0:8080\""));
        assert!(help(listen("localhost:8080")).contains("\"127.0.0.1:8080\""));
        assert!(help(listen("127.0.0.1")).contains("\"127.0.0.1:8080\""));
        assert!(help(listen("::1")).contains("\"[::1]:8080\""));
        assert!(help(listen("/run/x.sock")).contains("\"unix:/run/x.sock\""));
        assert!(help(listen("http://0.0.0.0:80")).contains("\"0.0.0.0:80\""));
        assert!(help(listen("unix:a.sock")).contains("\"unix:/run/wsgate/a.sock\""));
        assert!(help(listen(&format!("unix:/{}", "x".repeat(107)))).contains("107"));
        let admin = |letters: usize| {
            let text = format!("/{}/admin.sock", "x".repeat(letters));
            admin_socket_path(&text, "/run/wsgate/admin.sock")
        };
        assert!(admin(86).is_ok());
        assert!(help(admin(87)).contains("87 bytes"));
        assert!(listen("0.0.0.0:99999").is_err());
        assert!(listen("").is_err());
    }

    #[test]
    fn servers_are_addresses_names_or_sockets() {
        for text in [
            "10.0.0.1:9000",
            "[::1]:9000",
            "chat-a.internal:9000",
            "unix:/run/c.sock",
        ] {
            assert_eq!(server(text).unwrap().to_string(), text);
        }
        assert_eq!(
            server("a_b:1"),
            Ok(ServerAddress::Name("a_b".to_owned(), 1))
        );
    }

    #[test]
    fn wrong_servers_say_what_to_write() {
        assert!(help(server("chat.internal")).contains("\"chat.internal:9000\""));
        assert!(help(server("http://10.0.0.1:9000/x")).contains("\"10.0.0.1:9000\""));
        assert!(help(server("http://chat.internal")).contains("\"chat.internal:80\""));
        assert!(help(server("wss://chat.internal")).contains("not supported yet"));
        assert!(help(server("10.0.0.1:9000/x")).contains("\"10.0.0.1:9000\""));
        assert!(help(server("::1")).contains("\"[::1]:9000\""));
        assert!(help(server("/run/chat.sock")).contains("\"unix:/run/chat.sock\""));
        assert!(help(server("unix:a.sock")).contains("\"unix:/run/a.sock\""));
        for text in [
            "10.0.0.300:80",
            "a b:80",
            "a:0",
            "10.0.0.1:0",
            "a:99999",
            "",
            ":80",
            "unix:",
        ] {
            assert!(server(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn sources_are_addresses_of_one_host() {
        for text in ["10.0.0.5", "127.0.0.2", "2001:db8::5", "::1"] {
            assert_eq!(source(text, false).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_link_local_source_needs_a_server_with_an_interface() {
        assert!(source("fe80::1", true).is_ok());
        for text in ["fe80::1", "fe80::1%eth0", "[fe80::1%3]:0", "fe80::1/64"] {
            let help = help(source(text, false));
            assert!(help.contains("\"[fe80::2%3]:9000\""), "{text}: {help}");
        }
        assert!(help(source("fe80::1%eth0", true)).contains("\"fe80::1\""));
        assert!(server("[fe80::2%3]:9000").is_ok());
    }

    #[test]
    fn wrong_sources_say_what_to_write() {
        for (text, shown) in [
            ("10.0.0.5:0", "\"10.0.0.5\""),
            ("[2001:db8::5]:9000", "\"2001:db8::5\""),
            ("[2001:db8::5]", "\"2001:db8::5\""),
            ("10.0.0.0/24", "\"10.0.0.0\""),
            ("::ffff:10.0.0.5", "\"10.0.0.5\""),
            ("0.0.0.0", "leave `source` out"),
            ("::", "leave `source` out"),
            ("eth0", "an IP address of this machine"),
            ("http://10.0.0.5", "an IP address of this machine"),
            ("unix:/run/x.sock", "an IP address of this machine"),
            ("224.0.0.1", "an IP address of this machine"),
            ("255.255.255.255", "an IP address of this machine"),
            ("ff02::1", "an IP address of this machine"),
            ("10.0.0.300", "an IP address of this machine"),
            ("", "an IP address of this machine"),
            ("5", "an IP address of this machine"),
            ("0.0.0.0/0", "leave `source` out"),
            ("[::]:9000", "leave `source` out"),
            ("::ffff:224.0.0.1", "an IP address of this machine"),
        ] {
            let help = help(source(text, false));
            assert!(help.contains(shown), "{text:?}: {help}");
        }
    }

    #[test]
    fn a_path_that_is_not_absolute_is_shown_where_such_files_are() {
        let read = |text| absolute_path(text, "/var/log/wsgate/wsgate.log");
        for (text, shown) in [
            ("x.log", "\"/var/log/wsgate/x.log\""),
            ("../logs/x.log", "\"/var/log/wsgate/x.log\""),
            ("", "\"/var/log/wsgate/wsgate.log\""),
            ("..", "\"/var/log/wsgate/wsgate.log\""),
            ("a\0b", "\"/var/log/wsgate/wsgate.log\""),
            ("/var/log/", "\"/var/log/wsgate/wsgate.log\""),
        ] {
            let help = help(read(text));
            assert!(help.contains(shown), "{text:?}: {help}");
        }
        assert_eq!(read("/x.log"), Ok(PathBuf::from("/x.log")));
    }

    proptest! {
        #[test]
        fn no_text_makes_them_panic(text in "\\PC{0,30}|(unix:|http://)?[a-f0-9.:/\\[\\]]{0,20}") {
            let _ = listen(&text);
            let _ = server(&text);
            let _ = source(&text, false);
        }
    }
}
