//! Every recording of .NET's hub server, played against ours: each against a reference hub of its own.

use std::path::Path;

use backplane_tests::transcripts::lists::Lists;
use backplane_tests::transcripts::run::play_folder;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ours_answers_as_recorded() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("transcripts");
    let lists = Lists::read(&home).expect("the lists are of their form");
    let program = Path::new(env!("CARGO_BIN_EXE_reference-hub"));
    let outcome = play_folder(&home.join("http"), program, &lists, true).await.expect("there are recordings");
    println!("{outcome}");
    assert!(outcome.verdicts.len() >= 288, "only {} recordings", outcome.verdicts.len());
    assert!(outcome.is_success(), "something differs: see above");
}
