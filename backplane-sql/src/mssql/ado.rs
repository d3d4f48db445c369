//! ADO connection strings: `Server=tcp:host,1433;Database=mine;User Id=node;Password=...`.
//!
//! Pairs end with `;`, names do not mind case, and a value that holds `;` or begins or ends with a blank stands in `'` or
//! `"`, doubled where it occurs in the value. `==` in a name is not supported: no name has one.

use backplane_core::Result;
use backplane_core::parameters::invalid;

/// The pairs of a connection string, in their order, names in lower case.
pub(super) fn pairs(text: &str) -> Result<Vec<(String, String)>> {
    // Nothing of what stands there is repeated in an error: it could be a password.
    let mut pairs: Vec<(String, String)> = Vec::new();
    let mut rest = text.trim_start_matches([';', ' ', '\t', '\r', '\n']);
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or_else(|| {
            invalid("the connection string does not consist of `name=value` pairs with `;` between")
        })?;
        let name = name.trim().to_lowercase();
        if name.is_empty() || name.contains([';', '\'', '"']) {
            return Err(invalid(
                "the connection string does not consist of `name=value` pairs with `;` between",
            ));
        }
        let (value, after) = value(after.trim_start())?;
        if pairs.iter().any(|(earlier, _)| *earlier == name) {
            // Not repeated: behind a `;` it may be the rest of a password.
            return Err(invalid("a name occurs twice in the connection string"));
        }
        pairs.push((name, value));
        rest = after.trim_start_matches([';', ' ', '\t', '\r', '\n']);
    }
    Ok(pairs)
}

/// A value, and what stands behind it.
fn value(text: &str) -> Result<(String, &str)> {
    let Some(quote) = text.chars().next().filter(|first| matches!(first, '\'' | '"')) else {
        let end = text.find(';').unwrap_or(text.len());
        return Ok((text[..end].trim_end().to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut rest = &text[1..];
    loop {
        let Some((before, after)) = rest.split_once(quote) else {
            return Err(invalid("a quote in the connection string is not closed"));
        };
        value.push_str(before);
        rest = after;
        match after.strip_prefix(quote) {
            Some(after) => {
                value.push(quote);
                rest = after;
            }
            None => break,
        }
    }
    let rest = rest.trim_start();
    if rest.is_empty() || rest.starts_with(';') {
        return Ok((value, rest));
    }
    Err(invalid("behind a closed quote in the connection string there is more"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_they_are_quoted() {
        let text = " ;Server = tcp:h,1433 ;;Password='a;b''c\"' ; Pwd2=\"x\"\"y'\";Empty=;Equals=a=b==; ";
        let read = pairs(text).unwrap();
        let read: Vec<_> = read.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(
            read,
            [
                ("server", "tcp:h,1433"),
                ("password", "a;b'c\""),
                ("pwd2", "x\"y'"),
                ("empty", ""),
                ("equals", "a=b==")
            ]
        );
    }

    #[test]
    fn what_is_broken_is_refused_without_a_word_of_it() {
        for broken in
            ["secret", "a=1;secret", "=secret", "a='secret", "a='secret' more", "a=1;A=secret", "a;secret=1"]
        {
            let error = pairs(broken).unwrap_err();
            assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        }
    }
}
