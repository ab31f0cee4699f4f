//! Payloads that say which message of which tunnel they are, and the check that they came
//! back as they went: exact bytes, in order, each once.
//!
//! A payload is [`STAMP`] bytes of stamp and then a pattern that depends on it. Nothing is kept
//! of a message that was sent: its stamp tells what it must look like.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

/// Bytes at the front of each payload: number in the tunnel, tunnel, and a check of both
/// and of the length. No message is shorter.
pub const STAMP: usize = 16;

/// Patterns begin at so many places.
const SHIFTS: u64 = 4096;

/// Gaps that are remembered, so that a late message can be told from a double one.
const REMEMBERED: usize = 1024;

/// What came back wrong, by message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    /// Never came, though a later one did.
    pub lost: u64,
    /// Came again.
    pub doubled: u64,
    /// Came, but after a later one.
    pub reordered: u64,
    /// Other bytes, another length, or another tunnel's message.
    pub corrupted: u64,
}

impl Faults {
    /// Whether there are any.
    #[must_use]
    pub fn any(&self) -> bool {
        *self != Self::default()
    }

    /// Adds those of another.
    pub fn add(&mut self, other: &Self) {
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.reordered += other.reordered;
        self.corrupted += other.corrupted;
    }
}

/// Bytes that repeat nowhere soon, for payloads of up to a given length.
#[derive(Debug)]
pub struct Pattern(Box<[u8]>);

impl Pattern {
    /// For payloads of at most `longest` bytes.
    #[must_use]
    pub fn new(longest: usize) -> Self {
        let words = (longest + SHIFTS as usize).div_ceil(8) as u64;
        Self(
            (0..words)
                .flat_map(|word| mix(word).to_le_bytes())
                .collect(),
        )
    }

    /// The longest payload that it is for.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.0.len() - SHIFTS as usize
    }

    /// Writes message `sequence` of `tunnel`.
    ///
    /// # Panics
    /// If the payload is shorter than [`STAMP`] or longer than [`Self::longest`].
    pub fn write(&self, payload: &mut [u8], tunnel: u32, sequence: u64) {
        let stamp = Stamp { tunnel, sequence };
        let length = payload.len();
        let (front, rest) = payload.split_at_mut(STAMP);
        front.copy_from_slice(&stamp.bytes(length as u64));
        rest.copy_from_slice(self.after(stamp, 0, rest.len()));
    }

    /// What follows the stamp, from `offset` on.
    fn after(&self, stamp: Stamp, offset: usize, length: usize) -> &[u8] {
        let from = stamp.shift() + offset;
        &self.0[from..from + length]
    }

    fn is_after(&self, stamp: Stamp, offset: u64, bytes: &[u8]) -> bool {
        offset + bytes.len() as u64 <= self.longest() as u64
            && self.after(stamp, offset as usize, bytes.len()) == bytes
    }
}

#[derive(Clone, Copy, Debug)]
struct Stamp {
    tunnel: u32,
    sequence: u64,
}

impl Stamp {
    fn bytes(self, length: u64) -> [u8; STAMP] {
        let mut bytes = [0; STAMP];
        bytes[..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.tunnel.to_le_bytes());
        let check = mix(self.mixed() ^ length) as u32;
        bytes[12..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// `None` if its check is wrong.
    fn read(bytes: &[u8; STAMP], length: u64) -> Option<Self> {
        let [s0, s1, s2, s3, s4, s5, s6, s7, t0, t1, t2, t3, ..] = *bytes;
        let stamp = Self {
            tunnel: u32::from_le_bytes([t0, t1, t2, t3]),
            sequence: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
        };
        (stamp.bytes(length) == *bytes).then_some(stamp)
    }

    fn mixed(self) -> u64 {
        mix(self.sequence ^ u64::from(self.tunnel) << 32)
    }

    fn shift(self) -> usize {
        (self.mixed() % SHIFTS) as usize
    }
}

/// The finisher of SplitMix64 (Steele, Lea, Flood 2014): each bit of the result depends on all.
pub(crate) const fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Checks the messages of one tunnel, in whatever pieces they come.
#[derive(Debug)]
pub struct Checker {
    tunnel: Option<u32>,
    stamp: [u8; STAMP],
    current: Option<Stamp>,
    spoiled: bool,
    next: u64,
    missing: Vec<u64>,
    faults: Faults,
}

impl Checker {
    /// For the messages of this tunnel; without one, for those of the tunnel that the first is of.
    #[must_use]
    pub const fn new(tunnel: Option<u32>) -> Self {
        Self {
            tunnel,
            stamp: [0; STAMP],
            current: None,
            spoiled: false,
            next: 0,
            missing: Vec::new(),
            faults: Faults {
                lost: 0,
                doubled: 0,
                reordered: 0,
                corrupted: 0,
            },
        }
    }

    /// One more than the highest message that came.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// What was wrong so far.
    #[must_use]
    pub const fn faults(&self) -> &Faults {
        &self.faults
    }

    /// What was wrong since this was last called.
    pub(crate) fn take_faults(&mut self) -> Faults {
        std::mem::take(&mut self.faults)
    }

    /// Looks at the part of a message of `length` bytes that begins at `offset`. Parts come in order.
    pub fn part(&mut self, pattern: &Pattern, length: u64, offset: u64, mut part: &[u8]) {
        let end = offset + part.len() as u64;
        let mut offset = offset;
        if let Some(missing) = (STAMP as u64).checked_sub(offset).filter(|m| *m > 0) {
            let taken = part.len().min(missing as usize);
            let from = offset as usize;
            self.stamp[from..from + taken].copy_from_slice(&part[..taken]);
            part = &part[taken..];
            offset += taken as u64;
            if offset == STAMP as u64 {
                self.current = Stamp::read(&self.stamp, length).filter(|s| self.is_ours(*s));
            }
        }
        if !part.is_empty() && !self.spoiled {
            let fits = |stamp| pattern.is_after(stamp, offset - STAMP as u64, part);
            self.spoiled = !self.current.is_some_and(fits);
        }
        if end == length {
            self.end();
        }
    }

    fn is_ours(&mut self, stamp: Stamp) -> bool {
        *self.tunnel.get_or_insert(stamp.tunnel) == stamp.tunnel
    }

    fn end(&mut self) {
        match self.current.take() {
            Some(stamp) if !self.spoiled => self.place(stamp.sequence),
            _ => {
                self.faults.corrupted += 1;
                // It stands for the one that should have come.
                self.next += 1;
            }
        }
        self.spoiled = false;
    }

    fn place(&mut self, sequence: u64) {
        if sequence == self.next {
            self.next += 1;
        } else if sequence > self.next {
            self.faults.lost += sequence - self.next;
            let room = REMEMBERED.saturating_sub(self.missing.len());
            self.missing.extend((self.next..sequence).take(room));
            self.next = sequence + 1;
        } else if let Some(at) = self.missing.iter().position(|one| *one == sequence) {
            self.missing.swap_remove(at);
            // 0 if the loss has been told already.
            self.faults.lost = self.faults.lost.saturating_sub(1);
            self.faults.reordered += 1;
        } else {
            self.faults.doubled += 1;
        }
    }
}
