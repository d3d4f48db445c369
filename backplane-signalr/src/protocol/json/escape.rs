//! Which characters of a string are escaped on output, and how: as .NET's relaxed JavaScript encoder does it, which
//! SignalR uses. Section 5.3 of the specification, recorded from .NET.

use bytes::{BufMut, BytesMut};
use unicode_general_category::{GeneralCategory, get_general_category};

/// Appends a string with its quotes.
pub(in crate::protocol) fn write_string(text: &str, output: &mut BytesMut) {
    output.reserve(text.len() + 2);
    output.put_u8(b'"');
    let mut rest = text;
    loop {
        let (literal, tail) = rest.split_at(literal(rest));
        output.extend_from_slice(literal.as_bytes());
        let mut tail = tail.chars();
        let Some(next) = tail.next() else { break };
        escape(next, output);
        rest = tail.as_str();
    }
    output.put_u8(b'"');
}

/// How many bytes at the start of `text` are written as they are.
fn literal(text: &str) -> usize {
    let mut count = 0;
    'runs: loop {
        count += literal_ascii(&text.as_bytes()[count..]);
        for (length, next) in text[count..].char_indices() {
            if next.is_ascii() && length > 0 {
                count += length;
                continue 'runs;
            }
            if next.is_ascii() || !is_literal(next) {
                return count + length;
            }
        }
        return text.len();
    }
}

fn literal_ascii(text: &[u8]) -> usize {
    let special = |byte: u8| !(b' '..0x7F).contains(&byte) || byte == b'"' || byte == b'\\';
    let mut count = 0;
    // Whole blocks without a branch for each byte, so that the compiler makes vector instructions of them.
    for block in text.chunks_exact(16) {
        if block.iter().fold(false, |any, &byte| any | special(byte)) {
            break;
        }
        count += 16;
    }
    count + text[count..].iter().take_while(|&&byte| !special(byte)).count()
}

/// Whether a character beyond ASCII is written as it is.
fn is_literal(character: char) -> bool {
    let invisible = || {
        matches!(
            get_general_category(character),
            GeneralCategory::Control
                | GeneralCategory::PrivateUse
                | GeneralCategory::Unassigned
                | GeneralCategory::SpaceSeparator
                | GeneralCategory::LineSeparator
                | GeneralCategory::ParagraphSeparator
        )
    };
    // The byte order mark is the one visible character of the plane that .NET escapes all the same.
    character.len_utf16() == 1 && character != '\u{FEFF}' && !invisible()
}

fn escape(character: char, output: &mut BytesMut) {
    let short = match character {
        '"' => b'"',
        '\\' => b'\\',
        '\u{8}' => b'b',
        '\t' => b't',
        '\n' => b'n',
        '\u{C}' => b'f',
        '\r' => b'r',
        _ => {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let digit = |shift: u16| b"0123456789ABCDEF"[usize::from(*unit >> shift & 0xF)];
                output.extend_from_slice(&[b'\\', b'u', digit(12), digit(8), digit(4), digit(0)]);
            }
            return;
        }
    };
    output.extend_from_slice(&[b'\\', short]);
}
