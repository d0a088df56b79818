//! The one error of the proxy, with four faces: what the client's ErrorResponse says, how loud the
//! log is, who is to blame, and what the operator reads.
//!
//! PostgreSQL's own errors are not here: they pass through as bytes.

use std::fmt;

/// Why the proxy itself refuses or ends something. Each has one SQLSTATE (PostgreSQL's appendix A).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Unknown tenant, unknown user or wrong password: never told apart.
    InvalidPassword,
    /// The login is understood and may not be: no TLS where it is required.
    InvalidAuthorization,
    /// The tenant has no such database.
    UnknownDatabase,
    /// A limit of clients or a wait for a server connection was exceeded.
    TooManyConnections,
    /// The proxy stops, or the client's tenant was moved, changed or removed.
    AdminShutdown,
    /// The server (or the proxy) is starting or stopping.
    CannotConnectNow,
    /// The server connection could not be made or was lost.
    ConnectionFailure,
    /// Bytes that are not the PostgreSQL protocol.
    ProtocolViolation,
    /// Valid, and not offered here.
    FeatureNotSupported,
    /// The client asked for what only the proxy may do: to set the tenant context.
    InsufficientPrivilege,
    /// A startup option that PostgreSQL would not parse.
    SyntaxError,
    /// A startup parameter that has no such value.
    InvalidParameterValue,
    /// A startup parameter that does not exist.
    UndefinedObject,
    /// A prepared statement that only the proxy may name.
    UndefinedStatement,
    /// The name of a prepared statement is taken.
    DuplicatePreparedStatement,
    /// A transaction is served for one tenant, and another is chosen in it; or a command that its
    /// state does not allow.
    ActiveTransaction,
    /// A command that only a transaction block takes.
    NoActiveTransaction,
    /// A transaction that has failed takes nothing but its end.
    InFailedTransaction,
    /// There is no such savepoint.
    InvalidSavepoint,
    /// A user cancelled a wait.
    QueryCanceled,
    /// More than the proxy is willing to hold in memory.
    ProgramLimitExceeded,
    /// A transaction took too long, or waited for its client, or a session did outside of one.
    TransactionTimeout,
    IdleInTransactionTimeout,
    IdleSessionTimeout,
    /// More than the config lets one transaction take of what all share.
    ConfigurationLimitExceeded,
    /// The server has no memory left for what all its sessions share.
    OutOfMemory,
    /// A bug of ours.
    Internal,
}

/// Who has to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blame {
    Client,
    Server,
    Operator,
    Us,
}

impl Kind {
    /// The SQLSTATE that PostgreSQL uses for the same thing.
    pub const fn sqlstate(self) -> &'static str {
        match self {
            Self::InvalidPassword => "28P01",
            Self::InvalidAuthorization => "28000",
            Self::UnknownDatabase => "3D000",
            Self::TooManyConnections => "53300",
            Self::AdminShutdown => "57P01",
            Self::CannotConnectNow => "57P03",
            Self::ConnectionFailure => "08006",
            Self::ProtocolViolation => "08P01",
            Self::FeatureNotSupported => "0A000",
            Self::InsufficientPrivilege => "42501",
            Self::SyntaxError => "42601",
            Self::InvalidParameterValue => "22023",
            Self::UndefinedObject => "42704",
            Self::UndefinedStatement => "26000",
            Self::DuplicatePreparedStatement => "42P05",
            Self::ActiveTransaction => "25001",
            Self::NoActiveTransaction => "25P01",
            Self::InFailedTransaction => "25P02",
            Self::InvalidSavepoint => "3B001",
            Self::QueryCanceled => "57014",
            Self::ProgramLimitExceeded => "54000",
            Self::TransactionTimeout => "25P04",
            Self::IdleInTransactionTimeout => "25P03",
            Self::IdleSessionTimeout => "57P05",
            Self::ConfigurationLimitExceeded => "53400",
            Self::OutOfMemory => "53200",
            Self::Internal => "XX000",
        }
    }

    pub const fn blame(self) -> Blame {
        match self {
            Self::InvalidPassword
            | Self::InvalidAuthorization
            | Self::UnknownDatabase
            | Self::ProtocolViolation
            | Self::FeatureNotSupported
            | Self::InsufficientPrivilege
            | Self::SyntaxError
            | Self::InvalidParameterValue
            | Self::UndefinedObject
            | Self::UndefinedStatement
            | Self::DuplicatePreparedStatement
            | Self::ActiveTransaction
            | Self::NoActiveTransaction
            | Self::InFailedTransaction
            | Self::InvalidSavepoint
            | Self::QueryCanceled
            | Self::ProgramLimitExceeded
            | Self::TransactionTimeout
            | Self::IdleInTransactionTimeout
            | Self::IdleSessionTimeout
            | Self::ConfigurationLimitExceeded => Blame::Client,
            Self::ConnectionFailure | Self::CannotConnectNow | Self::OutOfMemory => Blame::Server,
            Self::TooManyConnections | Self::AdminShutdown => Blame::Operator,
            Self::Internal => Blame::Us,
        }
    }
}

/// An error of the proxy. `message`, `detail` and `hint` are what the client reads, in PostgreSQL's
/// style; `cause` is for the log alone and may name other hosts, roles or files.
#[derive(Debug, Clone)]
pub struct Error(Box<Parts>);

#[derive(Debug, Clone)]
struct Parts {
    kind: Kind,
    /// A SQLSTATE passed on from a server in place of the kind's own.
    sqlstate: Option<String>,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
    cause: Option<String>,
    /// Of a server that could not be reached or takes no more connections now.
    is_passing: bool,
    is_untold: bool,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            kind,
            sqlstate: None,
            message: message.into(),
            detail: None,
            hint: None,
            cause: None,
            is_passing: false,
            is_untold: false,
        }))
    }

    /// Of a server that could not be reached, or takes no more connections now: it may later.
    #[must_use]
    pub fn passing(mut self) -> Self {
        self.0.is_passing = true;
        self
    }

    /// The SQLSTATE that a server gave, where the client may see it.
    #[must_use]
    pub fn with_sqlstate(mut self, sqlstate: impl Into<String>) -> Self {
        self.0.sqlstate = Some(sqlstate.into());
        self
    }

    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// What the log says and the client does not.
    #[must_use]
    pub fn caused_by(mut self, cause: impl fmt::Display) -> Self {
        self.0.cause = Some(cause.to_string());
        self
    }

    /// The client is closed without a word: what PostgreSQL reports as COMMERROR, to its log alone.
    #[must_use]
    pub fn untold(mut self) -> Self {
        self.0.is_untold = true;
        self
    }

    pub fn is_untold(&self) -> bool {
        self.0.is_untold
    }

    /// With parameters named as a client spells them, where the message has them in lower case.
    /// `spelled`: those that are not.
    #[must_use]
    pub fn spelling(mut self, spelled: &[String]) -> Self {
        for name in spelled {
            let quoted = format!("\"{name}\"");
            let message = &mut self.0.message;
            if !message.contains(&quoted) {
                *message = message.replacen(&quoted.to_ascii_lowercase(), &quoted, 1);
            }
        }
        self
    }

    pub fn is_passing(&self) -> bool {
        self.0.is_passing
    }

    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    pub fn blame(&self) -> Blame {
        self.0.kind.blame()
    }

    pub fn sqlstate(&self) -> &str {
        self.0.sqlstate.as_deref().unwrap_or(self.0.kind.sqlstate())
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    pub fn detail(&self) -> Option<&str> {
        self.0.detail.as_deref()
    }

    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

/// What the log says: message and cause.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.message)?;
        if let Some(cause) = &self.0.cause {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
