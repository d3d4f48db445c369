//! What an error reply of the server means in the words of the seam.

use backplane_core::{Error, ErrorKind};

/// The error for a reply `CODE text` to `operation`. The server's text is kept: it names the user, the command and the
/// channel, never the password.
pub(crate) fn refusal(operation: &'static str, line: &[u8]) -> Error {
    let text = String::from_utf8_lossy(line);
    Error::new(kind(&text), operation).with_context(format!("the server answered: {text}"))
}

fn kind(text: &str) -> ErrorKind {
    let (code, rest) = text.split_once(' ').unwrap_or((text, ""));
    match code {
        "NOPERM" | "NOAUTH" | "WRONGPASS" | "DENIED" => ErrorKind::Denied,
        "NOPROTO" => ErrorKind::Unsupported,
        "ERR" if rest.starts_with("unknown command") || rest.starts_with("unknown subcommand") => {
            ErrorKind::Unsupported
        }
        // `AUTH` to a server that has no password, before Redis 6 also a wrong one.
        "ERR" if rest.contains("AUTH") || rest.starts_with("invalid password") => ErrorKind::Denied,
        "ERR" if rest.contains("DB index") || rest.starts_with("SELECT is not allowed") => {
            ErrorKind::InvalidConfig
        }
        // States that pass (LOADING, OOM, READONLY, MASTERDOWN, CLUSTERDOWN, MISCONF, BUSY, "max number of clients
        // reached"), and whatever a proxy says during a failover: giving up on those would need a restart of ours.
        _ => ErrorKind::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_of_a_real_server_get_their_kind() {
        for (line, expected) in [
            ("NOPERM this user has no permissions to access one of the channels", ErrorKind::Denied),
            ("WRONGPASS invalid username-password pair or user is disabled.", ErrorKind::Denied),
            ("NOAUTH Authentication required.", ErrorKind::Denied),
            (
                "ERR AUTH <password> called without any password configured for the default user.",
                ErrorKind::Denied,
            ),
            ("ERR invalid password", ErrorKind::Denied),
            ("DENIED Redis is running in protected mode", ErrorKind::Denied),
            ("LOADING Redis is loading the dataset in memory", ErrorKind::Unavailable),
            ("OOM command not allowed when used memory > 'maxmemory'.", ErrorKind::Unavailable),
            ("READONLY You can't write against a read only replica.", ErrorKind::Unavailable),
            ("ERR max number of clients reached", ErrorKind::Unavailable),
            ("ERR DB index is out of range", ErrorKind::InvalidConfig),
            ("ERR unknown command 'PUBLISH', with args beginning with:", ErrorKind::Unsupported),
            ("NOPROTO unsupported protocol version", ErrorKind::Unsupported),
            ("ERR something new", ErrorKind::Unavailable),
        ] {
            let error = refusal("publish", line.as_bytes());
            assert_eq!(error.kind(), expected, "{line}");
            assert!(error.to_string().contains(line));
        }
    }
}
