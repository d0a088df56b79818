//! `pgtenant hash-password`: a SCRAM verifier for the config file, so that the password itself
//! need not be in it.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::config::{MAX_ITERATIONS, ScramVerifier};

/// PostgreSQL's default of `scram_iterations`.
pub const DEFAULT_ITERATIONS: u32 = 4096;

/// Bytes of salt, as PostgreSQL has them (`SCRAM_DEFAULT_SALT_LEN`).
const SALT: usize = 16;

/// `EX_DATAERR`: what was typed is no password.
const EX_DATAERR: u8 = 65;

/// `EX_USAGE`: the iterations are out of bounds.
const EX_USAGE: u8 = 64;

/// Reads a password from standard input, twice and without an echo if that is a terminal, else its
/// first line. The verifier goes to `out` and the result is 0; or a complaint goes to `err`.
///
/// # Errors
/// Those of the terminal, standard input, `out` and `err`.
pub fn run(iterations: u32, out: &mut impl Write, err: &mut impl Write) -> io::Result<u8> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        let password = rpassword::prompt_password("Password: ")?;
        if rpassword::prompt_password("Again: ")? != password {
            writeln!(err, "the passwords differ")?;
            return Ok(EX_DATAERR);
        }
        return answer(&password, iterations, out, err);
    }
    answer(&first_line(&mut stdin.lock())?, iterations, out, err)
}

fn first_line(input: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    input.read_line(&mut line)?;
    let line = line.strip_suffix('\n').unwrap_or(&line);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

fn answer(
    password: &str,
    iterations: u32,
    out: &mut impl Write,
    err: &mut impl Write,
) -> io::Result<u8> {
    if !(1..=MAX_ITERATIONS).contains(&iterations) {
        writeln!(err, "the iterations must be from 1 to {MAX_ITERATIONS}")?;
        return Ok(EX_USAGE);
    }
    if password.is_empty() || password.contains('\0') {
        writeln!(err, "a password must not be empty or hold a NUL")?;
        return Ok(EX_DATAERR);
    }
    writeln!(
        out,
        "{}",
        verifier(password, rand::random(), iterations).to_text()
    )?;
    Ok(0)
}

/// The verifier of a password.
pub fn verifier(password: &str, salt: [u8; SALT], iterations: u32) -> ScramVerifier {
    crate::auth::verifier(password, &salt, iterations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verifier_is_the_one_that_postgresql_makes() {
        // RFC 7677's salt; the keys are those of PostgreSQL 15 for the password "pencil".
        let salt = *b"\x5b\x6d\x99\x68\x9d\x12\x35\x8e\xec\xa0\x4b\x14\x12\x36\xfa\x81";
        assert_eq!(
            verifier("pencil", salt, 4096).to_text().to_string(),
            "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==\
             $WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=\
             :wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
        );
    }

    #[test]
    fn the_answer_is_a_verifier_with_a_new_salt_each_time() {
        let hash = || {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            assert_eq!(answer("globex", 4096, &mut out, &mut err).unwrap(), 0);
            assert!(err.is_empty());
            String::from_utf8(out).unwrap()
        };
        let (one, two) = (hash(), hash());
        assert_ne!(one, two);
        assert!(ScramVerifier::parse(one.trim_end()).is_ok());
    }

    #[test]
    fn what_cannot_be_hashed_is_refused() {
        for (password, iterations, code) in [
            ("", 4096, EX_DATAERR),
            ("a\0b", 4096, EX_DATAERR),
            ("globex", 0, EX_USAGE),
            ("globex", MAX_ITERATIONS + 1, EX_USAGE),
        ] {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            assert_eq!(
                answer(password, iterations, &mut out, &mut err).unwrap(),
                code
            );
            assert!(out.is_empty() && !err.is_empty());
        }
    }

    #[test]
    fn only_the_first_line_is_the_password() {
        for (input, password) in [
            ("globex\n", "globex"),
            ("globex\r\nmore", "globex"),
            (" a b ", " a b "),
            ("", ""),
        ] {
            assert_eq!(first_line(&mut input.as_bytes()).unwrap(), password);
        }
    }
}
