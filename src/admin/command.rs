//! What a user of the console may say: SHOW and RELOAD. SET is accepted and does nothing, because
//! drivers send it unasked.

use crate::admin::show::{self, Show};
use crate::error::{Error, Kind, Result};

#[derive(Debug, Clone, Copy)]
pub enum Command {
    Show(&'static Show),
    Reload,
    Set,
}

impl Command {
    /// Reads one command; semicolons may follow it.
    ///
    /// # Errors
    /// 42601.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim_matches(|c: char| c == ';' || c.is_whitespace());
        let words: Vec<&str> = text.split_whitespace().collect();
        let is = |word: &str, command: &str| word.eq_ignore_ascii_case(command);
        match words[..] {
            [show, what] if is(show, "show") => show::find(what).map(Self::Show),
            [reload] if is(reload, "reload") => Some(Self::Reload),
            [set, _, ..] if is(set, "set") && !text.contains(';') => Some(Self::Set),
            _ => None,
        }
        .ok_or_else(|| {
            Error::new(Kind::SyntaxError, "this is not a command of the console")
                .with_hint("Try SHOW HELP.")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_read_in_any_case_with_spaces_and_semicolons() {
        for text in [
            "SHOW HELP",
            "show help;",
            " \n Show\tHELP ; ;",
            "sHoW tenants",
        ] {
            assert!(
                matches!(Command::parse(text), Ok(Command::Show(_))),
                "{text}"
            );
        }
        assert!(matches!(Command::parse("reload;"), Ok(Command::Reload)));
        for text in ["SET extra_float_digits = 3", "set application_name to 'x';"] {
            assert!(matches!(Command::parse(text), Ok(Command::Set)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_a_syntax_error_with_a_hint() {
        for text in [
            "SELECT 1",
            "SHOW",
            "SHOW ALL",
            "SHOW HELP; SHOW HELP",
            "SHOW HELP x",
            "RELOAD now",
            "SET",
            "SET x = 1; RELOAD",
            "SHOWHELP",
        ] {
            let error = Command::parse(text).unwrap_err();
            assert_eq!(error.sqlstate(), "42601", "{text}");
            assert_eq!(error.hint(), Some("Try SHOW HELP."), "{text}");
        }
    }
}
