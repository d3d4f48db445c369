//! The parameters of a URL, read strictly: what is unknown, given twice or unreadable is an error that names it.
//!
//! Every bus of this project reads its URL by this, so that a duration is written the same way for each of them. A bus of
//! your own may:
//!
//! ```
//! use std::time::Duration;
//!
//! use backplane_core::parameters::Parameters;
//!
//! # fn main() -> backplane_core::Result<()> {
//! let (address, mut parameters) = Parameters::of("mybus://broker:1234?patience=500ms&max_frame=1MiB")?;
//! let (mut patience, mut max_frame) = (Duration::from_secs(5), 65_536);
//! parameters.duration("patience", &mut patience)?;
//! parameters.size("max_frame", &mut max_frame)?;
//! parameters.finish("mybus")?;
//! assert_eq!((address, patience, max_frame), ("mybus://broker:1234", Duration::from_millis(500), 1 << 20));
//!
//! let (_, mut parameters) = Parameters::of("mybus://broker?patince=500ms")?;
//! parameters.duration("patience", &mut patience)?;
//! let error = parameters.finish("mybus").unwrap_err();
//! assert!(error.to_string().contains("`mybus` has no parameter `patince`; it knows patience"));
//! # Ok(()) }
//! ```

use std::borrow::Cow;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

/// The parameters that nobody has taken yet, and the names that were asked for.
///
/// `Debug` shows no value: it may be a key.
#[derive(Default)]
pub struct Parameters<'url> {
    left: Vec<Parameter<'url>>,
    known: Vec<&'static str>,
}

struct Parameter<'url> {
    name: String,
    value: String,
    /// As it stands in the URL.
    raw: &'url str,
}

impl<'url> Parameters<'url> {
    /// Splits a URL into what stands before its `?`, as it is, and the parameters behind it, separated by `&` and
    /// percent-decoded; there `+` is a space. Refuses what would be read differently from what was meant.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) for a fragment, for a raw `@` behind the host (a password that is not
    /// percent-encoded), for an `@` or `:@` with nothing in front of it, for what is not UTF-8 when decoded, for a name that
    /// occurs twice. It never repeats a value.
    pub fn of(url: &'url str) -> Result<(&'url str, Self)> {
        if url.chars().any(char::is_control) {
            return Err(invalid(
                "a URL holds no control character: is there a line break at its end? In a password it is percent-encoded",
            ));
        }
        if url.contains('#') {
            return Err(invalid(
                "a `#` in a URL must be written %23; a fragment has no meaning (certificates are always verified, and \
                 `ca` names a private CA)",
            ));
        }
        let (address, query) = url.split_once('?').unwrap_or((url, ""));
        let (scheme, hosts) = address.split_once("://").unwrap_or((address, ""));
        // Where there are several servers some write the scheme in front of each, in any case.
        let (between, servers) = (format!(",{}://", scheme.to_ascii_lowercase()), hosts.to_ascii_lowercase());
        let is_empty = |server: &str| {
            let authority = server.split('/').next().unwrap_or_default();
            matches!(authority.rsplit_once('@'), Some(("" | ":", _)))
        };
        if servers.split(&between).any(is_empty) {
            return Err(invalid(
                "user and password in front of the `@` are empty: was a variable not set? Without them leave the `@` away",
            ));
        }
        let is_misread = |server: &str| match server.split_once('/') {
            Some((host, path)) => !host.is_empty() && path.contains('@'),
            None => false,
        };
        if query.contains('@') || servers.split(&between).any(is_misread) {
            return Err(invalid(
                "`@` behind the host: `/`, `?` and `@` in user, password or parameters must be written %2F, %3F and %40",
            ));
        }
        let mut parameters = Self::default();
        for raw in query.split('&').filter(|raw| !raw.is_empty()) {
            let (name, value) = raw.split_once('=').unwrap_or((raw, ""));
            let read = |text: &str| percent_decode(&text.replace('+', " "));
            let name =
                read(name).ok_or_else(|| invalid("a parameter's name is not percent-encoded UTF-8"))?;
            let value = read(value).ok_or_else(|| {
                let name = name.escape_debug();
                invalid(format!("the value of the parameter `{name}` is not percent-encoded UTF-8"))
            })?;
            if parameters.has(&name) {
                return Err(invalid(format!("the parameter `{}` is given twice", name.escape_debug())));
            }
            parameters.left.push(Parameter { name, value, raw });
        }
        Ok((address, parameters))
    }

    /// The value of a parameter, when given; from then on it counts as known.
    pub fn take(&mut self, name: &'static str) -> Option<String> {
        self.known.push(name);
        let index = self.left.iter().position(|parameter| parameter.name == name)?;
        Some(self.left.remove(index).value)
    }

    /// Whether it is given and nobody has taken it yet.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.left.iter().any(|parameter| parameter.name == name)
    }

    /// Sets `field` to `true` or `false`, when given.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) when the value is anything else.
    pub fn flag(&mut self, name: &'static str, field: &mut bool) -> Result<()> {
        self.parse(name, field, "true or false", |text| text.parse().ok())
    }

    /// Sets `field` to a whole number of its type, when given.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) when the value is none, or does not fit.
    pub fn number<T: FromStr>(&mut self, name: &'static str, field: &mut T) -> Result<()> {
        self.parse(name, field, "a whole number in its bounds", |text| {
            if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
        })
    }

    /// Sets `field` to a number of bytes (`65536`, `64KiB`, `8MiB`, `1GiB`), when given.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) when the value is none, or does not fit.
    pub fn size<T: TryFrom<usize>>(&mut self, name: &'static str, field: &mut T) -> Result<()> {
        self.parse(name, field, "a number of bytes such as `65536`, `64KiB`, `8MiB` or `1GiB`", |text| {
            T::try_from(parse_size(text)?).ok()
        })
    }

    /// Sets `field`, a `Duration` or an `Option` of one, to a duration (`500ms`, `10s`, `2m`), when given.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) when the value is none.
    pub fn duration<T: From<Duration>>(&mut self, name: &'static str, field: &mut T) -> Result<()> {
        self.parse(name, field, "a duration such as `500ms`, `10s` or `2m`", |text| {
            parse_duration(text).map(T::from)
        })
    }

    /// Sets `field` to what `parse` makes of the value, when given; `form` says in an error what it must be.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) when `parse` returns `None`.
    pub fn parse<T>(
        &mut self,
        name: &'static str,
        field: &mut T,
        form: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<()> {
        if let Some(text) = self.take(name) {
            *field = parse(&text).ok_or_else(|| invalid(format!("the parameter `{name}` must be {form}")))?;
        }
        Ok(())
    }

    /// What nobody has taken, byte for byte as it stands in the URL: empty, or a `?` and what belongs behind it.
    #[must_use]
    pub fn rest(&self) -> String {
        let rest: Vec<_> = self.left.iter().map(|parameter| parameter.raw).collect();
        if rest.is_empty() { String::new() } else { format!("?{}", rest.join("&")) }
    }

    /// Refuses what nobody has taken. `of` is how the error calls what the URL configures.
    ///
    /// # Errors
    /// [`InvalidConfig`](ErrorKind::InvalidConfig) with the first unknown name and all that are known.
    pub fn finish(self, of: &str) -> Result<()> {
        let Some(unknown) = self.left.first() else { return Ok(()) };
        let name = unknown.name.escape_debug();
        let known = if self.known.is_empty() { "none".to_owned() } else { self.known.join(", ") };
        Err(invalid(format!("`{of}`{UNKNOWN}{name}`; it knows {known}")))
    }
}

impl std::fmt::Debug for Parameters<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.left.iter().map(|parameter| &parameter.name).collect();
        f.debug_struct("Parameters").field("left", &names).field("known", &self.known).finish()
    }
}

const UNKNOWN: &str = " has no parameter `";

/// Whether it says that a parameter is unknown: for a caller who knows others besides.
#[must_use]
pub fn is_unknown(error: &Error) -> bool {
    error.kind() == ErrorKind::InvalidConfig
        && error.context().is_some_and(|context| context.contains(UNKNOWN))
}

/// The content of the file at `path`, which the parameter `name` of a URL names.
///
/// # Errors
/// [`InvalidConfig`](ErrorKind::InvalidConfig) with both when it cannot be read.
pub fn read_file(name: &str, path: &str) -> Result<Vec<u8>> {
    check_path(name, path)?;
    std::fs::read(path)
        .map_err(|error| invalid(format!("`{name}`: the file {path} cannot be read")).with_source(error))
}

/// Refuses what stands where the parameter `name` of a URL wants the name of a file, and looks like the content of one: a key
/// that an error would show.
///
/// # Errors
/// [`InvalidConfig`](ErrorKind::InvalidConfig) without a word of it.
pub fn check_path(name: &str, path: &str) -> Result<()> {
    let starts = |starts: &[&str]| starts.iter().any(|start| path.starts_with(start));
    // PEM, a JWT, PEM in base64.
    let is_text = path.contains('\n') || path.contains("-----") || starts(&["eyJ", "LS0tLS"]);
    // What stands between the lines of PEM: a sequence in DER, in base64, whose first byte is 0x30 and whose second says that
    // it is short (`MA` to `MH`), or how many bytes tell its length (`MI`). A `+` of a URL has become a space.
    let is_long = path.len() >= 40;
    let is_base64 = || path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/= ".contains(&byte));
    let is_sequence = || path.starts_with('M') && matches!(path.as_bytes().get(1), Some(b'A'..=b'I'));
    let is_der = !path.contains('.') && (starts(&["MII"]) || is_long && is_sequence() && is_base64());
    let is_seed = is_long && path.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
    // No file system has such a name.
    let is_no_name = path.len() > 255 && !path.contains(['/', '\\', '.']);
    if is_text || is_der || is_seed || is_no_name {
        return Err(invalid(format!("`{name}` names a file; what was given looks like its content")));
    }
    Ok(())
}

/// What an address, as [`Parameters::of`] returns it, says of servers: what stands in front of the last `@`, if there is one,
/// and the hosts with their ports behind it. Neither is decoded.
#[must_use]
pub fn authority(address: &str) -> (Option<&str>, &str) {
    let (_, rest) = address.split_once("://").unwrap_or((address, ""));
    let authority = rest.split_once('/').map_or(rest, |(authority, _)| authority);
    authority.rsplit_once('@').map_or((None, authority), |(credentials, hosts)| (Some(credentials), hosts))
}

/// Refuses credentials of the form `user:password` of which one is empty, for a broker to which neither means anything alone.
/// (A parser of URLs may not tell `user:` from `user`.)
///
/// # Errors
/// [`InvalidConfig`](ErrorKind::InvalidConfig) without a word of them.
pub fn check_credentials(credentials: &str) -> Result<()> {
    match credentials.split_once(':') {
        Some((user, password)) if user.is_empty() || password.is_empty() => Err(invalid(
            "user or password is empty: was a variable not set? Without a password leave the `:` away as well",
        )),
        _ => Ok(()),
    }
}

/// A host as it stands in a URL, without the brackets of IPv6.
///
/// # Errors
/// [`InvalidConfig`](ErrorKind::InvalidConfig) when it is neither a name of ASCII letters, digits, `.`, `_` and `-` nor an IP
/// address: nobody would find it, and where it holds an option that belongs elsewhere that may be a password. So it is not
/// repeated.
pub fn host(text: &str) -> Result<String> {
    if text.is_empty() {
        return Err(invalid("the URL names no host"));
    }
    let address = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    if let Some(address) = address.filter(|address| address.parse::<Ipv6Addr>().is_ok()) {
        return Ok(address.to_owned());
    }
    if text.contains(',') {
        return Err(invalid("the URL names several servers; one is needed. Options belong behind `?`"));
    }
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')) {
        return Err(invalid(
            "a host consists of ASCII letters, digits, `.`, `_` and `-`, or is an IP address (IPv6 as [::1]); it is not \
             percent-encoded, other letters are written `xn--...`, and options belong behind `?`",
        ));
    }
    Ok(text.to_owned())
}

/// A configuration that cannot work, with a sentence that says so: [`InvalidConfig`](ErrorKind::InvalidConfig).
#[must_use]
pub fn invalid(context: impl Into<Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidConfig, "open").with_context(context)
}

/// Percent-decodes; `None` for a broken escape or what is not UTF-8. A `+` stays one: only in parameters it is a space.
#[must_use]
pub fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => hex(rest.next()?)? << 4 | hex(rest.next()?)?,
            plain => plain,
        });
    }
    String::from_utf8(bytes).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
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
    fn escapes_are_decoded_strictly_and_a_plus_is_a_space_in_parameters_only() {
        assert_eq!(percent_decode("a%2Fb+c%C3%A4").as_deref(), Some("a/b+cä"));
        for wrong in ["%", "%4", "%zz", "%+1", "%FF", "%C3"] {
            assert_eq!(percent_decode(wrong), None, "{wrong:?}");
        }
        let (address, mut parameters) = Parameters::of("mysql://h/d?a=b+c%2B").expect("a good URL");
        assert_eq!((address, parameters.take("a").as_deref()), ("mysql://h/d", Some("b c+")));
    }

    #[test]
    fn fields_keep_their_value_where_nothing_is_given() {
        let (_, mut parameters) = Parameters::of("x:?b=9s&d=64KiB&e=true&n=7").expect("a good URL");
        let (mut a, mut b, mut c) = (Duration::ZERO, None::<Duration>, Some(Duration::ZERO));
        parameters.duration("a", &mut a).expect("not given");
        parameters.duration("b", &mut b).expect("readable");
        parameters.duration("c", &mut c).expect("not given");
        assert_eq!((a, b, c), (Duration::ZERO, Some(Duration::from_secs(9)), Some(Duration::ZERO)));
        assert!(!parameters.has("b") && parameters.has("d"));
        let (mut d, mut e, mut n) = (0_i64, false, 0_u8);
        parameters.size("d", &mut d).expect("readable");
        parameters.flag("e", &mut e).expect("readable");
        parameters.number("n", &mut n).expect("readable");
        assert_eq!((d, e, n), (65_536, true, 7));
        parameters.finish("x").expect("all is taken");
    }

    #[test]
    fn what_cannot_be_read_is_named_and_never_shown() {
        for (url, named) in [
            ("x://h?a=s3cret", "`a` must be a duration"),
            ("x://h?b=-s3cret", "`b` must be a whole number"),
            ("x://h?b=256", "`b` must be a whole number in its bounds"),
            ("x://h?c=s3cret", "`c` must be true or false"),
            ("x://h?d=8MB", "`d` must be a number of bytes"),
            ("x://h?e=s3cret&f", "`x` has no parameter `e`; it knows a, b, c, d"),
            ("x://h?a=1s&a=s3cret", "`a` is given twice"),
            ("x://h?a=%FF", "`a` is not percent-encoded UTF-8"),
            ("x://h?%FF=s3cret", "name"),
            ("x://h#s3cret", "%23"),
            ("x://u:s3cret@h\n", "line break"),
            ("x://u:s3cret/@h", "%2F"),
            ("x://h,x://u:s3cret/@h", "%2F"),
            ("x://h,X://u:s3cret/@h", "%2F"),
            ("x://u:s3cret?@h", "%3F"),
            ("x://@h", "are empty"),
            ("x://:@h/s3cret", "are empty"),
            ("x://u:s3cret@h,X://:@h", "are empty"),
        ] {
            let read = || {
                let (_, mut parameters) = Parameters::of(url)?;
                assert!(!format!("{parameters:?}").contains("s3cret"), "{parameters:?}");
                let mut duration = Duration::ZERO;
                parameters.duration("a", &mut duration)?;
                parameters.number("b", &mut 0_u8)?;
                parameters.flag("c", &mut false)?;
                parameters.size("d", &mut 0_usize)?;
                parameters.finish("x")
            };
            let error = read().expect_err(url);
            assert_eq!(is_unknown(&error), named.contains("has no parameter"), "{error}");
            let shown = format!("{error} {error:?}");
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(shown.contains(named) && !shown.contains("s3cret"), "{url}: {shown}");
        }
    }

    #[test]
    fn the_rest_is_kept_byte_for_byte() {
        let (address, mut parameters) =
            Parameters::of("r://u:p%40ss@h:1/3?a=%41+b&hub=chat&c&d=%2F").expect("good");
        assert_eq!(parameters.take("hub").as_deref(), Some("chat"));
        assert_eq!((address, &*parameters.rest()), ("r://u:p%40ss@h:1/3", "?a=%41+b&c&d=%2F"));
        for several in ["nats://u:p@one:1,nats://u:p@two:2/", "Nats://u:p@one:1,nATS://u:p@two:2/"] {
            assert_eq!(Parameters::of(several).expect("good").0, several);
        }
        let (_, mut parameters) = Parameters::of("memory:?hub=chat").expect("good");
        parameters.take("hub");
        assert_eq!(parameters.rest(), "");
        assert!(Parameters::of("r://:@password@h").is_ok());
    }

    #[test]
    fn a_host_is_taken_as_it_is_or_refused() {
        for (text, read) in [
            ("[::1]", "::1"),
            ("10.0.0.3", "10.0.0.3"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("_redis._tcp.Chat-1.internal.", "_redis._tcp.Chat-1.internal."),
        ] {
            assert_eq!(host(text).expect(text), read);
        }
        for (wrong, named) in [
            ("", "no host"),
            ("b\u{fc}cher.example", "xn--"),
            ("b%C3%BCcher.example", "percent-encoded"),
            ("my%2Dhost", "percent-encoded"),
            ("::1", "[::1]"),
            ("[s3cret]", "[::1]"),
            ("[::1", "[::1]"),
            ("a,s3cret", "several servers"),
            ("redis.internal,password=s3cret", "behind `?`"),
        ] {
            let error = host(wrong).expect_err(wrong);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            let shown = format!("{error} {error:?}");
            assert!(shown.contains(named) && !shown.contains("s3cret"), "{wrong}: {shown}");
        }
        for odd in ",;=!$&'()*+~{}\"<>|\\^` ".chars() {
            let shown = format!("{:?}", host(&format!("h{odd}s3cret")).expect_err("an odd host"));
            assert!(shown.contains("belong behind `?`") && !shown.contains("s3cret"), "{odd}: {shown}");
        }
    }

    #[test]
    fn hosts_and_credentials_are_told_apart() {
        for (address, read) in [
            ("x://h", (None, "h")),
            ("x://h:1/p", (None, "h:1")),
            ("x://u:p@h:1/p", (Some("u:p"), "h:1")),
            ("x://u:,@a,b", (Some("u:,"), "a,b")),
            ("x:p", (None, "")),
        ] {
            assert_eq!(authority(address), read, "{address}");
        }
        for whole in ["user", "user:password", "a:b:c"] {
            assert!(check_credentials(whole).is_ok(), "{whole}");
        }
        for half in ["s3cret:", ":s3cret", ":", ":s3cret:"] {
            let shown = format!("{:?}", check_credentials(half).expect_err(half));
            assert!(shown.contains("is empty") && !shown.contains("s3cret"), "{shown}");
        }
    }

    #[test]
    fn a_file_is_read_or_named() {
        assert!(read_file("ca", "Cargo.toml").expect("the manifest can be read").starts_with(b"[package]"));
        for content in [
            "-----BEGIN PRIVATE KEY-----s3cret",
            "s3cret\ns3cret",
            "eyJs3cret",
            &"S3CRET".repeat(7),
            "MIIEvQs3cret/s3cret",
            "MIGHAgEABgcqhkjOPQIBBggqhkjOPQMBBwRtMGs3cret",
            "MHcCAQEEBgcqhkjOPQIBBggqhkjOPQMBBwRtMGs3cret",
            "MC4CAQAwBgcqhkjOPQIBBggqhkjOPQMBBwRtMGs3cret",
            "MFECAQEwBQYDK2VwBCIEINTuctv5E1hK1bbYs3cret+/=",
            "MDECAQEEIOjOPQIBBggqhkjOPQMBBwRtMGs3cret Ag==",
            "LS0tLS1CRUdJTiBQs3cret",
            &"s3cret".repeat(43),
        ] {
            let error = read_file("key", content).expect_err("not the name of a file");
            let shown = format!("{error} {error:?}").to_lowercase();
            assert!(shown.contains("`key` names a file") && !shown.contains("s3cret"), "{shown}");
        }
        let long = format!("{}.pem", "folder/".repeat(40));
        let folders = "MAIN_SITE/certificates/of-the-company/bus/key";
        for path in ["no-such-file.pem", "/no/MIIEvQ", "MII-of-us.pem", "MIGRATION/key", folders, &long] {
            let error = read_file("key", path).expect_err("no such file");
            assert!(error.to_string().contains(&format!("`key`: the file {path}")), "{error}");
        }
    }
}
