//! The real programs, met over real sockets: a gateway of its own for each test,
//! servers behind it and clients before it. What is asserted is what a user would see.

#![expect(
    clippy::unwrap_used,
    reason = "a test that fails says where, in its helpers too"
)]

mod admin;
mod adopt;
mod adopt_drains;
mod answers;
mod check;
mod close;
mod configs;
mod crash;
mod ctl;
mod demo;
mod descriptors;
mod dial;
mod drain;
mod fates;
mod found;
mod generations;
mod handover;
mod handover_reports;
mod handover_silent;
mod http;
mod limits;
mod lossless;
mod relay;
mod reload;
mod routes;
mod servers;
mod slots;
mod timers;
mod tunnels;
mod watchdog;
mod words;

#[path = "../support/mod.rs"]
mod support;
