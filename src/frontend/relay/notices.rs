//! Warnings of PostgreSQL's that name a parameter which another client of the server connection has
//! set.
//!
//! Parameters of an application's own (`my_app.user`) are placeholders, and nothing takes a
//! placeholder off a session: DISCARD ALL empties its value and leaves its name. A library that is
//! loaded later and reserves the prefix of some removes them, and warns of each by its name
//! (MarkGUCPrefixReserved in guc.c; before PostgreSQL 15 EmitWarningsOnPlaceholders).

use crate::backend::binding::Settings;
use crate::frontend::state::SessionState;
use crate::protocol::frame::split_cstr;

/// Quotation marks of PostgreSQL's translations, and the spaces within them. In a name they would
/// be letters.
const QUOTES: &[char] = &[
    '«', '»', '“', '”', '„', '‘', '’', '「', '」', '『', '』', '《', '》', '\u{a0}', '\u{202f}',
];

/// Whether the body of a NoticeResponse, of which this is the start at least, may name a parameter
/// that is not known to be the client's own. `settings`: those that are carried. When in doubt, it
/// does.
pub fn names_anothers_parameter(body: &[u8], settings: &Settings, state: &SessionState) -> bool {
    if !state.shares_connections() {
        return false;
    }
    let mut is_about_names = false;
    let mut message = None;
    let mut rest = body;
    while let Some((field, after)) = split_cstr(rest)
        && let Some((code, value)) = field.split_first()
    {
        match code {
            b'C' => is_about_names = matches!(value, b"42602" | b"42704"),
            b'M' => message = Some(value),
            b'R' => {
                let of_placeholders = matches!(
                    value,
                    b"MarkGUCPrefixReserved" | b"EmitWarningsOnPlaceholders"
                );
                return of_placeholders && !message.is_some_and(|m| is_own(m, settings, state));
            }
            _ => {}
        }
        rest = after;
    }
    // It is too long to be looked at whole, and as the name of a parameter can be.
    is_about_names
}

/// Whether a message names a parameter that the client has set, and no other. The language is the
/// server's: what has a dot within it is a name.
fn is_own(message: &[u8], settings: &Settings, state: &SessionState) -> bool {
    // Letters of a name (valid_custom_variable_name in guc.c), and the dot.
    let is_of_name =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"_$.".contains(byte) || !byte.is_ascii();
    let mut names = message
        .split(|byte| !is_of_name(byte))
        .filter_map(|word| std::str::from_utf8(word).ok())
        .map(|word| word.trim_matches(QUOTES))
        .filter(|word| word.trim_matches('.').contains('.'))
        .peekable();
    let is_set = |name: &str| {
        let name = name.to_ascii_lowercase();
        settings.contains_key(&name) || state.has_named(&name)
    };
    names.peek().is_some() && names.all(is_set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(sqlstate: &str, message: &[u8], routine: &str) -> Vec<u8> {
        let head = format!("SWARNING\0VWARNING\0C{sqlstate}\0M");
        let tail = format!("\0D\"x\" is now a reserved prefix.\0Fguc.c\0L1\0R{routine}\0\0");
        [head.as_bytes(), message, tail.as_bytes()].concat()
    }

    #[test]
    fn what_names_no_parameter_of_the_clients_is_anothers_in_any_language() {
        const ROUTINE: &str = "MarkGUCPrefixReserved";
        let own = ["my.own", "my.ö", "work_mem"];
        let settings: Settings = own.map(|name| (name.to_owned(), "1".to_owned())).into();
        let mut state = SessionState::unwatched();
        let judge = |state: &SessionState, message: &[u8], routine: &str| {
            names_anothers_parameter(&notice("42602", message, routine), &settings, state)
        };
        assert!(!judge(&state, b"name \"my.other\"", ROUTINE));
        state.share_connections();
        for (message, expected) in [
            (
                "invalid configuration parameter name \"my.own\", removing it",
                false,
            ),
            (
                "ungültiger Konfigurationsparametername »my.own«, wird entfernt",
                false,
            ),
            ("nom du paramètre « My.Own » invalide", false),
            ("設定パラメータ名\"my.ö\"が不正です", false),
            (
                "invalid configuration parameter name \"my.other\", removing it",
                true,
            ),
            (
                "invalid configuration parameter name \"my.own2\", removing it",
                true,
            ),
            (
                "invalid configuration parameter name \"my.ownö\", removing it",
                true,
            ),
            (
                "invalid configuration parameter name \"not.my.own\", removing it",
                true,
            ),
            ("name \"my.own\", or \"my.other\"", true),
            ("work_mem.", true),
        ] {
            assert_eq!(
                judge(&state, message.as_bytes(), ROUTINE),
                expected,
                "{message}"
            );
        }
        assert!(judge(&state, b"\xabmy.own\xbb", ROUTINE));
        assert!(judge(
            &state,
            b"name \"my.other\"",
            "EmitWarningsOnPlaceholders"
        ));
        assert!(!judge(&state, b"name \"my.other\"", "exec_stmt_raise"));
        // Only the start of one that is long.
        for (sqlstate, expected) in [("42602", true), ("42704", true), ("01000", false)] {
            let long = notice(sqlstate, &b"my.own ".repeat(100), ROUTINE);
            let judged = names_anothers_parameter(&long[..64], &settings, &state);
            assert_eq!(judged, expected, "{sqlstate}");
        }
    }
}
