//! Configurations that many tests begin with.

/// One listener, and one route that leads everything to these servers.
pub(crate) fn simple(servers: &[&str]) -> String {
    with("", servers)
}

/// The same after `head`: top-level keys and tables of its own.
pub(crate) fn with(head: &str, servers: &[&str]) -> String {
    format!("{head}\n{LISTENER}\n{ROUTE}\n{}", upstream("chat", servers))
}

/// A listener on a free port.
pub(crate) const LISTENER: &str = "[[listener]]\naddress = \"127.0.0.1:0\"\n";

/// A route that leads everything to `chat`.
pub(crate) const ROUTE: &str = "[[route]]\nupstream = \"chat\"\n";

/// An upstream of these servers.
pub(crate) fn upstream(name: &str, servers: &[&str]) -> String {
    format!("[upstream.{name}]\nservers = {servers:?}\n")
}

/// Two workers that reload only when told. The tunnels of old generations stay where they are, and drain for `grace`
/// with `rate` closes a second.
pub(crate) fn draining(grace: &str, rate: u32) -> String {
    format!(
        "workers = 2\n[reload]\nwatch = false\n[drain]\nhandover = false\ngrace = \"{grace}\"\nclose_rate = {rate}\n"
    )
}

/// One listener and one route that leads everything to these servers. Configurations with
/// different numbers differ, and lead to the same.
pub(crate) fn numbered(head: &str, servers: &[&str], number: u64) -> String {
    let route = format!(
        "[[route]]\nupstream = \"chat\"\nidle_timeout = \"{}m\"\n",
        number + 60
    );
    format!("{head}\n{LISTENER}{route}{}", upstream("chat", servers))
}
