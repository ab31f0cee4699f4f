use wsgate_protocol::control::Refusal;

use super::*;

const OLD: WorkerId = 1;
const NEW: WorkerId = 2;
const OTHER: WorkerId = 3;

fn staying(reason: Stays, tunnels: u64) -> Vec<Staying> {
    vec![Staying { reason, tunnels }]
}

fn kept(n: u64) -> Fates {
    Fates {
        kept: n,
        ..Fates::default()
    }
}

fn late(taker: WorkerId, silent: Silent) -> Late {
    Late {
        giver: OLD,
        taker,
        silent,
    }
}

fn seen(holds: u64) -> Seen {
    Seen { holds, given: 0 }
}

fn holding(holds: u64) -> impl Fn(WorkerId) -> Seen {
    move |_| seen(holds)
}

fn paired(holds: u64) -> (Report, Instant) {
    let (mut report, now) = (Report::new(Duration::from_secs(600)), Instant::now());
    report.pair(7, OLD, NEW, seen(holds), now);
    (report, now)
}

#[test]
fn a_handover_is_over_when_both_have_said_so_in_either_order() {
    for giver_first in [true, false] {
        let (mut report, _) = paired(5);
        assert!(report.is_awaited() && report.is_moving(OLD));
        if giver_first {
            report.handed_over(OLD, 0, Vec::new(), false);
        } else {
            report.took_over(NEW, 7, kept(5), 300);
        }
        assert!(report.is_awaited());
        if giver_first {
            report.took_over(NEW, 7, kept(5), 300);
        } else {
            report.handed_over(OLD, 0, Vec::new(), false);
        }
        assert!(!report.is_awaited() && !report.is_moving(OLD));
        assert_eq!((report.fates.kept, report.longest_pause_us), (5, 300));
    }
}

#[test]
fn whoever_holds_nothing_keeps_nobody_waiting_but_what_it_gets_later_counts() {
    let (mut report, now) = paired(0);
    assert!(!report.is_awaited() && report.is_moving(OLD));
    report.look(now, holding(1));
    assert!(report.is_awaited());
}

#[test]
fn without_progress_for_2_s_a_pair_is_late_and_told_of_once() {
    let (mut report, now) = paired(5);
    let at = |ms| now + Duration::from_millis(ms);
    assert_eq!(report.look(at(1_900), holding(4)), []);
    assert_eq!(report.look(at(3_899), holding(4)), []);
    assert_eq!(
        report.look(at(3_900), holding(4)),
        [late(NEW, Silent::Giver)]
    );
    assert_eq!(report.look(at(9_000), holding(4)), []);
    assert!(!report.is_awaited() && !report.is_moving(OLD));
    // It comes after all, and what stays is planned for once more.
    let stays = staying(Stays::Closing, 4);
    assert!(report.handed_over(OLD, 0, stays, false));
}

#[test]
fn a_giver_that_will_have_another_taker_is_waited_for_and_then_the_new_pair() {
    let (mut report, now) = paired(5);
    let gone = staying(Stays::Refused(Refusal::Gone), 3);
    report.gone(NEW);
    report.handed_over(OLD, 0, gone, true);
    assert!(report.is_awaited() && report.is_moving(OLD));
    report.pair(8, OLD, OTHER, seen(3), now);
    assert!(!report.is_current(OLD, 7) && report.is_current(OLD, 8));
    report.took_over(OTHER, 8, kept(3), 0);
    assert!(report.is_awaited());
    assert!(!report.handed_over(OLD, 0, Vec::new(), false));
    assert!(!report.is_awaited());
    assert_eq!(report.stays(|_| 9), []);
}

#[test]
fn a_giver_that_dies_is_waited_for_until_its_taker_has_spoken() {
    let (mut report, _) = paired(5);
    report.gone(OLD);
    assert!(report.is_awaited());
    assert!(report.took_over(NEW, 7, kept(2), 0));
    assert!(!report.is_awaited());
    let (mut report, _) = paired(5);
    report.gone(OLD);
    report.gone(NEW);
    assert!(!report.is_awaited());
}

#[test]
fn what_stays_is_planned_for_when_it_changes() {
    let (mut report, _) = paired(5);
    let closing = |n| staying(Stays::Closing, n);
    assert!(report.handed_over(OLD, 0, closing(2), false));
    assert!(!report.handed_over(OLD, 0, closing(2), false));
    assert!(report.handed_over(OLD, 0, closing(1), false));
    assert!(!report.handed_over(OLD, 0, Vec::new(), false));
}

#[test]
fn what_is_lost_is_kept_by_taker_until_it_is_planned_for() {
    let (mut report, now) = paired(5);
    let lost = |n| Fates {
        drained: n,
        ..Fates::default()
    };
    report.took_over(NEW, 7, lost(2), 0);
    report.took_over(NEW, 7, lost(1), 0);
    report.pair(9, 4, OTHER, seen(1), now);
    report.took_over(OTHER, 9, lost(4), 0);
    assert_eq!(report.lost, BTreeMap::from([(NEW, 3), (OTHER, 4)]));
    report.gone(NEW);
    assert_eq!(report.lost, BTreeMap::from([(OTHER, 4)]));
}

#[test]
fn a_number_that_was_never_given_out_here_is_about_nothing() {
    let (mut report, _) = paired(5);
    assert!(!report.is_current(OLD, 6));
    assert!(!report.took_over(NEW, 6, kept(5), 0));
    assert!(!report.took_over(OTHER, 7, kept(5), 0));
    assert_eq!(report.fates, Fates::default());
}

#[test]
fn a_taker_that_is_silent_is_late_2_s_after_the_giver_is_through_however_it_drains() {
    let (mut report, now) = paired(50);
    let at = |ms| now + Duration::from_millis(ms);
    report.handed_over(OLD, 0, staying(Stays::Closing, 9), false);
    let mut holds = 50;
    for ms in (100..=2_000).step_by(100) {
        holds -= 1;
        assert_eq!(report.look(at(ms), holding(holds)), []);
    }
    assert_eq!(
        report.look(at(2_100), holding(3)),
        [late(NEW, Silent::Taker)]
    );
    assert!(!report.is_awaited());
    // It speaks after all.
    assert!(report.took_over(NEW, 7, kept(41), 0));
    assert_eq!(report.fates.kept, 41);
}

#[test]
fn a_taker_that_did_not_answer_its_giver_keeps_nobody_waiting_once_another_one_takes() {
    let (mut report, now) = paired(5);
    let stays = staying(Stays::Refused(Refusal::Late), 5);
    report.unanswered(OLD, now);
    report.handed_over(OLD, 0, stays, true);
    assert!(report.is_awaited());
    report.pair(8, OLD, OTHER, seen(5), now);
    report.handed_over(OLD, 0, Vec::new(), false);
    report.took_over(OTHER, 8, kept(5), 0);
    assert!(!report.is_awaited());
}

#[test]
fn a_giver_that_is_given_to_the_same_silent_taker_again_makes_no_progress_by_it() {
    let (mut report, now) = paired(5);
    let at = |ms| now + Duration::from_millis(ms);
    let stays = || staying(Stays::Refused(Refusal::Late), 5);
    report.unanswered(OLD, at(1_000));
    report.handed_over(OLD, 0, stays(), true);
    report.pair(8, OLD, NEW, seen(5), at(2_000));
    assert_eq!(report.look(at(2_900), holding(5)), []);
    assert_eq!(
        report.look(at(3_000), holding(5)),
        [late(NEW, Silent::Taker)]
    );
}

#[test]
fn without_a_channel_nobody_waits_for_a_taker() {
    let (mut report, _) = paired(5);
    report.nobody_takes(7);
    report.handed_over(
        OLD,
        0,
        staying(Stays::Refused(Refusal::NoDescriptors), 5),
        false,
    );
    assert!(!report.is_awaited());
}

#[test]
fn a_generation_gives_up_its_time_once_however_often_its_workers_are_paired() {
    let (mut report, _) = paired(5);
    assert!(report.is_first_of(1) && report.is_first_of(2));
    assert!(!report.is_first_of(1));
}

#[test]
fn what_drained_before_may_be_with_the_new_workers_until_all_have_said_that_it_is_not() {
    let (mut report, _) = paired(5);
    assert!(report.may_have_carried_on());
    report.took_over(NEW, 7, kept(5), 0);
    assert!(!report.may_have_carried_on());
    let draining = Fates {
        draining: 1,
        ..Fates::default()
    };
    report.took_over(NEW, 7, draining, 0);
    assert!(report.may_have_carried_on());
}

#[test]
fn what_has_moved_is_told_by_the_giver_as_long_as_the_taker_is_silent() {
    let (mut report, now) = paired(50);
    let given = |given| move |_| Seen { holds: 20, given };
    report.look(now, given(30));
    assert_eq!(report.moved(), 30, "the board says so");
    report.handed_over(OLD, 32, staying(Stays::Refused(Refusal::Late), 18), false);
    assert_eq!(report.moved(), 32);
    report.took_over(NEW, 7, kept(33), 0);
    assert_eq!(report.moved(), 33, "an acknowledgement may be lost");
    report.pair(
        8,
        OLD,
        OTHER,
        Seen {
            holds: 18,
            given: 32,
        },
        now,
    );
    report.look(now, given(42));
    assert_eq!(report.moved(), 43);
}

#[test]
fn what_is_with_a_late_giver_stays_because_of_the_silent_one() {
    let at = |now, ms| now + Duration::from_millis(ms);
    let (mut report, now) = paired(5);
    report.look(at(now, 2_000), holding(5));
    assert_eq!(report.stays(|_| 4), [(Why::SilentGiver(OLD), 4)]);
    assert!(report.is_to_be_warned_of(OLD) && !report.is_to_be_warned_of(OLD));
    let (mut report, now) = paired(5);
    let late = staying(Stays::Refused(Refusal::Late), 5);
    report.unanswered(OLD, now);
    report.handed_over(OLD, 0, late.clone(), true);
    report.look(at(now, 2_000), holding(5));
    assert_eq!(report.stays(|_| 5), [(Why::SilentTaker(NEW), 5)]);
    // Its tries are used up.
    report.handed_over(OLD, 0, late, false);
    let said = Why::Said(Stays::Refused(Refusal::Late));
    assert_eq!(report.stays(|_| 5), [(said, 5)]);
}
