//! The Redis protocol as far as speed matters: what comes in numbers is packed and read by hand.
//!
//! The parser of the `redis` crate builds an owned tree per value, about 0.8 us per message. This one looks at the bytes
//! where they lie and allocates nothing. It understands RESP 2 and RESP 3 alike; whatever is not a message, a
//! confirmation or a plain reply is measured and skipped ([`Value::Other`]), or given to the crate's parser where its
//! content matters (set-up).

use std::fmt;

/// One complete reply or push.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// A message on a subscribed channel.
    Message { channel: &'a [u8], frame: &'a [u8] },
    /// One channel of a `SUBSCRIBE` is confirmed.
    Subscribed,
    /// One channel of an `UNSUBSCRIBE` is confirmed.
    Unsubscribed,
    /// The answer to `PING`, in any of its forms.
    Pong,
    /// An integer, such as the reach of a `PUBLISH`.
    Integer(i64),
    /// An error: `CODE text`.
    Error(&'a [u8]),
    /// A push that we did not ask for (RESP 3), to be ignored.
    Push,
    /// Anything else.
    Other,
}

/// What the front of the read buffer holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed<'a> {
    /// A complete value and how many bytes it takes.
    Value(Value<'a>, usize),
    /// A message whose frame, `length` bytes that start at `start`, is not all here yet.
    Begun { channel: &'a [u8], start: usize, length: usize },
    /// More bytes are needed to say.
    Incomplete,
}

/// Bytes that are not RESP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotResp(&'static str);

impl fmt::Display for NotResp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server sent what is not the Redis protocol: {}", self.0)
    }
}

impl std::error::Error for NotResp {}

/// Longest bulk string: Redis' own ceiling for `proto-max-bulk-len`'s default, 512 MiB.
const MAX_BULK: u64 = 512 << 20;
/// Most elements of one aggregate. Ours have three; a server's answer to `HELLO` about twenty.
const MAX_ELEMENTS: u64 = 1 << 20;
/// Longest simple string or error.
const MAX_LINE: usize = 64 << 10;
/// What follows the type byte of a pushed message, up to the digits of the channel's length.
const MESSAGE: &[u8] = b"3\r\n$7\r\nmessage\r\n$";
/// The same of a confirmation: they come by tens of thousands after a reconnect.
const SUBSCRIBE: &[u8] = b"3\r\n$9\r\nsubscribe\r\n$";

/// Reads the value at the front of `input`.
pub(crate) fn parse(input: &[u8]) -> Result<Parsed<'_>, NotResp> {
    let Some((&kind, rest)) = input.split_first() else { return Ok(Parsed::Incomplete) };
    match kind {
        b':' => Ok(match number(input, 1)? {
            Some((value, next)) => Parsed::Value(Value::Integer(value), next),
            None => Parsed::Incomplete,
        }),
        b'*' | b'>' if rest.starts_with(MESSAGE) => message(input, 1 + MESSAGE.len()),
        b'*' | b'>' if rest.starts_with(SUBSCRIBE) => subscribed(input, 1 + SUBSCRIBE.len()),
        b'+' | b'-' => Ok(match line(input, 1)? {
            Some((text, next)) if kind == b'-' => Parsed::Value(Value::Error(text), next),
            Some((b"PONG", next)) => Parsed::Value(Value::Pong, next),
            Some((_, next)) => Parsed::Value(Value::Other, next),
            None => Parsed::Incomplete,
        }),
        _ => {
            let Some(length) = measure(input)? else { return Ok(Parsed::Incomplete) };
            let value = match first_word(input) {
                Some(b"subscribe") => Value::Subscribed,
                Some(b"unsubscribe") => Value::Unsubscribed,
                Some(b"pong") => Value::Pong,
                _ if kind == b'>' => Value::Push,
                _ => Value::Other,
            };
            Ok(Parsed::Value(value, length))
        }
    }
}

/// A message from the digits of its channel's length on.
#[inline]
fn message(input: &[u8], at: usize) -> Result<Parsed<'_>, NotResp> {
    let Some((channel_length, channel_start)) = bulk_length(input, at)? else {
        return Ok(Parsed::Incomplete);
    };
    let channel_end = channel_start + channel_length;
    let Some(channel) = input.get(channel_start..channel_end) else { return Ok(Parsed::Incomplete) };
    let Some(marker) = input.get(channel_end..channel_end + 3) else { return Ok(Parsed::Incomplete) };
    if marker != b"\r\n$" {
        return Err(NotResp("a channel does not end where it says"));
    }
    let Some((length, start)) = bulk_length(input, channel_end + 3)? else { return Ok(Parsed::Incomplete) };
    let end = start + length;
    match input.get(end..end + 2) {
        Some(b"\r\n") => Ok(Parsed::Value(Value::Message { channel, frame: &input[start..end] }, end + 2)),
        Some(_) => Err(NotResp("a message does not end where it says")),
        None => Ok(Parsed::Begun { channel, start, length }),
    }
}

/// A confirmation from the digits of its channel's length on.
fn subscribed(input: &[u8], at: usize) -> Result<Parsed<'_>, NotResp> {
    let Some((length, start)) = bulk_length(input, at)? else { return Ok(Parsed::Incomplete) };
    let end = start + length;
    let Some(marker) = input.get(end..end + 3) else { return Ok(Parsed::Incomplete) };
    if marker != b"\r\n:" {
        return Err(NotResp("a confirmation does not end as it should"));
    }
    Ok(match number(input, end + 3)? {
        Some((_, next)) => Parsed::Value(Value::Subscribed, next),
        None => Parsed::Incomplete,
    })
}

/// How many bytes the value at the front of `input` takes, if it is all here. Nesting costs no stack.
pub(crate) fn measure(input: &[u8]) -> Result<Option<usize>, NotResp> {
    let mut at = 0;
    let mut outstanding = 1_u64;
    while outstanding > 0 {
        let Some(&kind) = input.get(at) else { return Ok(None) };
        at += 1;
        outstanding -= 1;
        at = match kind {
            b'+' | b'-' | b':' | b',' | b'#' | b'(' | b'_' => match line(input, at)? {
                Some((_, next)) => next,
                None => return Ok(None),
            },
            b'$' | b'=' | b'!' => {
                let Some((length, next)) = number(input, at)? else { return Ok(None) };
                match u64::try_from(length) {
                    Err(_) if length == -1 => next,
                    Ok(length) if length <= MAX_BULK => {
                        let end =
                            next + usize::try_from(length).map_err(|_| NotResp("a bulk is too long"))?;
                        match input.get(end..end + 2) {
                            Some(b"\r\n") => end + 2,
                            Some(_) => return Err(NotResp("a bulk does not end where it says")),
                            None => return Ok(None),
                        }
                    }
                    _ => return Err(NotResp("a bulk has no sane length")),
                }
            }
            b'*' | b'>' | b'~' | b'%' | b'|' => {
                let Some((count, next)) = number(input, at)? else { return Ok(None) };
                let count = match u64::try_from(count) {
                    Err(_) if count == -1 => 0,
                    Ok(count) if count <= MAX_ELEMENTS => count,
                    _ => return Err(NotResp("an aggregate has no sane length")),
                };
                // A map has two values per entry; an attribute precedes the value that it describes.
                outstanding += match kind {
                    b'%' => 2 * count,
                    b'|' => 2 * count + 1,
                    _ => count,
                };
                if outstanding > MAX_ELEMENTS {
                    return Err(NotResp("a value has too many elements"));
                }
                next
            }
            _ => return Err(NotResp("an unknown type byte")),
        };
    }
    Ok(Some(at))
}

/// The first element of an aggregate, if it is a bulk string.
fn first_word(input: &[u8]) -> Option<&[u8]> {
    let (_, next) = number(input, 1).ok()??;
    if input.get(next) != Some(&b'$') {
        return None;
    }
    let (length, start) = bulk_length(input, next + 1).ok()??;
    input.get(start..start + length)
}

/// The length of a bulk string whose digits start at `at`, and where its bytes start.
#[inline]
fn bulk_length(input: &[u8], at: usize) -> Result<Option<(usize, usize)>, NotResp> {
    match number(input, at)? {
        None => Ok(None),
        Some((length, start)) => match u64::try_from(length) {
            Ok(bounded) if bounded <= MAX_BULK => {
                Ok(Some((usize::try_from(bounded).map_err(|_| NotResp("a bulk is too long"))?, start)))
            }
            _ => Err(NotResp("a bulk has no sane length")),
        },
    }
}

/// A decimal number that starts at `at` and ends with CRLF, and where the next byte is.
#[inline]
fn number(input: &[u8], mut at: usize) -> Result<Option<(i64, usize)>, NotResp> {
    const WRONG: NotResp = NotResp("a number is none");
    let negative = input.get(at) == Some(&b'-');
    if negative {
        at += 1;
    }
    let first = at;
    let mut value = 0_i64;
    loop {
        match input.get(at) {
            None => return Ok(None),
            Some(digit @ b'0'..=b'9') => {
                let digit = i64::from(digit - b'0');
                value = value.checked_mul(10).and_then(|value| value.checked_add(digit)).ok_or(WRONG)?;
                at += 1;
            }
            Some(b'\r') if at > first => break,
            Some(_) => return Err(WRONG),
        }
    }
    match input.get(at + 1) {
        None => Ok(None),
        Some(b'\n') => Ok(Some((if negative { -value } else { value }, at + 2))),
        Some(_) => Err(WRONG),
    }
}

/// A line that starts at `at`, without its CRLF, and where the next byte is.
fn line(input: &[u8], at: usize) -> Result<Option<(&[u8], usize)>, NotResp> {
    let rest = input.get(at..).unwrap_or_default();
    match rest.iter().take(MAX_LINE).position(|byte| *byte == b'\r') {
        None if rest.len() >= MAX_LINE => Err(NotResp("a line does not end")),
        None => Ok(None),
        Some(end) => match rest.get(end + 1) {
            None => Ok(None),
            Some(b'\n') => Ok(Some((&rest[..end], at + end + 2))),
            Some(_) => Err(NotResp("a line does not end as it should")),
        },
    }
}

/// Packs everything of a `PUBLISH` that stands before the bytes of the frame. CRLF follows the frame.
#[inline]
pub(crate) fn pack_publish(out: &mut Vec<u8>, channel: &[u8], frame_length: usize) {
    out.extend_from_slice(b"*3\r\n$7\r\nPUBLISH\r\n");
    pack_bulk(out, channel);
    out.push(b'$');
    pack_decimal(out, frame_length);
    out.extend_from_slice(b"\r\n");
}

/// Packs a command with its arguments.
pub(crate) fn pack<'a>(out: &mut Vec<u8>, command: &str, arguments: impl ExactSizeIterator<Item = &'a [u8]>) {
    out.push(b'*');
    pack_decimal(out, 1 + arguments.len());
    out.extend_from_slice(b"\r\n");
    pack_bulk(out, command.as_bytes());
    arguments.for_each(|argument| pack_bulk(out, argument));
}

#[inline]
fn pack_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'$');
    pack_decimal(out, bytes.len());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

#[inline]
fn pack_decimal(out: &mut Vec<u8>, mut number: usize) {
    let mut digits = [0_u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(number % 10).expect("a remainder of ten is one digit");
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn push(kind: char, channel: &[u8], frame: &[u8]) -> Vec<u8> {
        let mut bytes = format!("{kind}3\r\n$7\r\nmessage\r\n${}\r\n", channel.len()).into_bytes();
        bytes.extend_from_slice(channel);
        bytes.extend_from_slice(format!("\r\n${}\r\n", frame.len()).as_bytes());
        bytes.extend_from_slice(frame);
        bytes.extend_from_slice(b"\r\n");
        bytes
    }

    fn whole(input: &[u8]) -> Value<'_> {
        match parse(input).unwrap() {
            Parsed::Value(value, length) => {
                assert_eq!(length, input.len());
                value
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn replies_of_both_protocol_versions_are_understood() {
        assert_eq!(whole(b":42\r\n"), Value::Integer(42));
        assert_eq!(whole(b":-1\r\n"), Value::Integer(-1));
        assert_eq!(whole(b"+PONG\r\n"), Value::Pong);
        assert_eq!(whole(b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"), Value::Pong);
        assert_eq!(whole(b"+OK\r\n"), Value::Other);
        assert_eq!(whole(b"-NOPERM no\r\n"), Value::Error(b"NOPERM no"));
        assert_eq!(whole(b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"), Value::Subscribed);
        assert_eq!(whole(b">3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:0\r\n"), Value::Unsubscribed);
        assert_eq!(whole(b"*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n"), Value::Unsubscribed);
        assert_eq!(whole(b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\na\r\n"), Value::Push);
        assert_eq!(whole(b"%1\r\n$4\r\nmode\r\n$7\r\ncluster\r\n"), Value::Other);
        assert_eq!(whole(&push('>', b"a", b"\r\n$\0")), Value::Message { channel: b"a", frame: b"\r\n$\0" });
    }

    #[test]
    fn a_message_is_announced_before_its_frame_is_here() {
        let bytes = push('*', b"room", &[7; 100]);
        let parsed = parse(&bytes[..60]).unwrap();
        let Parsed::Begun { channel: b"room", start, length: 100 } = parsed else { panic!("{parsed:?}") };
        assert_eq!(&bytes[start..start + 100], &[7; 100]);
    }

    #[test]
    fn nonsense_is_refused_and_not_waited_for() {
        for bytes in [
            &b"hello\r\n"[..],
            b":x\r\n",
            b":\r\n",
            b":99999999999999999999\r\n",
            b"$-2\r\n",
            b"$999999999999\r\n",
            b"*99999999\r\n",
            b"$1\r\nabc",
            b"*3\r\n$7\r\nmessage\r\n$-1\r\n",
            b"*3\r\n$9\r\nsubscribe\r\n$1\r\nab\r\n:1\r\n",
            b"*3\r\n$7\r\nmessage\r\n$1\r\nabcdef",
            b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nabcd",
        ] {
            assert!(parse(bytes).is_err(), "{}", bytes.escape_ascii());
        }
        assert!(parse(&[b'+'; MAX_LINE + 2]).is_err());
    }

    #[test]
    fn deep_nesting_costs_no_stack_and_ends() {
        let bytes = b"*1\r\n".repeat(1_000_000);
        assert_eq!(measure(&bytes), Ok(None));
        assert!(measure(&b"*1000000\r\n".repeat(3)).is_err());
    }

    #[test]
    fn commands_are_packed_as_the_redis_crate_packs_them() {
        let channels = [&b""[..], b"a", &[b'x'; 1_000]];
        let mut packed = Vec::new();
        pack(&mut packed, "SUBSCRIBE", channels.iter().copied());
        assert_eq!(packed, redis::cmd("SUBSCRIBE").arg(&channels).get_packed_command());
        for length in [0, 9, 10, 12_345] {
            let frame = vec![b'x'; length];
            let mut packed = Vec::new();
            pack_publish(&mut packed, b"topic", frame.len());
            packed.extend_from_slice(&frame);
            packed.extend_from_slice(b"\r\n");
            assert_eq!(packed, redis::cmd("PUBLISH").arg(b"topic").arg(&frame).get_packed_command());
        }
    }

    proptest! {
        #[test]
        fn a_message_comes_out_as_it_went_in_and_never_too_early(
            channel in proptest::collection::vec(any::<u8>(), 0..40),
            frame in proptest::collection::vec(any::<u8>(), 0..200),
            kind in prop_oneof![Just('*'), Just('>')],
        ) {
            let bytes = push(kind, &channel, &frame);
            prop_assert_eq!(whole(&bytes), Value::Message { channel: &channel, frame: &frame });
            prop_assert_eq!(measure(&bytes), Ok(Some(bytes.len())));
            for end in 0..bytes.len() {
                let parsed = parse(&bytes[..end]).unwrap();
                prop_assert!(!matches!(parsed, Parsed::Value(..)), "{:?}", parsed);
                prop_assert_eq!(measure(&bytes[..end]), Ok(None));
            }
        }

        #[test]
        fn hostile_bytes_never_panic(
            bytes in proptest::collection::vec(
                prop_oneof![any::<u8>(), proptest::sample::select(b"*>$:+-|%~_0123456789\r\n".to_vec())], 0..300),
        ) {
            let _ = parse(&bytes);
            let _ = measure(&bytes);
        }

        #[test]
        fn hostile_messages_never_panic(
            tail in proptest::collection::vec(proptest::sample::select(b"$-0129a\r\n".to_vec()), 0..60),
        ) {
            let mut bytes = b"*3\r\n$7\r\nmessage\r\n".to_vec();
            bytes.extend_from_slice(&tail);
            let _ = parse(&bytes);
        }
    }
}
