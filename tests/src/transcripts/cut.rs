//! Payloads that a recording cut for size: `text_start` or `hex_start` with the full number of `bytes`.
//!
//! Such a payload goes on with its last byte up to a tail that closes what it opened, or repeats one call a number of
//! times (its `note` says so).

/// The whole payload of `bytes` bytes that begins with `start`. `open_end`: the recorder sent no tail on purpose.
///
/// # Errors
/// Says what cannot be: fewer bytes than were shown, or a note that does not fit.
pub fn restore(start: &[u8], bytes: usize, note: Option<&str>, open_end: bool) -> Result<Vec<u8>, String> {
    if let Some((count, _)) = note.and_then(|note| note.split_once(" times the same")) {
        let count: usize = count.parse().map_err(|_| format!("no number of repetitions in {note:?}"))?;
        return repeat(start, bytes, count);
    }
    let tail = if open_end { Vec::new() } else { tail(start) };
    let last = *start.last().ok_or("nothing to go on with")?;
    let filler = bytes.checked_sub(start.len() + tail.len()).ok_or("fewer bytes than shown")?;
    Ok([start, &vec![last; filler], &tail].concat())
}

fn repeat(start: &[u8], bytes: usize, count: usize) -> Result<Vec<u8>, String> {
    let size = bytes.checked_div(count).filter(|size| size * count == bytes);
    let size = size.ok_or_else(|| format!("{bytes} bytes are not {count} equal records"))?;
    let mut one = start.get(..size).unwrap_or(start).to_vec();
    if one.len() < size {
        one.extend(tail(start));
    }
    if one.len() != size {
        return Err(format!("one record has {} bytes, not {size}", one.len()));
    }
    Ok(one.repeat(count))
}

/// What closes the record that `start` began.
fn tail(start: &[u8]) -> Vec<u8> {
    if start.first() != Some(&b'{') {
        // A MessagePack invocation ends in its empty list of stream ids; a completion ends with its value.
        let body = start.iter().position(|byte| byte & 0x80 == 0).map_or(0, |end| end + 1);
        return if start.get(body) == Some(&0x96) { vec![0x90] } else { Vec::new() };
    }
    let (mut open, mut in_text, mut escaped) = (Vec::new(), false, false);
    for &byte in start {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'{' => open.push(b'}'),
            b'[' => open.push(b']'),
            b'}' | b']' => drop(open.pop()),
            _ => {}
        }
    }
    let mut tail = Vec::new();
    if in_text {
        tail.push(b'"');
    }
    tail.extend(open.iter().rev());
    tail.push(0x1e);
    tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_filled_and_closed() {
        let whole = restore(br#"{"a":["x"#, 20, None, false).unwrap();
        assert_eq!(whole, b"{\"a\":[\"xxxxxxxxx\"]}\x1e");
        assert_eq!(whole.len(), 20);
    }

    #[test]
    fn a_repeated_call_is_repeated() {
        assert_eq!(
            restore(b"{\"a\":[1", 20, Some("2 times the same call"), false).unwrap(),
            b"{\"a\":[1]}\x1e{\"a\":[1]}\x1e"
        );
        assert!(restore(b"{\"a\":[1", 21, Some("2 times the same call"), false).is_err());
    }

    #[test]
    fn an_end_left_open_stays_open() {
        assert_eq!(restore(br#"{"x":"y"#, 10, None, true).unwrap(), br#"{"x":"yyyy"#);
        assert_eq!(restore(b"xxx", 5, None, false).unwrap(), b"xxxxx");
        assert!(restore(b"xxx", 2, None, false).is_err());
    }

    #[test]
    fn a_messagepack_call_ends_in_its_empty_stream_ids() {
        let whole = restore(&[0x0a, 0x96, 0x01, 0x78], 11, None, false).unwrap();
        assert_eq!((whole.len(), whole.last()), (11, Some(&0x90)));
    }
}
