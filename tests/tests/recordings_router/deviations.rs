//! Where ours differs from the recordings, each with its reason. A test fails when one of these no longer occurs.

/// One way in which our node, in the place of a server, differs.
#[derive(Debug)]
pub(crate) struct Deviation {
    pub(crate) file: &'static str,
    /// The server in whose place our node stands.
    pub(crate) server: &'static str,
    /// The steps concerned, from 1, as [`Change`] says.
    pub(crate) steps: &'static [usize],
    pub(crate) change: Change,
    pub(crate) reason: &'static str,
}

/// How it differs.
#[derive(Debug, PartialEq)]
pub(crate) enum Change {
    /// These steps do not happen.
    Missing,
    /// In the actions that hold these steps, our node also subscribes to this channel.
    Subscribes(&'static str),
    /// In the actions that hold these steps, our node also frees this channel.
    Unsubscribes(&'static str),
    /// In the actions that hold these steps, our node also gets what was published on this channel.
    Gets(&'static str),
    /// In the actions that hold these steps, this also arrives at this client of ours.
    Arrives(&'static str, &'static str),
    /// That many get these PUBLISHes.
    Reaches(u32),
    /// These calls end by their own deadline.
    TimesOut,
    /// These calls end with "disconnected".
    Disconnected,
    /// These calls end with this text as their value.
    Answers(&'static str),
    /// The frames that these log lines say were not read, are read.
    Reads,
}

use Change::*;

const TWICE: &str = "a target named twice in one list is served once";
const LOCAL: &str = "a local target of a connection list is served without a PUBLISH";
const CASE: &str = "names are case-sensitive everywhere: Room and room are two groups, and a connection that is gone \
                    has left both";
const UNKNOWN: &str =
    "a group change for a connection that nobody has ends with a typed error at our deadline";
const PROTOCOL: &str =
    "every known protocol is read on the return channel, also one that the asking hub lacks";

const fn deviation(
    (file, server): (&'static str, &'static str),
    steps: &'static [usize],
    change: Change,
    reason: &'static str,
) -> Deviation {
    Deviation { file, server, steps, change, reason }
}

const SENDS: (&str, &str) = ("sends", "A");
const GROUPS_CASE: (&str, &str) = ("groups-case", "A");

pub(crate) const DEVIATIONS: &[Deviation] = &[
    // ToConnections(["a2", "b1", "b1", "nobody"]): no PUBLISH for a2, its echo neither; one for b1, its arrival neither.
    deviation(SENDS, &[52, 58], Missing, LOCAL),
    deviation(SENDS, &[54, 57], Missing, TWICE),
    // ToUsers(["u1", "u2", "u1", ""]).
    deviation(SENDS, &[121, 124, 126, 128], Missing, TWICE),
    deviation(GROUPS_CASE, &[8], Subscribes("Demo.ChatHub:group:room"), CASE),
    deviation(GROUPS_CASE, &[11], Reaches(1), CASE),
    deviation(GROUPS_CASE, &[10], Gets("Demo.ChatHub:group:room"), CASE),
    deviation(GROUPS_CASE, &[10], Arrives("a1", "m(\"lower\")"), CASE),
    deviation(GROUPS_CASE, &[18], Unsubscribes("Demo.ChatHub:group:room"), CASE),
    deviation(GROUPS_CASE, &[33, 53], Unsubscribes("Demo.ChatHub:group:Room"), CASE),
    deviation(GROUPS_CASE, &[38, 57], Reaches(0), CASE),
    deviation(GROUPS_CASE, &[39, 58], Missing, CASE),
    deviation(GROUPS_CASE, &[46], Subscribes("Demo.ChatHub:group:Room"), CASE),
    deviation(("groups-unknown-connection", "A"), &[19, 20], TimesOut, UNKNOWN),
    deviation(("groups-unknown-connection", "B"), &[21], TimesOut, UNKNOWN),
    deviation(("protocol-mismatch", "A"), &[68], Disconnected, PROTOCOL),
    deviation(("protocol-mismatch", "A"), &[86], Reads, PROTOCOL),
    deviation(("protocol-mismatch-result", "A"), &[11], Reads, PROTOCOL),
    deviation(("protocol-mismatch-result", "A"), &[12], Answers("x"), PROTOCOL),
];
