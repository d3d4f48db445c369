//! Bytes with placeholders: what a recording says where each run has a value of its own.

use std::collections::HashMap;

/// A value that differs in each run. Two placeholders of one name stand for one value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    /// `<connectionId:N>`.
    ConnectionId(u32),
    /// `<connectionToken:N>`.
    ConnectionToken(u32),
    /// The id of the server's Nth question to a client, `sN` in the files named `ask-*`.
    Question(u32),
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Bytes(Vec<u8>),
    Value {
        name: Name,
        /// `<... case swapped>`: the value with upper and lower case exchanged.
        swapped: bool,
    },
}

/// Bytes with placeholders.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Template {
    parts: Vec<Part>,
}

/// The values seen so far in one play.
#[derive(Clone, Debug, Default)]
pub struct Bindings {
    values: HashMap<Name, String>,
}

/// Connection ids and tokens: 16 bytes as base64url.
const ID_LENGTH: usize = 22;
const QUESTION_LIMIT: usize = 128;

impl Template {
    /// Reads the placeholders out of `text`.
    pub fn text(text: &str) -> Self {
        let mut template = Self::default();
        let mut rest = text;
        while let Some(start) = rest.find('<') {
            let (before, from) = rest.split_at(start);
            template.literal(before.as_bytes());
            match placeholder(from) {
                Some((name, swapped, length)) => {
                    template.parts.push(Part::Value { name, swapped });
                    rest = &from[length..];
                }
                None => {
                    template.literal(b"<");
                    rest = &from[1..];
                }
            }
        }
        template.literal(rest.as_bytes());
        template
    }

    /// Reads hexadecimal digits with placeholders between them. `None` when it is something else.
    pub fn hex(hex: &str) -> Option<Self> {
        let mut template = Self::default();
        let mut rest = hex;
        while !rest.is_empty() {
            if let Some((name, swapped, length)) = placeholder(rest) {
                template.parts.push(Part::Value { name, swapped });
                rest = &rest[length..];
            } else {
                template.literal(&[u8::from_str_radix(rest.get(..2)?, 16).ok()?]);
                rest = &rest[2..];
            }
        }
        Some(template)
    }

    /// Bytes without any placeholder.
    pub fn bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Self { parts: vec![Part::Bytes(bytes.into())] }
    }

    fn literal(&mut self, bytes: &[u8]) {
        match self.parts.last_mut() {
            Some(Part::Bytes(last)) => last.extend_from_slice(bytes),
            _ if bytes.is_empty() => {}
            _ => self.parts.push(Part::Bytes(bytes.to_vec())),
        }
    }

    /// The bytes to send: every value must be known.
    ///
    /// # Errors
    /// Names a placeholder that no earlier answer has bound.
    pub fn fill(&self, bindings: &Bindings) -> Result<Vec<u8>, String> {
        let mut filled = Vec::new();
        for part in &self.parts {
            match part {
                Part::Bytes(bytes) => filled.extend_from_slice(bytes),
                Part::Value { name, swapped } => {
                    let value = bindings.values.get(name).ok_or_else(|| format!("{name:?} is not known"))?;
                    filled.extend(value.bytes().map(|byte| if *swapped { swap_case(byte) } else { byte }));
                }
            }
        }
        Ok(filled)
    }

    /// Whether `actual` is this, with the values that are known; values seen for the first time are bound. Nothing is
    /// bound when it is not.
    pub fn matches(&self, actual: &[u8], bindings: &mut Bindings) -> bool {
        let mut trial = bindings.clone();
        let matched = self.consume(actual, &mut trial) == Some(actual.len());
        if matched {
            *bindings = trial;
        }
        matched
    }

    /// Like [`Template::matches`], where anything may follow.
    pub fn starts(&self, actual: &[u8], bindings: &mut Bindings) -> bool {
        let mut trial = bindings.clone();
        let matched = self.consume(actual, &mut trial).is_some();
        if matched {
            *bindings = trial;
        }
        matched
    }

    /// How much of `actual` this takes.
    fn consume(&self, actual: &[u8], bindings: &mut Bindings) -> Option<usize> {
        let mut at = 0;
        for (index, part) in self.parts.iter().enumerate() {
            let rest = &actual[at..];
            match part {
                Part::Bytes(bytes) => {
                    rest.starts_with(bytes).then_some(())?;
                    at += bytes.len();
                }
                Part::Value { name, swapped } => {
                    let length = match (name, self.parts.get(index + 1)) {
                        (Name::Question(_), Some(Part::Bytes(next))) => find(rest, next)?,
                        (Name::Question(_), _) => rest.len(),
                        _ => ID_LENGTH,
                    };
                    let value = std::str::from_utf8(rest.get(..length)?).ok()?;
                    let value = if *swapped {
                        value.bytes().map(|byte| swap_case(byte) as char).collect()
                    } else {
                        value.to_owned()
                    };
                    bindings.bind(name, value).then_some(())?;
                    at += length;
                }
            }
        }
        Some(at)
    }

    /// The bytes as UTF-8 with placeholders as a recording writes them; for error texts and for JSON.
    pub fn source(&self) -> String {
        let mut source = Vec::new();
        for part in &self.parts {
            match part {
                Part::Bytes(bytes) => source.extend_from_slice(bytes),
                Part::Value { name, swapped } => {
                    let swapped = if *swapped { " case swapped" } else { "" };
                    let written = match name {
                        Name::ConnectionId(number) => format!("<connectionId:{number}{swapped}>"),
                        Name::ConnectionToken(number) => format!("<connectionToken:{number}{swapped}>"),
                        Name::Question(number) => format!("<question:{number}{swapped}>"),
                    };
                    source.extend_from_slice(written.as_bytes());
                }
            }
        }
        String::from_utf8_lossy(&source).into_owned()
    }

    /// The bytes with each placeholder written in as many ASCII bytes as its value has, for a parser to run over.
    pub fn stand_in(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for part in &self.parts {
            match part {
                Part::Bytes(part) => bytes.extend_from_slice(part),
                Part::Value { name, .. } => bytes.extend_from_slice(
                    match name {
                        Name::ConnectionId(number) => format!("<connectionId:{number:07}>"),
                        Name::ConnectionToken(number) => format!("<connectionToken:{number:04}>"),
                        Name::Question(number) => format!("<question:{number:011}>"),
                    }
                    .as_bytes(),
                ),
            }
        }
        bytes
    }

    /// The bytes when nothing in them is a placeholder.
    pub fn literal_bytes(&self) -> Option<Vec<u8>> {
        self.fill(&Bindings::default()).ok()
    }
}

impl Bindings {
    /// A value for each name that a recording may hold.
    #[cfg(test)]
    pub(super) fn examples() -> Self {
        let mut values = HashMap::new();
        for number in 1..100 {
            values.insert(Name::ConnectionId(number), format!("connectionId-{number:08}A"));
            values.insert(Name::ConnectionToken(number), format!("connectionToken-{number:05}Q"));
            values.insert(Name::Question(number), format!("s{number}"));
        }
        Self { values }
    }

    /// Whether `name` stands, or from now on stands, for `value`: the right shape, one value for one name, and no value
    /// under two names.
    fn bind(&mut self, name: &Name, value: String) -> bool {
        if let Some(known) = self.values.get(name) {
            return *known == value;
        }
        let well_shaped = match name {
            Name::Question(_) => {
                !value.is_empty() && value.len() <= QUESTION_LIMIT && !value.contains(['"', '\''])
            }
            Name::ConnectionId(_) | Name::ConnectionToken(_) => is_id(&value),
        };
        let fresh = well_shaped && !self.values.values().any(|known| *known == value);
        if fresh {
            self.values.insert(name.clone(), value);
        }
        fresh
    }
}

/// 22 characters of base64url that are exactly 16 bytes: the last one carries two bits.
fn is_id(value: &str) -> bool {
    value.len() == ID_LENGTH
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        && value.ends_with(['A', 'Q', 'g', 'w'])
}

fn swap_case(byte: u8) -> u8 {
    if byte.is_ascii_alphabetic() { byte ^ 0x20 } else { byte }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// The placeholder that `text` starts with: what it names, whether with its case swapped, and its length.
fn placeholder(text: &str) -> Option<(Name, bool, usize)> {
    let inner = text.strip_prefix('<')?;
    let end = inner.find('>')?;
    let (kind, number) = inner[..end].split_once(':')?;
    let (number, swapped) = match number.strip_suffix(" case swapped") {
        Some(number) => (number, true),
        None => (number, false),
    };
    let number = number.parse().ok()?;
    let name = match kind {
        "connectionId" => Name::ConnectionId(number),
        "connectionToken" => Name::ConnectionToken(number),
        "question" => Name::Question(number),
        _ => return None,
    };
    Some((name, swapped, end + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "AbCdEfGhIjKlMnOpQrStUA";
    const TWO: &str = "-_CdEfGhIjKlMnOpQrStUw";

    #[test]
    fn a_placeholder_takes_one_value_and_keeps_it() {
        let mut bindings = Bindings::default();
        let template = Template::text("id=<connectionId:1>!");
        assert!(template.matches(format!("id={ONE}!").as_bytes(), &mut bindings));
        assert!(template.matches(format!("id={ONE}!").as_bytes(), &mut bindings));
        assert!(!template.matches(format!("id={TWO}!").as_bytes(), &mut bindings));
        assert_eq!(template.fill(&bindings).unwrap(), format!("id={ONE}!").into_bytes());
    }

    #[test]
    fn two_names_never_stand_for_one_value() {
        let mut bindings = Bindings::default();
        assert!(Template::text("<connectionId:1>").matches(ONE.as_bytes(), &mut bindings));
        assert!(!Template::text("<connectionToken:1>").matches(ONE.as_bytes(), &mut bindings));
        assert!(Template::text("<connectionToken:1>").matches(TWO.as_bytes(), &mut bindings));
    }

    #[test]
    fn a_value_of_another_shape_is_refused_and_binds_nothing() {
        let mut bindings = Bindings::default();
        let template = Template::text("<connectionId:1>");
        for wrong in ["AbCdEfGhIjKlMnOpQrStU", "AbCdEfGhIjKlMnOpQrStUB", "AbCdEfGhIjKlMnOpQrSt+A", ""] {
            assert!(!template.matches(wrong.as_bytes(), &mut bindings), "{wrong}");
        }
        assert!(template.fill(&bindings).is_err());
    }

    #[test]
    fn swapped_case_is_the_same_value_with_other_letters() {
        let mut bindings = Bindings::default();
        assert!(Template::text("<connectionToken:1>").matches(ONE.as_bytes(), &mut bindings));
        let swapped = Template::text("<connectionToken:1 case swapped>").fill(&bindings).unwrap();
        assert_eq!(swapped, b"aBcDeFgHiJkLmNoPqRsTua");
    }

    #[test]
    fn a_question_may_have_any_id() {
        let mut bindings = Bindings::default();
        let template = Template::text("invocation ID '<question:1>'.");
        assert!(template.matches(b"invocation ID 'any-7'.", &mut bindings));
        assert!(!template.matches(b"invocation ID 'other'.", &mut bindings));
    }

    #[test]
    fn hex_stands_for_bytes_and_may_hold_placeholders() {
        let mut bindings = Bindings::default();
        let template = Template::hex("b6<connectionId:1>90").unwrap();
        let actual = [&[0xb6], ONE.as_bytes(), &[0x90]].concat();
        assert!(template.matches(&actual, &mut bindings));
        assert_eq!(Template::hex("0g"), None);
        assert_eq!(Template::hex("0"), None);
    }

    #[test]
    fn angle_brackets_that_are_no_placeholder_are_text() {
        let mut bindings = Bindings::default();
        assert!(Template::text("<&>+<é").matches("<&>+<é".as_bytes(), &mut bindings));
    }
}
