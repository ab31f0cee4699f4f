//! The room: who is in it, and how what is said reaches them.
//!
//! It never waits: a member whose queue is full is put out, since one slow
//! reader must not hold up the others or grow the memory.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use crate::message::{self, Reply};

/// Messages that may wait for one member.
pub(crate) const QUEUE: usize = 256;

/// The members of all servers.
#[derive(Debug, Default)]
pub(crate) struct Room {
    members: Mutex<Members>,
}

/// A place in the room. Dropped, the member has left.
#[derive(Debug)]
pub(crate) struct Membership {
    room: Arc<Room>,
    server: Arc<str>,
    member: u64,
    name: String,
}

/// What a member is to be sent. It ends when the member has been put out.
pub(crate) type Queue = mpsc::Receiver<Utf8Bytes>;

impl Room {
    /// Adds a member, whose queue begins with its welcome.
    pub(crate) fn join(self: &Arc<Self>, server: &Arc<str>) -> (Membership, Queue) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let mut members = self.members();
        members.last += 1;
        let member = members.last;
        let name = format!("guest-{member}");
        members.send_count(1);
        let welcome = Reply::Welcome {
            server,
            members: members.queues.len() + 1,
            you: &name,
            member,
        };
        // The queue is new and empty.
        let _ = sender.try_send(welcome.encode());
        members.queues.insert(member, sender);
        drop(members);
        let membership = Membership {
            room: Arc::clone(self),
            server: Arc::clone(server),
            member,
            name,
        };
        (membership, queue)
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Membership {
    /// The number that no other member has.
    pub(crate) fn member(&self) -> u64 {
        self.member
    }

    /// The name in use.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Changes the name.
    pub(crate) fn rename(&mut self, name: String) {
        self.name = name;
    }

    /// Tells all members, this one too.
    pub(crate) fn say(&self, text: &str) {
        let mut members = self.room.members();
        members.send(&Reply::Said {
            from: &self.name,
            member: self.member,
            text,
            server: &self.server,
            at: message::now(),
        });
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut members = self.room.members();
        if members.queues.remove(&self.member).is_some() {
            members.send_count(0);
        }
    }
}

#[derive(Debug, Default)]
struct Members {
    /// The last number given; none is used twice.
    last: u64,
    queues: BTreeMap<u64, mpsc::Sender<Utf8Bytes>>,
}

impl Members {
    /// Queues a message for everyone, and puts out who is full.
    fn send(&mut self, reply: &Reply<'_>) {
        if self.queue(&reply.encode()) {
            self.send_count(0);
        }
    }

    /// Tells everyone how many there are with those `arriving`, until that is
    /// true: telling may put out another one.
    fn send_count(&mut self, arriving: usize) {
        loop {
            let count = self.queues.len() + arriving;
            if !self.queue(&Reply::Members { count }.encode()) {
                return;
            }
        }
    }

    /// Whether a member had to go.
    fn queue(&mut self, text: &Utf8Bytes) -> bool {
        let before = self.queues.len();
        self.queues
            .retain(|_, queue| queue.try_send(text.clone()).is_ok());
        self.queues.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_reads_too_slowly_is_put_out_and_the_others_are_told() {
        let room = Arc::new(Room::default());
        let server = Arc::from("chat-a");
        let (speaker, mut heard) = room.join(&server);
        let (_slow, mut unread) = room.join(&server);

        let mut last = Utf8Bytes::default();
        for number in 0..QUEUE {
            speaker.say(&number.to_string());
            while let Ok(text) = heard.try_recv() {
                last = text;
            }
        }

        assert_eq!(last.as_str(), r#"{"type":"members","count":1}"#);
        let mut queued = 0;
        while unread.try_recv().is_ok() {
            queued += 1;
        }
        assert_eq!(queued, QUEUE);
        assert_eq!(
            unread.try_recv(),
            Err(mpsc::error::TryRecvError::Disconnected)
        );
    }
}
