//! Values in the query of a request.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// All values of a key, decoded; keys are compared in any case. A key without `=` has an empty value.
pub(crate) fn values<'a>(query: &'a str, key: &str) -> impl Iterator<Item = Cow<'a, str>> {
    query.split('&').filter_map(move |pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (!pair.is_empty() && decode(name).eq_ignore_ascii_case(key)).then(|| decode(value))
    })
}

/// Undoes the encoding of forms. What is not UTF-8 then is replaced: it matches nothing of ours.
fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains(['+', '%']) {
        return text.into();
    }
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8_lossy().into_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_any_case_values_as_they_are() {
        for (query, expected) in [
            ("", &[][..]),
            ("id", &[""]),
            ("id=", &[""]),
            ("id=a", &["a"]),
            ("ID=aB", &["aB"]),
            ("%69d=a", &["a"]),
            ("x=1&id=a&idx=b&id=c", &["a", "c"]),
            ("id=a=b", &["a=b"]),
            ("id=a+b%20c%2Bd", &["a b c+d"]),
            ("id=%FF", &["\u{FFFD}"]),
            ("&&=x&", &[]),
        ] {
            let found: Vec<_> = values(query, "id").collect();
            assert_eq!(found, expected, "{query:?}");
        }
    }
}
