//! Points in time as Kubernetes writes them: `2026-11-22T14:02:11Z`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Milliseconds since 1970, written as RFC 3339 in UTC with whole seconds when they are whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(pub u64);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, ms_of_day) = (self.0 / 86_400_000, self.0 % 86_400_000);
        let (year, month, day) = civil(days);
        let seconds = ms_of_day / 1000;
        let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}")?;
        match ms_of_day % 1000 {
            0 => f.write_str("Z"),
            ms => write!(f, ".{ms:03}Z"),
        }
    }
}

/// Days since 1970 to year, month, day; Howard Hinnant's `civil_from_days`, for dates after 1970.
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + u64::from(month <= 2), month, day)
}

/// The inverse: Hinnant's `days_from_civil`.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let y = year - u64::from(month <= 2);
    let (era, yoe) = (y / 400, y % 400);
    let mp = (month + 9) % 12;
    let doy = (153 * mp + 2) / 5 + day - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

impl FromStr for Timestamp {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a time (as in 2026-11-22T14:02:11Z)");
        let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
        let (date, time) = text
            .strip_suffix('Z')
            .and_then(|t| t.split_once('T'))
            .ok_or_else(wrong)?;
        let date: Vec<_> = date.split('-').map(number).collect::<Result<_, _>>()?;
        let (time, part) = time.split_once('.').unwrap_or((time, "0"));
        let time: Vec<_> = time.split(':').map(number).collect::<Result<_, _>>()?;
        let part: String = part.chars().chain("000".chars()).take(3).collect();
        match (&date[..], &time[..]) {
            (
                &[year @ 1970..=9999, month @ 1..=12, day @ 1..=31],
                &[h @ 0..24, m @ 0..60, s @ 0..61],
            ) => {
                let seconds = days(year, month, day) * 86_400 + h * 3600 + m * 60 + s;
                Ok(Self(seconds * 1000 + number(&part)?))
            }
            _ => Err(wrong()),
        }
    }
}

impl TryFrom<String> for Timestamp {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> String {
        time.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_people_and_kubernetes_do_and_come_back() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_795_356_131_000, "2026-11-22T14:02:11Z"),
            (1_795_356_131_042, "2026-11-22T14:02:11.042Z"),
            (4_102_444_799_000, "2099-12-31T23:59:59Z"),
        ];
        for (ms, text) in cases {
            assert_eq!(Timestamp(ms).to_string(), text);
            assert_eq!(text.parse(), Ok(Timestamp(ms)));
        }
        assert!("2026-13-01T00:00:00Z".parse::<Timestamp>().is_err());
        assert!("yesterday".parse::<Timestamp>().is_err());
    }
}
