//! Which paths belong to the hub.

use percent_encoding::percent_decode_str;

/// Where a request goes within the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The path of the hub itself: transports.
    Hub,
    /// `negotiate` below it.
    Negotiate,
}

/// The path that a hub is mounted at. Requests match it in any ASCII case, percent-encoded or not, with or without a
/// slash at the end; `%2F` is part of a segment, not a slash.
#[derive(Debug)]
pub(super) struct MountPath(Box<str>);

impl MountPath {
    /// # Panics
    /// When `path` does not start with `/`, is `/` alone, ends with `/`, or could never be asked for as it is written.
    pub(super) fn new(path: &str) -> Self {
        assert!(path.starts_with('/'), "the path of a hub starts with a slash: {path:?}");
        assert!(
            !path.ends_with('/'),
            "the path of a hub is not empty and does not end with a slash: {path:?}"
        );
        assert!(
            !path.contains(['%', '?', '#', '{', '}']) && !path.contains("//"),
            "the path of a hub is written as it reads, without encoding, query, parameters or empty segments: {path:?}"
        );
        Self(path.into())
    }

    /// Where the path of a request leads; `None`: not to the hub.
    pub(super) fn locate(&self, path: &str) -> Option<Place> {
        let path = path.strip_suffix('/').unwrap_or(path);
        let mut asked = path.split('/');
        for segment in self.0.split('/') {
            if !same(asked.next()?, segment) {
                return None;
            }
        }
        match (asked.next(), asked.next()) {
            (None, _) => Some(Place::Hub),
            (Some(segment), None) if same(segment, "negotiate") => Some(Place::Negotiate),
            _ => None,
        }
    }
}

/// Whether a segment of a request, still encoded, is this one.
fn same(asked: &str, segment: &str) -> bool {
    percent_decode_str(asked)
        .map(|byte| byte.to_ascii_lowercase())
        .eq(segment.bytes().map(|byte| byte.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_as_recorded() {
        let path = MountPath::new("/chatHub");
        for (asked, expected) in [
            ("/chatHub", Some(Place::Hub)),
            ("/chatHub/", Some(Place::Hub)),
            ("/CHATHUB", Some(Place::Hub)),
            ("/chat%48ub", Some(Place::Hub)),
            ("/chat%68ub/", Some(Place::Hub)),
            ("/chatHub/negotiate", Some(Place::Negotiate)),
            ("/chatHub/negotiate/", Some(Place::Negotiate)),
            ("/CHATHUB/Negotiate", Some(Place::Negotiate)),
            ("/chatHub/%6Eegotiate", Some(Place::Negotiate)),
            ("/nothing/negotiate", None),
            ("/chatHub/negotiate/x", None),
            ("/chatHub/negotiate//", None),
            ("/chatHub/other", None),
            ("/chatHub//", None),
            ("/chatHub//negotiate", None),
            ("//chatHub/negotiate", None),
            ("//chatHub", None),
            ("/chatHub%2Fnegotiate", None),
            ("/chatHub%2F", None),
            ("/chatHubs", None),
            ("/chat", None),
            ("/x/chatHub", None),
            ("chatHub", None),
            ("/", None),
            ("", None),
            ("*", None),
        ] {
            assert_eq!(path.locate(asked), expected, "{asked}");
        }
    }

    #[test]
    fn a_path_may_be_deep_and_hold_any_text() {
        let path = MountPath::new("/real time/grüße");
        assert_eq!(path.locate("/Real%20Time/gr%C3%BC%C3%9Fe"), Some(Place::Hub));
        assert_eq!(path.locate("/real%20time/gr%C3%BC%C3%9Fe/negotiate"), Some(Place::Negotiate));
        assert_eq!(path.locate("/real%20time"), None);
        assert_eq!(path.locate("/real%20time/gr%C3%9C%C3%9Fe"), None, "only ASCII is compared in any case");
    }

    #[test]
    fn paths_that_cannot_be_are_refused() {
        for wrong in ["", "/", "chatHub", "/chatHub/"] {
            assert!(std::panic::catch_unwind(|| MountPath::new(wrong)).is_err(), "{wrong:?}");
        }
    }
}
