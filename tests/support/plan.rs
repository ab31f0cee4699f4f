//! What happens in a tunnel, drawn by chance: what each side says and in which form, how
//! much at once, with which pauses, over which kind of socket.

use std::ops::RangeInclusive;

use super::pair::{ETHERNET, Line, SMALLEST};
use super::random::Numbers;
use super::script::{Form, Script, Side};
use super::talk::{Manners, Pace, Talk};

/// As fast as it goes, nearly.
const EAGER: Pace = Pace {
    most: 256 << 10,
    one_in: 64,
    pause_ms: 5,
};

/// Always behind the other side, so that the gateway has to wait for it.
const HALTING: Pace = Pace {
    most: 64 << 10,
    one_in: 32,
    pause_ms: 60,
};

/// Little at once, and many pauses.
const SLOW: Pace = Pace {
    most: 4 << 10,
    one_in: 8,
    pause_ms: 8,
};

const PACES: [Pace; 6] = [EAGER, EAGER, EAGER, HALTING, HALTING, SLOW];

const FORMS: [Form; 5] = [
    Form::Whole,
    Form::Whole,
    Form::Fragmented,
    Form::Loose,
    Form::Broken,
];

/// A tunnel's client and server, before they have met.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) client: Talk,
    pub(crate) server: Talk,
    /// What each says in one go with its handshake.
    pub(crate) first: [Vec<u8>; 2],
    /// What each one's socket is like.
    pub(crate) lines: [Line; 2],
}

/// One direction of it.
struct Way {
    script: Script,
    writes: Pace,
    reads: Pace,
}

impl Plan {
    /// `slow` is how much a direction may carry that is written or read slowly, `quick` how
    /// much any other.
    pub(crate) fn draw(
        mut numbers: Numbers,
        manners: [Manners; 2],
        slow: RangeInclusive<u64>,
        quick: RangeInclusive<u64>,
    ) -> Self {
        let up = Way::draw(&mut numbers, Side::Client, &slow, &quick);
        let down = Way::draw(&mut numbers, Side::Server, &slow, &quick);
        let mut client = talk(&up, &down, manners[0], &mut numbers);
        let mut server = talk(&down, &up, manners[1], &mut numbers);
        Self {
            first: [first(&mut client), first(&mut server)],
            lines: [client.reads, server.reads].map(|reads| line(reads, &mut numbers)),
            client,
            server,
        }
    }

    /// Bytes in both directions together, at the least.
    pub(crate) fn length(&self) -> u64 {
        self.client.hears.left() + self.server.hears.left()
    }
}

impl Way {
    fn draw(
        numbers: &mut Numbers,
        side: Side,
        slow: &RangeInclusive<u64>,
        quick: &RangeInclusive<u64>,
    ) -> Self {
        let (writes, reads) = (numbers.one_of(&PACES), numbers.one_of(&PACES));
        let is_slow = [writes, reads].contains(&SLOW);
        let length = if is_slow { slow } else { quick };
        let length = numbers.between(*length.start(), *length.end());
        let form = numbers.one_of(&FORMS);
        Self {
            script: Script::new(numbers.fork(), side, form, length),
            writes,
            reads,
        }
    }
}

/// The side that says `own` and hears `other`.
fn talk(own: &Way, other: &Way, manners: Manners, numbers: &mut Numbers) -> Talk {
    Talk {
        says: own.script.clone(),
        hears: other.script.clone(),
        writes: own.writes,
        reads: other.reads,
        manners,
        numbers: numbers.fork(),
    }
}

/// The first words, if they are to come with the handshake.
fn first(talk: &mut Talk) -> Vec<u8> {
    let mut words = Vec::new();
    if talk.manners == Manners::Both && talk.numbers.once_in(3) {
        let count = talk.numbers.size(16 << 10);
        words.resize(usize::try_from(count).unwrap(), 0);
        let said = talk.says.fill(&mut words);
        words.truncate(said);
    }
    words
}

/// Who reads eagerly may have any socket. Before who does not the kernel would take many
/// megabytes, and the gateway would never have to wait, were it not for small segments and
/// buffers. (The loopback's own segments would not fit into these.)
fn line(reads: Pace, numbers: &mut Numbers) -> Line {
    let any = [0, ETHERNET, SMALLEST];
    let segment = numbers.one_of(if reads == EAGER { &any } else { &any[1..] });
    let mut small = |wanted: bool| {
        let bytes = usize::try_from(numbers.between(16 << 10, 64 << 10)).unwrap();
        (segment != 0 && wanted).then_some(bytes)
    };
    Line {
        segment,
        send: small(reads == SLOW),
        receive: small(reads != EAGER),
    }
}
