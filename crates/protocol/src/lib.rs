//! What goes over wsgate's own sockets, as serde types.
//!
//! [`admin`] is the JSON of the admin socket, [`control`] the messages between
//! the supervisor and a worker, [`handover`] those between two workers, [`board`] the meaning
//! of the memory that they share. No I/O happens here.

pub mod admin;
pub mod board;
pub mod control;
mod errors;
mod events;
mod fates;
pub mod handover;
mod requests;
