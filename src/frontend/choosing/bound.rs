//! What a Bind message gives a statement that chooses.

use std::borrow::Cow;
use std::collections::HashMap;

use bytes::BufMut;

use crate::error::{Error, Kind, Result};
use crate::sql::choice::{SetConfig, Step, Term};

use super::TEXT_OID;

/// `bool` and `json` (pg_type.dat).
const BOOL_OID: u32 = 16;
const JSON_OID: u32 = 114;
/// What clients may declare a parameter of type text to be: nothing, `text`, `unknown`, `varchar`.
const AS_TEXT: [u32; 4] = [0, TEXT_OID, 705, 1043];

/// Values of parameters, and the formats of the columns.
#[derive(Debug, Clone, Default)]
pub struct Bound {
    /// None is NULL; and whether it is in binary.
    values: Vec<(Option<Vec<u8>>, bool)>,
    formats: Vec<i16>,
}

impl Bound {
    /// The text of a term; None within is NULL. None: it is not known, or not UTF-8.
    pub fn text<'t>(&'t self, term: &'t Term) -> Option<Option<Cow<'t, str>>> {
        Some(match term {
            Term::Null => None,
            Term::Literal(text) => Some(Cow::Borrowed(text)),
            Term::Parameter(number) => match self.value(*number)? {
                (None, _) => None,
                (Some(bytes), _) => Some(Cow::Borrowed(std::str::from_utf8(bytes).ok()?)),
            },
        })
    }

    /// The text of an argument whose type is not known; None within is NULL. In binary, what is no
    /// text is taken for a number or a UUID. None: it is not known.
    pub fn argument<'t>(&'t self, term: &'t Term) -> Option<Option<Cow<'t, str>>> {
        let Term::Parameter(number) = term else {
            return self.text(term);
        };
        let (Some(bytes), true) = self.value(*number)? else {
            return self.text(term);
        };
        let is_text = |text: &&str| !text.chars().any(char::is_control);
        if let Some(text) = std::str::from_utf8(bytes).ok().filter(is_text) {
            return Some(Some(Cow::Borrowed(text)));
        }
        let text = if let Ok(bytes) = <[u8; 2]>::try_from(&bytes[..]) {
            i16::from_be_bytes(bytes).to_string()
        } else if let Ok(bytes) = <[u8; 4]>::try_from(&bytes[..]) {
            i32::from_be_bytes(bytes).to_string()
        } else if let Ok(bytes) = <[u8; 8]>::try_from(&bytes[..]) {
            i64::from_be_bytes(bytes).to_string()
        } else {
            let bytes = <[u8; 16]>::try_from(&bytes[..]).ok()?;
            let hex = format!("{:032x}", u128::from_be_bytes(bytes));
            let (a, b, c, d, e) = (
                &hex[..8],
                &hex[8..12],
                &hex[12..16],
                &hex[16..20],
                &hex[20..],
            );
            format!("{a}-{b}-{c}-{d}-{e}")
        };
        Some(Some(Cow::Owned(text)))
    }

    /// A boolean as PostgreSQL reads it (bool.c: parse_bool_with_len); NULL is false to
    /// `set_config`.
    pub fn boolean(&self, term: &Term) -> Option<bool> {
        if let Term::Parameter(number) = term
            && let (Some(bytes), true) = self.value(*number)?
        {
            return match bytes[..] {
                [byte] => Some(byte != 0),
                _ => None,
            };
        }
        let Some(text) = self.text(term)? else {
            return Some(false);
        };
        let text = text.trim().to_ascii_lowercase();
        let begins = |word: &str, least: usize| text.len() >= least && word.starts_with(&*text);
        match () {
            () if begins("true", 1) || begins("yes", 1) || text == "on" || text == "1" => {
                Some(true)
            }
            () if begins("false", 1) || begins("no", 1) || begins("off", 2) || text == "0" => {
                Some(false)
            }
            () => None,
        }
    }

    fn value(&self, number: u16) -> Option<&(Option<Vec<u8>>, bool)> {
        self.values.get(usize::from(number).checked_sub(1)?)
    }

    pub fn formats(&self) -> &[i16] {
        &self.formats
    }
}

/// The types of a statement's parameters, `given` by the end of its Parse. None: they are declared
/// to be what the statement does not take.
pub fn types_of(step: &Step, given: &[u8]) -> Option<Vec<u32>> {
    if let Step::Call(_, _, parameters) = step {
        let (count, given) = given.split_first_chunk::<2>()?;
        let declared = given.chunks_exact(4);
        let declared = declared.filter_map(|oid| oid.try_into().ok().map(u32::from_be_bytes));
        let mut types: Vec<u32> = declared.collect();
        types.resize(
            (*parameters).max(usize::from(u16::from_be_bytes(*count))),
            0,
        );
        return Some(types);
    }
    let mut types = Vec::new();
    let mut note = |term: &Term, oid: u32| {
        if let Term::Parameter(number) = term {
            let at = usize::from(*number);
            if types.len() < at {
                types.resize(at, 0);
            }
            if let Some(slot) = at.checked_sub(1).and_then(|at| types.get_mut(at)) {
                *slot = oid;
            }
        }
    };
    let mut call = |call: &SetConfig| {
        note(&call.name, TEXT_OID);
        note(&call.value, TEXT_OID);
        note(&call.is_local, BOOL_OID);
    };
    match step {
        Step::SetConfig(one, _) => call(one),
        Step::SetConfigs(calls) => calls.iter().for_each(|(one, _)| call(one)),
        Step::FromJson(term) => note(term, JSON_OID),
        _ => {}
    }
    let (_, given) = given.split_first_chunk::<2>()?;
    for (i, declared) in given.chunks_exact(4).enumerate() {
        let declared = u32::from_be_bytes(declared.try_into().ok()?);
        let own = types.get_mut(i)?;
        match *own {
            TEXT_OID if AS_TEXT.contains(&declared) => {
                // What is told is what was declared, but for `unknown`.
                *own = if declared == 1043 { declared } else { TEXT_OID };
            }
            own if declared == own || declared == 0 || declared == 705 => {}
            JSON_OID if declared == TEXT_OID => {}
            _ => return None,
        }
    }
    // A parameter of no use has no type to PostgreSQL either.
    (!types.contains(&0)).then_some(types)
}

/// What is behind the names of a Bind, cut but not read.
struct Parts<'p> {
    formats: Vec<i16>,
    /// None is NULL.
    values: Vec<Option<&'p [u8]>>,
    columns: Vec<i16>,
}

/// `check` is given the number of parameters before they are cut.
///
/// # Errors
/// 08P01 as PostgreSQL says it (postgres.c: exec_bind_message); those of `check`.
fn parts(mut rest: &[u8], check: impl FnOnce(usize) -> Result<()>) -> Result<Parts<'_>> {
    let arguments = arguments(&mut rest, check)?;
    Ok(Parts {
        columns: formats(&mut rest)?,
        ..arguments
    })
}

fn malformed() -> Error {
    Error::new(Kind::ProtocolViolation, "invalid message format")
}

fn take<'r>(rest: &mut &'r [u8], bytes: usize) -> Result<&'r [u8]> {
    let (taken, left) = rest.split_at_checked(bytes).ok_or_else(malformed)?;
    *rest = left;
    Ok(taken)
}

fn number(bytes: &[u8]) -> i16 {
    bytes.try_into().map(i16::from_be_bytes).unwrap_or_default()
}

fn count(rest: &mut &[u8]) -> Result<usize> {
    usize::try_from(number(take(rest, 2)?)).map_err(|_| malformed())
}

/// A list of formats behind its length.
fn formats(rest: &mut &[u8]) -> Result<Vec<i16>> {
    let formats = count(rest)?;
    Ok(take(rest, 2 * formats)?
        .chunks_exact(2)
        .map(number)
        .collect())
}

/// The name and the value that a FunctionCall of `set_config` has, `rest` behind the oid. None: it
/// is not read.
pub fn set_by_call(mut rest: &[u8]) -> Option<(String, String)> {
    let values = arguments(&mut rest, |_| Ok(())).ok()?.values;
    let text = |value: &Option<&[u8]>| {
        let text = std::str::from_utf8(value.unwrap_or_default());
        text.ok().map(str::to_owned)
    };
    match &values[..] {
        [name, value, _] => Some((text(name)?, text(value)?)),
        _ => None,
    }
}

/// The formats and values, which Bind and FunctionCall have alike; no columns.
fn arguments<'r>(
    rest: &mut &'r [u8],
    check: impl FnOnce(usize) -> Result<()>,
) -> Result<Parts<'r>> {
    let formats = formats(rest)?;
    let given = count(rest)?;
    check(given)?;
    let mut values = Vec::with_capacity(given);
    for _ in 0..given {
        let length = take(rest, 4)?.try_into();
        let length = length.map(i32::from_be_bytes).unwrap_or(-1);
        values.push(match usize::try_from(length) {
            Ok(length) => Some(take(rest, length)?),
            Err(_) => None,
        });
    }
    Ok(Parts {
        formats,
        values,
        columns: Vec::new(),
    })
}

/// Reads the rest of a Bind, behind its names, for a statement of so many parameters.
///
/// # Errors
/// 08P01 as PostgreSQL says it (postgres.c: exec_bind_message).
pub fn bound(rest: &[u8], parameters: usize, name: &[u8]) -> Result<Bound> {
    let check = |given: usize| {
        let message = || {
            format!(
                "bind message supplies {given} parameters, but prepared statement \"{}\" requires {parameters}",
                String::from_utf8_lossy(name)
            )
        };
        match given == parameters {
            true => Ok(()),
            false => Err(Error::new(Kind::ProtocolViolation, message())),
        }
    };
    let Parts {
        formats,
        values,
        columns,
    } = parts(rest, check)?;
    let format = |i: usize| match formats[..] {
        [one] => one,
        _ => formats.get(i).copied().unwrap_or_default(),
    };
    let values = values.into_iter().enumerate();
    Ok(Bound {
        values: values
            .map(|(i, value)| (value.map(<[u8]>::to_vec), format(i) == 1))
            .collect(),
        formats: columns,
    })
}

/// The rest of a Bind, behind its names, with these texts for those of its parameters that are
/// empty or NULL, by their numbers. None: there are none.
pub fn filled(rest: &[u8], texts: &HashMap<u16, &str>) -> Option<Vec<u8>> {
    let parts = parts(rest, |_| Ok(())).ok()?;
    let empty = |(i, value): (usize, &Option<&[u8]>)| {
        let number = u16::try_from(i + 1).ok()?;
        let text = texts.get(&number)?;
        value.unwrap_or_default().is_empty().then_some((i, *text))
    };
    let filled: Vec<_> = (parts.values.iter().enumerate())
        .filter_map(empty)
        .collect();
    if filled.is_empty() {
        return None;
    }
    let mut values = parts.values;
    for (i, text) in filled {
        values[i] = Some(text.as_bytes());
    }
    let mut message = Vec::with_capacity(rest.len() + 64);
    let numbers = |message: &mut Vec<u8>, numbers: &[i16]| {
        message.put_u16(u16::try_from(numbers.len()).unwrap_or_default());
        numbers.iter().for_each(|number| message.put_i16(*number));
    };
    numbers(&mut message, &parts.formats);
    message.put_u16(u16::try_from(values.len()).unwrap_or_default());
    for value in values {
        match value {
            None => message.put_i32(-1),
            Some(value) => {
                message.put_i32(i32::try_from(value.len()).unwrap_or_default());
                message.put_slice(value);
            }
        }
    }
    numbers(&mut message, &parts.columns);
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bind_is_read_with_its_formats() {
        let message = [
            &[0, 1, 0, 1][..],
            &[0, 2],
            &[0, 0, 0, 1, b'a'],
            &[0, 0, 0, 1, 1],
            &[0, 1, 0, 1],
        ]
        .concat();
        let bound = super::bound(&message, 2, b"").unwrap();
        assert_eq!(bound.text(&Term::Parameter(1)), Some(Some("a".into())));
        assert_eq!(bound.boolean(&Term::Parameter(2)), Some(true));
        assert_eq!(bound.formats(), [1]);
        for cut in 0..message.len() {
            assert!(super::bound(&message[..cut], 2, b"").is_err(), "{cut}");
        }
        assert!(super::bound(&message, 1, b"x").is_err());
    }

    #[test]
    fn what_is_empty_in_a_bind_is_filled() {
        let of = |first: &[u8]| {
            let second = [&[0, 0, 0, 1][..], b"t"].concat();
            [&[0, 1, 0, 1, 0, 2][..], first, &second, &[0, 1, 0, 1]].concat()
        };
        let texts = HashMap::from([(1, "own"), (2, "not")]);
        let own = of(&[&[0, 0, 0, 3][..], b"own"].concat());
        for empty in [&[0xff, 0xff, 0xff, 0xff][..], &[0, 0, 0, 0]] {
            assert_eq!(filled(&of(empty), &texts), Some(own.clone()));
        }
        assert_eq!(filled(&own, &texts), None);
    }

    #[test]
    fn booleans_are_read_as_postgresql_reads_them() {
        let read = |text: &str| Bound::default().boolean(&Term::Literal(text.to_owned()));
        for text in ["t", "TRUE", "y", "yes", "on", "1", " tr "] {
            assert_eq!(read(text), Some(true), "{text}");
        }
        for text in ["f", "false", "n", "no", "of", "off", "0"] {
            assert_eq!(read(text), Some(false), "{text}");
        }
        for text in ["", "o", "2", "truth"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
