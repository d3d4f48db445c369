//! The player is tested on short conversations: what each kind of deviation allows, and what nothing allows.

use super::file::Transcript;
use super::lists::{Deviation, Kind};
use super::mirror::Mirror;
use super::play::{Until, play};
use super::server::Server;

/// A conversation on one WebSocket, one step a line: `>` to the server, `<` from it, `x` a close frame from it.
fn conversation(lines: &[&str]) -> Transcript {
    let mut steps = vec![r#"{"ws":"open","path":"/","status":101}"#.to_owned()];
    steps.extend(lines.iter().map(|line| {
        let text = |act: &str| {
            let text = serde_json::to_string(&format!("{}\u{1e}", &line[2..])).unwrap();
            format!(r#"{{"ws":"{act}","text":{text}}}"#)
        };
        match &line[..1] {
            ">" => text("send"),
            "<" => text("recv"),
            _ => r#"{"ws":"closed","code":1000,"reason":""}"#.to_owned(),
        }
    }));
    let steps = steps.join(",");
    Transcript::parse(&format!(r#"{{"name":"x","about":"","options":{{}},"steps":[{steps}]}}"#)).unwrap()
}

const NONE: [usize; 0] = [];
const CALL: &str = r#"> {"type":1,"invocationId":"1","target":"T","arguments":[]}"#;
const M: &str = r#"< {"type":1,"target":"m","arguments":[1]}"#;
const N: &str = r#"< {"type":1,"target":"n","arguments":[2]}"#;
const DONE: &str = r#"< {"type":3,"invocationId":"1","result":null}"#;
const OTHER: &str = r#"< {"type":3,"invocationId":"2","result":null}"#;

/// Plays what was recorded against a server that answers `ours`; the steps that differ.
async fn differing(recorded: &[&str], ours: &[&str], rows: &[(usize, Kind)]) -> Vec<usize> {
    let (recorded, ours) = (conversation(recorded), conversation(ours));
    let mirror = Mirror::new(&ours, None).await;
    let mut server = Server::at(mirror.address());
    let row = |(step, kind): &(usize, Kind)| {
        let (file, reason) = ("x".to_owned(), "r".to_owned());
        Deviation { file, step: *step, kind: kind.clone(), reason }
    };
    let deviations: Vec<Deviation> = rows.iter().map(row).collect();
    let differences = tokio::select! {
        differences = play(&recorded, &deviations, &mut server, Until::Difference) => differences,
        failed = mirror.serve() => panic!("{failed:?}"),
    };
    differences.iter().map(|difference| difference.step).collect()
}

#[tokio::test]
async fn an_order_lets_a_completion_come_before_the_sends_of_its_call_and_nothing_else() {
    let recorded = [CALL, M, N, DONE];
    let order = [(5, Kind::Order)];
    for ours in [[CALL, M, N, DONE], [CALL, M, DONE, N], [CALL, DONE, M, N]] {
        assert_eq!(differing(&recorded, &ours, &order).await, NONE, "{ours:?}");
    }
    assert_eq!(differing(&recorded, &[CALL, M, DONE, N], &[]).await, [4]);
    assert_eq!(differing(&recorded, &[CALL, N, M, DONE], &order).await, [3]);
    assert_eq!(differing(&recorded, &[CALL, OTHER, M, N], &order).await, [3]);
    // Once only, and not for a message that carries an id or that is another's completion.
    assert_eq!(differing(&recorded, &[CALL, DONE, DONE, M, N], &order).await, [3]);
    assert_eq!(differing(&[CALL, OTHER, DONE], &[CALL, DONE, OTHER], &[(4, Kind::Order)]).await, [3]);
    assert_eq!(differing(&[CALL, M, N], &[CALL, N, M], &[(4, Kind::Order)]).await, [3]);
}

#[tokio::test]
async fn a_deviation_holds_and_is_stale_when_it_no_longer_occurs() {
    let instead = |text: &str| [(3, Kind::Answer(text[2..].to_owned()))];
    assert_eq!(differing(&[CALL, DONE], &[CALL, OTHER], &instead(OTHER)).await, NONE);
    assert_eq!(differing(&[CALL, DONE], &[CALL, M], &instead(OTHER)).await, [3]);
    assert_eq!(differing(&[CALL, DONE], &[CALL, DONE], &instead(OTHER)).await, [3], "stale");

    let or = [(3, Kind::Or(OTHER[2..].to_owned()))];
    assert_eq!(differing(&[CALL, DONE], &[CALL, OTHER], &or).await, NONE);
    assert_eq!(differing(&[CALL, DONE], &[CALL, DONE], &or).await, NONE);
    assert_eq!(differing(&[CALL, DONE], &[CALL, M], &or).await, [3]);

    let also = [(2, Kind::Also(M[2..].to_owned()))];
    assert_eq!(differing(&[CALL, DONE], &[CALL, M, DONE], &also).await, NONE);
    assert_eq!(differing(&[CALL, DONE], &[CALL, DONE], &also).await, [2], "stale");

    let absent = [(3, Kind::Absent)];
    assert_eq!(differing(&[CALL, M, DONE], &[CALL, DONE], &absent).await, NONE);
    assert_eq!(differing(&[CALL, M, DONE], &[CALL, M, DONE], &absent).await, [4], "stale");
}

#[tokio::test]
async fn what_was_never_recorded_is_a_difference() {
    assert_eq!(differing(&[CALL, DONE], &[CALL, DONE], &[]).await, NONE);
    assert_eq!(differing(&[CALL, DONE], &[CALL, DONE, M], &[]).await, [0]);
    assert_eq!(differing(&[CALL, DONE], &[CALL, DONE, "x"], &[]).await, [0]);
    assert_eq!(differing(&[CALL], &[CALL, DONE], &[]).await, [0]);
    assert_eq!(differing(&[CALL, DONE, "x"], &[CALL, DONE, M, "x"], &[]).await, [4]);
}
