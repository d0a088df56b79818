//! What a user of the console may say: the commands of PgBouncer, with its words, and those that
//! name a tenant, a placement, a server or a client.
//!
//! A command is a word, and what it is about. Names are written as they are, or in double quotes.

pub mod set;

use crate::admin::explain::Question;
use crate::admin::show::{self, Show};
use crate::app::Stop;
use crate::error::{Error, Kind, Result};

/// What SUSPEND is to PgBouncer, and what there is in its place.
const SUSPEND_DETAIL: &str = "It prepares PgBouncer's online restart (-R), in which a new process takes over \
    the sockets of the old one. No process of pgtenant takes over another's, and PgBouncer has given both up.";
const SUSPEND_HINT: &str = "For a restart of a server use PAUSE and RESUME. For one of pgtenant lead new \
    clients to a second process, on another port or machine, and end this one by SHUTDOWN WAIT_FOR_CLIENTS.";

#[derive(Debug, Clone)]
pub enum Command {
    Show(&'static Show),
    /// SHOW TENANT, and its name.
    Tenant(String),
    /// A parameter of PostgreSQL that drivers ask for, and what they are told.
    Parameter(&'static (&'static str, &'static str)),
    Reload,
    /// EXPLAIN CONFIG FOR, and the tenant.
    Effective(String),
    /// EXPLAIN ROUTE.
    Explain(Question),
    Set {
        key: String,
        value: String,
    },
    /// What drivers set unasked, which means nothing here.
    SetNothing,
    Verb(Verb, Target),
    KillClient {
        id: u64,
        generation: Option<u64>,
    },
    Shutdown(Stop),
}

/// What is done with a [`Target`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Pause,
    Resume,
    Disable,
    Enable,
    Reconnect,
    Kill,
    WaitClose,
}

impl Verb {
    const ALL: [Self; 7] = [
        Self::Pause,
        Self::Resume,
        Self::Disable,
        Self::Enable,
        Self::Reconnect,
        Self::Kill,
        Self::WaitClose,
    ];

    /// As it is written, and as the answer has it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pause => "PAUSE",
            Self::Resume => "RESUME",
            Self::Disable => "DISABLE",
            Self::Enable => "ENABLE",
            Self::Reconnect => "RECONNECT",
            Self::Kill => "KILL",
            Self::WaitClose => "WAIT_CLOSE",
        }
    }
}

/// Whom a verb names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    All,
    /// A row of `SHOW DATABASES`.
    Name(String),
    Tenant(String),
    Placement(String),
    Server(String),
}

/// What drivers ask for without being asked to (PgBouncer has the same list).
const PARAMETERS: [(&str, &str); 5] = [
    ("client_encoding", "UTF8"),
    ("default_transaction_isolation", "read committed"),
    ("standard_conforming_strings", "on"),
    ("datestyle", "ISO"),
    ("timezone", "UTC"),
];

#[derive(Debug, Clone, PartialEq, Eq)]
struct Word {
    text: String,
    is_quoted: bool,
}

impl Word {
    fn is(&self, command: &str) -> bool {
        !self.is_quoted && self.text.eq_ignore_ascii_case(command)
    }
}

impl Command {
    /// Reads one command; semicolons may follow it.
    ///
    /// # Errors
    /// 08P01 for what is no command, in PgBouncer's words.
    pub fn parse(text: &str) -> Result<Self> {
        let trimmed = text.trim_matches(|c: char| c == ';' || c.is_whitespace());
        if let Some((set, rest)) = trimmed.split_once(char::is_whitespace)
            && set.eq_ignore_ascii_case("set")
        {
            return set::parse(rest).ok_or_else(|| invalid(text));
        }
        let words = words(trimmed).ok_or_else(|| invalid(text))?;
        let Some((command, arguments)) = words.split_first() else {
            return Err(invalid(text));
        };
        Self::read(command, arguments)?.ok_or_else(|| invalid(text))
    }

    /// None: it is no command.
    fn read(command: &Word, arguments: &[Word]) -> Result<Option<Self>> {
        if command.is("show") || command.is("select") {
            if let [what, name] = arguments
                && what.is("tenant")
            {
                return Ok(Some(Self::Tenant(name.text.clone())));
            }
            let [what] = arguments else { return Ok(None) };
            return Ok(show::find(&what.text).map(Self::Show).or_else(|| {
                let mut parameters = PARAMETERS.iter();
                parameters
                    .find(|(name, _)| what.is(name))
                    .map(Self::Parameter)
            }));
        }
        if command.is("reload") {
            return Ok(arguments.is_empty().then_some(Self::Reload));
        }
        if command.is("explain")
            && let [config, word, tenant] = arguments
            && config.is("config")
            && word.is("for")
        {
            return Ok(Some(Self::Effective(tenant.text.clone())));
        }
        if command.is("explain") {
            return Ok(explain(arguments).map(Self::Explain));
        }
        if command.is("suspend") && arguments.is_empty() {
            let message = "SUSPEND is not supported";
            return Err(Error::new(Kind::FeatureNotSupported, message)
                .with_detail(SUSPEND_DETAIL)
                .with_hint(SUSPEND_HINT));
        }
        if command.is("shutdown") {
            return Ok(shutdown(arguments).map(Self::Shutdown));
        }
        if command.is("kill_client") {
            return kill_client(arguments).map(Some);
        }
        if command.is("kill")
            && let [what, id @ ..] = arguments
            && what.is("client")
            && !id.is_empty()
        {
            return kill_client(id).map(Some);
        }
        let verb = Verb::ALL.into_iter().find(|verb| command.is(verb.word()));
        let target = verb.and_then(|_| target(arguments));
        Ok(verb
            .zip(target)
            .map(|(verb, target)| Self::Verb(verb, target)))
    }

    /// Whether a user who may only look may say it.
    pub fn is_for_watchers(&self) -> bool {
        match self {
            Self::Show(show) => !show.is_for_admins,
            Self::Tenant(_)
            | Self::Effective(_)
            | Self::Parameter(_)
            | Self::SetNothing
            | Self::Explain(_) => true,
            _ => false,
        }
    }
}

/// `ROUTE <user> [<database>] [FOR <tenant>]`.
fn explain(arguments: &[Word]) -> Option<Question> {
    let [route, user, rest @ ..] = arguments else {
        return None;
    };
    let (database, rest) = match rest {
        [database, rest @ ..] if !database.is("for") => (Some(database.text.clone()), rest),
        rest => (None, rest),
    };
    let tenant = match rest {
        [] => None,
        [word, tenant] if word.is("for") => Some(tenant.text.clone()),
        _ => return None,
    };
    route.is("route").then(|| Question {
        user: user.text.clone(),
        database,
        tenant,
    })
}

fn shutdown(arguments: &[Word]) -> Option<Stop> {
    match arguments {
        [] => Some(Stop::AtOnce),
        [how] if how.is("wait_for_servers") => Some(Stop::WaitForServers),
        [how] if how.is("wait_for_clients") => Some(Stop::WaitForClients),
        _ => None,
    }
}

fn target(arguments: &[Word]) -> Option<Target> {
    match arguments {
        [] => Some(Target::All),
        [name] => Some(Target::Name(name.text.clone())),
        [kind, name] if kind.is("tenant") => Some(Target::Tenant(name.text.clone())),
        [kind, name] if kind.is("placement") => Some(Target::Placement(name.text.clone())),
        [kind, name] if kind.is("server") => Some(Target::Server(name.text.clone())),
        _ => None,
    }
}

/// `id`, and the generation that it is of.
///
/// # Errors
/// 22023, in PgBouncer's words.
fn kill_client(arguments: &[Word]) -> Result<Command> {
    let number = |word: &Word| word.text.parse::<u64>().ok();
    let read = match arguments {
        [id] => number(id).map(|id| (id, None)),
        [id, generation] => number(id).zip(number(generation).map(Some)),
        _ => None,
    };
    let (id, generation) = read.ok_or_else(|| {
        Error::new(
            Kind::InvalidParameterValue,
            "invalid client pointer supplied",
        )
        .with_hint("KILL_CLIENT <id>, or KILL CLIENT <id> <generation>: both are in SHOW CLIENTS.")
    })?;
    Ok(Command::KillClient { id, generation })
}

/// PgBouncer's words and SQLSTATE for what it cannot read.
fn invalid(text: &str) -> Error {
    const MAX_SHOWN: usize = 512;
    let shown: String = text.chars().take(MAX_SHOWN).collect();
    Error::new(
        Kind::ProtocolViolation,
        format!("invalid command '{shown}', use SHOW HELP;"),
    )
    .with_hint("Try SHOW HELP.")
}

/// None: a quote that is not closed, or something else that no word has.
fn words(text: &str) -> Option<Vec<Word>> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let (text, after) = quoted_word(quoted)?;
                let word = Word {
                    text,
                    is_quoted: true,
                };
                (word, after)
            }
            None => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                let (text, after) = rest.split_at(end);
                let is_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
                if !text.chars().all(is_word) {
                    return None;
                }
                let word = Word {
                    text: text.to_owned(),
                    is_quoted: false,
                };
                (word, after)
            }
        };
        if !after.is_empty() && !after.starts_with(char::is_whitespace) {
            return None;
        }
        words.push(word);
        rest = after.trim_start();
    }
    Some(words)
}

/// What is up to the closing quote, in which two quotes are one, and what follows.
fn quoted_word(text: &str) -> Option<(String, &str)> {
    let mut word = String::new();
    let mut rest = text;
    loop {
        let (part, after) = rest.split_once('"')?;
        word.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                word.push('"');
                rest = more;
            }
            None => return Some((word, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> String {
        match Command::parse(text) {
            Ok(Command::Show(show)) => format!("show {}", show.name),
            Ok(Command::Parameter((name, _))) => format!("parameter {name}"),
            Ok(command) => format!("{command:?}"),
            Err(error) => format!("{} {}", error.sqlstate(), error.message()),
        }
    }

    #[test]
    fn suspend_is_refused_with_commands_that_there_are() {
        let error = Command::parse("SUSPEND").expect_err("is refused");
        let hint = error.hint().unwrap_or_default();
        for command in ["PAUSE", "RESUME", "SHUTDOWN WAIT_FOR_CLIENTS"] {
            assert!(hint.contains(command), "{hint}");
            assert!(Command::parse(command).is_ok(), "{command}");
        }
    }

    #[test]
    fn commands_are_read_in_any_case_with_spaces_and_semicolons() {
        for (text, expected) in [
            ("SHOW HELP", "show HELP"),
            ("show help;", "show HELP"),
            (" \n Show\tHELP ; ;", "show HELP"),
            ("sHoW tenants", "show TENANTS"),
            ("select version", "show VERSION"),
            ("SHOW client_encoding", "parameter client_encoding"),
            ("reload;", "Reload"),
            (
                "explain route web for acme",
                "Explain(Question { user: \"web\", database: None, tenant: Some(\"acme\") })",
            ),
            (
                "EXPLAIN ROUTE app.acme \"my db\" FOR \"a b\"",
                "Explain(Question { user: \"app.acme\", database: Some(\"my db\"), tenant: Some(\"a b\") })",
            ),
            ("PAUSE", "Verb(Pause, All)"),
            ("pause acme;", "Verb(Pause, Name(\"acme\"))"),
            ("PAUSE \"a\"\"b c\"", "Verb(Pause, Name(\"a\\\"b c\"))"),
            ("RESUME TENANT acme", "Verb(Resume, Tenant(\"acme\"))"),
            ("KILL placement free-2", "Verb(Kill, Placement(\"free-2\"))"),
            ("RECONNECT Server main", "Verb(Reconnect, Server(\"main\"))"),
            ("DISABLE tenant", "Verb(Disable, Name(\"tenant\"))"),
            ("KILL client", "Verb(Kill, Name(\"client\"))"),
            ("WAIT_CLOSE", "Verb(WaitClose, All)"),
            ("KILL_CLIENT 7", "KillClient { id: 7, generation: None }"),
            (
                "kill client 7 99",
                "KillClient { id: 7, generation: Some(99) }",
            ),
            ("SHUTDOWN", "Shutdown(AtOnce)"),
            ("SHUTDOWN wait_for_clients", "Shutdown(WaitForClients)"),
            ("SHUTDOWN WAIT_FOR_SERVERS;", "Shutdown(WaitForServers)"),
            ("SET extra_float_digits = 3", "SetNothing"),
            ("set application_name to 'x';", "SetNothing"),
            (
                "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
                "SetNothing",
            ),
            (
                "SET query_wait_timeout = '10'",
                "Set { key: \"query_wait_timeout\", value: \"10\" }",
            ),
        ] {
            assert_eq!(parsed(text), expected, "{text}");
        }
    }

    #[test]
    fn anything_else_is_an_invalid_command_in_the_words_of_pgbouncer() {
        for text in [
            "SELECT 1",
            "SHOW",
            "SHOW ALL",
            "SHOW HELP; SHOW HELP",
            "SHOW HELP x",
            "RELOAD now",
            "SET",
            "SET x",
            "SET x = 1; RELOAD",
            "SHOWHELP",
            "PAUSE a b",
            "PAUSE \"TENANT\" acme",
            "PAUSE \"acme",
            "PAUSE 'acme'",
            "RESUME CLIENT 5",
            "SHUTDOWN NOW",
            "SHUTDOWN WAIT_FOR_CLIENTS WAIT_FOR_SERVERS",
            "BEGIN",
        ] {
            let error = Command::parse(text).unwrap_err();
            assert_eq!(error.sqlstate(), "08P01", "{text}");
            let expected = format!("invalid command '{text}', use SHOW HELP;");
            assert_eq!(error.message(), expected);
            assert_eq!(error.hint(), Some("Try SHOW HELP."), "{text}");
        }
        for text in [
            "KILL_CLIENT",
            "KILL_CLIENT c7",
            "KILL_CLIENT -1",
            "KILL CLIENT 1 2 3",
        ] {
            let error = Command::parse(text).unwrap_err();
            assert_eq!(error.message(), "invalid client pointer supplied", "{text}");
        }
    }

    #[test]
    fn who_may_only_look_may_say_nothing_that_changes_anything() {
        for (text, may) in [
            ("SHOW CLIENTS", true),
            ("SHOW FDS", false),
            ("SET extra_float_digits = 3", true),
            ("SET query_wait_timeout = 3", false),
            ("RELOAD", false),
            ("PAUSE", false),
            ("KILL_CLIENT 1", false),
            ("SHUTDOWN", false),
            ("WAIT_CLOSE", false),
        ] {
            let command = Command::parse(text).unwrap();
            assert_eq!(command.is_for_watchers(), may, "{text}");
        }
    }
}
