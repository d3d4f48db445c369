//! What the command line asks for.

use std::time::Duration;

/// One benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Benchmark {
    Throughput,
    Latency,
    Joins,
    Reconnect,
    MemoryBus,
    FanOut,
    FanOutLatency,
    Idle,
    Sql,
    Buses,
}

impl Benchmark {
    const ALL: [Self; 10] = [
        Self::Throughput,
        Self::Latency,
        Self::Joins,
        Self::Reconnect,
        Self::MemoryBus,
        Self::FanOut,
        Self::FanOutLatency,
        Self::Idle,
        Self::Sql,
        Self::Buses,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::Latency => "latency",
            Self::Joins => "joins",
            Self::Reconnect => "reconnect",
            Self::MemoryBus => "memory-bus",
            Self::FanOut => "fan-out",
            Self::FanOutLatency => "fan-out-latency",
            Self::Idle => "idle",
            Self::Sql => "sql",
            Self::Buses => "buses",
        }
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) benchmarks: Vec<Benchmark>,
    rounds: Option<usize>,
    seconds: Option<f64>,
}

impl Options {
    /// Reads the arguments; an error says what is wrong with them.
    pub(crate) fn parse(words: &[String]) -> Result<Self, String> {
        let mut options = Self { benchmarks: Vec::new(), rounds: None, seconds: None };
        let mut words = words.iter().map(String::as_str);
        while let Some(word) = words.next() {
            match word {
                "--rounds" => options.rounds = Some(number(word, words.next(), 1, 1_000)?),
                "--seconds" => options.seconds = Some(number(word, words.next(), 0.2, 600.0)?),
                name => match Benchmark::ALL.into_iter().find(|benchmark| benchmark.name() == name) {
                    Some(benchmark) if options.benchmarks.is_empty() => options.benchmarks.push(benchmark),
                    Some(_) => return Err("one benchmark, or all of them".to_owned()),
                    None => return Err(format!("there is no benchmark `{name}`")),
                },
            }
        }
        if options.benchmarks.is_empty() {
            options.benchmarks.extend(Benchmark::ALL);
        }
        Ok(options)
    }

    /// How many rounds, where `usual` is the default.
    pub(crate) fn rounds(&self, usual: usize) -> usize {
        self.rounds.unwrap_or(usual)
    }

    /// How long a round measures, where `usual` is the default in seconds.
    pub(crate) fn measured(&self, usual: f64) -> Duration {
        Duration::from_secs_f64(self.seconds.unwrap_or(usual))
    }
}

fn number<T>(flag: &str, word: Option<&str>, least: T, most: T) -> Result<T, String>
where
    T: std::str::FromStr + std::fmt::Display + PartialOrd,
{
    let value = word.and_then(|word| word.parse().ok());
    value
        .filter(|value| (&least..=&most).contains(&value))
        .ok_or_else(|| format!("{flag} needs a number from {least} to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn without_a_name_all_run_with_their_usual_rounds() {
        let options = parse("").unwrap();
        assert_eq!((options.benchmarks.as_slice(), options.rounds(5)), (&Benchmark::ALL[..], 5));
        assert_eq!(options.measured(3.0), Duration::from_secs(3));
    }

    #[test]
    fn a_name_and_numbers_in_any_order() {
        let options = parse("--rounds 7 memory-bus --seconds 0.5").unwrap();
        assert_eq!((options.benchmarks.as_slice(), options.rounds(5)), (&[Benchmark::MemoryBus][..], 7));
        assert_eq!(options.measured(3.0), Duration::from_millis(500));
    }

    #[test]
    fn nonsense_is_named() {
        for (line, wrong) in [
            ("speed", "`speed`"),
            ("joins latency", "one benchmark"),
            ("--rounds", "--rounds needs"),
            ("--rounds 0", "from 1"),
            ("--seconds NaN", "--seconds needs"),
        ] {
            assert!(parse(line).unwrap_err().contains(wrong), "{line}");
        }
    }
}
