//! The two lists beside the recordings: `deviations.md`, what differs for good, and `pending.md`, what is not served yet.

use std::collections::BTreeMap;
use std::path::Path;

/// What ours does at a step instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// At the step of a Completion: it may come before the invocations without an id that stand directly before it on
    /// its connection. Which of the two comes first depends on time, so this kind is never stale.
    Order,
    /// Ours answers this instead: a JSON record without its separator, `hex` and the bytes of a MessagePack record,
    /// `1000` or `fin` for an ending, `404 text` for HTTP.
    Answer(String),
    /// Ours answers as recorded or this, which depends on time.
    Or(String),
    /// It does not come, or is not done.
    Absent,
    /// After the step, ours sends this record besides.
    Also(String),
}

/// One row of `deviations.md`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deviation {
    /// The name of the recording, without `.json`.
    pub file: String,
    /// Which of its steps, from 1.
    pub step: usize,
    /// What ours does.
    pub kind: Kind,
    /// Why.
    pub reason: String,
}

/// Both lists.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    /// What differs for good.
    pub deviations: Vec<Deviation>,
    /// Names of recordings, with what they wait for.
    pub pending: BTreeMap<String, String>,
}

impl Lists {
    /// Reads `deviations.md` and `pending.md` in `folder`.
    ///
    /// # Errors
    /// Names the line that is not of the form.
    pub fn read(folder: &Path) -> Result<Self, String> {
        let text = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
        };
        Ok(Self { deviations: deviations(&text("deviations.md")?)?, pending: pending(&text("pending.md")?)? })
    }

    /// The deviations of one recording.
    #[must_use]
    pub fn of(&self, name: &str) -> Vec<Deviation> {
        self.deviations.iter().filter(|deviation| deviation.file == name).cloned().collect()
    }
}

/// The rows of the table `| file | step | kind | reason |`. A file may be several, separated by commas.
fn deviations(text: &str) -> Result<Vec<Deviation>, String> {
    let mut rows = Vec::new();
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<String> = cells(line);
        let [files, steps, kind, reason] = cells.as_slice() else {
            return Err(format!("deviations.md: four cells needed: {line}"));
        };
        if files == "file" || files.chars().all(|c| matches!(c, '-' | ':' | ' ')) {
            continue;
        }
        let kind = kind_of(kind).ok_or_else(|| format!("deviations.md: unknown kind: {line}"))?;
        if reason.is_empty() {
            return Err(format!("deviations.md: a reason is needed: {line}"));
        }
        for step in steps.split(',') {
            let step = step.trim().parse().map_err(|_| format!("deviations.md: no step number: {line}"))?;
            for file in files.split(',') {
                rows.push(Deviation {
                    file: file.trim().to_owned(),
                    step,
                    kind: kind.clone(),
                    reason: reason.clone(),
                });
            }
        }
    }
    Ok(rows)
}

fn cells(line: &str) -> Vec<String> {
    let line = line.trim().trim_start_matches('|').replace("\\|", "\u{0}");
    let line = line.strip_suffix('|').unwrap_or(&line);
    line.split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect()
}

fn kind_of(cell: &str) -> Option<Kind> {
    let (word, text) = cell.split_once(':').map_or((cell, ""), |(word, text)| (word, text.trim()));
    let text = text.strip_prefix('`').and_then(|text| text.strip_suffix('`')).unwrap_or(text).to_owned();
    match (word.trim(), text.is_empty()) {
        ("order", true) => Some(Kind::Order),
        ("absent", true) => Some(Kind::Absent),
        ("answer", false) => Some(Kind::Answer(text)),
        ("or", false) => Some(Kind::Or(text)),
        ("also", false) => Some(Kind::Also(text)),
        _ => None,
    }
}

/// The lines `- name: what it waits for`.
fn pending(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut pending = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("- ")) {
        let (name, reason) =
            line[2..].split_once(':').ok_or_else(|| format!("pending.md: no reason: {line}"))?;
        let (name, reason) = (name.trim().to_owned(), reason.trim().to_owned());
        if reason.is_empty() || pending.insert(name, reason).is_some() {
            return Err(format!("pending.md: no reason, or named twice: {line}"));
        }
    }
    Ok(pending)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read() {
        let table = "# Title\n\n| file | step | kind | reason |\n|---|---|---|---|\n| a, b | 3, 5 | order | the bus |\n| c | 1 | answer: `{\"type\":7}` | kinder |\n| d | 2 | also: `x\\|y` | served |\n";
        let rows = deviations(table).unwrap();
        assert_eq!(rows.len(), 6);
        assert_eq!((rows[3].file.as_str(), rows[3].step, &rows[3].kind), ("b", 5, &Kind::Order));
        assert_eq!(rows[4].kind, Kind::Answer("{\"type\":7}".to_owned()));
        assert_eq!(rows[5].kind, Kind::Also("x|y".to_owned()));
    }

    #[test]
    fn rows_that_say_nothing_are_refused() {
        for row in
            ["| a | 1 | order |", "| a | x | order | r |", "| a | 1 | maybe | r |", "| a | 1 | order | |"]
        {
            assert!(deviations(row).is_err(), "{row}");
        }
    }

    #[test]
    fn pending_needs_a_reason_and_one_line_each() {
        assert_eq!(pending("text\n- a: streams\n- b: SSE").unwrap().len(), 2);
        for text in ["- a", "- a:", "- a: x\n- a: y"] {
            assert!(pending(text).is_err(), "{text}");
        }
    }
}
