//! How figures are printed and judged.

use std::fmt;

/// The middle one; the mean of the two in the middle. Zero of nothing.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

/// One row for each round and one with the medians, columns aligned.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
}

#[derive(Debug)]
struct Column {
    name: String,
    decimals: usize,
    figures: Vec<f64>,
}

impl Table {
    /// A table with these columns: names, and digits behind the point.
    pub(crate) fn new(columns: &[(&str, usize)]) -> Self {
        let columns = columns.iter().map(|(name, decimals)| Column {
            name: (*name).to_owned(),
            decimals: *decimals,
            figures: Vec::new(),
        });
        Self { columns: columns.collect() }
    }

    /// Adds the figures of a round, one for each column.
    pub(crate) fn round<const N: usize>(&mut self, figures: [f64; N]) {
        assert_eq!(N, self.columns.len(), "a figure for each column");
        for (column, figure) in self.columns.iter_mut().zip(figures) {
            column.figures.push(figure);
        }
    }

    /// The median of a column.
    pub(crate) fn median(&self, column: usize) -> f64 {
        median(&self.columns[column].figures)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.columns.first().map_or(0, |column| column.figures.len());
        let names = (1..=rows).map(|round| format!("round {round}")).chain(["median".to_owned()]);
        write!(f, "  {:<9}", "")?;
        for column in &self.columns {
            write!(f, "  {:>width$}", column.name, width = column.width())?;
        }
        for (row, name) in names.enumerate() {
            write!(f, "\n  {name:<9}")?;
            for column in &self.columns {
                let figure = column.figures.get(row).copied().unwrap_or_else(|| median(&column.figures));
                write!(f, "  {:>width$}", thousands(figure, column.decimals), width = column.width())?;
            }
        }
        Ok(())
    }
}

impl Column {
    fn width(&self) -> usize {
        let figures = self.figures.iter().map(|figure| thousands(*figure, self.decimals).len());
        figures.chain([self.name.chars().count()]).max().unwrap_or(0)
    }
}

/// `1,234,567.8`
fn thousands(figure: f64, decimals: usize) -> String {
    let text = format!("{figure:.decimals$}");
    let digits = text.find('.').unwrap_or(text.len());
    let mut grouped = String::with_capacity(text.len() + text.len() / 3);
    for (index, character) in text.char_indices() {
        let grouping = index > 0 && index < digits && (digits - index).is_multiple_of(3);
        if grouping && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(character);
    }
    grouped
}

/// What a figure is held against. One that merely misses its bound is printed as such, since machines differ; one that
/// is far from it fails the run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    /// A ratio: fails below half.
    RatioAtLeast(f64),
    /// A ratio: fails above twice.
    RatioAtMost(f64),
    /// A rate, which depends on the machine: fails below a fifth.
    RateAtLeast(f64),
    /// A time, which depends on the machine: fails above five times.
    TimeAtMost(f64),
    /// Milliseconds, which depend on the machine: fails above five times.
    MillisecondsAtMost(f64),
    /// A count: fails above it.
    CountAtMost(f64),
}

impl Bound {
    fn is_kept(self, figure: f64) -> bool {
        match self {
            Self::RatioAtLeast(bound) | Self::RateAtLeast(bound) => figure >= bound,
            Self::RatioAtMost(bound)
            | Self::TimeAtMost(bound)
            | Self::MillisecondsAtMost(bound)
            | Self::CountAtMost(bound) => figure <= bound,
        }
    }

    /// What still does not fail the run.
    fn limit(self) -> Self {
        match self {
            Self::RatioAtLeast(bound) => Self::RatioAtLeast(bound / 2.0),
            Self::RatioAtMost(bound) => Self::RatioAtMost(bound * 2.0),
            Self::RateAtLeast(bound) => Self::RateAtLeast(bound / 5.0),
            Self::TimeAtMost(bound) => Self::TimeAtMost(bound * 5.0),
            Self::MillisecondsAtMost(bound) => Self::MillisecondsAtMost(bound * 5.0),
            Self::CountAtMost(bound) => Self::CountAtMost(bound),
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RatioAtLeast(bound) => write!(f, "at least {bound:.2}"),
            Self::RatioAtMost(bound) => write!(f, "at most {bound:.2}"),
            Self::RateAtLeast(bound) => write!(f, "at least {}/s", thousands(*bound, 0)),
            Self::TimeAtMost(bound) => write!(f, "at most {bound:.2} s"),
            Self::MillisecondsAtMost(bound) => write!(f, "at most {bound:.2} ms"),
            Self::CountAtMost(bound) => write!(f, "at most {}", thousands(*bound, 0)),
        }
    }
}

/// A figure beside its bound.
#[derive(Debug)]
pub(crate) struct Verdict {
    what: String,
    figure: f64,
    bound: Bound,
}

impl Verdict {
    pub(crate) fn new(what: impl Into<String>, figure: f64, bound: Bound) -> Self {
        Self { what: what.into(), figure, bound }
    }

    /// Whether the run fails for it. A figure that is none fails too.
    pub(crate) fn is_failure(&self) -> bool {
        !self.bound.limit().is_kept(self.figure)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, figure, bound } = self;
        let decimals = match bound {
            Bound::RatioAtLeast(_)
            | Bound::RatioAtMost(_)
            | Bound::TimeAtMost(_)
            | Bound::MillisecondsAtMost(_) => 3,
            Bound::RateAtLeast(_) | Bound::CountAtMost(_) => 0,
        };
        write!(f, "{what}: {}, bound {bound}: ", thousands(*figure, decimals))?;
        if self.is_failure() {
            write!(f, "FAILED, the run allows {}", bound.limit())
        } else if bound.is_kept(*figure) {
            f.write_str("kept")
        } else {
            write!(f, "MISSED, the run fails beyond {}", bound.limit())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_thousands() {
        assert_eq!((median(&[]), median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0])), (0.0, 2.0, 2.5));
        let texts = [(0.0, 0), (999.0, 0), (1_234_567.0, 0), (-1_000.25, 2)].map(|(f, d)| thousands(f, d));
        assert_eq!(texts, ["0", "999", "1,234,567", "-1,000.25"]);
    }

    #[test]
    fn a_missed_bound_is_said_and_half_of_it_fails() {
        let verdict = |figure| Verdict::new("ratio", figure, Bound::RatioAtLeast(0.6));
        assert!(verdict(0.7).to_string().ends_with("kept"));
        assert!(verdict(0.4).to_string().contains("MISSED") && !verdict(0.4).is_failure());
        assert!(verdict(0.29).to_string().contains("FAILED") && verdict(0.29).is_failure());
        assert!(verdict(f64::NAN).is_failure());
        assert!(Verdict::new("commands", 201.0, Bound::CountAtMost(200.0)).is_failure());
    }
}
