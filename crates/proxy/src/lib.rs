//! The data path: what happens to a client's bytes, one file per hop.
//!
//! In the order in which bytes flow: `accept` takes a connection, `connection`
//! speaks HTTP/1.1 on it, `target` finds out what a request is for, `route` picks the
//! upstream, `balance` the server, `dial` connects to it, `handshake` forwards an
//! upgrade, `http` what is none, `tunnel` relays, `frames` knows where its frames
//! begin and end, `close` ends it politely; `fate` says what
//! becomes of it under another configuration. `gateway` holds it all together for the worker.
//!
//! Nothing here knows a PID, a slot or a generation, opens a file, or reads the configuration's text.

mod accept;
mod access;
mod answer;
mod balance;
mod body;
mod cause;
mod close;
mod connection;
mod dial;
mod exchange;
mod fate;
mod frames;
mod gateway;
pub mod handover;
mod handshake;
mod headers;
mod http;
mod ledger;
mod pool;
mod record;
mod registry;
mod route;
mod seldom;
mod shortage;
mod socket;
mod table;
mod target;
#[cfg(test)]
mod tests;
mod tunnel;
mod wire;

pub use accept::{Acceptor, Listening};
pub use cause::Cause;
pub use fate::{Judgement, Lost, Reason};
pub use frames::{Seen, Side, Tracker};
pub use gateway::{Gateway, Hold, Settings};
pub use ledger::{Figure, Ledger};
pub use record::{Deadline, Record, Route, Server, Timeouts};
pub use registry::ClosePlan;
pub use route::Routes;
pub use socket::Peer;
pub use table::ServerState;
