//! What a client's session has left on its server connection, asked of the server itself.
//!
//! Texts only say what may have happened ([`crate::sql::effects`]); whether it did, and whether it
//! was undone since, PostgreSQL's own catalogs know. They are asked in one query, at a clean point,
//! before anybody else gets the connection. All names are qualified: the session's `search_path` is
//! the client's.

use std::sync::Arc;

use bitflags::bitflags;

use crate::backend::connection::{Frame, ServerConnection};
use crate::backend::prepared::Statement;
use crate::backend::reach;
use crate::error::{Error, Kind, Result};
use crate::protocol::buffer::Buffer;
use crate::protocol::frame::{BackendTag, FrontendTag, frame};
use crate::protocol::reply;

bitflags! {
    /// State that ties a client to its server connection.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Pins: u16 {
        const TEMPORARY = 1;
        const HOLD = 1 << 1;
        const LISTEN = 1 << 2;
        const ADVISORY = 1 << 3;
        const PREPARED = 1 << 4;
        /// A parameter was set whose name is not known.
        const SETTINGS = 1 << 5;
        /// What nobody can look at or take back.
        const STUCK = 1 << 6;
        /// Sequence values that the client may ask for next.
        const SEQUENCE = 1 << 7;
        /// The server could not be asked.
        const UNKNOWN = 1 << 8;
        /// A statement of the protocol that is too long to be carried.
        const STATEMENT = 1 << 9;
        /// An unnamed one that was not bound yet.
        const UNBOUND = 1 << 10;
    }
}

impl Pins {
    /// What the server can be asked about.
    pub const ASKED: Self = Self::TEMPORARY
        .union(Self::HOLD)
        .union(Self::LISTEN)
        .union(Self::ADVISORY)
        .union(Self::PREPARED);

    /// In words, for the console.
    pub fn describe(self) -> String {
        let words = [
            (Self::TEMPORARY, "temporary objects"),
            (Self::HOLD, "cursor with hold"),
            (Self::LISTEN, "listen"),
            (Self::ADVISORY, "advisory lock"),
            (Self::PREPARED, "prepare"),
            (Self::SETTINGS, "set_config"),
            (Self::STUCK, "load or setseed"),
            (Self::SEQUENCE, "lastval"),
            (Self::UNKNOWN, "unknown"),
            (Self::STATEMENT, "long statement"),
            (Self::UNBOUND, "long unnamed statement"),
        ];
        let mut said = Vec::new();
        for (pin, word) in words {
            if self.contains(pin) {
                said.push(word);
            }
        }
        said.join(", ")
    }
}

/// What is asked.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Question {
    pub pins: Pins,
    /// Advisory locks are asked about only because code was run that nobody read.
    pub locks_are_unlikely: bool,
    /// Parameters whose values are wanted.
    pub settings: Vec<String>,
    /// Parameters of which it must be known whether they are set in this session.
    pub resets: Vec<String>,
    /// All parameters that were set in this session; those of extensions and of no one are not
    /// listed by the server.
    pub all_settings: bool,
    /// Functions whose sources are wanted: of those that sessions of this login may reach, whoever
    /// has the connection.
    pub functions: Vec<String>,
    /// The sources of the functions of all triggers that sessions of this login may set off.
    pub triggers: bool,
    /// The sources of functions in the session's own temporary schema, and of its temporary tables'
    /// triggers.
    pub own: bool,
    /// What [`crate::backend::leftovers`] must know of the database.
    pub libraries: bool,
    /// The variables that row level security policies read, and the functions that these call.
    pub policies: bool,
    /// Parameters that the role may not read are left out; asked for, they make the whole question
    /// fail.
    pub is_careful: bool,
    /// The names of prepared statements, but for those of the proxy's own.
    pub names: bool,
}

/// The source of a function.
#[derive(Debug, PartialEq, Eq)]
pub struct Source {
    pub name: String,
    pub language: String,
    pub text: String,
}

/// What the server says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub pins: Pins,
    /// Values of the parameters that were asked for by name; none for one that does not exist.
    pub settings: Vec<(String, Option<String>)>,
    /// Of the parameters that were asked about, those that are not set in this session.
    pub resets: Vec<String>,
    pub all_settings: Vec<(String, String)>,
    pub functions: Vec<Source>,
    pub triggers: Vec<Source>,
    /// At most one more of each than [`MAX_OWN`].
    pub own_functions: Vec<Source>,
    pub own_triggers: Vec<Source>,
    /// Files of the functions that did not come with the server.
    pub libraries: Vec<String>,
    /// In lower case.
    pub policy_variables: Vec<String>,
    /// `setseed()` may be called.
    pub may_seed: bool,
    /// Names of statements that SQL and the protocol have prepared.
    pub prepared: Vec<Box<[u8]>>,
    pub parsed: Vec<Box<[u8]>>,
    /// A value was no UTF-8, or too long, and is left out.
    pub unreadable: bool,
}

impl ServerConnection {
    /// Takes over what was asked for of the parameters that servers report, and had not been. True:
    /// something was new.
    pub fn note_answer(&mut self, answer: &Answer) -> bool {
        let mut new = false;
        for (asked, value) in &answer.settings {
            let reported = self.parameters.iter();
            let mut reported = reported.filter(|(name, _)| name.eq_ignore_ascii_case(asked));
            if let (Some((name, known)), Some(value)) = (reported.next(), value)
                && known != value
            {
                let name = name.clone();
                // What there is no room for is not followed.
                new |= (Arc::make_mut(&mut self.parameters).insert(&name, value)).is_ok();
            }
        }
        new
    }
}

/// Whether a name can be asked about: it goes into the query's text, whatever the session's
/// encoding.
pub fn can_ask(name: &str) -> bool {
    name.bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.' || b == b'$')
}

/// Longest value of a parameter that is carried, in bytes.
const MAX_VALUE: usize = 16 * 1024;

/// A value, in hexadecimal digits of its UTF-8: the client's encoding may be any. Of a database
/// without an encoding it is the bytes that there are.
fn coded(value: &str) -> String {
    format!(
        "pg_catalog.encode(pg_catalog.convert_to({value}, CASE WHEN pg_catalog.getdatabaseencoding() \
         OPERATOR(pg_catalog.=) 'SQL_ASCII'::pg_catalog.name THEN 'SQL_ASCII'::pg_catalog.name \
         ELSE 'UTF8'::pg_catalog.name END), 'hex')"
    )
}

/// The value again. None: it is no UTF-8.
fn decoded(digits: &str) -> Option<String> {
    let pairs = digits.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = pairs.map(byte).collect();
    String::from_utf8(bytes?).ok()
}

/// For each pin: what it is called in the answer, and the condition under which it holds.
const CONDITIONS: [(Pins, &str, &str); 5] = [
    (
        Pins::TEMPORARY,
        "temporary",
        // Whatever lies in a schema depends on it.
        "CASE WHEN pg_catalog.pg_my_temp_schema() OPERATOR(pg_catalog.=) 0::pg_catalog.oid THEN false ELSE EXISTS (\
         SELECT FROM pg_catalog.pg_depend \
         WHERE refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass \
         AND refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()) END",
    ),
    (
        Pins::HOLD,
        "hold",
        "EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE is_holdable)",
    ),
    (
        Pins::LISTEN,
        "listen",
        "EXISTS (SELECT FROM pg_catalog.pg_listening_channels())",
    ),
    (
        Pins::ADVISORY,
        "advisory",
        "EXISTS (SELECT FROM pg_catalog.pg_locks WHERE locktype OPERATOR(pg_catalog.=) 'advisory'::pg_catalog.text \
         AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid())",
    ),
    (
        Pins::PREPARED,
        "prepared",
        "EXISTS (SELECT FROM pg_catalog.pg_prepared_statements WHERE from_sql)",
    ),
];

/// 16384 is the first number of what is made after initdb (`FirstNormalObjectId`), 13 the language
/// C (`ClanguageId`), 1599 `setseed(double precision)`.
const LIBRARIES: &str = "\
    SELECT DISTINCT 'library', probin FROM pg_catalog.pg_proc \
    WHERE oid OPERATOR(pg_catalog.>=) 16384::pg_catalog.oid AND prolang OPERATOR(pg_catalog.=) 13::pg_catalog.oid \
    UNION ALL SELECT 'may-seed', NULL WHERE pg_catalog.has_function_privilege(1599::pg_catalog.oid, 'EXECUTE'::pg_catalog.text)";

impl Question {
    pub fn is_empty(&self) -> bool {
        let nothing = Self {
            locks_are_unlikely: self.locks_are_unlikely,
            is_careful: self.is_careful,
            ..Self::default()
        };
        *self == nothing
    }

    /// Asks no more about locks that are unlikely, where the server does not tell: in a database
    /// that is hardened, for one. False: it did not ask, or they are not.
    pub fn forgo_locks(&mut self) -> bool {
        let asks = self.pins.contains(Pins::ADVISORY) && self.locks_are_unlikely;
        self.pins
            .set(Pins::ADVISORY, self.pins.contains(Pins::ADVISORY) && !asks);
        asks
    }

    /// Leaves out what the role may not read. False: that was done already, or no parameters are
    /// asked for.
    pub fn be_careful(&mut self) -> bool {
        !self.settings.is_empty() && !std::mem::replace(&mut self.is_careful, true)
    }

    /// A parameter that may be read: `pg_settings` lists no other. Those of nobody, and what it
    /// never lists, are asked for anyway (guc_tables.c: GUC_SUPERUSER_ONLY, GUC_NO_SHOW_ALL).
    fn readable(&self, name: &str) -> String {
        let is_listed = !name.contains('.') && !matches!(name, "role" | "session_authorization");
        match self.is_careful && is_listed {
            true => format!(
                "(SELECT pg_catalog.current_setting('{name}', true) WHERE EXISTS (SELECT FROM pg_catalog.pg_settings \
                 WHERE pg_catalog.lower(name) OPERATOR(pg_catalog.=) '{name}'::pg_catalog.text))"
            ),
            false => format!("pg_catalog.current_setting('{name}', true)"),
        }
    }

    /// Whether it only finds out what is to be asked.
    pub fn asks_for_functions(&self) -> bool {
        !self.functions.is_empty() || self.triggers || self.own
    }

    /// The Query that asks it. Its answer has rows of a word and a text.
    pub fn message(&self) -> Vec<u8> {
        frame(FrontendTag::QUERY.0, &[self.sql().as_bytes(), b"\0"])
    }

    fn sql(&self) -> String {
        let mut parts = Vec::new();
        for (pin, word, condition) in CONDITIONS {
            if self.pins.contains(pin) {
                parts.push(format!("SELECT '{word}', NULL WHERE {condition}"));
            }
        }
        for name in &self.settings {
            // A value that is too long comes as none: not as a NULL, which is one of its own.
            parts.push(format!(
                "SELECT CASE WHEN pg_catalog.octet_length(v) OPERATOR(pg_catalog.>) {MAX_VALUE} \
                 THEN 'long' ELSE 'setting {name}' END, \
                 CASE WHEN pg_catalog.octet_length(v) OPERATOR(pg_catalog.>) {MAX_VALUE} THEN NULL ELSE {} END \
                 FROM {} s(v)",
                coded("v"),
                self.readable(name)
            ));
        }
        if !self.resets.is_empty() {
            let names: Vec<_> = self.resets.iter().map(|name| format!("'{name}'")).collect();
            parts.push(format!(
                "SELECT 'reset ' OPERATOR(pg_catalog.||) name, NULL FROM pg_catalog.pg_settings \
                 WHERE source OPERATOR(pg_catalog.<>) 'session'::pg_catalog.text \
                 AND pg_catalog.lower(name) OPERATOR(pg_catalog.=) ANY (ARRAY[{}]::pg_catalog.text[])",
                names.join(", ")
            ));
        }
        if self.all_settings {
            parts.push(format!(
                "SELECT 'set ' OPERATOR(pg_catalog.||) name, {} \
                 FROM pg_catalog.pg_settings WHERE source OPERATOR(pg_catalog.=) 'session'::pg_catalog.text",
                coded("pg_catalog.current_setting(name, true)")
            ));
        }
        if !self.functions.is_empty() {
            let names: Vec<_> = self
                .functions
                .iter()
                .map(|name| format!("'{name}'"))
                .collect();
            let names = names.join(", ");
            parts.push(reach::functions(&names));
        }
        if self.triggers {
            parts.push(reach::triggers());
        }
        if self.names {
            let prefix = Statement::NAME_PREFIX;
            parts.push(format!(
                "SELECT CASE WHEN from_sql THEN 'name prepared' ELSE 'name parsed' END, name \
                 FROM pg_catalog.pg_prepared_statements \
                 WHERE NOT pg_catalog.starts_with(name, '{prefix}')"
            ));
        }
        if self.own {
            parts.extend(reach::own());
        }
        if self.libraries {
            parts.push(LIBRARIES.to_owned());
        }
        if self.policies {
            parts.push(reach::POLICY_VARIABLES.to_owned());
        }
        let asks_for_sources = !self.functions.is_empty() || self.triggers;
        let with = if asks_for_sources { reach::WITH } else { "" };
        format!("{with}{}", parts.join(" UNION ALL "))
    }
}

impl Answer {
    /// Takes a row of the answer: the body of a DataRow.
    pub fn take(&mut self, body: &[u8]) {
        let Some([Some(word), text]) = columns(body) else {
            self.unreadable = true;
            return;
        };
        match (word, text) {
            (b"name prepared", Some(name)) => return self.prepared.push(name.into()),
            (b"name parsed", Some(name)) => return self.parsed.push(name.into()),
            _ => {}
        }
        // Names and sources are in the client's encoding; what matters in them is ASCII.
        let word = String::from_utf8_lossy(word);
        let text = text.map(String::from_utf8_lossy);
        let (kind, name) = word.split_once(' ').unwrap_or((&word, ""));
        let text = text.as_deref();
        let source = || {
            let (name, language) = name.rsplit_once(' ').unwrap_or((name, ""));
            Source {
                name: name.to_owned(),
                language: language.to_owned(),
                text: text.unwrap_or_default().to_owned(),
            }
        };
        match kind {
            "setting" => match text.map(decoded) {
                Some(None) => self.unreadable = true,
                value => self.settings.push((name.to_owned(), value.flatten())),
            },
            "reset" => self.resets.push(name.to_ascii_lowercase()),
            "set" => match decoded(text.unwrap_or_default()) {
                Some(value) => self.all_settings.push((name.to_ascii_lowercase(), value)),
                None => self.unreadable = true,
            },
            "long" => self.unreadable = true,
            "function" => self.functions.push(source()),
            "trigger" => self.triggers.push(source()),
            "own-function" => self.own_functions.push(source()),
            "own-trigger" => self.own_triggers.push(source()),
            "library" => self.libraries.extend(text.map(str::to_owned)),
            "policy-variable" => {
                self.policy_variables
                    .extend(text.map(str::to_ascii_lowercase));
            }
            "may-seed" => self.may_seed = true,
            _ => {
                let known = CONDITIONS.iter().find(|(_, word, _)| *word == kind);
                self.pins |= known.map_or(Pins::empty(), |(pin, ..)| *pin);
            }
        }
    }
}

/// The two columns of a DataRow body.
fn columns(body: &[u8]) -> Option<[Option<&[u8]>; 2]> {
    let mut rest = body.strip_prefix(&[0, 2])?;
    let mut columns = [None, None];
    for column in &mut columns {
        let (length, after) = rest.split_first_chunk::<4>()?;
        rest = after;
        if let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) {
            let (value, after) = rest.split_at_checked(length)?;
            *column = Some(value);
            rest = after;
        }
    }
    Some(columns)
}

/// Asks the server, which must be at a clean point. Notifications go to `aside`, for the client.
/// None: it would not say.
///
/// Not cancel safe: a connection that is left in the middle must be closed.
///
/// # Errors
/// 08006 when the connection is lost, or not at a clean point.
pub async fn ask(
    connection: &mut ServerConnection,
    question: &Question,
    aside: &mut Buffer,
) -> Result<Option<Answer>> {
    connection.send(&question.message()).await?;
    let mut answer = Some(Answer::default());
    let mut complete = false;
    loop {
        let Frame { tag, body } = connection.receive().await?;
        match tag {
            BackendTag::READY_FOR_QUERY if body == b"I" && complete => return Ok(answer),
            BackendTag::READY_FOR_QUERY => {
                return Err(lost("the server is in a transaction, or has not answered"));
            }
            BackendTag::DATA_ROW => {
                if let Some(answer) = &mut answer {
                    answer.take(&body);
                }
            }
            BackendTag::ERROR_RESPONSE => {
                answer = None;
                complete = true;
            }
            BackendTag::COMMAND_COMPLETE => complete = true,
            BackendTag::PARAMETER_STATUS => connection.note_parameter(&body)?,
            BackendTag::NOTIFICATION_RESPONSE => aside.extend(&frame(tag.0, &[&body])),
            // Notices are about the question.
            BackendTag::ROW_DESCRIPTION | BackendTag::NOTICE_RESPONSE => {}
            _ => return Err(lost("the server says what it was not asked")),
        }
    }
}

fn lost(cause: &str) -> Error {
    Error::new(Kind::ConnectionFailure, "the server connection was lost").caused_by(cause)
}

/// Closes prepared statements on a server that is at a clean point; `frames` are the Close
/// messages. Notifications go to `aside`, for the client.
///
/// Not cancel safe: a connection that is left in the middle must be closed.
///
/// # Errors
/// 08006 when the connection is lost, or the server would not.
pub async fn close(
    connection: &mut ServerConnection,
    frames: &[u8],
    aside: &mut Buffer,
) -> Result<()> {
    connection.send(&[frames, reply::SYNC].concat()).await?;
    loop {
        let Frame { tag, body } = connection.receive().await?;
        match tag {
            BackendTag::READY_FOR_QUERY if body == b"I" => return Ok(()),
            BackendTag::READY_FOR_QUERY | BackendTag::ERROR_RESPONSE => {
                return Err(lost("the server did not close prepared statements"));
            }
            BackendTag::PARAMETER_STATUS => connection.note_parameter(&body)?,
            BackendTag::NOTIFICATION_RESPONSE => aside.extend(&frame(tag.0, &[&body])),
            BackendTag::CLOSE_COMPLETE | BackendTag::NOTICE_RESPONSE => {}
            _ => return Err(lost("the server says what it was not asked")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(columns: &[Option<&str>]) -> Vec<u8> {
        let mut body = u16::try_from(columns.len()).unwrap().to_be_bytes().to_vec();
        for column in columns {
            let length = column.map_or(-1, |text| i32::try_from(text.len()).unwrap());
            body.extend(length.to_be_bytes());
            body.extend(column.unwrap_or_default().as_bytes());
        }
        body
    }

    #[test]
    fn an_answer_is_read_row_by_row() {
        let mut answer = Answer::default();
        for columns in [
            [Some("listen"), None],
            [Some("advisory"), None],
            [Some("setting app.x"), Some("612062")],
            [Some("setting no"), None],
            [Some("set DateStyle"), Some("49534f2c204d4459")],
            [Some("function f plpgsql"), Some("BEGIN END")],
        ] {
            answer.take(&row(&columns));
        }
        assert_eq!(answer.pins, Pins::LISTEN | Pins::ADVISORY);
        assert_eq!(
            answer.settings,
            [
                ("app.x".to_owned(), Some("a b".to_owned())),
                ("no".to_owned(), None)
            ]
        );
        assert_eq!(
            answer.all_settings,
            [("datestyle".to_owned(), "ISO, MDY".to_owned())]
        );
        assert_eq!(answer.functions[0].language, "plpgsql");
        // In the client's encoding.
        let mut latin = row(&[Some("function f plpgsql"), Some("--?\nSET a.b = 1")]);
        let at = latin.iter().position(|byte| *byte == b'?').unwrap();
        latin[at] = 0xe9;
        answer.take(&latin);
        assert!(answer.functions[1].text.ends_with("SET a.b = 1"));
        assert!(!answer.unreadable);
        for bad in [&b"nonsense"[..], &row(&[Some("setting a"), Some("e9")])] {
            let mut answer = Answer::default();
            answer.take(bad);
            assert!(answer.unreadable);
        }
    }

    #[test]
    fn a_name_that_could_end_its_quotes_is_not_asked_about() {
        assert!(can_ask("app.user_id") && can_ask("f$1"));
        for name in ["a'b", "a\\b", "a b", "é"] {
            assert!(!can_ask(name), "{name}");
        }
    }
}
