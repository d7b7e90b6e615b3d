//! How many tests passed, failed and were skipped, read from what the test programs print.

use std::iter::Sum;
use std::ops::Add;

/// Numbers of tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Count {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Count {
    /// One test that passed.
    pub(crate) const PASSED: Self = Self {
        passed: 1,
        failed: 0,
        skipped: 0,
    };
    /// One test that failed.
    pub(crate) const FAILED: Self = Self {
        passed: 0,
        failed: 1,
        skipped: 0,
    };

    /// Adds up the `test result:` lines of a program; `None` if it printed none (it broke off).
    pub(crate) fn of_output(text: &str) -> Option<Self> {
        let results: Vec<Self> = text
            .lines()
            .filter_map(|l| l.strip_prefix("test result: "))
            .map(Self::line)
            .collect();
        (!results.is_empty()).then(|| results.into_iter().sum())
    }

    /// `ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`
    fn line(line: &str) -> Self {
        let number = |word: &str| {
            let before = line.split(word).next()?.trim_end();
            before.rsplit([' ', ';']).next()?.parse().ok()
        };
        Self {
            passed: number("passed").unwrap_or_default(),
            failed: number("failed").unwrap_or_default(),
            skipped: number("ignored").unwrap_or_default(),
        }
    }
}

impl Add for Count {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

impl Sum for Count {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up_and_a_program_that_broke_off_has_none() {
        let text = "running 3 tests\ntest result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; \
                    0 filtered out; finished in 0.00s\n\ntest result: FAILED. 12 passed; 3 failed; \
                    0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n";
        let expected = Count {
            passed: 14,
            failed: 3,
            skipped: 1,
        };
        assert_eq!(Count::of_output(text), Some(expected));
        assert_eq!(Count::of_output("running 3 tests\nsignal: 11"), None);
    }
}
