//! Can groups and users be called anything?

use backplane_core::{GroupName, Target, UserId};

use super::client::Client;
use super::fleet::{Fleet, Stage};
use crate::{Broken, Outcome};

/// Names that escape badly, collide or mean something to some broker. All are different, and so are their audiences.
fn names() -> Vec<String> {
    let long = "x".repeat(10_000);
    let mut names: Vec<String> = [
        "\0",
        "a\0b",
        "a",
        "A",
        "room",
        "Room",
        "ROOM",
        "*",
        "a*",
        "?",
        "[a]",
        "#",
        "+",
        ">",
        ".",
        "..",
        ".a",
        "a.",
        "a.b",
        "a..b",
        " ",
        " a",
        "a ",
        "a b",
        "\t",
        "\n",
        "\r\n",
        "\u{1e}",
        "\u{7f}",
        "\u{1f980}",
        "\u{e9}",
        "e\u{301}",
        "\u{feff}",
        "\u{10ffff}",
        "-",
        "_",
        "_x",
        "-x",
        "=",
        "%2A",
        "%",
        "/",
        "\\",
        "\\0",
        "'",
        "\"",
        "`",
        "$",
        "$SYS",
        ":",
        "group:a",
        "user:a",
        "all",
        "connection:a",
        "internal:groups",
        "{a}",
        "é.*>\0 🦀",
    ]
    .map(str::to_owned)
    .into();
    names.extend([format!("{long}a"), format!("{long}b"), long]);
    names
}

/// Each group gets what is sent to it and nothing of another one, joined and addressed from another node. The empty
/// name is a name.
pub(super) async fn any_text_names_a_group(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let mut names = names();
    names.push(String::new());
    let mut members = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let member = fleet.nodes[0].client().await?;
        fleet.nodes[number % 2].join(&member, name).await?;
        members.push(member);
    }
    let targets = names.iter().map(|name| Target::Group(GroupName::from(name.as_str()))).collect();
    each_gets_its_own(&fleet, targets, &mut members).await?;
    for (member, name) in members.iter().zip(&names) {
        fleet.nodes[1].leave(member, name).await?;
    }
    fleet.end().await
}

/// The same for users, but for the empty name: that is no user.
pub(super) async fn any_text_names_a_user(stage: Stage) -> Outcome {
    let fleet = Fleet::open(&stage, 2).await?;
    let names = names();
    let mut members = Vec::new();
    for name in &names {
        members.push(fleet.nodes[0].client_of(name).await?);
    }
    let targets = names.iter().map(|name| Target::User(UserId::from(name.as_str()))).collect();
    each_gets_its_own(&fleet, targets, &mut members).await?;
    fleet.end().await
}

/// Two rounds: when the second one has arrived everywhere, all of the first was dealt with.
async fn each_gets_its_own(
    fleet: &Fleet,
    targets: Vec<Target>,
    members: &mut [Client],
) -> Result<(), Broken> {
    for round in 0..2 {
        for (number, target) in targets.iter().enumerate() {
            fleet.nodes[1].send(target, &format!("{round}:{number}")).await?;
        }
    }
    for (number, member) in members.iter_mut().enumerate() {
        member.expect(&format!("0:{number}")).await?;
        member.expect(&format!("1:{number}")).await?;
    }
    for member in members {
        member.nothing_more()?;
    }
    Ok(())
}
