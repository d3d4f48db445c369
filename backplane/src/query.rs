//! Strict query parameters: which of them configure the node, and how their values are read.

use std::time::Duration;

use backplane_core::{Error, ErrorKind, HubName, Result, RouterConfig, Start, Wire};

pub(crate) fn invalid(context: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidConfig, "open").with_context(context)
}

/// What the facade takes for the node, for every bus.
const ROUTER: &[&str] = &[
    "hub",
    "prefix",
    "wire",
    "server_name",
    "start",
    "heartbeat",
    "connect_timeout",
    "send_timeout",
    "ack_timeout",
    "result_timeout",
    "reconnect_min",
    "reconnect_max",
    "queue_frames",
    "queue_bytes",
    "tracked_positions",
];

/// The node's configuration, and the URL without the parameters that made it; the rest is kept byte for byte.
pub(crate) fn split(url: &str) -> Result<(RouterConfig, String)> {
    let (address, parameters) = Parameters::of(url)?;
    let (mut ours, theirs): (Vec<_>, Vec<_>) =
        parameters.0.into_iter().partition(|parameter| ROUTER.contains(&parameter.name.as_str()));
    let config = router_config(&mut Parameters(std::mem::take(&mut ours)))?;
    let rest: Vec<_> = theirs.iter().map(|parameter| parameter.raw).collect();
    let separator = if rest.is_empty() { "" } else { "?" };
    Ok((config, format!("{address}{separator}{}", rest.join("&"))))
}

/// For a caller who wants a bus alone: a parameter of the node would have no effect.
pub(crate) fn refuse_router_parameters(url: &str) -> Result<()> {
    let (_, parameters) = Parameters::of(url)?;
    match parameters.0.iter().find(|parameter| ROUTER.contains(&parameter.name.as_str())) {
        None => Ok(()),
        Some(parameter) => Err(invalid(format!(
            "the parameter `{}` configures a node and has no effect on a bus alone; `resolve` returns both",
            parameter.name
        ))),
    }
}

fn router_config(parameters: &mut Parameters<'_>) -> Result<RouterConfig> {
    let mut config = RouterConfig::default();
    if let Some(hub) = parameters.take("hub") {
        if hub.is_empty() {
            return Err(invalid("the parameter `hub` is empty"));
        }
        config.hub = HubName::from(hub);
    }
    config.prefix = parameters.take("prefix").or(config.prefix);
    let server_name = parameters.take("server_name");
    config.wire = match parameters.take("wire").as_deref() {
        Some("aspnetcore") => Wire::AspNetCore { server_name },
        None | Some("native") if server_name.is_some() => {
            return Err(invalid("the parameter `server_name` needs `wire=aspnetcore`"));
        }
        None | Some("native") => Wire::Native,
        Some(_) => return Err(invalid("the parameter `wire` is `native` or `aspnetcore`")),
    };
    config.start = match parameters.take("start").as_deref() {
        None | Some("strict") => Start::Strict,
        Some("degraded") => Start::Degraded,
        Some(_) => return Err(invalid("the parameter `start` is `strict` or `degraded`")),
    };
    parameters.duration("heartbeat", &mut config.heartbeat)?;
    parameters.duration("connect_timeout", &mut config.connect_timeout)?;
    parameters.duration("send_timeout", &mut config.send_timeout)?;
    parameters.duration("ack_timeout", &mut config.ack_timeout)?;
    parameters.duration("result_timeout", &mut config.result_timeout)?;
    parameters.duration("reconnect_min", &mut config.reconnect_min)?;
    parameters.duration("reconnect_max", &mut config.reconnect_max)?;
    parameters.number("queue_frames", &mut config.queue_frames)?;
    parameters.size("queue_bytes", &mut config.queue_bytes)?;
    parameters.number("tracked_positions", &mut config.tracked_positions)?;
    config.validate()?;
    Ok(config)
}

/// The parameters of a URL that nobody has taken yet.
pub(crate) struct Parameters<'url>(Vec<Parameter<'url>>);

struct Parameter<'url> {
    name: String,
    value: String,
    /// As it stands in the URL.
    raw: &'url str,
}

impl<'url> Parameters<'url> {
    /// Splits a URL into what stands before the query and its parameters. Refuses what would be read differently from
    /// what was meant: a fragment, raw `@` behind the host (a password that is not percent-encoded), bytes that are not
    /// UTF-8, names that occur twice.
    pub(crate) fn of(url: &'url str) -> Result<(&'url str, Self)> {
        if url.contains('#') {
            return Err(invalid("a `#` in a URL must be written %23"));
        }
        let (address, query) = url.split_once('?').unwrap_or((url, ""));
        let behind_authority = address.split_once("//").map_or("", |(_, rest)| match rest.split_once('/') {
            Some((authority, path)) if !authority.is_empty() => path,
            _ => "",
        });
        if query.contains('@') || behind_authority.contains('@') {
            return Err(invalid(
                "`@` behind the host: `/`, `?` and `@` in user, password or parameters must be written %2F, %3F and %40",
            ));
        }
        let mut parameters = Self(Vec::new());
        for raw in query.split('&').filter(|raw| !raw.is_empty()) {
            let (name, value) = raw.split_once('=').unwrap_or((raw, ""));
            let name =
                decode(name).ok_or_else(|| invalid("a parameter's name is not percent-encoded UTF-8"))?;
            let value = decode(value).ok_or_else(|| {
                let name = name.escape_debug();
                invalid(format!("the value of the parameter `{name}` is not percent-encoded UTF-8"))
            })?;
            if parameters.0.iter().any(|earlier| earlier.name == name) {
                return Err(invalid(format!("the parameter `{}` occurs twice", name.escape_debug())));
            }
            parameters.0.push(Parameter { name, value, raw });
        }
        Ok((address, parameters))
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<String> {
        let index = self.0.iter().position(|parameter| parameter.name == name)?;
        Some(self.0.remove(index).value)
    }

    /// Sets `field` to a number, when given.
    pub(crate) fn number(&mut self, name: &str, field: &mut usize) -> Result<()> {
        self.parse(name, field, "a whole number", |text| text.parse().ok())
    }

    /// Sets `field` to a number of bytes, when given.
    pub(crate) fn size(&mut self, name: &str, field: &mut usize) -> Result<()> {
        self.parse(name, field, "a number of bytes such as `65536`, `64KiB`, `8MiB` or `1GiB`", parse_size)
    }

    /// Sets `field` to a duration, when given.
    pub(crate) fn duration(&mut self, name: &str, field: &mut Duration) -> Result<()> {
        self.parse(name, field, "a duration such as `500ms`, `10s` or `2m`", parse_duration)
    }

    fn parse<T>(
        &mut self,
        name: &str,
        field: &mut T,
        form: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<()> {
        if let Some(text) = self.take(name) {
            *field = parse(&text).ok_or_else(|| invalid(format!("the parameter `{name}` must be {form}")))?;
        }
        Ok(())
    }

    /// Refuses what is left.
    pub(crate) fn finish(self, scheme: &str, known: &[&str]) -> Result<()> {
        match self.0.first() {
            None => Ok(()),
            Some(unknown) => Err(invalid(format!(
                "`{scheme}` has no parameter `{}`; it knows {}, and a node {}",
                unknown.name.escape_debug(),
                known.join(", "),
                ROUTER.join(", ")
            ))),
        }
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        _ => None,
    }
}

fn parse_size(text: &str) -> Option<usize> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: usize = number.parse().ok()?;
    number.checked_mul(match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    })
}

/// Percent-decodes; `None` for a broken escape or what is not UTF-8. Stricter than HTML forms, which replace silently.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let (high, low) = (hex(rest.next()?)?, hex(rest.next()?)?);
                high << 4 | low
            }
            plain => plain,
        });
    }
    String::from_utf8(bytes).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("10s"), Some(Duration::from_secs(10)));
        assert_eq!(parse_duration("2m"), Some(Duration::from_secs(120)));
        for wrong in ["", "10", "s", "-1s", "1.5s", "10 s", "10S", "1h", "99999999999999999999s", "+1s"] {
            assert_eq!(parse_duration(wrong), None, "{wrong:?}");
        }
        assert_eq!(parse_duration("18446744073709551615m"), None);
    }

    #[test]
    fn sizes_are_bytes_or_have_a_binary_unit() {
        assert_eq!(parse_size("65536"), Some(65_536));
        assert_eq!(parse_size("64KiB"), Some(65_536));
        assert_eq!(parse_size("8MiB"), Some(8 << 20));
        assert_eq!(parse_size("1GiB"), Some(1 << 30));
        for wrong in ["", "KiB", "1kb", "1MB", "-1", "1.5MiB", "18446744073709551615GiB"] {
            assert_eq!(parse_size(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn escapes_are_decoded_strictly() {
        assert_eq!(decode("a%2Fb+c%C3%A4").as_deref(), Some("a/b cä"));
        for wrong in ["%", "%4", "%zz", "%+1", "%FF", "%C3"] {
            assert_eq!(decode(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_rest_of_the_url_is_kept_byte_for_byte() {
        let (config, rest) =
            split("redis://u:p%40ss@host:1/3?a=%41+b&hub=chat&c&wire=native&d=%2F").expect("a good URL");
        assert_eq!(rest, "redis://u:p%40ss@host:1/3?a=%41+b&c&d=%2F");
        assert_eq!(config.hub.as_str(), "chat");
        assert_eq!(split("memory:?hub=chat").expect("a good URL").1, "memory:");
    }
}
