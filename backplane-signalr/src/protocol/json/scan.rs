//! Where the parts of a JSON text lie. Values are measured and checked, not read: they stay slices of the text, and
//! whoever knows their type reads them later.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// How deeply arrays and objects may be nested, the outermost included.
const MAX_DEPTH: u32 = 64;

/// What is wrong with a text, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::protocol) struct Broken {
    what: &'static str,
    at: usize,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.what, self.at)
    }
}

/// Walks through a JSON text. Strings may hold lone surrogates and invalid UTF-8: that is found by whoever reads them.
#[derive(Debug)]
pub(in crate::protocol) struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    depth: u32,
    /// One bit for each open array (0) or object (1), the innermost lowest.
    open: u64,
    /// Whether the innermost array or object has just been opened.
    fresh: bool,
}

impl<'a> Scanner<'a> {
    pub(in crate::protocol) fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0, depth: 0, open: 0, fresh: false }
    }

    /// What kind of value comes next, in the words of .NET.
    pub(in crate::protocol) fn kind(&mut self) -> Result<&'static str, Broken> {
        self.skip_space();
        Ok(match self.peek() {
            Some(b'{') => "Object",
            Some(b'[') => "Array",
            Some(b'"') => "String",
            Some(b't') => "True",
            Some(b'f') => "False",
            Some(b'n') => "Null",
            Some(b'-' | b'0'..=b'9') => "Number",
            _ => return Err(self.broken("expected a value")),
        })
    }

    /// Goes into the object that comes next; `false`: what comes next is something else.
    pub(in crate::protocol) fn enter_object(&mut self) -> Result<bool, Broken> {
        self.enter(b'{', true)
    }

    /// Goes into the array that comes next; `false`: what comes next is something else.
    pub(in crate::protocol) fn enter_array(&mut self) -> Result<bool, Broken> {
        self.enter(b'[', false)
    }

    /// The name of the object's next member, whose value is to be taken next; `None`: the object has ended.
    pub(in crate::protocol) fn next_member(&mut self) -> Result<Option<Cow<'a, [u8]>>, Broken> {
        if self.ends(b'}')? {
            return Ok(None);
        }
        let quoted = self.name()?;
        let name = &quoted[1..quoted.len() - 1];
        if memchr::memchr(b'\\', name).is_none() {
            return Ok(Some(Cow::Borrowed(name)));
        }
        // A name that is no text is the name of nothing that anybody looks for.
        Ok(Some(match text(quoted) {
            Ok(name) => Cow::Owned(name.into_owned().into_bytes()),
            Err(_) => Cow::Borrowed(name),
        }))
    }

    /// Whether the array goes on, with a value to be taken next.
    pub(in crate::protocol) fn next_element(&mut self) -> Result<bool, Broken> {
        Ok(!self.ends(b']')?)
    }

    /// The whole of the value that comes next.
    pub(in crate::protocol) fn value(&mut self) -> Result<&'a [u8], Broken> {
        self.skip_space();
        let (start, outside) = (self.at, self.depth);
        loop {
            // A value begins here.
            match self.peek() {
                Some(b'"') => self.string()?,
                Some(b'{') => {
                    self.push(true)?;
                    if !self.ends(b'}')? {
                        self.name()?;
                        continue;
                    }
                }
                Some(b'[') => {
                    self.push(false)?;
                    if !self.ends(b']')? {
                        continue;
                    }
                }
                Some(b'-' | b'0'..=b'9') => self.number()?,
                Some(b't') => self.literal(b"true")?,
                Some(b'f') => self.literal(b"false")?,
                Some(b'n') => self.literal(b"null")?,
                _ => return Err(self.broken("expected a value")),
            }
            // A value ended here, and perhaps what it stands in.
            loop {
                if self.depth == outside {
                    return Ok(&self.text[start..self.at]);
                }
                let object = self.open & 1 == 1;
                if !self.ends(if object { b'}' } else { b']' })? {
                    if object {
                        self.name()?;
                    }
                    break;
                }
            }
        }
    }

    fn enter(&mut self, bracket: u8, object: bool) -> Result<bool, Broken> {
        self.skip_space();
        if self.peek() != Some(bracket) {
            return Ok(false);
        }
        self.push(object)?;
        Ok(true)
    }

    fn push(&mut self, object: bool) -> Result<(), Broken> {
        if self.depth == MAX_DEPTH {
            return Err(self.broken("nested too deeply"));
        }
        self.at += 1;
        self.depth += 1;
        self.open = self.open << 1 | u64::from(object);
        self.fresh = true;
        Ok(())
    }

    /// Steps to the next item of the innermost array or object, or out of it, which is `true`.
    fn ends(&mut self, bracket: u8) -> Result<bool, Broken> {
        self.skip_space();
        let fresh = std::mem::take(&mut self.fresh);
        match self.peek() {
            Some(byte) if byte == bracket => {
                self.at += 1;
                self.depth -= 1;
                self.open >>= 1;
                return Ok(true);
            }
            Some(b',') if !fresh => self.at += 1,
            _ if fresh => {}
            _ => return Err(self.broken("expected a comma or the end")),
        }
        self.skip_space();
        Ok(false)
    }

    /// A member's name with its quotes; goes behind its colon.
    fn name(&mut self) -> Result<&'a [u8], Broken> {
        let start = self.at;
        if self.peek() != Some(b'"') {
            return Err(self.broken("expected the name of a member"));
        }
        self.string()?;
        let quoted = &self.text[start..self.at];
        self.skip_space();
        if self.peek() != Some(b':') {
            return Err(self.broken("expected a colon"));
        }
        self.at += 1;
        self.skip_space();
        Ok(quoted)
    }

    fn string(&mut self) -> Result<(), Broken> {
        self.at += 1;
        loop {
            self.at += plain(&self.text[self.at..]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => {
                    self.at += 1;
                    match self.peek() {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
                        Some(b'u') => {
                            let digits = self.text.get(self.at + 1..self.at + 5);
                            if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
                                return Err(self.broken("expected four hexadecimal digits"));
                            }
                            self.at += 5;
                        }
                        _ => return Err(self.broken("an unknown escape sequence")),
                    }
                }
                // What `plain` stops at, and the string may hold.
                Some(byte) if byte >= b' ' => self.at += 1,
                _ => return Err(self.broken("a string that does not end, or a control character in it")),
            }
        }
    }

    fn number(&mut self) -> Result<(), Broken> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Broken> {
        let count = self.text[self.at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if count == 0 {
            return Err(self.broken("expected a digit"));
        }
        self.at += count;
        Ok(())
    }

    fn literal(&mut self, word: &'static [u8]) -> Result<(), Broken> {
        if !self.text[self.at..].starts_with(word) {
            return Err(self.broken("expected a value"));
        }
        self.at += word.len();
        Ok(())
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn broken(&self, what: &'static str) -> Broken {
        Broken { what, at: self.at }
    }
}

/// How many bytes at the start of `text` need no look by themselves: no control character, quote or backslash among
/// them. May stop early at any other byte.
fn plain(text: &[u8]) -> usize {
    let special = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
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

/// What a string says, given with its quotes.
pub(in crate::protocol) fn text(quoted: &[u8]) -> Result<Cow<'_, str>, Broken> {
    let inner = &quoted[1..quoted.len() - 1];
    if memchr::memchr(b'\\', inner).is_some() {
        serde_json::from_slice(quoted).map(Cow::Owned).ok()
    } else {
        std::str::from_utf8(inner).map(Cow::Borrowed).ok()
    }
    .ok_or(Broken { what: "a string that is no text", at: 0 })
}

/// Whether a value is a number.
pub(in crate::protocol) fn is_number(value: &[u8]) -> bool {
    matches!(value.first(), Some(b'-' | b'0'..=b'9'))
}

/// A number that is written as an integer and fits; `1.0` and `1e0` are none, as in .NET.
pub(in crate::protocol) fn integer<T: FromStr>(number: &[u8]) -> Option<T> {
    std::str::from_utf8(number).ok()?.parse().ok()
}
