//! A taker that can open too few descriptors, in a process of its own: the limit is the whole process'.

use std::process::Command;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use wsgate_protocol::control::Refusal;
use wsgate_protocol::handover::FromTaker;
use wsgate_proxy::handover::Leaver;

use super::rig::{Rig, all_work, within};
use super::taker::{Message, Script};
use crate::handover::BATCH;

#[test]
fn descriptors_that_were_lost_on_their_way_take_no_tunnel_along() {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "handover::tests::shortage::helper"])
        .args(["--ignored", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test]
#[ignore = "run by descriptors_that_were_lost_on_their_way_take_no_tunnel_along"]
async fn helper() {
    let rig = Rig::new().await;
    let mut tunnels = rig.tunnels(10).await;
    let (script, _taken, _) = Script::introduced(&rig).await;
    let batch = within(rig.old.gateway.leavers(BATCH)).await;
    let message = Message::of(&batch).await;
    message.go(&script.channel).await;
    drop(message);
    let before = open_fds();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // Some of the 20 fit: these are the ones that would leak.
    setrlimit(Resource::RLIMIT_NOFILE, before as u64 + 8, hard).unwrap();
    let answer = script.hear().await;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let reason = Refusal::NoDescriptors;
    assert_eq!(answer, FromTaker::Refused { reason });
    assert_eq!(open_fds(), before);
    batch.into_iter().for_each(Leaver::resume);
    all_work(&mut tunnels).await;
    rig.assert_holds(10, 0);
    // It takes them as soon as it can.
    let mut batch = within(rig.old.gateway.leavers(BATCH)).await;
    let message = Message::of(&batch).await;
    message.go(&script.channel).await;
    drop(message);
    assert!(matches!(script.hear().await, FromTaker::Taken { .. }));
    batch.drain(..).for_each(Leaver::moved);
    all_work(&mut tunnels).await;
    rig.assert_holds(0, 10);
    assert_eq!(open_fds(), before);
}
