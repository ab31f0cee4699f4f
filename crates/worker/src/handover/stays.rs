//! Why a tunnel does not move.

use std::collections::BTreeMap;

use wsgate_protocol::control::{Refusal, Staying, Stays};
use wsgate_proxy::{Gateway, Record};

/// As [`Record::set_refused`] takes them: 0 is none.
const REFUSALS: [Refusal; 8] = [
    Refusal::NoRoom,
    Refusal::NoDescriptors,
    Refusal::Version,
    Refusal::Unfit,
    Refusal::Late,
    Refusal::Gone,
    Refusal::Unsent,
    Refusal::Nobody,
];

/// The number of a refusal, for a record.
pub(super) fn number(refusal: Refusal) -> u8 {
    let place = REFUSALS.iter().position(|known| *known == refusal);
    place.map_or(0, |place| place as u8 + 1)
}

/// Why a tunnel is here still, although this worker gives its tunnels away; `broken` is why it has stopped to, if it has.
/// `None` if it is about to be asked.
pub(crate) fn why_it_stays(record: &Record, broken: Option<Refusal>) -> Option<Stays> {
    if record.closing() {
        return Some(Stays::Closing);
    }
    if !record.relaying() {
        return Some(Stays::Opening);
    }
    let refused = usize::from(record.refused()).checked_sub(1);
    let refused = refused.and_then(|place| REFUSALS.get(place)).copied();
    refused.or(broken).map(Stays::Refused)
}

/// All that stay. Those that open move as soon as they have, unless nobody takes them any more.
pub(super) fn all(gateway: &Gateway, broken: Option<Refusal>) -> Vec<Staying> {
    let mut counts: BTreeMap<Stays, u64> = BTreeMap::new();
    for record in gateway.tunnels() {
        match why_it_stays(&record, broken) {
            Some(Stays::Opening) if broken.is_none() => {}
            Some(reason) => *counts.entry(reason).or_default() += 1,
            None => {}
        }
    }
    let staying = |(reason, tunnels)| Staying { reason, tunnels };
    counts.into_iter().map(staying).collect()
}
