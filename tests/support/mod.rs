//! What the end-to-end tests share: a gateway in a line, servers behind it, clients
//! before it. Nothing here looks into the gateway but over its sockets, its log and /proc.

pub(crate) mod admin;
pub(crate) mod backend;
pub(crate) mod client;
pub(crate) mod demo;
pub(crate) mod flow;
pub(crate) mod gateway;
pub(crate) mod knocks;
pub(crate) mod load;
pub(crate) mod network;
pub(crate) mod pair;
pub(crate) mod plan;
pub(crate) mod process;
pub(crate) mod queues;
pub(crate) mod random;
pub(crate) mod raw;
pub(crate) mod script;
pub(crate) mod talk;
pub(crate) mod wait;
pub(crate) mod wire;
