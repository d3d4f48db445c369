//! Whether two JSON texts say the same: order of members and form of numbers and escapes do not matter.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// A JSON value that loses nothing: numbers stay as they are written, however large.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`, `true` or `false`.
    Word(String),
    /// A number, in one form for one value.
    Number(Number),
    /// A string, escapes resolved.
    Text(String),
    /// An array.
    Array(Vec<Json>),
    /// An object.
    Object(BTreeMap<String, Json>),
}

/// A decimal number: sign, digits without zeros at either end, power of ten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Number {
    negative: bool,
    digits: String,
    exponent: i64,
}

impl Json {
    /// `None` when `text` is no JSON text.
    pub fn parse(text: &str) -> Option<Self> {
        Self::read(serde_json::from_str(text).ok()?)
    }

    fn read(raw: &RawValue) -> Option<Self> {
        let text = raw.get();
        Some(match text.bytes().next()? {
            b'{' => {
                let members: BTreeMap<String, &RawValue> = serde_json::from_str(text).ok()?;
                let members = members.into_iter().map(|(name, value)| Some((name, Self::read(value)?)));
                Self::Object(members.collect::<Option<_>>()?)
            }
            b'[' => {
                let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
                Self::Array(items.into_iter().map(Self::read).collect::<Option<_>>()?)
            }
            b'"' => Self::Text(serde_json::from_str(text).ok()?),
            b'-' | b'0'..=b'9' => Self::Number(Number::parse(text)?),
            _ => Self::Word(text.to_owned()),
        })
    }
}

impl Number {
    fn parse(text: &str) -> Option<Self> {
        let (negative, text) = match text.strip_prefix('-') {
            Some(text) => (true, text),
            None => (false, text),
        };
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let exponent: i64 = exponent.strip_prefix('+').unwrap_or(exponent).parse().ok()?;
        let digits = format!("{whole}{fraction}");
        let kept = digits.trim_end_matches('0');
        let exponent = exponent - fraction.len() as i64 + (digits.len() - kept.len()) as i64;
        let digits = kept.trim_start_matches('0').to_owned();
        // Minus zero is a value of its own: .NET writes `-0`.
        let exponent = if digits.is_empty() { 0 } else { exponent };
        Some(Self { negative, digits, exponent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(left: &str, right: &str) -> bool {
        let (left, right) = (Json::parse(left), Json::parse(right));
        assert!(left.is_some() && right.is_some());
        left == right
    }

    #[test]
    fn form_does_not_matter() {
        assert!(same(r#"{"a":1,"b":[2]}"#, r#" { "b" : [ 2 ] , "a" : 1 } "#));
        assert!(same("[3.0,1E+300,0.10,100]", "[3,1e300,0.1,1e2]"));
        assert!(same(r#""é\ud83d\ude00""#, "\"é😀\""));
        assert!(same("12345678901234567890123456789", "12345678901234567890123456789.0"));
    }

    #[test]
    fn values_matter() {
        assert!(!same("[1,2]", "[2,1]"));
        assert!(!same(r#"{"a":null}"#, "{}"));
        assert!(!same("1", "\"1\""));
        assert!(!same("-0", "0"));
        assert!(!same("10", "1"));
        assert!(!same("0.1", "0.01"));
        assert!(!same("12345678901234567890123456789", "12345678901234567890123456788"));
    }

    #[test]
    fn what_is_no_json_is_no_json() {
        for text in ["", "{", "{} {}", "[1,]", "nul"] {
            assert_eq!(Json::parse(text), None, "{text}");
        }
    }
}
