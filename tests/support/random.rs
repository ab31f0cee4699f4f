//! Numbers by chance that can be had again: each run draws a seed, a test that fails
//! tells it, and with it in the environment the next run draws the same numbers.

use std::hash::{BuildHasher, Hasher, RandomState};

const VARIABLE: &str = "WSGATE_TEST_SEED";

/// What all numbers of a test come from. Told when the test fails.
#[derive(Debug)]
pub(crate) struct Seed(u64);

impl Seed {
    /// The one of the environment, or a new one.
    pub(crate) fn draw() -> Self {
        match std::env::var(VARIABLE) {
            Ok(text) => Self(text.parse().unwrap()),
            Err(_) => Self(RandomState::new().build_hasher().finish()),
        }
    }

    /// Numbers of their own for everything that has a name of its own.
    pub(crate) fn numbers(&self, name: u64) -> Numbers {
        Numbers(self.0 ^ mix(name))
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show(self.0);
        }
    }
}

#[expect(clippy::print_stderr, reason = "shown with the test that failed")]
fn show(seed: u64) {
    eprintln!("--- the same plan again: {VARIABLE}={seed}");
}

/// A row of numbers: a counter, mixed (`SplitMix64`).
#[derive(Clone, Debug)]
pub(crate) struct Numbers(u64);

impl Numbers {
    /// The same in every run.
    pub(crate) const fn of(name: u64) -> Self {
        Self(name)
    }

    /// A row of its own, that this one's later numbers say nothing about.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// From 0 to `end - 1`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// From `least` to `most`.
    pub(crate) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    /// From 1 to `most`, and as often between 1 and 10 as between 1,000 and 10,000.
    pub(crate) fn size(&mut self, most: u64) -> u64 {
        let bit = 1 << self.below(u64::from(most.ilog2()) + 1);
        (bit + self.below(bit)).min(most)
    }

    /// True in one of `of` cases.
    pub(crate) fn once_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.below(choices.len() as u64)).unwrap()]
    }
}

fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
