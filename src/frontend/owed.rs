//! The messages that a server owes replies to, one by one and in their queue; what becomes of them
//! is the [ledger](crate::frontend::ledger)'s.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Deref;
use std::sync::Arc;

use crate::backend::prepared::Statement;
use crate::frontend::prepared::{Name, Parse, Undo};
use crate::protocol::reply::{CLOSE_COMPLETE, PARSE_COMPLETE};

/// A message that has, or stands for, a reply.
#[derive(Debug, Clone)]
pub enum Owed {
    /// Answered up to ReadyForQuery.
    Query(Undo),
    FunctionCall,
    Sync,
    /// A Parse; of a named statement in transaction pooling if one is given.
    Parse(Option<Arc<Statement>>, Undo),
    /// A Parse of a name that the server has as the client calls it, and so refuses; what it would
    /// be.
    Redefine(Name, Arc<Statement>),
    /// And the statement that it names, if the proxy has sent another name in its place.
    Bind(Portal, Option<(Name, Arc<Statement>)>),
    Describe(Option<(Name, Arc<Statement>)>),
    /// And what it runs, while the slow log is on and where that is known.
    Execute(Option<Ran>),
    Close(Undo),
    /// A Parse or Close of the proxy's own: its reply is swallowed.
    SwallowedParse(Option<Arc<Statement>>),
    SwallowedClose(Option<Arc<Statement>>),
    /// A Parse or Close of the proxy's own under a name of the client's: its reply is swallowed.
    Copy(Name),
    CloseCopy(Name),
    /// The client's Parse or Close was not sent: the proxy answers in its place.
    FakeParse(Undo),
    FakeClose(Undo),
    /// Sent in place of what the client may not run, so that the server fails it there; the body of
    /// the error that the client is told instead. `ready`: in place of a Query or FunctionCall.
    Refused {
        ready: bool,
        error: Arc<[u8]>,
    },
    /// Sent in place of an Execute or Describe of the portal without a name, where what PostgreSQL
    /// has by that name is no client's: the same of [`NO_PORTAL`].
    NoPortal,
    /// CopyDone or CopyFail: no reply of its own, but the end of a COPY.
    CopyEnd,
}

/// A statement that an Execute runs.
#[derive(Debug, Clone)]
pub enum Ran {
    Statement(Arc<Statement>),
    Unnamed(Arc<Parse>),
    Text(Arc<[u8]>),
}

impl Ran {
    /// None: what defines it is malformed.
    pub fn text(&self) -> Option<&[u8]> {
        match self {
            Self::Statement(statement) => Some(statement.text()),
            Self::Unnamed(parse) => parse.text(),
            Self::Text(text) => Some(text),
        }
    }
}

/// The name of a portal that there is not, unless the client itself has made one of this name.
pub const NO_PORTAL: &[u8] = b"pgtenant_no_portal";

/// Which portal a Bind makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Portal {
    Unnamed,
    Named,
}

impl Portal {
    /// `name`: what a message calls the portal, up to its end or further.
    pub fn named(name: &[u8]) -> Self {
        match name.first() {
            None | Some(0) => Self::Unnamed,
            Some(_) => Self::Named,
        }
    }
}

impl Owed {
    #[inline]
    pub fn ends_with_ready(&self) -> bool {
        matches!(
            self,
            Self::Query(_) | Self::FunctionCall | Self::Sync | Self::Refused { ready: true, .. }
        )
    }

    /// Whether ParseComplete answers it.
    pub fn is_parse(&self) -> bool {
        matches!(
            self,
            Self::Parse(..) | Self::Redefine(..) | Self::SwallowedParse(_) | Self::Copy(_)
        )
    }

    /// Whether CloseComplete answers it.
    pub fn is_close(&self) -> bool {
        matches!(
            self,
            Self::Close(_) | Self::SwallowedClose(_) | Self::CloseCopy(_)
        )
    }

    pub fn undo(&self) -> Option<&Undo> {
        match self {
            Self::Query(undo)
            | Self::Parse(_, undo)
            | Self::Close(undo)
            | Self::FakeParse(undo)
            | Self::FakeClose(undo) => Some(undo),
            _ => None,
        }
    }

    /// If it takes no effect, some name does not mean what it is taken for.
    #[inline]
    fn is_change(&self) -> bool {
        match self {
            // What is most of what is owed comes first.
            Self::Sync | Self::Execute(_) | Self::Bind(..) | Self::Describe(_) => false,
            Self::Parse(Some(_), _)
            | Self::SwallowedParse(_)
            | Self::SwallowedClose(_)
            | Self::Copy(_)
            | Self::CloseCopy(_) => true,
            _ => !matches!(self.undo(), None | Some(Undo::Nothing)),
        }
    }

    pub fn changes(&self, name: &[u8]) -> bool {
        match self {
            Self::Copy(own) | Self::CloseCopy(own) => **own == *name,
            _ => matches!(self.undo(), Some(Undo::Name(own, _)) if **own == *name),
        }
    }

    /// If it takes no effect, the server has, or has not, this statement.
    pub fn parses(&self, statement: &Arc<Statement>) -> bool {
        match self {
            Self::Parse(Some(own), _)
            | Self::SwallowedParse(Some(own))
            | Self::SwallowedClose(Some(own)) => Arc::ptr_eq(own, statement),
            _ => false,
        }
    }

    pub fn changes_unnamed(&self) -> bool {
        matches!(self.undo(), Some(Undo::Unnamed(..)))
    }

    /// If it takes no effect, whether the connection's unnamed statement is the client's is not
    /// what it is taken for.
    pub fn opens_unnamed(&self) -> bool {
        matches!(
            self,
            Self::Query(Undo::Unnamed(..))
                | Self::SwallowedParse(None)
                | Self::SwallowedClose(None)
        ) || matches!(self.undo(), Some(Undo::Unnamed(_, false)))
    }

    fn undo_mut(&mut self) -> Option<&mut Undo> {
        match self {
            Self::Query(undo)
            | Self::Parse(_, undo)
            | Self::Close(undo)
            | Self::FakeParse(undo)
            | Self::FakeClose(undo) => Some(undo),
            _ => None,
        }
    }

    /// The reply the proxy gives itself.
    pub fn fake(&self) -> Option<&'static [u8]> {
        match self {
            Self::FakeParse(_) => Some(PARSE_COMPLETE),
            Self::FakeClose(_) => Some(CLOSE_COMPLETE),
            _ => None,
        }
    }
}

thread_local! {
    /// Queues that ended empty, for the next ledgers: there is one for each transaction.
    static SPARE: RefCell<Vec<VecDeque<Owed>>> = const { RefCell::new(Vec::new()) };
}

/// Most of them that each thread keeps, and most messages that one which is kept has room for.
const MAX_SPARE: usize = 64;
const MAX_ROOM: usize = 32;

/// What is owed, in order. It takes its memory from [`SPARE`] and leaves it there; and it counts
/// what is asked for at each message of a pipeline.
#[derive(Debug)]
pub struct OwedQueue {
    owed: VecDeque<Owed>,
    ends: usize,
    changes: usize,
}

impl Default for OwedQueue {
    fn default() -> Self {
        Self {
            owed: SPARE.with_borrow_mut(Vec::pop).unwrap_or_default(),
            ends: 0,
            changes: 0,
        }
    }
}

impl Drop for OwedQueue {
    fn drop(&mut self) {
        if self.is_empty() && (1..=MAX_ROOM).contains(&self.owed.capacity()) {
            let queue = std::mem::take(&mut self.owed);
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < MAX_SPARE {
                    spare.push(queue);
                }
            });
        }
    }
}

impl Deref for OwedQueue {
    type Target = VecDeque<Owed>;

    fn deref(&self) -> &VecDeque<Owed> {
        &self.owed
    }
}

impl OwedQueue {
    /// Messages that end with a ReadyForQuery.
    pub fn ends(&self) -> usize {
        self.ends
    }

    /// Messages that, if they take no effect, make a difference to what a statement's name means.
    pub fn changes(&self) -> usize {
        self.changes
    }

    pub fn push_back(&mut self, owed: Owed) {
        self.count(&owed);
        self.owed.push_back(owed);
    }

    pub fn push_front(&mut self, owed: Owed) {
        self.count(&owed);
        self.owed.push_front(owed);
    }

    pub fn pop_front(&mut self) -> Option<Owed> {
        let owed = self.owed.pop_front()?;
        self.uncount(&owed);
        Some(owed)
    }

    pub fn remove(&mut self, at: usize) {
        if let Some(owed) = self.owed.remove(at) {
            self.uncount(&owed);
        }
    }

    /// What takes them back; it must stay of the same kind.
    pub fn undos(&mut self) -> impl Iterator<Item = &mut Undo> {
        self.owed.iter_mut().filter_map(Owed::undo_mut)
    }

    /// Whether the counts are those of what it holds.
    #[cfg(test)]
    pub fn is_counted(&self) -> bool {
        let count = |of: fn(&Owed) -> bool| self.owed.iter().filter(|owed| of(owed)).count();
        (self.ends, self.changes) == (count(Owed::ends_with_ready), count(Owed::is_change))
    }

    fn count(&mut self, owed: &Owed) {
        self.ends += usize::from(owed.ends_with_ready());
        self.changes += usize::from(owed.is_change());
    }

    fn uncount(&mut self, owed: &Owed) {
        self.ends -= usize::from(owed.ends_with_ready());
        self.changes -= usize::from(owed.is_change());
    }
}
