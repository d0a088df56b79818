//! Times in UTC: as PostgreSQL and PgBouncer print them, and as logs have them.

use std::time::{SystemTime, UNIX_EPOCH};

const DAY: u64 = 24 * 60 * 60;

/// `2026-01-31 23:59:59 UTC`. A time before 1970 is taken for 1970.
pub fn utc(time: SystemTime) -> String {
    let (date, time, _) = parts(time);
    format!("{date} {time} UTC")
}

/// `2026-01-31T23:59:59.123456Z` (RFC 3339).
pub fn rfc3339(time: SystemTime) -> String {
    let (date, time, micros) = parts(time);
    format!("{date}T{time}.{micros:06}Z")
}

/// Date, time of the day, and microseconds.
fn parts(time: SystemTime) -> (String, String, u32) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (year, month, day) = civil(seconds / DAY);
    let (hour, minute, second) = (seconds % DAY / 3600, seconds % 3600 / 60, seconds % 60);
    (
        format!("{year:04}-{month:02}-{day:02}"),
        format!("{hour:02}:{minute:02}:{second:02}"),
        since.subsec_micros(),
    )
}

/// Year, month and day of the Gregorian calendar, of days since 1970-01-01. Counts in eras of 400
/// years from 0000-03-01, so that the day that is added in leap years is a year's last.
fn civil(days: u64) -> (u64, u64, u64) {
    const ERA: u64 = 146_097;
    let days = days + 719_468;
    let (era, day) = (days / ERA, days % ERA);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Months from March on, of which five are 153 days.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (era * 400 + year + next, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_time_is_printed_as_postgresql_does() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(utc(time), text);
            let time = time + Duration::from_micros(42);
            let text = text.replace(' ', "T").replace("TUTC", ".000042Z");
            assert_eq!(rfc3339(time), text);
        }
    }
}
