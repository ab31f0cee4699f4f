//! Load for benchmarks: a WebSocket echo server and a fleet of WebSocket clients that check
//! every byte.
//!
//! Both are one thread over epoll and allocate nothing per message, since they share a core
//! while the gateway that is measured has another. They know nothing of any gateway: what is
//! between them is an address. A peer that misbehaves is counted, never a reason to panic.

pub mod check;
mod connect;
pub mod echo;
pub mod fleet;
pub mod frame;
pub mod handshake;
pub mod histogram;
pub mod job;
pub mod machine;
pub mod report;
pub mod role;
pub mod stream;
mod wire;
