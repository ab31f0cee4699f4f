use std::fs::File;
use std::io::{Read, Write};
use std::time::Duration;

use nix::fcntl::FdFlag;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{MsgFlags, send as send_now};
use std::os::fd::AsRawFd;

use super::*;
use crate::pipe::pipe;
use crate::testing::{helper, passes, runtime};

/// Two ends in one process.
fn both() -> (Channel, Channel) {
    let (ours, theirs) = Channel::pair().unwrap();
    (ours, Channel::from_fd(theirs).unwrap())
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_message_arrives_whole_with_its_descriptors_in_order() {
    runtime().block_on(async {
        let (a, b) = both();
        let (read, write) = pipe().unwrap();
        a.send(b"hello", &[read.as_fd(), write.as_fd()])
            .await
            .unwrap();
        drop((read, write));

        let (bytes, fds) = b.recv().await.unwrap().unwrap();
        assert_eq!(bytes, b"hello");
        let [read, write]: [OwnedFd; 2] = fds.try_into().unwrap();
        for fd in [&read, &write] {
            let flags = FdFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFD).unwrap());
            assert!(flags.contains(FdFlag::FD_CLOEXEC));
        }
        File::from(write).write_all(b"through").unwrap();
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    });
}

#[test]
fn two_others_talk_over_a_pair_that_was_given_away_and_the_largest_message_fits_either_way() {
    runtime().block_on(async {
        let (a, b) = Channel::pair_to_give().unwrap();
        for end in [&a, &b] {
            let flags = FdFlag::from_bits_retain(fcntl(end, FcntlArg::F_GETFD).unwrap());
            assert!(flags.contains(FdFlag::FD_CLOEXEC));
        }
        let (a, b) = (Channel::from_fd(a).unwrap(), Channel::from_fd(b).unwrap());
        let largest = vec![7; MAX_MESSAGE];
        for (from, to) in [(&a, &b), (&b, &a)] {
            from.send(&largest, &[]).await.unwrap();
            assert_eq!(to.recv().await.unwrap().unwrap().0, largest);
        }
        drop(a);
        assert!(b.recv().await.unwrap().is_none());
    });
}

#[test]
fn messages_keep_their_bounds_and_end_with_end_of_file() {
    runtime().block_on(async {
        let (a, b) = both();
        a.send(b"one", &[]).await.unwrap();
        a.send(b"two", &[]).await.unwrap();
        drop(a);
        assert_eq!(b.recv().await.unwrap().unwrap().0, b"one");
        assert_eq!(b.recv().await.unwrap().unwrap().0, b"two");
        assert!(b.recv().await.unwrap().is_none());
        assert!(b.recv().await.unwrap().is_none());
        assert_eq!(
            b.send(b"x", &[]).await.unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    });
}

#[test]
fn last_words_are_heard_from_an_end_that_left_messages_unread() {
    runtime().block_on(async {
        let (a, b) = both();
        a.send(b"never read", &[]).await.unwrap();
        b.send(b"failed: why", &[]).await.unwrap();
        drop(b);
        assert_eq!(a.recv().await.unwrap().unwrap().0, b"failed: why");
        assert!(a.recv().await.unwrap().is_none());
    });
}

#[test]
fn the_largest_message_fits_and_a_larger_one_is_refused_by_its_size() {
    runtime().block_on(async {
        let (a, b) = both();
        let (read, _write) = pipe().unwrap();
        let bytes = vec![7; MAX_MESSAGE];
        let fds = vec![read.as_fd(); MAX_FDS];
        a.send(&bytes, &fds).await.unwrap();
        let (received, received_fds) = b.recv().await.unwrap().unwrap();
        assert_eq!(received, bytes);
        assert_eq!(received_fds.len(), MAX_FDS);

        let error = a.send(&vec![7; MAX_MESSAGE + 1], &[]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("204801 bytes"), "{error}");
        let fds = vec![read.as_fd(); MAX_FDS + 1];
        let error = a.send(b"x", &fds).await.unwrap_err();
        assert!(error.to_string().contains("254 descriptors"), "{error}");
        assert!(a.send(b"", &[]).await.is_err());
    });
}

#[test]
fn a_message_that_was_cut_is_an_error_and_the_next_one_is_whole() {
    runtime().block_on(async {
        let (a, theirs) = Channel::pair().unwrap();
        let long = vec![1; MAX_MESSAGE + 1];
        send_now(theirs.as_raw_fd(), &long, MsgFlags::MSG_DONTWAIT).unwrap();
        let error = a.recv().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        send_now(theirs.as_raw_fd(), b"next", MsgFlags::empty()).unwrap();
        assert_eq!(a.recv().await.unwrap().unwrap().0, b"next");
    });
}

#[test]
fn a_dropped_call_takes_and_sends_nothing() {
    runtime().block_on(async {
        let (a, b) = both();
        let wait = Duration::from_millis(5);
        assert!(tokio::time::timeout(wait, b.recv()).await.is_err());
        a.send(b"kept", &[]).await.unwrap();
        assert_eq!(b.recv().await.unwrap().unwrap().0, b"kept");

        let large = vec![0; MAX_MESSAGE];
        let mut sent = 0;
        while tokio::time::timeout(wait, a.send(&large, &[]))
            .await
            .is_ok()
        {
            sent += 1;
        }
        drop(a);
        let mut received = 0;
        while b.recv().await.unwrap().is_some() {
            received += 1;
        }
        assert_eq!(received, sent);
    });
}

#[test]
fn what_is_no_channel_is_refused() {
    runtime().block_on(async {
        let (read, _write) = pipe().unwrap();
        assert_eq!(
            Channel::from_fd(read).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    });
}

#[test]
fn descriptors_that_do_not_fit_the_limit_are_an_error_and_none_leaks() {
    passes(&mut helper("channel::tests::helper_lost_descriptors"));
}

#[test]
#[ignore = "run by descriptors_that_do_not_fit_the_limit_are_an_error_and_none_leaks"]
fn helper_lost_descriptors() {
    runtime().block_on(async {
        let (a, b) = both();
        let (read, _write) = pipe().unwrap();
        a.send(b"x", &[read.as_fd(); 20]).await.unwrap();
        let before = open_fds();
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // `before` counts the descriptor that read the directory: 9 more fit.
        let room = before as u64 + 8;
        setrlimit(Resource::RLIMIT_NOFILE, room, hard).unwrap();
        let error = b.recv().await.unwrap_err();
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(crate::limits::is_shortage(&error), "{error}");
        assert_eq!(open_fds(), before);

        a.send(b"y", &[read.as_fd()]).await.unwrap();
        assert_eq!(b.recv().await.unwrap().unwrap().1.len(), 1);
    });
}

#[tokio::test]
async fn after_a_shutdown_what_was_sent_in_time_is_received_and_nothing_else_is_sent() {
    let (one, other) = Channel::pair().unwrap();
    let other = Channel::from_fd(other).unwrap();
    other.send(b"in time", &[]).await.unwrap();
    one.shut_down().unwrap();
    let late = other.send(b"too late", &[]).await.unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::BrokenPipe);
    let late = one.send(b"too late", &[]).await.unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::BrokenPipe);
    let (bytes, _) = one.recv().await.unwrap().unwrap();
    assert_eq!(bytes, b"in time");
    assert!(one.recv().await.unwrap().is_none());
    assert!(other.recv().await.unwrap().is_none());
    // Once more, and when nobody is there any more, it is done already.
    one.shut_down().unwrap();
    drop(other);
    one.shut_down().unwrap();
}
