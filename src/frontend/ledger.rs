//! What a server still owes for the messages it was sent, in order: a queue, not a counter, because
//! an error makes the server skip messages, and COPY makes it swallow Syncs.
//!
//! ```text
//!   client  P  B  E  S │ Q        sent:    push() ──►  [Parse Bind Execute Sync Query]
//!   server  1  2  C  Z │ C Z      replies: reply() ◄── pops from the front
//!           E········Z │ C Z      an error pops to the Sync, which it leaves
//! ```
//!
//! It may believe that more is owed than is: then the server connection stays with its client. It
//! never believes that less is owed, for then the next client would read this one's replies; where
//! the protocol leaves it open, the ledger is `uncertain` and the connection is never reused.

use std::sync::Arc;

use crate::backend::prepared::Statement;
use crate::frontend::owed::{Owed, OwedQueue, Portal};
use crate::frontend::prepared::{Name, Undo, Unnamed};
use crate::protocol::frame::BackendTag;

/// A message that took no effect.
#[derive(Debug)]
pub struct Failed {
    pub message: Owed,
    /// The server did not even look at it: the error was another's.
    pub skipped: bool,
}

/// What to do with a server's reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    Forward,
    Swallow,
    /// Nobody is owed it. The server connection is to be closed: nothing that comes behind it can
    /// be trusted.
    Unfit,
}

/// What a server has said to the message that is answered up to its ReadyForQuery.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// Nothing, or the start of something.
    #[default]
    Part,
    /// The end of something; more may follow.
    Whole,
    Failed,
}

/// The server reads COPY data: until the client ends it, the server swallows Syncs.
#[derive(Debug, Default)]
struct CopyIn {
    /// CopyDone or CopyFail was sent.
    ended: bool,
    /// So many Syncs were taken for swallowed. If the COPY fails, whether they were cannot be told.
    swallowed: usize,
}

/// The statement of the portal without a name, as far as it is known.
#[derive(Debug, Default)]
enum Bound {
    #[default]
    Unknown,
    /// The one without a name, as it is.
    Unnamed,
    Named(Arc<Statement>),
}

/// What a message that names the portal without a name finds at the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnnamedPortal {
    /// One of this client's Bind, or none.
    Bound,
    /// It depends on answers that the server owes.
    Open,
    /// What a Query that failed in a transaction has left there, whose memory is freed.
    Stale,
}

/// What the message to be answered next runs or prepares.
#[derive(Debug)]
pub enum Current<'a> {
    Unknown,
    /// The only message owed, a Query.
    Query,
    Statement(&'a Statement),
    Text(&'a [u8]),
    /// The statement without a name; as it was before messages that were sent since, if there are
    /// any.
    Unnamed(Option<&'a Unnamed>),
}

#[derive(Debug, Default)]
pub struct Ledger {
    owed: OwedQueue,
    /// After an error in an extended batch whose Sync was not sent yet: the server skips all else.
    skipping: bool,
    copy: Option<CopyIn>,
    /// Extended messages were sent whose Sync was not: their implicit transaction is open.
    unsynced: bool,
    /// What is owed cannot be told any more.
    uncertain: bool,
    /// The client has sent what a COPY may have swallowed beside Syncs: more may be owed than will
    /// be answered.
    lenient: bool,
    said: Said,
    /// Syncs that a COPY that failed may have swallowed or not.
    doubtful: usize,
    /// The last ReadyForQuery said idle, and nothing was sent after it.
    idle: bool,
    /// The last ReadyForQuery said that the transaction has failed.
    failed_transaction: bool,
    /// It said that one is open.
    in_transaction: bool,
    /// Messages about statements that took no effect.
    failed: Vec<Failed>,
    bound: Bound,
    /// The portal without a name was bound since the last message that ends with a ReadyForQuery.
    binds_unnamed: bool,
    /// The server's portal without a name may be the one of a Query that failed.
    portal_is_stale: bool,
    counts: Named,
}

/// Statements with names, counted as PgBouncer does.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Named {
    /// Parse messages of clients.
    pub client_parses: u32,
    /// Parse messages to servers.
    pub server_parses: u32,
    pub binds: u32,
}

impl Ledger {
    /// Begins at a clean point, rather than with a message on its way.
    pub fn begin_clean(&mut self) {
        self.idle = true;
    }

    /// Records that a message was sent (or is answered by the proxy).
    pub fn push(&mut self, message: Owed) {
        self.idle = false;
        self.count(&message);
        self.lenient |= self.copy_is_open() && !matches!(message, Owed::Sync | Owed::CopyEnd);
        match message {
            Owed::Sync if self.copy_is_open() => {
                self.copy.get_or_insert_default().swallowed += 1;
                return;
            }
            Owed::Sync => {
                self.skipping = false;
                self.binds_unnamed = false;
            }
            Owed::CopyEnd if self.copy_is_open() => {
                self.copy.get_or_insert_default().ended = true;
                return;
            }
            // Without a COPY it means something only if one begins before it.
            Owed::CopyEnd if self.owed.is_empty() => return,
            _ if self.skipping => {
                // If a doubtful Sync was not swallowed, the server looks at it.
                self.uncertain |= self.doubtful > 0;
                self.note_failed(message, true);
                return;
            }
            Owed::Query(_) | Owed::FunctionCall | Owed::Refused { ready: true, .. } => {
                self.binds_unnamed = false;
            }
            Owed::CopyEnd => {}
            _ => {
                self.unsynced = true;
                self.binds_unnamed |= matches!(message, Owed::Bind(Portal::Unnamed, _));
            }
        }
        self.owed.push_back(message);
    }

    fn count(&mut self, message: &Owed) {
        let counts = &mut self.counts;
        match message {
            Owed::Parse(Some(_), _) => {
                counts.client_parses += 1;
                counts.server_parses += 1;
            }
            Owed::FakeParse(_) => counts.client_parses += 1,
            Owed::SwallowedParse(Some(_)) | Owed::Copy(_) => counts.server_parses += 1,
            Owed::Bind(_, Some(_)) => counts.binds += 1,
            _ => {}
        }
    }

    /// A Parse, or else a Bind, of a statement with a name passes as it is.
    pub fn count_passed(&mut self, is_parse: bool) {
        let counts = &mut self.counts;
        counts.client_parses += u32::from(is_parse);
        counts.server_parses += u32::from(is_parse);
        counts.binds += u32::from(!is_parse);
    }

    /// What was counted since this was last asked. None: nothing.
    pub fn take_counts(&mut self) -> Option<Named> {
        let counts = std::mem::take(&mut self.counts);
        (counts != Named::default()).then_some(counts)
    }

    /// Records a reply by its tag; `status` is what a ReadyForQuery says.
    pub fn reply(&mut self, tag: BackendTag, status: u8) -> Reply {
        if !self.fits(tag, status) {
            return Reply::Unfit;
        }
        match tag {
            BackendTag::READY_FOR_QUERY => {
                self.said = Said::Part;
                self.in_transaction = status != b'I';
                self.failed_transaction = status == b'E';
                // Leaving a failed transaction, or the savepoint that it returns to, drops the
                // portals made in it.
                self.portal_is_stale &= status == b'E';
                let ended = self.ready(status == b'I');
                self.portal_is_stale |= status == b'E' && matches!(ended, Some(Owed::Query(_)));
            }
            BackendTag::ERROR_RESPONSE => self.error(),
            BackendTag::PARSE_COMPLETE => {
                return self.complete(Owed::is_parse);
            }
            BackendTag::CLOSE_COMPLETE => {
                return self.complete(Owed::is_close);
            }
            BackendTag::BIND_COMPLETE => {
                return self.complete(|owed| matches!(owed, Owed::Bind(..)));
            }
            BackendTag::ROW_DESCRIPTION | BackendTag::NO_DATA => {
                self.said = Said::Part;
                if let Some(Owed::Describe(_)) = self.front() {
                    self.owed.pop_front();
                }
            }
            BackendTag::COMMAND_COMPLETE
            | BackendTag::EMPTY_QUERY_RESPONSE
            | BackendTag::PORTAL_SUSPENDED => {
                self.copy = None;
                match self.front() {
                    Some(Owed::Execute(_)) => {
                        self.owed.pop_front();
                    }
                    _ => self.said = Said::Whole,
                }
            }
            BackendTag::FUNCTION_CALL_RESPONSE => self.said = Said::Whole,
            BackendTag::COPY_IN_RESPONSE | BackendTag::COPY_BOTH_RESPONSE => {
                self.said = Said::Part;
                self.copy_begins();
            }
            _ => {}
        }
        Reply::Forward
    }

    /// Whether a row, or data of a COPY, fits what is owed.
    #[inline]
    pub fn owes_rows(&self) -> bool {
        match self.owed.front() {
            Some(Owed::Query(_)) => self.said != Said::Failed || self.is_lenient(),
            Some(Owed::Execute(_)) => true,
            _ => self.is_lenient(),
        }
    }

    /// Whether what is owed may be less than it seems, so that replies are not judged by it.
    fn is_lenient(&self) -> bool {
        self.lenient || !self.is_certain() || matches!(self.owed.front(), Some(Owed::NoPortal))
    }

    /// Whether a reply fits what is owed. FATAL errors, which end the connection, are not asked
    /// about.
    fn fits(&mut self, tag: BackendTag, status: u8) -> bool {
        use BackendTag as Tag;
        if matches!(
            tag,
            Tag::PARAMETER_STATUS | Tag::NOTICE_RESPONSE | Tag::NOTIFICATION_RESPONSE
        ) {
            return true;
        }
        let said = self.said;
        let Some(front) = self.front() else {
            return self.is_lenient();
        };
        let is_query = matches!(front, Owed::Query(_));
        let runs = is_query || matches!(front, Owed::Execute(_));
        let fits = match tag {
            Tag::READY_FOR_QUERY if !matches!(status, b'I' | b'T' | b'E') => return false,
            Tag::READY_FOR_QUERY => match front {
                Owed::Sync => true,
                _ => front.ends_with_ready() && said != Said::Part,
            },
            // An error is the last word but ReadyForQuery.
            _ if said == Said::Failed => false,
            Tag::ERROR_RESPONSE => true,
            Tag::COMMAND_COMPLETE
            | Tag::EMPTY_QUERY_RESPONSE
            | Tag::COPY_IN_RESPONSE
            | Tag::COPY_OUT_RESPONSE
            | Tag::COPY_BOTH_RESPONSE
            | Tag::COPY_DONE => runs,
            Tag::PORTAL_SUSPENDED => matches!(front, Owed::Execute(_)),
            Tag::ROW_DESCRIPTION => is_query || matches!(front, Owed::Describe(_)),
            Tag::PARAMETER_DESCRIPTION | Tag::NO_DATA => matches!(front, Owed::Describe(_)),
            Tag::PARSE_COMPLETE => front.is_parse(),
            Tag::CLOSE_COMPLETE => front.is_close(),
            Tag::BIND_COMPLETE => matches!(front, Owed::Bind(..)),
            Tag::FUNCTION_CALL_RESPONSE => {
                matches!(front, Owed::FunctionCall) && said == Said::Part
            }
            _ => return false,
        };
        fits || self.is_lenient()
    }

    /// The reply that the proxy owes next, if it is its turn.
    pub fn take_fake(&mut self) -> Option<&'static [u8]> {
        let fake = self.front().and_then(Owed::fake)?;
        self.owed.pop_front();
        Some(fake)
    }

    /// The statement of a name of the proxy's own that the message to be answered next has sent,
    /// and the client's name of it.
    pub fn renamed(&mut self) -> Option<(&[u8], &Statement)> {
        match self.front()? {
            Owed::Bind(_, Some((name, statement)))
            | Owed::Describe(Some((name, statement)))
            | Owed::Redefine(name, statement)
            | Owed::Parse(Some(statement), Undo::Name(name, _)) => Some((name, statement)),
            _ => None,
        }
    }

    /// What the client is told in place of the server's next error.
    pub fn refusal(&mut self) -> Option<Arc<[u8]>> {
        match self.front()? {
            Owed::Refused { error, .. } => Some(error.clone()),
            _ => None,
        }
    }

    /// Whether the server's next error is about [`NO_PORTAL`](crate::frontend::owed::NO_PORTAL).
    pub fn has_no_portal(&mut self) -> bool {
        matches!(self.front(), Some(Owed::NoPortal))
    }

    /// What an error would be about that comes now. Of portals it knows the one without a name.
    /// `obscure`: others, or statements that are not known, were in use.
    pub fn current(&self, obscure: bool) -> Current<'_> {
        let mut owed = self.owed.iter();
        let front = owed.find(|owed| !matches!(owed, Owed::CopyEnd));
        let before = owed.find_map(|owed| match owed.undo() {
            Some(Undo::Unnamed(before, _)) => Some(before),
            _ => None,
        });
        match front {
            Some(Owed::Query(_)) if self.owed.len() == 1 => Current::Query,
            Some(Owed::Execute(Some(ran))) => match ran.text() {
                Some(text) => Current::Text(text),
                None => Current::Unknown,
            },
            Some(Owed::Execute(None) | Owed::Bind(_, None)) if obscure => Current::Unknown,
            Some(
                Owed::Parse(Some(statement), _)
                | Owed::SwallowedParse(Some(statement))
                | Owed::Bind(_, Some((_, statement))),
            ) => Current::Statement(statement),
            Some(
                Owed::Parse(None, Undo::Unnamed(..))
                | Owed::SwallowedParse(None)
                | Owed::Bind(_, None),
            ) => Current::Unnamed(before),
            Some(Owed::Execute(None)) => match &self.bound {
                Bound::Unknown => Current::Unknown,
                Bound::Unnamed => Current::Unnamed(before),
                Bound::Named(statement) => Current::Statement(statement),
            },
            _ => Current::Unknown,
        }
    }

    /// Whether an Execute is answered next.
    pub fn is_at_execute(&mut self) -> bool {
        matches!(self.front(), Some(Owed::Execute(_)))
    }

    /// Whether what is answered next ends with a ReadyForQuery.
    pub fn is_at_end(&mut self) -> bool {
        self.front().is_some_and(Owed::ends_with_ready)
    }

    /// Whether a Sync is answered next.
    pub fn is_at_sync(&self) -> bool {
        matches!(self.owed.front(), Some(Owed::Sync))
    }

    /// What was bound last to the portal without a name, once nothing is owed.
    pub fn last_bound(&self, obscure: bool) -> Current<'_> {
        if obscure || !self.owed.is_empty() {
            return Current::Unknown;
        }
        match &self.bound {
            Bound::Unknown => Current::Unknown,
            Bound::Unnamed => Current::Unnamed(None),
            Bound::Named(statement) => Current::Statement(statement),
        }
    }

    /// What is answered next ends with the ReadyForQuery of its own message, and no Sync.
    pub fn ends_with_query(&self) -> bool {
        matches!(self.owed.front(), Some(Owed::Query(_) | Owed::FunctionCall))
    }

    /// Messages up to a ReadyForQuery are owed.
    pub fn owes_ready(&self) -> bool {
        self.is_certain() && self.has_sent_end()
    }

    /// What ends with a ReadyForQuery was sent, whatever the server makes of it.
    pub fn has_sent_end(&self) -> bool {
        self.owed.ends() > 0
    }

    /// Something is owed, and will be answered when the server is asked to (Flush).
    pub fn will_answer(&self) -> bool {
        !self.owed.is_empty() && self.is_certain()
    }

    /// Whether the server skips a Query if an error comes now: it is about a message of the proxy's
    /// own ahead of it, and ends at a Sync that the client does not send.
    pub fn would_skip_query(&self) -> bool {
        let is_copy = |owed: &&Owed| matches!(owed, Owed::Copy(_) | Owed::CloseCopy(_));
        self.owed.front().is_some_and(|front| is_copy(&front))
            && matches!(
                self.owed.iter().find(|owed| !is_copy(owed)),
                Some(Owed::Query(_))
            )
    }

    /// The name in the message to be answered next, if it is a Parse that the server was to refuse,
    /// and what it defines.
    pub fn redefinition(&self) -> Option<(Name, Arc<Statement>)> {
        match self.owed.front()? {
            Owed::Redefine(name, statement) => Some((name.clone(), statement.clone())),
            _ => None,
        }
    }

    fn is_certain(&self) -> bool {
        !self.uncertain && self.doubtful == 0
    }

    /// Whether that is open for any name: what a pipeline is asked at each of its messages, so it
    /// is not looked through.
    pub fn may_change_any(&self) -> bool {
        self.owed.ends() > 0 && self.owed.changes() > 0
    }

    /// Whether it is open what `name`, now of `statement`, means on the server until the messages
    /// before the last Sync (or Query) are answered.
    pub fn may_change(&self, name: &[u8], statement: Option<&Arc<Statement>>) -> bool {
        if !self.may_change_any() {
            return false;
        }
        let Some(last) = self.owed.iter().rposition(Owed::ends_with_ready) else {
            return false;
        };
        let (mut before, mut since) = (self.owed.range(..=last), self.owed.range(last + 1..));
        self.is_certain()
            && match name.is_empty() {
                true => !since.any(Owed::changes_unnamed) && before.any(Owed::opens_unnamed),
                false => before.any(|owed| {
                    owed.changes(name) || statement.is_some_and(|statement| owed.parses(statement))
                }),
            }
    }

    /// What an Execute or Describe of the portal without a name would find if it were sent now.
    ///
    /// A Query makes that portal, too, and if it fails in a transaction block, PostgreSQL keeps the
    /// portal, but not the statement that it points to: up to 18 its use reads freed memory
    /// (exec_simple_query and AtAbort_Portals), and may end all sessions of the server.
    pub fn unnamed_portal(&self) -> UnnamedPortal {
        if self.binds_unnamed || (self.skipping && self.doubtful == 0) {
            return UnnamedPortal::Bound;
        }
        let owes_query =
            || self.owed.ends() > 0 && self.owed.iter().any(|owed| matches!(owed, Owed::Query(_)));
        if self.is_certain() && !self.portal_is_stale && !owes_query() {
            return UnnamedPortal::Bound;
        }
        match self.owes_ready() {
            true => UnnamedPortal::Open,
            false => UnnamedPortal::Stale,
        }
    }

    /// The first message owed that has changed the same as `undo` takes back.
    pub fn next_change(&mut self, undo: &Undo) -> Option<&mut Undo> {
        self.owed.undos().find(|other| other.is_of_same(undo))
    }

    /// The client is to end a COPY first; the server takes nothing else.
    pub fn copy_is_open(&self) -> bool {
        self.copy.as_ref().is_some_and(|copy| !copy.ended)
    }

    /// Whether a message that is sent now finds a transaction that has not failed.
    pub fn is_healthy(&self) -> bool {
        !self.failed_transaction && self.owed.ends() == 0
    }

    /// Whether some took no effect.
    pub fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Messages about prepared statements that took no effect since this was last asked, in the
    /// order they were sent.
    pub fn take_failed(&mut self) -> Vec<Failed> {
        std::mem::take(&mut self.failed)
    }

    /// The server skips all that it was sent, and the connection with it is given up. Returns
    /// whether a ReadyForQuery was owed.
    pub fn give_up(&mut self) -> bool {
        let owes_ready = self.has_sent_end();
        while let Some(message) = self.owed.pop_front() {
            self.note_failed(message, true);
        }
        self.uncertain = true;
        owes_ready
    }

    /// Nothing is owed, no transaction is open, and that is certain.
    pub fn is_clean(&self) -> bool {
        self.idle && self.owed.is_empty() && self.is_certain()
    }

    /// Whether it becomes clean, or comes to rest in a transaction, without another message from
    /// the client.
    pub fn will_settle(&self) -> bool {
        self.is_certain()
            && !self.skipping
            && !self.copy_is_open()
            && self.owed.back().is_none_or(Owed::ends_with_ready)
            && (!self.unsynced || !self.owed.is_empty())
    }

    /// What the next ReadyForQuery would say if nothing happened before it: of the proxy's own
    /// answers. None: the server answers nothing in a transaction that has failed but its end.
    pub fn status(&self) -> Option<u8> {
        match (self.failed_transaction, self.in_transaction) {
            (true, _) => None,
            (false, true) => Some(b'T'),
            (false, false) => Some(b'I'),
        }
    }

    /// No messages were sent whose implicit transaction waits for its Sync.
    pub fn is_synced(&self) -> bool {
        !self.unsynced && !self.skipping
    }

    pub fn is_empty(&self) -> bool {
        self.owed.is_empty()
    }

    /// Whether nothing was sent that a server would run: no statement, and nothing that ends a
    /// batch.
    pub fn runs_nothing(&self) -> bool {
        let is_run = |owed: &Owed| matches!(owed, Owed::Execute(_) | Owed::CopyEnd);
        !self.has_sent_end() && !self.owed.iter().any(is_run)
    }

    /// Whether the server passes over all that comes before the next Sync.
    pub fn is_skipping(&self) -> bool {
        self.skipping
    }

    /// Whether the server would answer a Query of the proxy's own, whose answers come next.
    pub fn can_be_asked(&self) -> bool {
        self.owed.is_empty()
            && self.is_certain()
            && !self.unsynced
            && !self.skipping
            && !self.failed_transaction
            && !self.copy_is_open()
    }

    /// A Query of the proxy's own was answered.
    pub fn note_question(&mut self, failed: bool) {
        self.binds_unnamed = false;
        self.failed_transaction |= failed && self.in_transaction;
        self.portal_is_stale |= failed && self.in_transaction;
    }

    /// Messages owed, and those the proxy answers in its turn.
    pub fn len(&self) -> usize {
        self.owed.len()
    }

    fn front(&mut self) -> Option<&Owed> {
        while let Some(Owed::CopyEnd) = self.owed.front() {
            self.owed.pop_front();
        }
        self.owed.front()
    }

    fn complete(&mut self, expected: impl Fn(&Owed) -> bool) -> Reply {
        let Some(front) = self.front().filter(|front| expected(front)) else {
            self.uncertain = true;
            return Reply::Forward;
        };
        let reply = match front {
            Owed::SwallowedParse(_)
            | Owed::SwallowedClose(_)
            | Owed::Copy(_)
            | Owed::CloseCopy(_) => Reply::Swallow,
            _ => Reply::Forward,
        };
        let completed = self.owed.pop_front();
        self.portal_is_stale &= !matches!(completed, Some(Owed::Bind(Portal::Unnamed, _)));
        match completed {
            Some(Owed::Bind(_, Some((_, statement)))) => self.bound = Bound::Named(statement),
            Some(Owed::Bind(_, None)) => self.bound = Bound::Unnamed,
            // What is bound is of the one before it.
            Some(Owed::Parse(None, _)) if matches!(self.bound, Bound::Unnamed) => {
                self.bound = Bound::Unknown;
            }
            _ => {}
        }
        reply
    }

    /// Returns what the ReadyForQuery answers, if that is known.
    fn ready(&mut self, idle: bool) -> Option<Owed> {
        self.copy = None;
        if self.doubtful > 0 && self.owed.ends() == 0 {
            // It is the answer to a Sync that was not swallowed.
            self.doubtful -= 1;
            self.skipping = false;
            self.idle = idle && self.owed.is_empty();
            return None;
        }
        let ended = loop {
            match self.owed.pop_front() {
                Some(owed) if owed.ends_with_ready() => break Some(owed),
                Some(_) => {}
                None => {
                    self.uncertain = true;
                    break None;
                }
            }
        };
        self.front();
        // While it is not set, no such message is owed: a pipeline of many Queries is not looked
        // through for each.
        self.unsynced = self.unsynced
            && self
                .owed
                .iter()
                .any(|owed| !owed.ends_with_ready() && !matches!(owed, Owed::CopyEnd));
        self.idle = idle && self.owed.is_empty();
        ended
    }

    fn error(&mut self) {
        self.doubtful += self.copy.take().map_or(0, |copy| copy.swallowed);
        match self.front() {
            // Its ReadyForQuery follows. A Sync may be malformed, and fail behind what failed
            // before it.
            Some(owed) if owed.ends_with_ready() => self.said = Said::Failed,
            Some(_) => {
                let mut skipped = false;
                while let Some(owed) = self.owed.pop_front() {
                    if matches!(owed, Owed::Sync) {
                        self.owed.push_front(owed);
                        return;
                    }
                    self.note_failed(owed, skipped);
                    // If a doubtful Sync was not swallowed, the server has looked at it.
                    self.uncertain |= skipped && self.doubtful > 0;
                    skipped = true;
                }
                self.skipping = true;
            }
            // FATAL, and the end of the connection; or something that cannot be.
            None => self.uncertain = true,
        }
    }

    fn note_failed(&mut self, message: Owed, skipped: bool) {
        if matches!(
            message,
            Owed::Query(_)
                | Owed::Parse(..)
                | Owed::SwallowedParse(_)
                | Owed::SwallowedClose(_)
                | Owed::Copy(_)
                | Owed::CloseCopy(_)
                | Owed::FakeParse(_)
                | Owed::FakeClose(_)
                | Owed::Close(_)
        ) {
            self.failed.push(Failed { message, skipped });
        }
    }

    /// The server swallows the Syncs between here and the end of the COPY.
    fn copy_begins(&mut self) {
        if self.front().is_none() {
            self.uncertain = true;
        }
        let mut copy = CopyIn::default();
        let mut at = 1;
        while !copy.ended
            && let Some(owed) = self.owed.get(at)
        {
            match owed {
                Owed::CopyEnd => copy.ended = true,
                Owed::Sync => copy.swallowed += 1,
                _ => {
                    self.lenient = true;
                    at += 1;
                    continue;
                }
            }
            self.owed.remove(at);
        }
        self.copy = Some(copy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frontend::owed::Ran;
    use crate::frontend::prepared::Parse;
    use crate::protocol::reply::{CLOSE_COMPLETE, PARSE_COMPLETE};
    use crate::sql::effects::Effects;

    /// Plays a conversation: capital words are what the client sends, the tags after `>` what the
    /// server answers; `Z` is idle, `z` in a transaction, `f` in one that has failed.
    fn play(script: &str) -> Ledger {
        let mut ledger = Ledger::default();
        let mut replies = false;
        for word in script.split_whitespace() {
            match (word, replies) {
                (">", _) => replies = true,
                ("<", _) => replies = false,
                ("Q", false) => ledger.push(Owed::Query(Undo::Nothing)),
                ("F", false) => ledger.push(Owed::FunctionCall),
                ("S", false) => ledger.push(Owed::Sync),
                ("P", false) => ledger.push(Owed::Parse(None, Undo::Nothing)),
                ("B", false) => ledger.push(Owed::Bind(Portal::Unnamed, None)),
                ("D", false) => ledger.push(Owed::Describe(None)),
                ("E", false) => ledger.push(Owed::Execute(None)),
                ("C", false) => ledger.push(Owed::Close(Undo::Nothing)),
                ("c", false) => ledger.push(Owed::CopyEnd),
                (tag, true) => assert!(hear(&mut ledger, tag), "{script}: {tag}"),
                other => panic!("{other:?}"),
            }
            assert!(ledger.owed.is_counted(), "{script}: {word}");
        }
        ledger
    }

    /// Whether the reply of a [script](play) fits.
    fn hear(ledger: &mut Ledger, word: &str) -> bool {
        let (tag, status) = match word {
            "z" => (BackendTag::READY_FOR_QUERY, b'T'),
            "f" => (BackendTag::READY_FOR_QUERY, b'E'),
            "D" | "d" => return ledger.owes_rows(),
            tag => (BackendTag(tag.as_bytes()[0]), b'I'),
        };
        ledger.reply(tag, status) != Reply::Unfit
    }

    #[test]
    fn a_reply_that_nobody_is_owed_is_noticed_at_the_next_that_somebody_is() {
        // What is sent, and what comes.
        for (sent, replies) in [
            ("Q", "T D D C Z"),
            ("Q", "C Z"),
            ("Q", "I Z"),
            ("Q", "T C T D C Z"),
            ("Q", "T D E Z"),
            ("Q", "H d d c C Z"),
            ("Q Q Q", "C Z E Z T D C z"),
            ("F F", "V Z E Z"),
            ("S S", "Z z"),
            ("P B D E S", "1 2 T D C Z"),
            ("P D S", "1 t n Z"),
            ("P B E S P B E C S", "1 2 s Z 1 2 D C 3 Z"),
            ("P B E S P B E S", "E Z 1 2 I Z"),
            ("P B E S Q", "1 E Z T D C Z"),
            ("B E B E S", "2 H d c C 2 C Z"),
            ("P B E S F S", "1 2 C Z V Z Z"),
            ("", ""),
        ] {
            let sent = sent.split_whitespace();
            let replies: Vec<&str> = replies.split_whitespace().collect();
            for at in 0..=replies.len() {
                for stray in "1 2 3 t T n C I s D d c V H G W E Z R K v ~".split(' ') {
                    let words: Vec<_> = sent.clone().chain([">"]).collect();
                    let mut ledger = play(&words.join(" "));
                    ledger.idle = true;
                    for reply in &replies[..at] {
                        assert!(hear(&mut ledger, reply));
                    }
                    let is_part_of_a_reply = match ledger.front() {
                        Some(Owed::Query(_)) => "T C I D d c H G W".contains(stray),
                        Some(Owed::Execute(_)) => "D d c H G W".contains(stray),
                        Some(Owed::Describe(_)) => stray == "t",
                        _ => false,
                    };
                    let next = *replies.get(at).unwrap_or(&"");
                    let ends_in_an_error = match stray {
                        // And a Sync behind what failed before it.
                        "E" => ["E", "Z", "z"].contains(&next),
                        "Z" => false,
                        // It may fail behind that.
                        _ => next == "E",
                    };
                    let noticed = !hear(&mut ledger, stray)
                        || !replies[at..].iter().all(|reply| hear(&mut ledger, reply));
                    assert!(
                        noticed || is_part_of_a_reply || ends_in_an_error,
                        "{replies:?}: {stray} at {at}"
                    );
                }
                let words: Vec<_> = sent.clone().chain([">"]).collect();
                let mut ledger = play(&words.join(" "));
                for reply in &replies[..at] {
                    assert!(hear(&mut ledger, reply));
                }
                for any_time in ["S", "N", "A"] {
                    assert!(
                        hear(&mut ledger, any_time),
                        "{replies:?}: {any_time} at {at}"
                    );
                }
                assert!(replies[at..].iter().all(|reply| hear(&mut ledger, reply)));
            }
        }
    }

    #[test]
    fn a_status_that_is_none_fits_nothing() {
        for status in [0, b'Q', b'i', 0xff] {
            let mut ledger = play("S");
            let reply = ledger.reply(BackendTag::READY_FOR_QUERY, status);
            assert_eq!(reply, Reply::Unfit, "{status}");
        }
    }

    #[test]
    fn what_a_copy_may_have_swallowed_is_not_judged() {
        // The server takes the Parse for data of the COPY, fails, and answers the Sync.
        for script in [
            "Q > G < P S > E Z Z",
            "Q P S > G E Z Z",
            "Q > G < Q > E Z < Q > T D C Z",
        ] {
            play(script);
        }
    }

    #[test]
    fn conversations_end_clean_exactly_when_nothing_is_owed() {
        for (script, clean) in [
            ("", false),
            ("Q > T D C Z", true),
            ("Q > T D C z", false),
            ("Q > E Z", true),
            ("Q Q > C Z", false),
            ("Q Q > C Z E Z", true),
            ("F > V Z", true),
            ("P B D E S > 1 2 T D C Z", true),
            ("P B D E S > 1 2 n C Z", true),
            ("P D S > 1 t T Z", true),
            ("P B E S > 1 2 s Z", true),
            ("P B E S > 1 2 I Z", true),
            // An error skips to the Sync, whether that was sent before or after.
            ("P B E S > E Z", true),
            ("P B E > E < S > Z", true),
            ("P B E > 1 E < P B E Q F S > Z", true),
            ("P B E Q S > E Z", true),
            ("P B E S P B E S > E Z 1 2 C Z", true),
            ("P B E S P B E S > E Z 1 2 C", false),
            // Without a Sync the implicit transaction is open, though all was answered.
            ("P B E > 1 2 C", false),
            ("Q P B > C Z 1 2", false),
            ("P B E Q > 1 2 C C Z", true),
            // COPY swallows the Sync sent with it, unless it fails before it begins.
            ("P B E S > 1 2 G < c S > C Z", true),
            ("P B E S > 1 2 E Z < c S > Z", true),
            ("P B E S > 1 2 E Z < c S", false),
            ("P B E S c S > 1 2 G C Z", true),
            ("Q > G < c > C Z", true),
            ("Q > G < c > E Z", true),
            ("Q > G < c > C < c > G C Z", true),
            // It failed half-way: whether the first Sync was read is not known.
            ("P B E S > 1 2 G E < c S > Z", false),
            ("P B E S c S > 1 2 G E Z", false),
            ("P B E > 1 2 G E < S > Z", true),
            // It failed before the Sync was read.
            ("P B E > 1 2 G < S > E Z", true),
            ("P B E > 1 2 G < S > E < Q > Z", false),
            ("P B E > 1 2 G < S c Q > E Z", false),
            ("P B E > 1 2 G < S > E < Q S > Z C Z Z", false),
            ("P B E > 1 2 G < S > E < S > Z", false),
            ("P B E > 1 2 G < S > E < S > Z Z", true),
            // Stray CopyDone is ignored by the server.
            ("c Q > C Z", true),
            ("Q c > C Z", true),
        ] {
            assert_eq!(play(script).is_clean(), clean, "{script}");
        }
    }

    #[test]
    fn a_conversation_settles_without_the_client_only_if_no_word_of_it_is_missing() {
        for (script, settles) in [
            ("Q", true),
            ("Q > T D C z", true),
            ("P B E S", true),
            ("P B E", false),
            ("P B E > 1 2 C", false),
            ("Q > G", false),
            ("Q > G < c", true),
            ("P B E > E", false),
            ("P B E S > 1 2 G E", false),
        ] {
            assert_eq!(play(script).will_settle(), settles, "{script}");
        }
    }

    #[test]
    fn the_portal_of_a_failed_query_is_told_from_one_that_was_bound() {
        use UnnamedPortal::{Bound, Open, Stale};
        for (script, found) in [
            ("", Bound),
            ("Q > C z", Bound),
            ("Q > E Z", Bound),
            ("Q > E f", Stale),
            ("P B E S > 1 2 E f", Bound),
            ("Q S > E f f", Stale),
            ("Q > E f < Q > C z", Bound),
            ("Q > E f < Q > C Z", Bound),
            // It depends on the Query that was sent.
            ("Q", Open),
            ("Q S", Open),
            ("P B E S", Bound),
            ("P B S Q", Open),
            // Of its own batch, it is there or the Execute is skipped.
            ("Q P B", Bound),
            ("Q > E f < B", Bound),
            ("Q > E f < B S", Open),
            ("Q > E f < B S > 2 f", Bound),
            ("Q > E f < B S > E f", Stale),
            ("Q > E f < B > E", Bound),
            ("Q > E f < B > E < S > f", Stale),
            // What a failed COPY has swallowed is not known.
            ("P B E S > 1 2 G E", Stale),
        ] {
            assert_eq!(play(script).unnamed_portal(), found, "{script}");
        }
    }

    #[test]
    fn the_proxy_answers_in_its_place_of_the_order() {
        let mut ledger = Ledger::default();
        ledger.push(Owed::Sync);
        ledger.push(Owed::FakeParse(Undo::Nothing));
        ledger.push(Owed::FakeClose(Undo::Nothing));
        ledger.push(Owed::SwallowedParse(None));
        ledger.push(Owed::Bind(Portal::Unnamed, None));
        assert_eq!(ledger.take_fake(), None);
        ledger.reply(BackendTag::READY_FOR_QUERY, b'I');
        assert_eq!(ledger.take_fake(), Some(PARSE_COMPLETE));
        assert_eq!(ledger.take_fake(), Some(CLOSE_COMPLETE));
        assert_eq!(ledger.take_fake(), None);
        assert_eq!(ledger.reply(BackendTag::PARSE_COMPLETE, 0), Reply::Swallow);
        assert_eq!(ledger.reply(BackendTag::BIND_COMPLETE, 0), Reply::Forward);
    }

    #[test]
    fn messages_that_took_no_effect_are_told_with_the_one_that_failed_first() {
        let statement = crate::backend::prepared::Interner::default().intern(b"x\0\0\0", 0, false);
        let mut ledger = Ledger::default();
        ledger.push(Owed::Parse(None, Undo::Nothing));
        ledger.push(Owed::Bind(Portal::Unnamed, None));
        ledger.push(Owed::Parse(Some(statement.clone()), Undo::Nothing));
        ledger.reply(BackendTag::ERROR_RESPONSE, 0);
        ledger.push(Owed::SwallowedParse(Some(statement)));
        ledger.push(Owed::FakeClose(Undo::Nothing));
        let told: Vec<_> = ledger
            .take_failed()
            .into_iter()
            .map(|failed| (matches!(failed.message, Owed::Parse(..)), failed.skipped))
            .collect();
        assert_eq!(
            told,
            [(true, false), (true, true), (false, true), (false, true)]
        );
        assert!(ledger.take_failed().is_empty());
    }
    #[test]
    fn it_is_known_what_an_error_would_be_about() {
        let statement = crate::backend::prepared::Interner::default().intern(b"x\0\0\0", 0, false);
        let named = || Some((Name::from(&b"n"[..]), statement.clone()));
        let known = |text: &[u8]| {
            Unnamed::Known(Arc::new(Parse {
                frame: text.into(),
                effects: Effects::default(),
                backslashes: false,
            }))
        };
        let parse = |before: &[u8]| Owed::Parse(None, Undo::Unnamed(known(before), true));
        let mut ledger = Ledger::default();
        let told = |ledger: &Ledger| match ledger.current(false) {
            Current::Unknown => "?".to_owned(),
            Current::Query => "query".to_owned(),
            Current::Statement(statement) => String::from_utf8_lossy(statement.text()).into_owned(),
            Current::Text(text) => String::from_utf8_lossy(text).into_owned(),
            Current::Unnamed(None) => "unnamed".to_owned(),
            Current::Unnamed(Some(Unnamed::Known(parse))) => {
                String::from_utf8_lossy(&parse.frame).into()
            }
            Current::Unnamed(Some(_)) => "lost".to_owned(),
        };
        assert_eq!(told(&ledger), "?");
        ledger.push(Owed::Query(Undo::Nothing));
        assert_eq!(told(&ledger), "query");
        ledger.push(Owed::Sync);
        assert_eq!(told(&ledger), "?", "the Query was not what was sent last");
        ledger.reply(BackendTag::COMMAND_COMPLETE, 0);
        ledger.reply(BackendTag::READY_FOR_QUERY, b'I');
        ledger.reply(BackendTag::READY_FOR_QUERY, b'I');

        ledger.push(Owed::Bind(Portal::Unnamed, named()));
        ledger.push(Owed::Execute(None));
        assert_eq!(told(&ledger), "x");
        ledger.reply(BackendTag::BIND_COMPLETE, 0);
        assert_eq!(told(&ledger), "x");
        ledger.reply(BackendTag::COMMAND_COMPLETE, 0);

        ledger.push(parse(b"zero"));
        ledger.push(Owed::Bind(Portal::Unnamed, None));
        ledger.push(Owed::Execute(None));
        for reply in [BackendTag::PARSE_COMPLETE, BackendTag::BIND_COMPLETE] {
            assert_eq!(told(&ledger), "unnamed");
            ledger.reply(reply, 0);
        }
        assert!(matches!(ledger.current(true), Current::Unknown));
        ledger.push(parse(b"one"));
        assert_eq!(
            told(&ledger),
            "one",
            "the Parse behind it is not what is run"
        );
        ledger.reply(BackendTag::COMMAND_COMPLETE, 0);
        ledger.reply(BackendTag::PARSE_COMPLETE, 0);
        ledger.push(Owed::Execute(None));
        assert_eq!(
            told(&ledger),
            "?",
            "the portal is still that of the one before"
        );
        ledger.reply(BackendTag::COMMAND_COMPLETE, 0);
        ledger.push(Owed::Execute(Some(Ran::Text(b"known"[..].into()))));
        assert_eq!(told(&ledger), "known", "whatever else was bound");
    }
}
