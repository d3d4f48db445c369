//! MessagePack as far as comparing needs it: strings apart from everything else, which is held to its bytes.

use super::compare::text_matches;
use super::template::{Bindings, Template};

/// A piece of a MessagePack value.
#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// A string, with the byte that says how its length is written.
    Text { form: u8, bytes: Vec<u8> },
    /// A number, a head of a list or map, or anything else.
    Bytes(Vec<u8>),
}

/// The first record's length prefix and body, and what follows it.
pub fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut length = 0_usize;
    for (index, byte) in bytes.iter().enumerate().take(5) {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let end = (index + 1).checked_add(length)?;
            return (end <= bytes.len()).then(|| bytes.split_at(end));
        }
    }
    None
}

fn body(record: &[u8]) -> Option<&[u8]> {
    let head = record.iter().position(|byte| byte & 0x80 == 0)?;
    record.get(head + 1..)
}

fn tokens(mut body: &[u8]) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    while let Some((&form, rest)) = body.split_first() {
        let big = |width: usize| -> Option<usize> {
            let bytes = rest.get(..width)?;
            Some(bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
        };
        let text = match form {
            0xa0..=0xbf => Some((0, usize::from(form & 0x1f))),
            0xd9 => Some((1, big(1)?)),
            0xda => Some((2, big(2)?)),
            0xdb => Some((4, big(4)?)),
            _ => None,
        };
        if let Some((head, length)) = text {
            let bytes = rest.get(head..head + length)?.to_vec();
            tokens.push(Token::Text { form, bytes });
            body = &rest[head + length..];
            continue;
        }
        let length = match form {
            0xcc | 0xd0 => 1,
            0xcd | 0xd1 | 0xdc | 0xde | 0xd4 => 2,
            0xd5 => 3,
            0xce | 0xd2 | 0xca | 0xdd | 0xdf => 4,
            0xd6 => 5,
            0xcf | 0xd3 | 0xcb => 8,
            0xd7 => 9,
            0xd8 => 17,
            0xc4 => 1 + big(1)?,
            0xc5 => 2 + big(2)?,
            0xc6 => 4 + big(4)?,
            0xc7 => 2 + big(1)?,
            0xc8 => 3 + big(2)?,
            0xc9 => 5 + big(4)?,
            0xc1 => return None,
            _ => 0,
        };
        tokens.push(Token::Bytes([&[form], rest.get(..length)?].concat()));
        body = &rest[length..];
    }
    Some(tokens)
}

/// The placeholder for the server's question `sN`.
fn question(bytes: &[u8]) -> Option<Template> {
    let number = std::str::from_utf8(bytes).ok()?.strip_prefix('s')?;
    let number: u32 = number.parse().ok()?;
    Some(Template::text(&format!("<question:{number}>")))
}

/// Whether the record `actual` is `expected`. `asks`: the id of an invocation or completion `sN` is the server's.
pub fn matches(expected: &Template, actual: &[u8], asks: bool, bindings: &mut Bindings) -> bool {
    let stand_in = expected.stand_in();
    let (Some((left, [])), Some((right, []))) = (split(&stand_in), split(actual)) else {
        return expected.matches(actual, bindings);
    };
    let tokens = |record| body(record).and_then(tokens);
    let (Some(left), Some(right)) = (tokens(left), tokens(right)) else {
        return expected.matches(actual, bindings);
    };
    let mut trial = bindings.clone();
    let matched = left.len() == right.len()
        && left.iter().zip(&right).enumerate().all(|(index, pair)| match pair {
            (Token::Text { bytes, .. }, Token::Text { bytes: actual, .. })
                if asks && index == ID && question(bytes).is_some() =>
            {
                question(bytes).is_some_and(|template| template.matches(actual, &mut trial))
            }
            (Token::Text { form, bytes }, Token::Text { form: actual_form, bytes: actual }) => {
                let source = String::from_utf8_lossy(bytes);
                let same_form = bytes.len() != actual.len() || form == actual_form;
                same_form && text_matches(&source, actual, index > ID, &mut trial)
            }
            (left, right) => left == right,
        });
    if matched {
        *bindings = trial;
    }
    matched
}

/// Where the id stands: after the list's head, the type and the empty map of headers.
const ID: usize = 3;

/// The record with the id `sN` of the server's question replaced by the one that ours really sent.
///
/// # Errors
/// Says which question has not been asked.
pub fn with_question(record: &[u8], bindings: &Bindings) -> Result<Vec<u8>, String> {
    let Some(mut tokens) = split(record).and_then(|(record, _)| body(record)).and_then(tokens) else {
        return Ok(record.to_vec());
    };
    let is_completion = tokens.get(1) == Some(&Token::Bytes(vec![3]));
    let Some(Token::Text { form, bytes }) = tokens.get_mut(ID) else { return Ok(record.to_vec()) };
    let (true, Some(template)) = (is_completion, question(bytes)) else { return Ok(record.to_vec()) };
    *bytes = template.fill(bindings)?;
    *form = 0xd9;
    let mut body = Vec::new();
    for token in tokens {
        match token {
            Token::Bytes(bytes) => body.extend(bytes),
            Token::Text { form, bytes } => {
                body.push(form);
                let length = bytes.len().to_be_bytes();
                let width = match form {
                    0xd9 => 1,
                    0xda => 2,
                    0xdb => 4,
                    _ => 0,
                };
                body.extend(&length[length.len() - width..]);
                body.extend(bytes);
            }
        }
    }
    let mut whole = Vec::new();
    let mut length = body.len();
    while length >= 0x80 {
        whole.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    whole.push(length as u8);
    whole.extend(body);
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_decide_except_in_strings() {
        let mut bindings = Bindings::default();
        let expected = Template::hex("07950380a1310302").unwrap();
        assert!(matches(&expected, &[7, 0x95, 3, 0x80, 0xa1, 0x31, 3, 2], false, &mut bindings));
        assert!(!matches(&expected, &[7, 0x95, 3, 0x80, 0xa1, 0x31, 3, 3], false, &mut bindings));
        assert!(!matches(&expected, &[8, 0x95, 3, 0x80, 0xa1, 0x31, 3, 0xcc, 2], false, &mut bindings));
        assert!(!matches(&expected, &[7, 0x95, 3, 0x80, 0xa1, 0x32, 3, 2], false, &mut bindings));
    }

    #[test]
    fn a_question_may_have_a_longer_id_and_is_answered_by_it() {
        let mut bindings = Bindings::default();
        let asked = Template::hex("11960180a27331a6416e7377657291a17190").unwrap();
        let ours = [
            &[0x14, 0x96, 1, 0x80, 0xa5],
            b"id--7".as_slice(),
            &[0xa6],
            b"Answer",
            &[0x91, 0xa1, 0x71, 0x90],
        ]
        .concat();
        assert!(matches(&asked, &ours, true, &mut bindings));
        assert!(!matches(&asked, &ours, false, &mut Bindings::default()));
        let answer =
            with_question(&[0x0a, 0x95, 3, 0x80, 0xa2, 0x73, 0x31, 3, 0xa2, 0x6d, 0x65], &bindings).unwrap();
        assert_eq!(
            answer,
            [&[0x0e, 0x95, 3, 0x80, 0xd9, 5], b"id--7".as_slice(), &[3, 0xa2, 0x6d, 0x65]].concat()
        );
    }
}
