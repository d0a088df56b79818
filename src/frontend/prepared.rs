//! What a client has prepared, by the names that it uses, and how to take a change of that back.

use std::sync::Arc;

use crate::backend::prepared::Statement;
use crate::protocol::frame::{HEADER, split_cstr};
use crate::sql::effects::Effects;

/// What a client calls a prepared statement.
pub type Name = Arc<[u8]>;

/// A statement as a client prepared it.
#[derive(Debug, Clone)]
pub struct Known {
    pub statement: Arc<Statement>,
    /// The schema's epoch when it did: what was parsed before that may mean something else.
    pub since: u64,
}

/// The unnamed statement, which the next Parse of it or the next simple Query ends.
#[derive(Debug, Clone, Default)]
pub enum Unnamed {
    #[default]
    None,
    Known(Arc<Parse>),
    /// Too long to be remembered: it exists where it was parsed, and only there. And what it may do
    /// to the session.
    TooLong(Box<Effects>),
}

/// A Parse of the unnamed statement.
#[derive(Debug)]
pub struct Parse {
    pub frame: Box<[u8]>,
    /// What an execution may do to the session.
    pub effects: Effects,
    /// It was read with backslash escapes in plain strings.
    pub backslashes: bool,
}

impl Parse {
    /// None: it is malformed.
    pub fn text(&self) -> Option<&[u8]> {
        let (_, definition) = split_cstr(self.frame.get(HEADER..)?)?;
        split_cstr(definition).map(|(text, _)| text)
    }
}

impl Unnamed {
    pub fn effects(&self) -> Option<&Effects> {
        match self {
            Self::None => None,
            Self::Known(parse) => Some(&parse.effects),
            Self::TooLong(effects) => Some(effects),
        }
    }
}

/// How to take back what a message did to the client's names, if the server does not carry it out.
#[derive(Debug, Clone)]
pub enum Undo {
    Nothing,
    /// The name meant this before.
    Name(Name, Option<Known>),
    /// The unnamed statement was this before, and was there or not.
    Unnamed(Unnamed, bool),
}

impl Undo {
    /// Both are of the same name, or of the unnamed statement.
    pub fn is_of_same(&self, other: &Undo) -> bool {
        match (self, other) {
            (Self::Name(a, _), Self::Name(b, _)) => a == b,
            (Self::Unnamed(..), Self::Unnamed(..)) => true,
            _ => false,
        }
    }
}
