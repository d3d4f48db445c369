//! Counts Redis commands in the bytes that a client sends, however they are cut into chunks.

use std::collections::HashMap;

/// The longest name that is told apart; longer ones are counted by this much of them.
const MAX_NAME: usize = 32;

/// How often a command was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandCount {
    /// Calls.
    pub calls: u64,
    /// Arguments of all calls, without the names: for `SUBSCRIBE` the channels.
    pub arguments: u64,
}

/// Counts by name. There are few names, so that looking through them beats hashing.
#[derive(Debug, Default)]
pub(super) struct Counts(Vec<(Vec<u8>, CommandCount)>);

impl Counts {
    fn add(&mut self, name: &[u8], arguments: u64) {
        let index = self.0.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
            self.0.push((name.to_vec(), CommandCount::default()));
            self.0.len() - 1
        });
        let count = &mut self.0[index].1;
        count.calls += 1;
        count.arguments += arguments;
    }

    pub(super) fn by_name(&self) -> HashMap<String, CommandCount> {
        self.0.iter().map(|(name, count)| (String::from_utf8_lossy(name).into_owned(), *count)).collect()
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Where one connection stands in its stream of commands (RESP arrays of bulk strings). Whatever is nothing of the
/// kind is skipped up to the next line that starts with `*`.
#[derive(Debug)]
pub(super) struct CommandReader {
    expects: Expects,
    /// Strings of the current command that are still to come.
    strings: u64,
    /// Strings of the current command behind its name.
    arguments: u64,
    is_name: bool,
    name: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expects {
    /// `*` of a command.
    Command,
    /// The rest of the line behind `*`, of which so much was read.
    Count(u64),
    /// `$` of a string.
    String,
    /// The rest of the line behind `$`.
    Length(u64),
    /// So many bytes of a string.
    Bytes(u64),
    /// So many bytes of the line end behind a string.
    End(u64),
    /// The end of a line that is not understood.
    LineEnd,
}

impl Default for CommandReader {
    fn default() -> Self {
        Self {
            expects: Expects::Command,
            strings: 0,
            arguments: 0,
            is_name: false,
            name: Vec::with_capacity(MAX_NAME),
        }
    }
}

impl CommandReader {
    /// Reads on and adds every command whose name is complete to `counts`.
    pub(super) fn read(&mut self, mut bytes: &[u8], counts: &mut Counts) {
        while let Some((&first, rest)) = bytes.split_first() {
            // Each arm takes at least one byte, or changes to a state that does.
            match self.expects {
                Expects::Command => {
                    self.expects = if first == b'*' { Expects::Count(0) } else { Expects::LineEnd };
                    // The byte may itself be the end of the line.
                    bytes = if first == b'*' { rest } else { bytes };
                }
                Expects::Count(count) => {
                    bytes = rest;
                    self.expects = match digit(first, count) {
                        Line::More(count) => Expects::Count(count),
                        Line::End if count == 0 => Expects::Command,
                        Line::End => {
                            self.strings = count;
                            self.arguments = count - 1;
                            self.is_name = true;
                            self.name.clear();
                            Expects::String
                        }
                        Line::Wrong => Expects::LineEnd,
                    };
                }
                Expects::String => {
                    self.expects = if first == b'$' { Expects::Length(0) } else { Expects::LineEnd };
                    bytes = if first == b'$' { rest } else { bytes };
                }
                Expects::Length(length) => {
                    bytes = rest;
                    self.expects = match digit(first, length) {
                        Line::More(length) => Expects::Length(length),
                        Line::End if length == 0 => self.string_is_complete(counts),
                        Line::End => Expects::Bytes(length),
                        Line::Wrong => Expects::LineEnd,
                    };
                }
                Expects::Bytes(left) => {
                    let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                    if self.is_name {
                        let room = MAX_NAME - self.name.len();
                        self.name.extend(bytes[..taken.min(room)].iter().map(u8::to_ascii_uppercase));
                    }
                    bytes = &bytes[taken..];
                    self.expects = match left - taken as u64 {
                        0 => self.string_is_complete(counts),
                        left => Expects::Bytes(left),
                    };
                }
                Expects::End(left) => {
                    let expected = if left == 2 { b'\r' } else { b'\n' };
                    if first != expected {
                        self.expects = Expects::LineEnd;
                        continue;
                    }
                    bytes = rest;
                    self.expects = match (left, self.strings) {
                        (2, _) => Expects::End(1),
                        (_, 0) => Expects::Command,
                        _ => Expects::String,
                    };
                }
                Expects::LineEnd => match bytes.iter().position(|&byte| byte == b'\n') {
                    Some(end) => {
                        bytes = &bytes[end + 1..];
                        self.expects = Expects::Command;
                    }
                    None => return,
                },
            }
        }
    }

    fn string_is_complete(&mut self, counts: &mut Counts) -> Expects {
        if self.is_name {
            counts.add(&self.name, self.arguments);
            self.is_name = false;
        }
        self.strings -= 1;
        Expects::End(2)
    }
}

/// One more byte of a line that should hold a number.
enum Line {
    /// The number so far.
    More(u64),
    End,
    Wrong,
}

fn digit(byte: u8, number: u64) -> Line {
    match byte {
        b'0'..=b'9' => number
            .checked_mul(10)
            .and_then(|number| number.checked_add(u64::from(byte - b'0')))
            .map_or(Line::Wrong, Line::More),
        b'\r' => Line::More(number),
        b'\n' => Line::End,
        _ => Line::Wrong,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(chunks: &[&[u8]]) -> Vec<(String, u64, u64)> {
        let mut reader = CommandReader::default();
        let mut counts = Counts::default();
        for chunk in chunks {
            reader.read(chunk, &mut counts);
        }
        let mut all: Vec<_> =
            counts.by_name().into_iter().map(|(name, count)| (name, count.calls, count.arguments)).collect();
        all.sort();
        all
    }

    fn row(name: &str, calls: u64, arguments: u64) -> (String, u64, u64) {
        (name.to_owned(), calls, arguments)
    }

    const STREAM: &[u8] = b"*1\r\n$4\r\nPING\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n$6\r\nb\r\n*1\r\n\r\n\
        *3\r\n$7\r\nPUBLISH\r\n$1\r\na\r\n$0\r\n\r\n*2\r\n$9\r\nSUBSCRIBE\r\n$1\r\nc\r\n";

    #[test]
    fn commands_are_counted_by_name_with_their_arguments() {
        let expected = vec![row("PING", 1, 0), row("PUBLISH", 1, 2), row("SUBSCRIBE", 2, 3)];
        assert_eq!(counted(&[STREAM]), expected);
    }

    #[test]
    fn it_makes_no_difference_how_the_stream_is_cut() {
        let whole = counted(&[STREAM]);
        for at in 0..=STREAM.len() {
            let (head, tail) = STREAM.split_at(at);
            assert_eq!(counted(&[head, tail]), whole, "cut at {at}");
        }
        let bytes: Vec<&[u8]> = STREAM.chunks(1).collect();
        assert_eq!(counted(&bytes), whole);
    }

    #[test]
    fn what_is_not_understood_is_skipped_to_the_next_command() {
        let odd: &[u8] = b"PING\r\n\r\n\x16\x03\x01*9\n*x\r\n*1\r\n+OK\r\n*0\r\n*1\r\n$99999999999999999999\r\n*1\r\n$4\r\nPING\r\n";
        assert_eq!(counted(&[odd]), [row("PING", 1, 0)]);
        let damaged: &[u8] = b"*2\r\n$4\r\nPINGxx$1\r\na\r\n*1\r\n$4\r\nQUIT\r\n";
        assert_eq!(counted(&[damaged]), [row("PING", 1, 1), row("QUIT", 1, 0)]);
    }

    #[test]
    fn a_very_long_name_is_cut() {
        let long: &[u8] = b"*1\r\n$40\r\naaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n";
        assert_eq!(counted(&[long]), [row(&"A".repeat(MAX_NAME), 1, 0)]);
    }
}
