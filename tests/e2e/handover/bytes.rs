//! Every byte of a tunnel arrives once and in its place, however often the tunnel moves.

use tokio::task::JoinSet;

use crate::relay::{Both, Houses, heard, manners};
use crate::support::load::alone;
use crate::support::plan::Plan;
use crate::support::random::Seed;

/// What goes through the gateway at the least.
const ALL: u64 = 300_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_byte_arrives_while_tunnels_move_again_and_again() {
    let _alone = alone().await;
    let seed = Seed::draw();
    let houses = Houses::start().await;
    let mut talks = Vec::new();
    let mut planned = 0;
    while planned < ALL {
        let number = talks.len() as u64;
        let slow = 500_000..=2_000_000;
        let quick = 3_000_000..=15_000_000;
        let plan = Plan::draw(seed.numbers(number), manners(number), slow, quick);
        planned += plan.length();
        talks.push(houses.open(number, plan).await);
    }
    let all = talks.len() as u64;
    let talks: JoinSet<Both> = talks.into_iter().collect();
    let mut talking = Box::pin(tokio::spawn(heard(talks)));
    let (mut reloads, mut moved) = (0, 0);
    let heard = loop {
        houses.gateway.edit(&houses.config(reloads + 2));
        tokio::select! {
            heard = &mut talking => break heard.unwrap(),
            reloaded = houses.gateway.reloaded() => {
                reloads += 1;
                moved += reloaded.moved;
                assert_eq!(reloaded.stays, []);
            }
        }
    };
    assert!(
        moved > all,
        "{moved} moves of {all} tunnels in {reloads} reloads"
    );
    let bytes: [u64; 2] = [0, 1].map(|side| heard.iter().map(|both| both[side].bytes).sum());
    let messages: [u64; 2] = [0, 1].map(|side| heard.iter().map(|both| both[side].messages).sum());
    assert!(bytes[0] + bytes[1] >= ALL, "{bytes:?}");
    houses
        .gateway
        .counted("the gateway counted the same", |totals| {
            [totals.bytes_from_servers, totals.bytes_from_clients] == bytes
                && [totals.messages_from_servers, totals.messages_from_clients] == messages
                && totals.tunnels_ended["client"] + totals.tunnels_ended["server"] == all
        })
        .await;
}
