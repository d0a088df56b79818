//! How often each SQLSTATE was answered to a tenant. Errors are few beside statements, so that a
//! lock and a short list do.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Codes that are told apart. An application may raise any of its own, so there is an end.
const MOST: usize = 64;

#[derive(Debug, Default)]
pub struct Sqlstates(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    known: Vec<([u8; 5], u64)>,
    others: u64,
}

impl Sqlstates {
    /// `body`: of an ErrorResponse, or its beginning. One without a code is none.
    pub fn count(&self, body: &[u8]) {
        let mut fields = body.split(|byte| *byte == 0);
        let code = fields.find_map(|field| field.strip_prefix(b"C"));
        let Some(code) = code.and_then(|code| <[u8; 5]>::try_from(code).ok()) else {
            return;
        };
        let mut counts = self.counts();
        if let Some((_, count)) = counts.known.iter_mut().find(|(known, _)| *known == code) {
            *count += 1;
        } else if counts.known.len() < MOST {
            counts.known.push((code, 1));
        } else {
            counts.others += 1;
        }
    }

    /// By code; those beyond the first [`MOST`] are `others`, which come last, if there are any.
    pub fn all(&self) -> Vec<(String, u64)> {
        let counts = self.counts();
        let known = counts.known.iter();
        let mut all: Vec<_> = known
            .map(|(code, count)| (code.escape_ascii().to_string(), *count))
            .collect();
        all.sort();
        if counts.others > 0 {
            all.push(("others".to_owned(), counts.others));
        }
        all
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_is_counted_and_no_application_makes_the_list_long() {
        let counts = Sqlstates::default();
        assert_eq!(counts.all(), []);
        for body in [
            &b"SERROR\0VERROR\0C42P01\0Mno C22012\0\0"[..],
            b"SERROR\0VERROR\0C22012\0Mdivision by zero\0\0",
            b"SERROR\0VERROR\0C42P01\0",
            // Without a code, or with half of one.
            b"SERROR\0Mwhat\0\0",
            b"SERROR\0C42\0\0",
            b"",
        ] {
            counts.count(body);
        }
        let two = [("22012".to_owned(), 1), ("42P01".to_owned(), 2)];
        assert_eq!(counts.all(), two);
        for code in 0..100 {
            counts.count(format!("SERROR\0CX{code:04}\0\0").as_bytes());
        }
        let all = counts.all();
        assert_eq!(all.len(), MOST + 1);
        assert_eq!(all[MOST], ("others".to_owned(), 100 - (MOST as u64 - 2)));
    }
}
