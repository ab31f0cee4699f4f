//! Real sockets on loopback, without workers: the tests accept.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

use super::*;

/// A configuration with these listeners and so many workers.
fn config(workers: usize, listeners: &[&str]) -> Config {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("wsgate.toml");
    let listeners = listeners
        .iter()
        .map(|address| format!("[[listener]]\naddress = \"{address}\"\n"));
    let text = format!(
        "workers = {workers}\n{}[[route]]\nupstream = \"a\"\n[upstream.a]\nservers = [\"127.0.0.1:9\"]\n",
        listeners.collect::<String>()
    );
    std::fs::write(&path, text).unwrap();
    wsgate_config::load(&path).unwrap().config
}

const TCP: &str = "127.0.0.1:0";

fn commit(sockets: &mut Sockets, config: &Config, generation: Generation) {
    let mut staged = sockets.stage(config).unwrap();
    sockets.commit(&mut staged, config, generation);
}

fn slots(sockets: &[Named]) -> Vec<Option<usize>> {
    sockets.iter().map(|(spec, _)| spec.slot).collect()
}

fn group<'a>(sockets: &'a Sockets, listener: &str) -> &'a Group {
    let address = ListenAddress::Tcp(listener.parse().unwrap());
    match &sockets.listeners[&address] {
        Behind::Tcp(group) => group,
        Behind::Unix(_) => unreachable!(),
    }
}

/// How many of so many connections come to the sockets of each of these slots.
fn shares(sockets: &Sockets, slots: usize, connections: usize) -> Vec<usize> {
    let group = group(sockets, TCP);
    let clients: Vec<TcpStream> = (0..connections)
        .map(|_| TcpStream::connect(group.bound).unwrap())
        .collect();
    let mut shares = vec![0; slots];
    for member in group.members() {
        let listener = TcpListener::from(member.socket.try_clone().unwrap());
        while listener.accept().is_ok() {
            shares[member.slot] += 1;
        }
    }
    assert_eq!(shares.iter().sum::<usize>(), clients.len());
    shares
}

/// As workers send them.
fn returned(sockets: impl IntoIterator<Item = Named>) -> Returned {
    let mut returned = Returned::default();
    for (spec, socket) in sockets {
        returned.push(spec, socket.try_clone().unwrap());
    }
    returned
}

/// As if the supervisor had died and its workers had these sockets.
fn adopt(sockets: Sockets, config: &Config, held: &[usize]) -> Sockets {
    let held = held
        .iter()
        .flat_map(|slot| sockets.of_slot(None, config, *slot));
    let copies = returned(held);
    drop(sockets);
    Sockets::adopted(copies)
}

#[test]
fn slots_come_and_go_and_come_back_with_their_sockets() {
    let mut sockets = Sockets::default();
    commit(&mut sockets, &config(1, &[TCP]), 1);
    commit(&mut sockets, &config(4, &[TCP]), 2);
    assert!(shares(&sockets, 4, 400).iter().all(|share| *share > 50));
    commit(&mut sockets, &config(2, &[TCP]), 3);
    let retired = sockets.retired_by(3);
    assert_eq!(slots(&retired), [Some(2), Some(3)]);
    assert_eq!(shares(&sockets, 4, 200)[2..], [0, 0]);
    commit(&mut sockets, &config(1, &[TCP]), 4);
    assert_eq!(
        slots(&sockets.retired_by(3)),
        [Some(2), Some(3)],
        "their time runs already"
    );
    assert_eq!(slots(&sockets.retired_by(4)), [Some(1)]);
    assert_eq!(shares(&sockets, 4, 100), [100, 0, 0, 0]);
    sockets.close(3);
    assert_eq!(shares(&sockets, 4, 100), [100, 0, 0, 0]);
    drop(retired);
    commit(&mut sockets, &config(4, &[TCP]), 5);
    assert_eq!(slots(&sockets.retired_by(4)), [], "it is in use again");
    assert!(shares(&sockets, 4, 400).iter().all(|share| *share > 50));
    assert!(group(&sockets, TCP).is_ordered());
}

#[test]
fn a_listener_that_is_removed_is_retired_whole_and_taken_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}", dir.path().join("s").display());
    let both = config(2, &[TCP, &unix]);
    let neither = config(2, &["127.0.0.2:0"]);
    let mut sockets = Sockets::default();
    commit(&mut sockets, &both, 1);
    let bound = group(&sockets, TCP).bound;
    commit(&mut sockets, &neither, 2);
    assert_eq!(slots(&sockets.retired_by(2)), [Some(0), Some(1), None]);
    let removed = sockets.removed(&neither);
    let counts: Vec<_> = removed
        .iter()
        .map(|(_, counts)| (counts.in_use, counts.retired))
        .collect();
    assert_eq!(counts, [(0, 2), (0, 1)]);
    let _waits = TcpStream::connect(bound).unwrap();
    sockets.shut(2);
    let wait = std::time::Duration::from_millis(50);
    assert!(TcpStream::connect_timeout(&bound, wait).is_err());
    commit(&mut sockets, &both, 3);
    assert_eq!(slots(&sockets.retired_by(2)), []);
    assert_eq!(group(&sockets, TCP).bound, bound);
    sockets.close(2);
    UnixStream::connect(dir.path().join("s")).unwrap();
    TcpStream::connect(bound).unwrap();

    commit(&mut sockets, &neither, 4);
    sockets.close(4);
    assert!(!dir.path().join("s").exists());
    assert!(TcpStream::connect(bound).is_err());
}

#[test]
fn a_listener_that_comes_back_with_fewer_slots_has_the_rest_retired_anew() {
    let mut sockets = Sockets::default();
    commit(&mut sockets, &config(3, &[TCP]), 1);
    commit(&mut sockets, &config(3, &["127.0.0.2:0"]), 2);
    commit(&mut sockets, &config(1, &[TCP]), 3);
    assert_eq!(
        slots(&sockets.retired_by(2)),
        [None; 0],
        "connections came to them until now"
    );
    assert_eq!(shares(&sockets, 3, 100), [100, 0, 0]);
}

#[test]
fn a_socket_file_that_is_another_ones_by_now_stays() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let unix = format!("unix:{}", path.display());
    let mut sockets = Sockets::default();
    commit(&mut sockets, &config(1, &[&unix]), 1);
    std::fs::remove_file(&path).unwrap();
    let _other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    commit(&mut sockets, &config(1, &[TCP]), 2);
    sockets.close(2);
    UnixStream::connect(&path).unwrap();
}

#[test]
fn adopted_sockets_are_what_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let unix = format!("unix:{}", path.display());
    let config_of = |workers| config(workers, &[TCP, &unix]);
    let mut sockets = Sockets::default();
    commit(&mut sockets, &config_of(3), 1);
    let bound = group(&sockets, TCP).bound;
    // The Unix socket comes from each of them, and one came to stand in for another.
    let copies = [0, 1, 2, 1]
        .iter()
        .flat_map(|slot| sockets.of_slot(None, &config_of(3), *slot));
    let copies = returned(copies);
    // A supervisor that dies unlinks nothing.
    std::mem::forget(sockets);
    let mut sockets = Sockets::adopted(copies);
    assert_eq!(group(&sockets, TCP).bound, bound);
    assert_eq!(group(&sockets, TCP).members().len(), 3);
    assert!(group(&sockets, TCP).is_ordered());
    let staged = sockets.stage(&config_of(3)).unwrap();
    assert!(staged.slots.is_empty() && staged.unix.is_empty());

    commit(&mut sockets, &config(1, &[TCP]), 7);
    assert_eq!(slots(&sockets.retired_by(7)), [Some(1), Some(2), None]);
    assert_eq!(shares(&sockets, 3, 100), [100, 0, 0]);
    UnixStream::connect(&path).unwrap();
    sockets.close(7);
    assert!(!path.exists());
}

#[test]
fn a_slot_that_nobody_held_is_bound_anew_and_the_order_is_still_known() {
    let mut sockets = Sockets::default();
    commit(&mut sockets, &config(4, &[TCP]), 1);
    let mut sockets = adopt(sockets, &config(4, &[TCP]), &[3, 0, 2]);
    assert!(group(&sockets, TCP).is_ordered());
    let staged = sockets.stage(&config(4, &[TCP])).unwrap();
    assert_eq!(staged.slots[0].1, 1);
    commit(&mut sockets, &config(4, &[TCP]), 2);
    // The array is 0, 3, 2, 1 now.
    for (generation, workers) in [(3, 3), (4, 2), (5, 1)] {
        commit(&mut sockets, &config(workers, &[TCP]), generation);
        let shares = shares(&sockets, 4, 300);
        assert!(
            shares[..workers].iter().all(|share| *share > 50),
            "{shares:?}"
        );
        assert_eq!(shares[workers..].iter().sum::<usize>(), 0, "{shares:?}");
    }
    // Another supervisor finds the same order, though it is not that of the slots.
    let all = [3, 4, 5]
        .iter()
        .flat_map(|generation| sockets.retired_by(*generation));
    let all = all.chain(sockets.of_slot(None, &config(1, &[TCP]), 0));
    let copies = returned(all);
    drop(sockets);
    let mut sockets = Sockets::adopted(copies);
    commit(&mut sockets, &config(2, &[TCP]), 6);
    let shares = shares(&sockets, 4, 300);
    assert_eq!(shares[2..], [0, 0]);
    assert!(shares[..2].iter().all(|share| *share > 50), "{shares:?}");
    sockets.close(6);
    assert_eq!(group(&sockets, TCP).members().len(), 2);
}

#[test]
fn whoever_comes_next_knows_the_places_that_a_close_left_to_others() {
    let mut sockets = Sockets::default();
    commit(&mut sockets, &config(4, &[TCP]), 1);
    let mut sockets = adopt(sockets, &config(4, &[TCP]), &[1, 2, 3]);
    // The array is 3, 1, 2, and two join.
    commit(&mut sockets, &config(5, &[TCP]), 2);
    let mut sockets = adopt(sockets, &config(5, &[TCP]), &[0, 2, 3, 4]);
    commit(&mut sockets, &config(5, &[TCP]), 3);
    // It is 3, 4, 2, 0, 1 now: both that stay move to places of others.
    commit(&mut sockets, &config(2, &[TCP]), 4);
    sockets.close(4);
    assert_eq!(group(&sockets, TCP).members().len(), 2);

    let mut sockets = adopt(sockets, &config(2, &[TCP]), &[0, 1]);
    assert!(group(&sockets, TCP).is_ordered());
    commit(&mut sockets, &config(1, &[TCP]), 5);
    assert_eq!(slots(&sockets.retired_by(5)), [Some(1)]);
    assert_eq!(shares(&sockets, 2, 100), [100, 0]);
    sockets.close(5);
    assert_eq!(shares(&sockets, 2, 100), [100, 0]);
}

#[test]
fn sockets_whose_order_nobody_knows_are_served_and_never_closed_while_they_are_wanted() {
    let mut sockets = Sockets::default();
    commit(&mut sockets, &config(6, &[TCP]), 1);
    let mut sockets = adopt(sockets, &config(6, &[TCP]), &[0, 4, 5]);
    assert!(!group(&sockets, TCP).is_ordered());
    commit(&mut sockets, &config(2, &[TCP]), 2);
    assert_eq!(slots(&sockets.retired_by(2)), []);
    let served = |slot| slots(&sockets.of_slot(None, &config(2, &[TCP]), slot));
    assert_eq!(served(0), [Some(0), Some(4)]);
    assert_eq!(served(1), [Some(5), Some(1)]);
    assert!(
        shares(&sockets, 6, 400)
            .iter()
            .filter(|share| **share > 50)
            .count()
            == 4
    );
    // Nor does the next supervisor take it for known.
    let mut sockets = adopt(sockets, &config(2, &[TCP]), &[0, 1]);
    assert!(!group(&sockets, TCP).is_ordered());
    commit(&mut sockets, &config(2, &["127.0.0.2:0"]), 3);
    sockets.close(3);
    assert!(sockets.removed(&config(2, &["127.0.0.2:0"])).is_empty());
}

#[test]
fn a_unix_socket_whose_file_is_gone_is_bound_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let config = config(1, &[&format!("unix:{}", path.display())]);
    let mut sockets = Sockets::default();
    commit(&mut sockets, &config, 1);
    let held = sockets.of_slot(None, &config, 0);
    std::fs::remove_file(&path).unwrap();
    let mut adopted = Sockets::adopted(returned(held));
    commit(&mut adopted, &config, 2);
    UnixStream::connect(&path).unwrap();
}

#[test]
fn sockets_of_an_address_that_a_wildcard_means_too_stay_until_that_is_gone_as_well() {
    let mut sockets = Sockets::default();
    commit(&mut sockets, &config(2, &[TCP]), 1);
    let bound = group(&sockets, TCP).bound;
    let wildcard = format!("0.0.0.0:{}", bound.port());
    let wide = config(2, &[&wildcard]);
    commit(&mut sockets, &wide, 2);
    assert_eq!(slots(&sockets.retired_by(2)), []);
    let served: Vec<_> = sockets
        .of_slot(None, &wide, 1)
        .into_iter()
        .map(|(spec, _)| spec.listener)
        .collect();
    assert_eq!(served, [wildcard.as_str(), TCP]);
    commit(&mut sockets, &config(1, &[&wildcard]), 3);
    assert_eq!(slots(&sockets.retired_by(3)), [Some(1), Some(1)]);
    assert_eq!(shares(&sockets, 2, 100), [100, 0]);
    commit(&mut sockets, &config(2, &["127.0.0.2:0"]), 4);
    sockets.close(3);
    sockets.close(4);
    assert!(TcpStream::connect(bound).is_err());
}

#[test]
fn a_unix_socket_that_is_about_to_be_closed_is_found_by_nobody_and_bound_anew_if_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let unix = config(1, &[&format!("unix:{}", path.display())]);
    let mut sockets = Sockets::default();
    commit(&mut sockets, &unix, 1);
    commit(&mut sockets, &config(1, &[TCP]), 2);
    let early = UnixStream::connect(&path).unwrap();
    sockets.shut(2);
    assert!(UnixStream::connect(&path).is_err());
    let old = sockets.retired_by(2).pop().unwrap().1;
    let listener = std::os::unix::net::UnixListener::from(old.try_clone().unwrap());
    listener.accept().unwrap();
    drop(early);

    commit(&mut sockets, &unix, 3);
    UnixStream::connect(&path).unwrap();
    assert!(sockets.retired_by(2).is_empty());
    sockets.close(2);
    UnixStream::connect(&path).unwrap();
}

#[test]
fn a_supervisor_that_panics_leaves_the_files_of_unix_listeners_to_the_workers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let config = config(1, &[&format!("unix:{}", path.display())]);
    let mut sockets = Sockets::default();
    commit(&mut sockets, &config, 1);
    let workers = sockets.of_slot(None, &config, 0);
    let crash = std::panic::AssertUnwindSafe(move || {
        let _sockets = sockets;
        panic!("a bug");
    });
    assert!(std::panic::catch_unwind(crash).is_err());
    UnixStream::connect(&path).unwrap();
    drop(workers);
}
