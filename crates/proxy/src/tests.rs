//! The data path over real sockets: hand-written clients and servers on both sides.

pub(crate) mod ledger;
mod lifecycle;
mod limits;
mod plain;
pub(crate) mod rig;
mod upgrade;
