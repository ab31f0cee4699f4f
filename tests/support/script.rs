//! The bytes that one side of a tunnel says, known to the other side in advance: what
//! arrives is compared byte by byte with what was said, and neither is kept.
//!
//! Payloads are pieces of one pattern, each from a place of its own, so they cost a copy
//! and no arithmetic; a lost, doubled, moved or foreign block fits nowhere.

use std::ops::Range;
use std::sync::LazyLock;

use super::random::Numbers;
use super::raw::{BINARY, CONTINUATION, PING, PONG, TEXT};

/// Bytes without order.
static PATTERN: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut numbers = Numbers::of(1);
    (0..1 << 17)
        .flat_map(|_| numbers.next().to_le_bytes())
        .collect()
});

/// The longest piece of the pattern that is used at once.
const PIECE: u64 = 64 * 1024;

/// The longest payload of a frame.
const LONGEST: u64 = 4 << 20;

/// A first byte that no frame has: all bits reserved, and an operation code that is none.
const NO_FRAME: u8 = 0xff;

/// What the bytes are to who follows frames in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Each message in one frame.
    Whole,
    /// Messages in several frames, and control frames between these.
    Fragmented,
    /// No frames from the first byte on.
    Loose,
    /// Frames at first, and then none any more.
    Broken,
}

/// Who says it: clients mask their frames, servers do not (RFC 6455 section 5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// One direction's bytes, from where it has come to on to its end.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    numbers: Numbers,
    form: Form,
    side: Side,
    /// Bytes still to come; the last frame may be longer.
    left: u64,
    messages: u64,
    /// Frames of the current message that are still to come.
    fragments: u64,
    /// Messages of a few bytes that still come in a row.
    burst: u64,
    opcode: u8,
    head: Head,
    /// Bytes of the current frame's payload that no piece has been chosen for.
    payload: u64,
    piece: Range<usize>,
}

/// A frame's header, or what else stands before a payload.
#[derive(Clone, Debug, Default)]
struct Head {
    bytes: [u8; 14],
    rest: Range<usize>,
}

impl Script {
    /// About `length` bytes of this form: what is begun is ended.
    pub(crate) fn new(numbers: Numbers, side: Side, form: Form, length: u64) -> Self {
        let mut script = Self {
            numbers,
            form,
            side,
            left: length,
            messages: 0,
            fragments: 0,
            burst: 0,
            opcode: BINARY,
            head: Head::default(),
            payload: 0,
            piece: 0..0,
        };
        if form == Form::Loose {
            script.let_loose();
        }
        script
    }

    /// The next bytes, as many as fit; fewer only at the end.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> usize {
        let mut filled = 0;
        while filled < buffer.len() && self.has_more() {
            let room = &mut buffer[filled..];
            filled += match self.head.rest.is_empty() {
                false => copy(&self.head.bytes, &mut self.head.rest, room),
                true => copy(&PATTERN, &mut self.piece, room),
            };
        }
        filled
    }

    /// Bytes still to come, at the least.
    pub(crate) const fn left(&self) -> u64 {
        self.left
    }

    /// Whether all has been said.
    pub(crate) fn is_over(&self) -> bool {
        !self.clone().has_more()
    }

    /// Whole messages so far, before framing broke.
    pub(crate) const fn messages(&self) -> u64 {
        self.messages
    }

    /// Bytes to the end of the frame that has begun; 0 where there are no frames.
    pub(crate) fn until_boundary(&self) -> u64 {
        match self.form {
            Form::Loose => 0,
            _ => self.begun(),
        }
    }

    /// Whether a frame of someone else's would break none here.
    pub(crate) fn at_boundary(&self) -> bool {
        self.form != Form::Loose && self.begun() == 0
    }

    fn begun(&self) -> u64 {
        (self.head.rest.len() + self.piece.len()) as u64 + self.payload
    }

    /// Whether there is a byte to take, in `head` or in `piece`.
    fn has_more(&mut self) -> bool {
        while self.head.rest.is_empty() && self.piece.is_empty() {
            if self.payload > 0 {
                self.next_piece();
            } else if !self.next_frame() {
                return false;
            }
        }
        true
    }

    fn next_piece(&mut self) {
        let length = self.payload.min(self.numbers.between(1, PIECE));
        self.payload -= length;
        let start = self.numbers.below(PATTERN.len() as u64 - length);
        self.piece = to_usize(start)..to_usize(start + length);
    }

    /// Whether there is one.
    fn next_frame(&mut self) -> bool {
        if self.fragments > 0 {
            self.next_fragment();
        } else if self.left == 0 {
            return false;
        } else if self.form == Form::Broken && self.numbers.once_in(20) {
            self.let_loose();
        } else {
            self.next_message();
        }
        true
    }

    fn next_message(&mut self) {
        self.fragments = match self.form {
            Form::Fragmented => self.numbers.between(1, 12),
            Form::Whole | Form::Loose | Form::Broken => 1,
        };
        self.opcode = self.numbers.one_of(&[TEXT, BINARY]);
        if self.burst == 0 && self.numbers.once_in(12) {
            self.burst = 100;
        }
        self.burst = self.burst.saturating_sub(1);
        self.next_fragment();
    }

    fn next_fragment(&mut self) {
        if self.form == Form::Fragmented && self.numbers.once_in(5) {
            let opcode = self.numbers.one_of(&[PING, PONG]);
            let length = self.numbers.below(126);
            return self.frame(true, opcode, length);
        }
        self.fragments -= 1;
        self.messages += u64::from(self.fragments == 0);
        let opcode = std::mem::replace(&mut self.opcode, CONTINUATION);
        let most = if self.burst > 0 { 125 } else { LONGEST };
        let length = match self.numbers.once_in(15) {
            true => 0,
            false => self.numbers.size(most).min(self.left),
        };
        self.frame(self.fragments == 0, opcode, length);
    }

    /// RFC 6455 section 5.2.
    fn frame(&mut self, fin: bool, opcode: u8, length: u64) {
        let mut head = vec![u8::from(fin) << 7 | opcode];
        let mask = u8::from(self.side == Side::Client) << 7;
        match length {
            0..126 => head.push(mask | to_u8(length)),
            126..0x1_0000 => {
                head.push(mask | 126);
                head.extend(&length.to_be_bytes()[6..]);
            }
            _ => {
                head.push(mask | 127);
                head.extend(length.to_be_bytes());
            }
        }
        if self.side == Side::Client {
            head.extend(&self.numbers.next().to_le_bytes()[..4]);
        }
        self.put_head(&head);
        self.payload = length;
        self.left = self.left.saturating_sub(length + head.len() as u64);
    }

    fn let_loose(&mut self) {
        self.form = Form::Loose;
        self.put_head(&[NO_FRAME]);
        self.payload = std::mem::take(&mut self.left);
    }

    fn put_head(&mut self, head: &[u8]) {
        self.head.bytes[..head.len()].copy_from_slice(head);
        self.head.rest = 0..head.len();
    }
}

/// Takes from the front of `range`.
fn copy(from: &[u8], range: &mut Range<usize>, to: &mut [u8]) -> usize {
    let count = range.len().min(to.len());
    to[..count].copy_from_slice(&from[range.start..][..count]);
    range.start += count;
    count
}

fn to_u8(number: u64) -> u8 {
    u8::try_from(number).unwrap()
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

/// Compares what arrives with what was said.
#[derive(Debug)]
pub(crate) struct Check {
    script: Script,
    expected: Vec<u8>,
    /// Bytes that were right.
    pub(crate) right: u64,
}

/// Bytes that were not said.
#[derive(Debug)]
pub(crate) struct Stray {
    /// From the first of them on.
    pub(crate) bytes: Vec<u8>,
    /// Whether they stand between two frames.
    pub(crate) at_boundary: bool,
    expected: u8,
}

impl Check {
    pub(crate) const fn new(script: Script) -> Self {
        Self {
            script,
            expected: Vec::new(),
            right: 0,
        }
    }

    /// The next bytes that arrived.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<(), Stray> {
        let before = self.script.clone();
        self.expected.resize(bytes.len(), 0);
        let count = self.script.fill(&mut self.expected);
        if self.expected[..count] == *bytes {
            self.right += bytes.len() as u64;
            return Ok(());
        }
        self.expected.truncate(count);
        Err(self.stray(before, bytes))
    }

    /// Whether all of it has arrived.
    pub(crate) fn is_whole(&self) -> bool {
        self.script.is_over()
    }

    pub(crate) fn at_boundary(&self) -> bool {
        self.script.at_boundary()
    }

    pub(crate) const fn messages(&self) -> u64 {
        self.script.messages()
    }

    /// Cuts `bytes` where they go astray, and goes there with the script.
    fn stray(&mut self, before: Script, bytes: &[u8]) -> Stray {
        let pairs = self.expected.iter().zip(bytes);
        let right = pairs.take_while(|(said, got)| said == got).count();
        let expected = self.expected.get(right).copied().unwrap_or_default();
        self.script = before;
        self.script.fill(&mut self.expected[..right]);
        self.right += right as u64;
        Stray {
            bytes: bytes[right..].to_vec(),
            at_boundary: self.script.at_boundary(),
            expected,
        }
    }
}

impl std::fmt::Display for Stray {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let got = &self.bytes[..self.bytes.len().min(8)];
        write!(f, "{got:02x?}… in place of {:02x}", self.expected)
    }
}
