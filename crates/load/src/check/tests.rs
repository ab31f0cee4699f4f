use super::*;

const SIZE: usize = 100;

fn message(tunnel: u32, sequence: u64) -> Vec<u8> {
    let mut payload = vec![0; SIZE];
    Pattern::new(SIZE).write(&mut payload, tunnel, sequence);
    payload
}

/// What a checker of tunnel 3 says of these.
fn faults(messages: &[Vec<u8>]) -> Faults {
    let pattern = Pattern::new(SIZE);
    let mut checker = Checker::new(Some(3));
    for message in messages {
        checker.part(&pattern, message.len() as u64, 0, message);
    }
    *checker.faults()
}

fn sequence(numbers: &[u64]) -> Faults {
    let messages: Vec<_> = numbers.iter().map(|number| message(3, *number)).collect();
    faults(&messages)
}

#[test]
fn what_comes_back_as_it_went_is_no_fault() {
    assert!(!sequence(&[0, 1, 2, 3]).any());
}

#[test]
fn lost_doubled_and_reordered_messages_are_told_apart() {
    let one = |lost, doubled, reordered| Faults {
        lost,
        doubled,
        reordered,
        corrupted: 0,
    };
    assert_eq!(sequence(&[0, 1, 4, 5]), one(2, 0, 0));
    assert_eq!(sequence(&[0, 1, 1, 2]), one(0, 1, 0));
    assert_eq!(sequence(&[0, 2, 1, 3]), one(0, 0, 1));
    assert_eq!(sequence(&[0, 2, 1, 1, 5]), one(2, 1, 1));
}

#[test]
fn any_changed_byte_is_corruption() {
    for at in 0..SIZE {
        let mut changed = message(3, 1);
        changed[at] ^= 0x20;
        let got = faults(&[message(3, 0), changed, message(3, 2)]);
        let expected = Faults {
            corrupted: 1,
            ..Faults::default()
        };
        assert_eq!(got, expected, "byte {at}");
    }
}

#[test]
fn another_length_and_another_tunnels_message_are_corruption() {
    let mut longer = message(3, 0);
    longer.push(0);
    for wrong in [
        message(4, 0),
        message(3, 0)[..SIZE - 1].to_vec(),
        longer,
        vec![1],
    ] {
        assert_eq!(faults(&[wrong]).corrupted, 1);
    }
}

#[test]
fn pieces_are_judged_like_the_whole() {
    let (pattern, message) = (Pattern::new(SIZE), message(3, 0));
    for cut in 1..SIZE {
        let mut checker = Checker::new(None);
        checker.part(&pattern, SIZE as u64, 0, &message[..cut]);
        checker.part(&pattern, SIZE as u64, cut as u64, &message[cut..]);
        assert!(!checker.faults().any());
        assert_eq!(checker.next(), 1);
    }
}
