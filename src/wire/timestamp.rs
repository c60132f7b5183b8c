//! A moment as RFC 3339 text: UTC, milliseconds, `Z`.

use std::fmt;

/// The last millisecond that RFC 3339 can write: the end of the year 9999.
const LAST: u64 = 253_402_300_799_999;

/// Milliseconds since 1970, of which what lies after the year 9999 is cut off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timestamp {
    second: Second,
    millis: u64,
}

/// A whole second, written `2026-11-30T12:00:00`: what many events of a run share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Second(u64);

impl Timestamp {
    pub(crate) fn new(ms: u64) -> Self {
        let ms = ms.min(LAST);
        Self {
            second: Second(ms / 1000),
            millis: ms % 1000,
        }
    }

    pub(crate) fn second(self) -> Second {
        self.second
    }

    /// From 0 to 999.
    pub(crate) fn millis(self) -> u64 {
        self.millis
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}Z", self.second, self.millis)
    }
}

impl fmt::Display for Second {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil_from_days(self.0 / 86_400);
        let (hour, minute, second) = (self.0 / 3600 % 24, self.0 / 60 % 60, self.0 % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
        )
    }
}

/// Year, month and day of a day counted from 1970-01-01.
///
/// Howard Hinnant's `civil_from_days` without its case for days before the year 0:
/// <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>. It counts eras of 400 years that begin
/// on the first of March, so that the leap day is the last of its year.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let months_since_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * months_since_march + 2) / 5 + 1;
    let (month, next_year) = if months_since_march < 10 {
        (months_since_march + 3, 0)
    } else {
        (months_since_march - 9, 1)
    };
    (era * 400 + year_of_era + next_year, month, day)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    /// Each day from 1970 to 9999 is the day after the one before, by the Gregorian rule for leap years.
    #[test]
    fn every_day_follows_the_one_before() {
        let last_year = if cfg!(miri) { 1973 } else { 9999 };
        let (mut day, mut expected) = (0, (1970, 1, 1));
        while expected.0 <= last_year {
            assert_eq!(civil_from_days(day), expected);
            let (year, month, day_of_month) = expected;
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 => 28 + u64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            expected = match (month, day_of_month) {
                (12, 31) => (year + 1, 1, 1),
                (_, last) if last == length => (year, month + 1, 1),
                _ => (year, month, day_of_month + 1),
            };
            day += 1;
        }
    }

    /// Moments known from elsewhere (GNU date) are written as there, and none is later than the year 9999.
    #[test]
    fn known_moments() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_210_096_007, "2024-02-29T12:34:56.007Z"),
            (4_107_542_400_010, "2100-03-01T00:00:00.010Z"),
            (LAST, "9999-12-31T23:59:59.999Z"),
            (LAST + 1, "9999-12-31T23:59:59.999Z"),
            (u64::MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Timestamp::new(ms).to_string(), text);
        }
    }
}
