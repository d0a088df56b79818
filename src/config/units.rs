//! Values with a unit as people write them: durations, sizes and counts.

use std::fmt;
use std::marker::PhantomData;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, IntoDeserializer, MapAccess, Visitor};

/// Longest duration accepted. Beyond a year a mistake is likelier than an intention.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Smallest and largest size of a file accepted, in bytes.
const SIZES: std::ops::RangeInclusive<u64> = 4 << 10..=1 << 40;

/// A duration in the file: `500ms`, `15s`, `10m`, `1h`, `2d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Period(pub Duration);

/// A size in bytes in the file, with PostgreSQL's units: `64kB`, `100MB`, `1GB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

/// A whole number in the file. Text made of digits counts too, because that is what an environment
/// variable gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count(pub u64);

/// A length of time that something may take; None, written as `0`: any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub Option<Duration>);

/// A point in time in the file, as RFC 3339 has it: `2026-12-31T23:59:59Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(pub SystemTime);

/// A rate in the file: a value for each second, or `{ rate: 100, burst: 200 }`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateFile<V> {
    /// None: it is not given, which is a mistake.
    pub rate: Option<V>,
    /// Default: what goes in one second.
    pub burst: Option<V>,
}

/// The second form of it.
#[derive(Debug, Deserialize)]
#[serde(default, bound = "V: Deserialize<'de>", expecting = "a mapping")]
pub struct RateParts<V> {
    /// For each second. Required.
    pub rate: Option<V>,
    /// At once, after a while with nothing. Default: what goes in one second.
    pub burst: Option<V>,
}

impl<V> Default for RateParts<V> {
    fn default() -> Self {
        Self {
            rate: None,
            burst: None,
        }
    }
}

/// Reads `15s` and the like.
///
/// # Errors
/// What is wrong, as the end of a sentence that begins with the setting.
pub fn duration(text: &str) -> Result<Duration, String> {
    let (amount, unit) = amount(text).ok_or("must be a duration such as 15s")?;
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60 * 1000,
        "h" => 60 * 60 * 1000,
        "d" => 24 * 60 * 60 * 1000,
        "" => {
            return Err(format!(
                "needs a unit: {text}ms, {text}s, {text}m, {text}h or {text}d"
            ));
        }
        other => return Err(format!("has the unit {other:?}: must be ms, s, m, h or d")),
    };
    let duration = Duration::from_millis(amount.saturating_mul(milliseconds));
    if duration.is_zero() || duration > LONGEST {
        return Err("must be from 1ms to 365d".to_owned());
    }
    Ok(duration)
}

/// Reads `100MB` and the like, into bytes.
fn size(text: &str) -> Result<u64, String> {
    let (amount, unit) = amount(text).ok_or("must be a size such as 100MB")?;
    let bytes: u64 = match unit {
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "" => return Err(format!("needs a unit: {text}kB, {text}MB or {text}GB")),
        other => return Err(format!("has the unit {other:?}: must be kB, MB or GB")),
    };
    let size = amount.saturating_mul(bytes);
    match SIZES.contains(&size) {
        true => Ok(size),
        false => Err("must be from 4kB to 1024GB".to_owned()),
    }
}

/// The number that a text begins with, and its unit.
fn amount(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    // A number too long for 64 bits is too large in any unit.
    (!number.is_empty()).then(|| (number.parse().unwrap_or(u64::MAX), unit.trim()))
}

/// A text that `read` makes a value of. A number without a unit is one, too.
struct Text<T> {
    expected: &'static str,
    read: fn(&str) -> Result<T, String>,
}

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.read)(text).map_err(E::custom)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text {
            expected: "a duration such as 15s",
            read: duration,
        };
        deserializer.deserialize_any(text).map(Self)
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text {
            expected: "a duration such as 15s, or 0 for no limit",
            read: |text| match text {
                "0" => Ok(None),
                text => duration(text).map(Some),
            },
        };
        deserializer.deserialize_any(text).map(Self)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text {
            expected: "a time such as 2026-12-31T23:59:59Z",
            read: |text| {
                let time = humantime::parse_rfc3339(text);
                time.map_err(|_| "must be a time such as 2026-12-31T23:59:59Z".to_owned())
            },
        };
        deserializer.deserialize_any(text).map(Self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Text {
            expected: "a size such as 100MB",
            read: size,
        };
        deserializer.deserialize_any(text).map(Self)
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Count, E> {
                Ok(Count(number))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Count, E> {
                u64::try_from(number)
                    .map(Count)
                    .map_err(|_| E::custom("must not be negative"))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Count, E> {
                text.parse()
                    .map(Count)
                    .map_err(|_| E::custom("must be a whole number"))
            }
        }
        deserializer.deserialize_any(Number)
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for RateFile<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Either<V> {
            type Value = RateFile<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value for each second, or a mapping with `rate` and `burst`")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
                plain(V::deserialize(number.into_deserializer()))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
                plain(V::deserialize(number.into_deserializer()))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                plain(V::deserialize(text.into_deserializer()))
            }

            fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Self::Value, M::Error> {
                let parts = RateParts::deserialize(MapAccessDeserializer::new(map))?;
                Ok(RateFile {
                    rate: parts.rate,
                    burst: parts.burst,
                })
            }
        }
        fn plain<V, E>(rate: Result<V, E>) -> Result<RateFile<V>, E> {
            Ok(RateFile {
                rate: Some(rate?),
                burst: None,
            })
        }
        deserializer.deserialize_any(Either(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_number_and_a_unit() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("15s", 15_000),
            ("10m", 600_000),
            ("1h", 3_600_000),
            ("2d", 172_800_000),
            ("365d", 31_536_000_000),
            ("10 s", 10_000),
        ] {
            assert_eq!(
                duration(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
    }

    #[test]
    fn a_duration_that_cannot_be_meant_says_why() {
        for (text, why) in [
            ("15", "needs a unit: 15ms, 15s, 15m, 15h or 15d"),
            ("", "must be a duration such as 15s"),
            ("-1s", "must be a duration such as 15s"),
            ("soon", "must be a duration such as 15s"),
            ("1.5s", "has the unit \".5s\": must be ms, s, m, h or d"),
            ("15sec", "has the unit \"sec\": must be ms, s, m, h or d"),
            ("0s", "must be from 1ms to 365d"),
            ("366d", "must be from 1ms to 365d"),
            ("99999999999999999999999999d", "must be from 1ms to 365d"),
            ("18446744073709551615d", "must be from 1ms to 365d"),
        ] {
            assert_eq!(duration(text), Err(why.to_owned()), "{text}");
        }
    }
    #[test]
    fn sizes_are_a_number_and_a_unit_of_postgresql() {
        for (text, read) in [
            ("4kB", Ok(4096)),
            ("100MB", Ok(100 << 20)),
            ("2 GB", Ok(2 << 30)),
            ("1024GB", Ok(1 << 40)),
            ("100", Err("needs a unit: 100kB, 100MB or 100GB")),
            ("100mb", Err("has the unit \"mb\": must be kB, MB or GB")),
            ("big", Err("must be a size such as 100MB")),
            ("3kB", Err("must be from 4kB to 1024GB")),
            ("18446744073709551615GB", Err("must be from 4kB to 1024GB")),
        ] {
            assert_eq!(size(text), read.map_err(str::to_owned), "{text}");
        }
    }
}
