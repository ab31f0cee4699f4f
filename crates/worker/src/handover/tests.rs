//! The giver against a taker that the test plays, the taker against such a giver, and both with the test in between: over a real
//! channel, with real tunnels in two gateways of one process.

mod giver;
mod middle;
mod rig;
mod shortage;
mod taker;
