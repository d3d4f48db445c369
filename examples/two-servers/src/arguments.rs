//! The command line.

pub(crate) const USAGE: &str = "\
two-servers [--script] [--url URL]

  --script    plays every kind of message between two servers, checks each arrival, and ends
  --url URL   the bus between them: memory: (default), redis://HOST:PORT, rediss://HOST:PORT";

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub(crate) script: bool,
    pub(crate) url: String,
}

impl Arguments {
    /// `Ok(None)`: help was asked for. `Err`: one line that says what is wrong. URLs are not repeated in it, since they
    /// may hold a password.
    pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Option<Self>, String> {
        let mut words = words.into_iter();
        let (mut script, mut url) = (false, None);
        while let Some(word) = words.next() {
            match word.as_str() {
                "--script" => script = true,
                "--url" if url.is_some() => return Err("--url is given twice".to_owned()),
                "--url" => url = Some(words.next().ok_or("--url needs a URL behind it")?),
                "--help" | "-h" => return Ok(None),
                option if option.starts_with("--") && !option.contains(':') => {
                    return Err(format!("unknown option {option}; --help lists what there is"));
                }
                _ => return Err("unexpected argument; a URL stands behind --url".to_owned()),
            }
        }
        Ok(Some(Self { script, url: url.unwrap_or_else(|| "memory:".to_owned()) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Arguments>, String> {
        Arguments::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        assert_eq!(parse("").unwrap(), Some(Arguments { script: false, url: "memory:".to_owned() }));
        let both = Arguments { script: true, url: "redis://x".to_owned() };
        assert_eq!(parse("--url redis://x --script").unwrap(), Some(both));
        assert_eq!(parse("--help").unwrap(), None);
    }

    #[test]
    fn a_wrong_line_is_refused_without_repeating_a_url() {
        for (line, says) in [
            ("--url", "needs a URL"),
            ("--url a: --url b:", "twice"),
            ("--scrpt", "unknown option --scrpt"),
            ("redis://:hunter2@x", "behind --url"),
            ("--url=redis://:hunter2@x", "behind --url"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(says) && !error.contains("hunter2"), "{error}");
        }
    }
}
