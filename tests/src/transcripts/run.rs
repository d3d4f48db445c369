//! Plays a folder of recordings, each against a server of its own, and judges them by the two lists.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt as _;
use tokio::time::timeout;

use super::file::Transcript;
use super::lists::Lists;
use super::play::{Difference, Until, play};
use super::server::Server;

/// How many servers run at the same time.
const AT_ONCE: usize = 12;
/// The longest that one recording may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// What came of one recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As recorded, or as the deviations say.
    Passed,
    /// Not as recorded, and nothing says so.
    Failed(Vec<Difference>),
    /// Not as recorded, and the list says what it waits for.
    Pending,
    /// As recorded, though the list says that it cannot be.
    NoLongerPending,
    /// It could not be played.
    NotPlayed(String),
}

/// What came of a folder.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Each recording, by name.
    pub verdicts: Vec<(String, Verdict)>,
    /// What is wrong with the lists themselves.
    pub lists: Vec<String>,
}

impl Outcome {
    /// Whether nothing differs that may not.
    #[must_use]
    pub fn is_success(&self) -> bool {
        let fine = |verdict: &Verdict| matches!(verdict, Verdict::Passed | Verdict::Pending);
        self.lists.is_empty() && self.verdicts.iter().all(|(_, verdict)| fine(verdict))
    }

    fn count(&self, of: impl Fn(&Verdict) -> bool) -> usize {
        self.verdicts.iter().filter(|(_, verdict)| of(verdict)).count()
    }
}

impl fmt::Display for Outcome {
    /// Each difference, then a line with the counts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, verdict) in &self.verdicts {
            match verdict {
                Verdict::Passed | Verdict::Pending => {}
                Verdict::Failed(differences) => {
                    for difference in differences {
                        writeln!(f, "{name}: {difference}")?;
                    }
                }
                Verdict::NoLongerPending => writeln!(f, "{name}: it passes, so it is no longer pending")?,
                Verdict::NotPlayed(why) => writeln!(f, "{name}: not played: {why}")?,
            }
        }
        for fault in &self.lists {
            writeln!(f, "{fault}")?;
        }
        write!(
            f,
            "{} recordings: {} passed, {} pending, {} failed",
            self.verdicts.len(),
            self.count(|verdict| *verdict == Verdict::Passed),
            self.count(|verdict| *verdict == Verdict::Pending),
            self.count(|verdict| !matches!(verdict, Verdict::Passed | Verdict::Pending)),
        )?;
        match self.lists.len() {
            0 => Ok(()),
            faults => write!(f, ", {faults} faults in the lists"),
        }
    }
}

/// Plays every recording in `folder` against `program` (the reference hub), judged by `lists`. `complete`: the lists
/// belong to this folder, so that an entry without a file is a fault.
///
/// # Errors
/// The folder cannot be read, or there is nothing in it.
pub async fn play_folder(
    folder: &Path,
    program: &Path,
    lists: &Lists,
    complete: bool,
) -> Result<Outcome, String> {
    let files = files(folder)?;
    let mut outcome = Outcome::default();
    let names: BTreeSet<String> = files.iter().map(|file| stem(file)).collect();
    if complete {
        outcome.lists = entries_without_file(lists, &names);
    }
    let plays = files.iter().map(|file| async { (stem(file), judge(file, program, lists).await) });
    outcome.verdicts = futures::stream::iter(plays).buffer_unordered(AT_ONCE).collect().await;
    outcome.verdicts.sort_by(|(left, _), (right, _)| left.cmp(right));
    Ok(outcome)
}

/// The recordings in `folder`, sorted.
pub(super) fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let fault = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fault)? {
        let path = entry.map_err(fault)?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(format!("{}: no recordings", folder.display()));
    }
    Ok(files)
}

fn stem(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn entries_without_file(lists: &Lists, names: &BTreeSet<String>) -> Vec<String> {
    let pending = lists.pending.keys().map(|name| ("pending.md", name));
    let deviations = lists.deviations.iter().map(|deviation| ("deviations.md", &deviation.file));
    let missing = pending.chain(deviations).filter(|(_, name)| !names.contains(*name));
    missing.map(|(list, name)| format!("{list}: there is no recording {name}")).collect()
}

async fn judge(file: &Path, program: &Path, lists: &Lists) -> Verdict {
    let transcript = match Transcript::read(file) {
        Ok(transcript) => transcript,
        Err(error) => return Verdict::NotPlayed(error.to_string()),
    };
    let name = stem(file);
    let deviations = lists.of(&name);
    let pending = lists.pending.contains_key(&name);
    if let Some(beyond) =
        deviations.iter().find(|deviation| !(1..=transcript.steps.len()).contains(&deviation.step))
    {
        return Verdict::NotPlayed(format!("deviations.md names its step {}, which it has not", beyond.step));
    }
    let until = if pending { Until::Difference } else { Until::End };
    let played = timeout(DEADLINE, async {
        let mut server = Server::start(program, &transcript.switches).await?;
        Ok::<_, String>(play(&transcript, &deviations, &mut server, until).await)
    });
    match (played.await, pending) {
        (Err(_), _) => Verdict::NotPlayed(format!("not done in {} s", DEADLINE.as_secs())),
        (Ok(Err(error)), _) => Verdict::NotPlayed(error),
        (Ok(Ok(differences)), true) if differences.is_empty() => Verdict::NoLongerPending,
        (Ok(Ok(_)), true) => Verdict::Pending,
        (Ok(Ok(differences)), false) if differences.is_empty() => Verdict::Passed,
        (Ok(Ok(differences)), false) => Verdict::Failed(differences),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_without_a_file_is_a_fault() {
        let lists = Lists { pending: [("gone".to_owned(), "x".to_owned())].into(), ..Lists::default() };
        assert_eq!(entries_without_file(&lists, &["gone".to_owned()].into()).len(), 0);
        assert_eq!(entries_without_file(&lists, &["other".to_owned()].into()).len(), 1);
    }

    #[test]
    fn only_what_may_differ_is_a_success() {
        let outcome =
            |verdict| Outcome { verdicts: vec![("a".to_owned(), verdict)], lists: Vec::new() }.is_success();
        assert!(outcome(Verdict::Passed) && outcome(Verdict::Pending));
        let difference = Difference { step: 1, expected: "a".to_owned(), got: "b".to_owned() };
        assert!(!outcome(Verdict::Failed(vec![difference])));
        assert!(!outcome(Verdict::NoLongerPending) && !outcome(Verdict::NotPlayed(String::new())));
        let lists = vec!["a fault".to_owned()];
        assert!(!Outcome { lists, ..Outcome::default() }.is_success());
    }
}
