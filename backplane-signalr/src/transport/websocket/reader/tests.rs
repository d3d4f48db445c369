use proptest::prelude::*;

use super::super::client::{self, BINARY, CLOSE, CONTINUE, PING, PONG, TEXT, frame, more, raw, unmasked};
use super::*;

/// Everything but data that is found when `bytes` arrive in pieces, and the data.
fn read(bytes: &[u8], size: usize) -> (Result<Vec<Found>, Violation>, Vec<u8>) {
    let (mut reader, mut input, mut found) = (Reader::default(), BytesMut::new(), Vec::new());
    for mut piece in bytes.chunks(size) {
        loop {
            match reader.next(&mut piece, &mut input) {
                Ok(Some(Found::Data)) => {}
                Ok(Some(other)) => found.push(other),
                Ok(None) => break,
                Err(violation) => return (Err(violation), input.to_vec()),
            }
        }
        assert!(piece.is_empty(), "all of a piece is taken");
    }
    (Ok(found), input.to_vec())
}

#[test]
fn frames_mean_the_same_in_pieces_of_any_size() {
    let long = vec![b'x'; 300];
    let longer = vec![b'y'; 70_000];
    let stream = [
        frame(TEXT, "{}€".as_bytes()),
        more(TEXT, &"€".as_bytes()[..1]),
        frame(PING, b"between"),
        more(CONTINUE, b""),
        frame(CONTINUE, &"€".as_bytes()[1..]),
        frame(PONG, b"unasked"),
        frame(BINARY, b"\xFF\xFE"),
        frame(BINARY, b""),
        frame(BINARY, &long),
        frame(TEXT, &longer),
        frame(PING, &[7; 125]),
        client::close(1000, "bye"),
    ]
    .concat();
    let data = ["{}€€".as_bytes(), b"\xFF\xFE", &long, &longer].concat();
    let found = vec![
        Found::Ping(Bytes::from_static(b"between")),
        Found::Ping(Bytes::from_static(&[7; 125])),
        Found::Close,
    ];
    for size in [1, 2, 3, 5, 7, 13, 64, 4096, stream.len()] {
        assert_eq!(read(&stream, size), (Ok(found.clone()), data.clone()), "in pieces of {size}");
    }
}

#[test]
fn an_empty_frame_is_data_without_bytes() {
    let (mut reader, mut input) = (Reader::default(), BytesMut::new());
    let stream = frame(TEXT, b"");
    assert_eq!(reader.next(&mut &stream[..], &mut input), Ok(Some(Found::Data)));
    assert!(input.is_empty());
}

#[test]
fn each_broken_rule_has_its_code_and_what_came_before_stays() {
    let good = frame(TEXT, b"ok");
    let impossible = [&[0x82, 0xFF][..], &u64::MAX.to_be_bytes(), &[0; 4]].concat();
    for (what, bad, code) in [
        ("without a mask", unmasked(TEXT, b"x"), 1002),
        ("RSV1", raw(0x80 | 0x40 | TEXT, b"x"), 1002),
        ("RSV2", raw(0x80 | 0x20 | TEXT, b"x"), 1002),
        ("RSV3", raw(0x80 | 0x10 | TEXT, b"x"), 1002),
        ("opcode 3", frame(3, b"x"), 1002),
        ("opcode 7", frame(7, b"x"), 1002),
        ("opcode 11", frame(11, b"x"), 1002),
        ("opcode 15", frame(15, b"x"), 1002),
        ("a stray continuation", frame(CONTINUE, b"x"), 1002),
        ("a new text inside a message", [more(TEXT, b""), frame(TEXT, b"x")].concat(), 1002),
        ("a new binary inside a message", [more(BINARY, b""), frame(BINARY, b"x")].concat(), 1002),
        ("a long ping", frame(PING, &[0; 126]), 1002),
        ("a fragmented ping", more(PING, b"x"), 1002),
        ("a fragmented close", more(CLOSE, b""), 1002),
        ("half a close code", frame(CLOSE, &[3]), 1002),
        ("close code 1005", client::close(1005, ""), 1002),
        ("close code 999", client::close(999, ""), 1002),
        ("close code 5000", client::close(5000, ""), 1002),
        ("a close reason that is not UTF-8", frame(CLOSE, b"\x03\xE8\xFF"), 1002),
        ("an impossible length", impossible, 1002),
        ("text that is not UTF-8", frame(TEXT, b"\x7B\x22\xFF\x22\x7D\x1E"), 1007),
        ("text that ends inside a character", frame(TEXT, b"\xE2\x82"), 1007),
        ("a character cut by a frame", [more(TEXT, b"\xE2"), frame(CONTINUE, b"x")].concat(), 1007),
        (
            "a message that ends inside a character",
            [more(TEXT, b"\xE2"), frame(CONTINUE, b"")].concat(),
            1007,
        ),
    ] {
        let stream = [&good[..], &bad[..]].concat();
        for size in [1, 3, stream.len()] {
            let (result, data) = read(&stream, size);
            let violation = result.expect_err(what);
            assert_eq!(u16::from(violation.code), code, "{what} in pieces of {size}: {violation:?}");
            assert!(data.starts_with(b"ok"), "{what}: what came before was read");
        }
    }
}

#[test]
fn every_code_that_may_be_sent_closes() {
    for code in [1000, 1001, 1003, 1007, 1011, 3000, 4999] {
        assert_eq!(read(&client::close(code, "bye"), 1).0, Ok(vec![Found::Close]), "{code}");
    }
    assert_eq!(read(&frame(CLOSE, b""), 1).0, Ok(vec![Found::Close]));
}

#[test]
fn nothing_is_held_between_frames() {
    let (mut reader, mut input) = (Reader::default(), BytesMut::new());
    for bytes in [frame(PING, &[1; 125]), frame(PONG, &[2; 125]), frame(TEXT, b"x")] {
        let mut bytes = &bytes[..];
        while reader.next(&mut bytes, &mut input).unwrap().is_some() {}
        assert_eq!(reader.control.capacity(), 0);
        assert!(reader.frame.is_none() && reader.message.is_none());
    }
}

proptest! {
    #[test]
    fn unmasking_is_done_byte_by_byte(bytes in proptest::collection::vec(any::<u8>(), 0..64), mask: [u8; 4]) {
        let expected: Vec<u8> = bytes.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]).collect();
        let mut bytes = bytes;
        unmask(&mut bytes, mask);
        prop_assert_eq!(bytes, expected);
    }

    #[test]
    fn any_bytes_are_judged_alike_in_any_pieces(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        size in 1usize..40,
    ) {
        // The data in front of a violation may end elsewhere: a piece with an error is not handed out.
        prop_assert_eq!(read(&bytes, size).0, read(&bytes, usize::MAX).0);
    }
}
