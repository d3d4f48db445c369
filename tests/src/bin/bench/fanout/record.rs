//! What travels: a hub message of 128 bytes that carries its number and when it was sent.
//!
//! `{"type":1,"target":"m","arguments":[100000042,"...padding..."]}` and the separator. The number has nine digits from
//! the start and the text fills up, so that all records are of one length: a client checks them cheaply.

use std::borrow::Cow;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Length of every record in bytes, with its separator.
pub(crate) const LEN: usize = 128;

/// The client's method.
pub(crate) const METHOD: &str = "m";

/// What ends every record of the JSON hub protocol.
pub(crate) const SEPARATOR: u8 = 0x1e;

const HEAD: &[u8; 36] = br#"{"type":1,"target":"m","arguments":["#;
const TAIL: &[u8; 4] = b"\"]}\x1e";
/// Where the digits of the number begin, and how many there are.
const NUMBER: usize = HEAD.len();
const DIGITS: usize = 9;
/// Where the text begins and ends, behind `,"` and before the tail.
const TEXT: usize = NUMBER + DIGITS + 2;
const TEXT_END: usize = LEN - TAIL.len();
const PADDING: &str = match str::from_utf8(&[b'.'; TEXT_END - TEXT]) {
    Ok(padding) => padding,
    Err(_) => panic!("dots are UTF-8"),
};
/// A time of 20 digits in nanoseconds may stand first in the text.
const STAMP: usize = 20;

/// The number of the first record as it is written, and how many fit behind it: enough for minutes.
const FIRST: u64 = 100_000_000;
const MOST: u64 = 900_000_000;

/// What the text says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Text {
    /// Nothing.
    Plain,
    /// When it was sent: [`monotonic`] time.
    Sent(Duration),
    /// No record follows.
    End,
}

/// One record as read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// From 0.
    pub(crate) number: u64,
    pub(crate) text: Text,
}

/// The time of a clock that all processes of this machine share.
pub(crate) fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default())
}

/// The arguments of the client's method, for a server that encodes them itself.
pub(crate) fn arguments(number: u64, text: Text) -> (u64, Cow<'static, str>) {
    assert!(number < MOST, "numbers keep their nine digits");
    let text = match text {
        Text::Plain => Cow::Borrowed(PADDING),
        Text::Sent(time) => format!("{:0STAMP$}{}", time.as_nanos(), &PADDING[STAMP..]).into(),
        Text::End => format!("end{}", &PADDING[3..]).into(),
    };
    (FIRST + number, text)
}

/// The whole record, for a server that only passes it on.
pub(crate) fn encoded(number: u64, text: Text) -> [u8; LEN] {
    let mut record = [b'.'; LEN];
    record[..NUMBER].copy_from_slice(HEAD);
    assert!(number < MOST, "numbers keep their nine digits");
    let mut rest = FIRST + number;
    for digit in record[NUMBER..NUMBER + DIGITS].iter_mut().rev() {
        *digit = b'0' + u8::try_from(rest % 10).expect("a digit");
        rest /= 10;
    }
    record[TEXT - 2..TEXT].copy_from_slice(b",\"");
    match text {
        Text::Plain => {}
        Text::Sent(time) => {
            record[TEXT..TEXT + STAMP].copy_from_slice(format!("{:0STAMP$}", time.as_nanos()).as_bytes());
        }
        Text::End => record[TEXT..TEXT + 3].copy_from_slice(b"end"),
    }
    record[TEXT_END..].copy_from_slice(TAIL);
    record
}

/// Reads what [`encoded`] writes; `None`: it is something else.
pub(crate) fn read(record: &[u8; LEN]) -> Option<Record> {
    if record[..NUMBER] != HEAD[..] || record[TEXT - 2..TEXT] != *b",\"" || record[TEXT_END..] != TAIL[..] {
        return None;
    }
    let first = decimal(&record[NUMBER..=NUMBER])?;
    let number = first * FIRST + eight_digits(*record[NUMBER + 1..].first_chunk()?)?;
    let number = number.checked_sub(FIRST)?;
    let text = match record[TEXT] {
        b'.' => Text::Plain,
        b'e' => Text::End,
        _ => Text::Sent(Duration::from_nanos(decimal(&record[TEXT..TEXT + STAMP])?)),
    };
    Some(Record { number, text })
}

/// [`decimal`] of eight digits at once: the clients read millions of numbers a second.
fn eight_digits(digits: [u8; 8]) -> Option<u64> {
    const ZEROS: u64 = u64::from_ne_bytes([b'0'; 8]);
    const HIGH_BITS: u64 = u64::from_ne_bytes([0x80; 8]);
    const ABOVE_NINE: u64 = u64::from_ne_bytes([0x7f - b'9'; 8]);
    let text = u64::from_le_bytes(digits);
    let digits = text ^ ZEROS;
    // Bytes below '0' differ from it above their low four bits, bytes above '9' reach the high bit.
    if (text | text.wrapping_add(ABOVE_NINE)) & HIGH_BITS != 0 || digits & u64::from_ne_bytes([0xf0; 8]) != 0
    {
        return None;
    }
    // The first digit is the lowest byte: pairs, then fours, then all.
    let pairs = (digits * 10 + (digits >> 8)) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs * 100 + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
    Some((fours * 10_000 + (fours >> 32)) & 0xffff_ffff)
}

fn decimal(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.wrapping_sub(b'0');
        (digit < 10).then(|| number.wrapping_mul(10).wrapping_add(u64::from(digit)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [Text; 3] = [Text::Plain, Text::Sent(Duration::from_nanos(1_234_567_890_123)), Text::End];

    #[test]
    fn what_is_encoded_is_read_and_is_what_a_server_encodes_from_the_arguments() {
        for text in TEXTS {
            for number in [0, 42, 12_345_678, MOST - 1] {
                let record = encoded(number, text);
                assert_eq!(read(&record), Some(Record { number, text }));
                let arguments = serde_json::to_string(&arguments(number, text)).unwrap();
                let same = format!("{{\"type\":1,\"target\":\"{METHOD}\",\"arguments\":{arguments}}}\x1e");
                assert_eq!(String::from_utf8_lossy(&record), same);
            }
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for wrong in [b'/', b':', b'p', 0x80, 0xb5] {
            let mut record = encoded(42, Text::Plain);
            record[NUMBER + 5] = wrong;
            assert_eq!(read(&record), None, "{wrong}");
        }
        for at in [0, NUMBER - 1, NUMBER, NUMBER + DIGITS - 1, TEXT - 1, TEXT, LEN - 1] {
            let mut record = encoded(42, TEXTS[1]);
            record[at] = b'!';
            assert_eq!(read(&record), None, "{at}");
        }
    }
}
