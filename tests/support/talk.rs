//! One side of a tunnel that speaks by a script, at a pace of its own, and compares what
//! it hears with the other side's script.

use std::os::fd::AsFd;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::{sleep, timeout};

use super::random::Numbers;
use super::raw::CLOSE;
use super::script::{Check, Script, Stray};
use super::wire::WireEnd;

/// Longer than any tunnel waits while the others are busy.
const STUCK: Duration = Duration::from_secs(60);

/// How much is written or read at once, and how often there is a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    /// Bytes at once at the most.
    pub(crate) most: u64,
    /// A pause before one in so many.
    pub(crate) one_in: u64,
    /// The longest pause.
    pub(crate) pause_ms: u64,
}

/// What a side does beside speaking and listening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manners {
    /// Speaks and listens at once, and finishes when it has said all.
    Both,
    /// Speaks when the other side has finished.
    ListensFirst,
    /// Says and hears some of it, and resets its connection.
    Leaves(Leave),
    /// Finishes nothing, and is left by the other side: what it hears may end anywhere.
    IsLeft,
}

/// When a side leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leave {
    /// When it has said so many bytes,
    pub(crate) said: u64,
    /// has ended the frame that it was in, if it does so,
    pub(crate) at_boundary: bool,
    /// and has heard so many.
    pub(crate) heard: u64,
}

/// One side of a tunnel.
#[derive(Debug)]
pub(crate) struct Talk {
    pub(crate) says: Script,
    pub(crate) hears: Script,
    pub(crate) writes: Pace,
    pub(crate) reads: Pace,
    pub(crate) manners: Manners,
    pub(crate) numbers: Numbers,
}

/// What a side has heard, all of it right.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heard {
    pub(crate) bytes: u64,
    /// Whole messages, before framing broke.
    pub(crate) messages: u64,
    /// The code of a Close frame that was the gateway's own.
    pub(crate) close: Option<u16>,
}

impl Talk {
    /// Talks to the end. `ahead` has been read of the stream before.
    pub(crate) async fn run<S>(self, stream: S, ahead: Vec<u8>) -> Result<Heard, String>
    where
        S: AsyncRead + AsyncWrite + AsFd + Unpin,
    {
        let manners = self.manners;
        let mut ears = Ears {
            check: Check::new(self.hears),
            stray: None,
            pace: self.reads,
            numbers: self.numbers.clone(),
            is_left: manners == Manners::IsLeft,
        };
        let mut mouth = Mouth {
            script: self.says,
            pace: self.writes,
            numbers: self.numbers,
        };
        ears.take(&ahead)?;
        let (mut read, mut write) = split(stream);
        let heard = match manners {
            Manners::Both => {
                let (listening, speaking) = (ears.listen(&mut read), mouth.say_all(&mut write));
                tokio::try_join!(listening, speaking)?.0
            }
            Manners::ListensFirst => {
                let heard = ears.listen(&mut read).await?;
                mouth.say_all(&mut write).await?;
                heard
            }
            Manners::Leaves(leave) => {
                let listening = ears.listen_to(&mut read, leave.heard);
                tokio::try_join!(listening, mouth.say_some(&mut write, leave))?.0
            }
            Manners::IsLeft => tokio::select! {
                heard = ears.listen(&mut read) => heard?,
                () = mouth.say_in_vain(&mut write) => unreachable!("it never returns"),
            },
        };
        if let Manners::Leaves(_) = manners {
            let stream = read.unsplit(write);
            let socket = SockRef::from(&stream);
            socket.set_linger(Some(Duration::ZERO)).unwrap();
        }
        Ok(heard)
    }
}

/// The speaking half.
struct Mouth {
    script: Script,
    pace: Pace,
    numbers: Numbers,
}

impl Mouth {
    /// Says all, and finishes.
    async fn say_all(&mut self, stream: &mut (impl AsyncWrite + Unpin)) -> Result<(), String> {
        self.speak(stream, u64::MAX).await?;
        let finished = stream.shutdown().await;
        finished.map_err(|error| format!("FIN: {error}"))
    }

    async fn say_some(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        leave: Leave,
    ) -> Result<(), String> {
        self.speak(stream, leave.said).await?;
        if leave.at_boundary {
            let rest = self.script.until_boundary();
            self.speak(stream, rest).await?;
        }
        Ok(())
    }

    /// Nobody needs to hear it: that the connection breaks is no failure.
    async fn say_in_vain(&mut self, stream: &mut (impl AsyncWrite + Unpin)) {
        let _ = self.speak(stream, u64::MAX).await;
        std::future::pending().await
    }

    /// Says so many bytes, if there are.
    async fn speak(
        &mut self,
        stream: &mut (impl AsyncWrite + Unpin),
        most: u64,
    ) -> Result<(), String> {
        let mut buffer = vec![0; usize::try_from(self.pace.most).unwrap()];
        let mut said = 0;
        while said < most {
            let room = self.pace.next(&mut self.numbers).await.min(most - said);
            let room = &mut buffer[..usize::try_from(room).unwrap()];
            let count = self.script.fill(room);
            if count == 0 {
                break;
            }
            match timeout(STUCK, stream.write_all(&room[..count])).await {
                Ok(Ok(())) => said += count as u64,
                Ok(Err(error)) => return Err(format!("write after {said} bytes: {error}")),
                Err(_) => return Err(format!("stuck writing after {said} bytes")),
            }
        }
        Ok(())
    }
}

/// The listening half.
struct Ears {
    check: Check,
    stray: Option<Stray>,
    pace: Pace,
    numbers: Numbers,
    is_left: bool,
}

impl Ears {
    /// Listens to the end.
    async fn listen(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> Result<Heard, String> {
        self.listen_to(stream, u64::MAX).await
    }

    /// Listens until it has heard so many bytes.
    async fn listen_to(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        most: u64,
    ) -> Result<Heard, String> {
        let mut buffer = vec![0; usize::try_from(self.pace.most).unwrap()];
        while self.check.right < most {
            let room = usize::try_from(self.pace.next(&mut self.numbers).await).unwrap();
            let count = match timeout(STUCK, stream.read(&mut buffer[..room])).await {
                Ok(Ok(0)) => return self.end(WireEnd::Fin),
                Ok(Ok(count)) => count,
                Ok(Err(error)) => return self.end(WireEnd::Error(error.kind())),
                Err(_) => return Err(format!("nothing comes after {} bytes", self.check.right)),
            };
            self.take(&buffer[..count])?;
        }
        Ok(self.heard(None))
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        if let Some(stray) = &mut self.stray {
            stray.bytes.extend(bytes);
        } else if let Err(stray) = self.check.take(bytes) {
            if !self.is_left {
                return Err(format!("after {} bytes {stray}", self.check.right));
            }
            self.stray = Some(stray);
        }
        Ok(())
    }

    fn end(&self, end: WireEnd) -> Result<Heard, String> {
        let right = self.check.right;
        if !self.is_left {
            return match (end, self.check.is_whole()) {
                (WireEnd::Fin, true) => Ok(self.heard(None)),
                (end, _) => Err(format!("{end:?} after {right} bytes, too early")),
            };
        }
        match &self.stray {
            Some(stray) => match close_code(stray) {
                Some(code) if end == WireEnd::Fin => Ok(self.heard(Some(code))),
                _ => Err(format!("after {right} bytes {stray}, then {end:?}")),
            },
            // A slow side may not have taken it in time.
            None if end == WireEnd::Fin && self.check.at_boundary() && self.pace.is_quick() => {
                Err(format!("no Close between two frames, after {right} bytes"))
            }
            None => Ok(self.heard(None)),
        }
    }

    const fn heard(&self, close: Option<u16>) -> Heard {
        Heard {
            bytes: self.check.right,
            messages: self.check.messages(),
            close,
        }
    }
}

/// The code of exactly one Close frame at a place for it (RFC 6455 section 5.5.1).
fn close_code(stray: &Stray) -> Option<u16> {
    let [first, second, rest @ ..] = stray.bytes.as_slice() else {
        return None;
    };
    let (key, payload) = match second & 0x80 {
        0 => ([0; 4].as_slice(), rest),
        _ => rest.split_at_checked(4)?,
    };
    let is_one = *first == 0x80 | CLOSE && usize::from(second & 0x7f) == payload.len();
    let code = payload.first_chunk::<2>().filter(|_| is_one)?;
    let code = u16::from_be_bytes([code[0] ^ key[0], code[1] ^ key[1]]);
    stray.at_boundary.then_some(code)
}

impl Pace {
    /// Whether 2 s are enough to read what the kernel's buffers hold.
    const fn is_quick(self) -> bool {
        self.most > 64 << 10
    }

    /// Pauses, if it is time to, and says how many bytes may be next.
    async fn next(self, numbers: &mut Numbers) -> u64 {
        if numbers.once_in(self.one_in) {
            sleep(Duration::from_millis(numbers.between(1, self.pause_ms))).await;
        }
        numbers.size(self.most)
    }
}
