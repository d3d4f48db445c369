//! What failed, in a few lines: test programs say it amid thousands.

/// Lines of one panic.
const MOST_LINES: usize = 4;

/// Characters of one line.
const MOST_CHARACTERS: usize = 400;

/// Gathers the first panic of each failed test, and programs that did not end in order.
#[derive(Debug, Default)]
pub(crate) struct Digest {
    /// The test whose captured output is being read.
    test: Option<String>,
    /// Lines that still belong to its panic.
    open: usize,
    found: Vec<String>,
}

impl Digest {
    /// Reads one line of what `cargo test` prints.
    pub(crate) fn read(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("---- ").and_then(|line| line.strip_suffix(" stdout ----")) {
            self.test = Some(name.to_owned());
            self.open = 0;
        } else if line.starts_with("thread '") && line.contains(" panicked at ") {
            if let Some(test) = self.test.take() {
                self.found.push(test);
                self.open = MOST_LINES;
                self.keep(line.split_once(" panicked at ").map_or(line, |(_, place)| place));
            }
        } else if line.contains("process didn't exit successfully") {
            self.found.push(cut(line.trim()));
        } else if line.is_empty() || line.starts_with("stack backtrace:") || line.starts_with("note: ") {
            self.open = 0;
        } else {
            self.keep(line);
        }
    }

    fn keep(&mut self, line: &str) {
        if self.open > 0 {
            self.open -= 1;
            self.found.push(format!("    {}", cut(line)));
        }
    }

    /// Line by line.
    pub(crate) fn lines(&self) -> &[String] {
        &self.found
    }
}

fn cut(line: &str) -> String {
    match line.char_indices().nth(MOST_CHARACTERS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failed_test_is_told_with_its_first_panic() {
        let mut digest = Digest::default();
        let long = "x".repeat(900);
        for line in [
            "test a::fails ... FAILED",
            "thread 'elsewhere' panicked at src/other.rs:1:1:",
            "not of a failed test",
            "---- a::fails stdout ----",
            "it printed this",
            "thread 'a::fails' (7) panicked at src/a.rs:5:9:",
            "assertion `left == right` failed: why",
            "  left: 1",
            " right: 2",
            "stack backtrace:",
            "   0: __rustc::rust_begin_unwind",
            "thread 'a::fails' (7) panicked at src/a.rs:6:9:",
            "the second is a consequence",
            "",
            "---- b::fails stdout ----",
            "thread 'b::fails' panicked at src/b.rs:1:1:",
            &long,
            "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace",
            "  process didn't exit successfully: `target/debug/deps/c` (signal: 9, SIGKILL: kill)",
        ] {
            digest.read(line);
        }
        let shortened = format!("    {}…", "x".repeat(MOST_CHARACTERS));
        let expected = [
            "a::fails",
            "    src/a.rs:5:9:",
            "    assertion `left == right` failed: why",
            "      left: 1",
            "     right: 2",
            "b::fails",
            "    src/b.rs:1:1:",
            &shortened,
            "process didn't exit successfully: `target/debug/deps/c` (signal: 9, SIGKILL: kill)",
        ];
        assert_eq!(digest.lines(), expected);
    }
}
