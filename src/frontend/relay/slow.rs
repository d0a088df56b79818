//! The slow log: a line for each statement that its tenant's `log.slow` finds too long, and for
//! each transaction of several.
//!
//! A statement here is a Query, a FunctionCall or an Execute. The server's time for it goes from
//! when it was sent, or what went before it was answered, to its own answer; time in which the
//! server was asked nothing does not count. Statements whose answers come together (a server keeps
//! those of a batch until its Sync) have one time together, and one line, which says how many they
//! are and names the first.
//!
//! Clocks are those of the metrics: read once for all that one read has brought. While the log is
//! off, nothing is kept.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::client::Phase;
use crate::frontend::owed::Ran;
use crate::metrics::TenantMetrics;
use crate::protocol::frame::{BackendTag, FrontendTag, HEADER, split_cstr};
use crate::sql::fingerprint::Fingerprint;
use crate::tenant::state::TenantState;

use super::Relay;

/// A Query or Parse up to this size, in bytes, is held until it is whole, so that its text is at
/// hand later.
const HELD: usize = 8 * 1024;

/// Most portals with names whose statements are remembered. The oldest ones of a client that has
/// more are forgotten.
const MAX_PORTALS: usize = 256;

/// Most bytes of names and texts that are remembered of a client in session pooling.
const MAX_TEXTS: usize = 1 << 20;
/// What each of them takes beside that, about.
const ENTRY: usize = 64;

/// What is timed of one client.
pub struct SlowLog<'a> {
    tenant: &'a TenantState,
    placement: &'a str,
    /// Whether there are statements.
    has_statements: bool,
    /// How long the client waited for the server connection. Its first statement on it tells.
    waited: Duration,
    /// What takes so long has a line. None: the log is off.
    limit: Option<Duration>,
    /// Since when the server is at what it answers next. None while it was asked nothing.
    began: Option<Instant>,
    /// A statement was answered in what was read last.
    has_answered: bool,
    /// What is told of them, if they took too long.
    line: Option<Box<Line>>,
    bound: Option<Box<Bound>>,
    transaction: Transaction,
}

/// What is bound, while the log is on.
#[derive(Default)]
struct Bound {
    /// What the portals run: the one without a name, and others.
    unnamed: Option<Ran>,
    named: Vec<(Box<[u8]>, Option<Ran>)>,
    /// What the last Parse, Bind or Execute was about.
    last: Option<Ran>,
    /// The Query of the COPY whose data is on its way.
    copies: Option<Ran>,
}

/// What is told of statements.
struct Line {
    fingerprint: Option<Fingerprint>,
    took: Duration,
    /// So many were answered together.
    statements: u32,
    /// The server has handed over their answers: what comes behind is not of them.
    is_complete: bool,
}

/// What the transaction at hand has had so far.
#[derive(Default)]
struct Transaction {
    /// ReadyForQuery messages.
    statements: u32,
    server: Duration,
}

impl<'a> SlowLog<'a> {
    /// Of a client that has waited so long for its server connection.
    pub fn new(tenant: &'a TenantState, placement: &'a str, waited: Duration) -> Self {
        Self {
            tenant,
            placement,
            has_statements: true,
            waited,
            limit: None,
            began: None,
            has_answered: false,
            line: None,
            bound: None,
            transaction: Transaction::default(),
        }
    }

    /// Of a replication client: what it begins goes on for as long as it likes.
    pub fn of_replication(tenant: &'a TenantState) -> Self {
        Self {
            has_statements: false,
            ..Self::new(tenant, "", Duration::ZERO)
        }
    }

    pub(super) fn metrics(&self) -> &'a TenantMetrics {
        &self.tenant.metrics
    }

    pub(super) fn is_on(&self) -> bool {
        self.limit.is_some()
    }

    /// Whether answers are timed.
    pub(super) fn is_timing(&self) -> bool {
        self.began.is_some()
    }

    /// Whether a message of `size` bytes, of which `here` are there, is held until it is whole.
    pub(super) fn holds(&self, tag: FrontendTag, here: usize, size: usize) -> bool {
        self.is_on()
            && here < size
            && size <= HELD
            && matches!(tag, FrontendTag::QUERY | FrontendTag::PARSE)
    }

    fn is_slow(&self, took: Duration) -> bool {
        self.limit.is_some_and(|limit| took + self.waited >= limit)
    }

    /// What an Execute runs whose body, or the start of it, this is.
    pub(super) fn executes(&mut self, body: &[u8]) -> Option<Ran> {
        let bound = self.bound.as_mut()?;
        let (portal, _) = split_cstr(body)?;
        let mut named = bound.named.iter();
        let ran = match portal {
            b"" => bound.unnamed.clone(),
            _ => named
                .find(|(name, _)| **name == *portal)
                .and_then(|(_, ran)| ran.clone()),
        };
        bound.last.clone_from(&ran);
        ran
    }

    /// What a transaction has run is over, and so are its portals.
    pub(super) fn end_portals(&mut self) {
        if let Some(bound) = &mut self.bound {
            bound.unnamed = None;
            bound.named.clear();
        }
    }
}

impl Bound {
    fn bind(&mut self, portal: &[u8], ran: Option<Ran>) {
        self.last.clone_from(&ran);
        if portal.is_empty() {
            self.unnamed = ran;
            return;
        }
        self.named.retain(|(name, _)| **name != *portal);
        if self.named.len() >= MAX_PORTALS {
            self.named.remove(0);
        }
        self.named.push((portal.into(), ran));
    }
}

/// None: it was not at hand, or it is not certain which one the name means.
type Text = Option<Arc<[u8]>>;

/// What a client in session pooling has prepared, by name: it passes, and nobody else keeps it.
/// Only while the slow log is on.
#[derive(Debug, Default)]
pub struct Texts {
    known: HashMap<Box<[u8]>, Text>,
    /// Bytes that they take.
    size: usize,
    /// There was one too many: what a name means is not known from here on.
    is_full: bool,
}

impl Texts {
    fn size_of(name: &[u8], text: Option<&[u8]>) -> usize {
        ENTRY + name.len() + text.map_or(0, <[u8]>::len)
    }

    fn remove(&mut self, name: &[u8]) -> Option<Text> {
        let text = self.known.remove(name)?;
        self.size -= Self::size_of(name, text.as_deref());
        Some(text)
    }

    /// A statement is parsed; `text` is None where it is not at hand.
    fn parse(&mut self, name: &[u8], text: Option<&[u8]>) {
        let before = self.remove(name);
        // A name that is there may be taken: then the server refuses the Parse, and it means what
        // it did.
        let is_certain = name.is_empty() || before.is_none_or(|before| before.as_deref() == text);
        let text = text.filter(|_| is_certain);
        let size = self.size + Self::size_of(name, text);
        self.is_full |= size > MAX_TEXTS && !name.is_empty();
        if size <= MAX_TEXTS && (name.is_empty() || !self.is_full) {
            self.size = size;
            self.known.insert(name.into(), text.map(Arc::from));
        }
    }

    fn get(&self, name: &[u8]) -> Option<Ran> {
        self.known.get(name)?.clone().map(Ran::Text)
    }
}

impl Relay<'_> {
    /// Before a message is looked at: the client begins to say something.
    pub(super) fn begin_message(&mut self) {
        if std::mem::take(&mut self.is_quiet) {
            self.handle.enter(Phase::Running);
            let slow = &mut self.slow;
            slow.limit = slow.tenant.slow().filter(|_| slow.has_statements);
            if !slow.is_on() {
                // What is prepared from now on is not seen.
                slow.bound = None;
                self.client.texts = None;
            }
        }
        if self.transaction_began.is_none() {
            self.transaction_began = Some(*self.now.get_or_insert_with(Instant::now));
        }
    }

    /// A message, or the start of it, was sent.
    #[inline]
    pub(super) fn note_sent(&mut self) {
        let is_timed = self.slow.began.is_some() || !self.slow.is_on();
        if (self.statement_began.is_none() || !is_timed) && !self.ledger.is_empty() {
            let now = *self.now.get_or_insert_with(Instant::now);
            self.statement_began.get_or_insert(now);
            if self.slow.is_on() {
                self.slow.began.get_or_insert(now);
            }
        }
    }

    /// The server is ready for another query.
    pub(super) fn note_ready(&mut self, status: u8) {
        let now = *self.now.get_or_insert_with(Instant::now);
        if let Some(began) = self.statement_began.take() {
            let time = now.saturating_duration_since(began);
            self.metrics.statements.record(time);
            self.slow.transaction.server += time;
            self.slow.transaction.statements += 1;
        }
        if status == b'I'
            && let Some(began) = self.transaction_began.take()
        {
            let time = now.saturating_duration_since(began);
            self.metrics.transactions.record(time);
            let Transaction { statements, server } = std::mem::take(&mut self.slow.transaction);
            if statements > 1 && self.slow.limit.is_some_and(|limit| time >= limit) {
                self.tell_transaction(time, statements, server, true);
            }
        }
    }

    /// More was sent before the last ReadyForQuery came: the server begins with it now.
    pub(super) fn begin_next(&mut self) {
        let now = *self.now.get_or_insert_with(Instant::now);
        self.statement_began = Some(now);
        self.transaction_began.get_or_insert(now);
    }

    /// A Parse, Bind or Close was sent, whose frame the client's inbox has at `at`, as much of it
    /// as is there.
    pub(super) fn note_named(&mut self, tag: FrontendTag, at: usize, size: usize) {
        if !self.slow.is_on() {
            return;
        }
        let bytes = &self.client.inbox.bytes()[at..];
        let is_whole = bytes.len() >= size;
        let body = &bytes[HEADER.min(bytes.len())..size.min(bytes.len())];
        let statements = self.client.statements.as_ref();
        match tag {
            FrontendTag::PARSE => {
                let Some((name, rest)) = split_cstr(body) else {
                    return;
                };
                let ran = match statements {
                    Some(statements) => statements.ran(name),
                    None => {
                        let text = split_cstr(rest).filter(|_| is_whole);
                        let texts = self.client.texts.get_or_insert_default();
                        texts.parse(name, text.map(|(text, _)| text));
                        texts.get(name)
                    }
                };
                self.slow.bound.get_or_insert_default().last = ran;
            }
            FrontendTag::BIND => {
                let Some((portal, rest)) = split_cstr(body) else {
                    return;
                };
                let name = split_cstr(rest).map(|(name, _)| name);
                let ran = name.and_then(|name| match statements {
                    Some(statements) => statements.ran(name),
                    None => self.client.texts.as_ref()?.get(name),
                });
                let bound = self.slow.bound.get_or_insert_default();
                bound.bind(portal, ran);
            }
            FrontendTag::CLOSE if statements.is_none() => {
                let name = body.strip_prefix(b"S").and_then(split_cstr);
                if let (Some((name, _)), Some(texts)) = (name, &mut self.client.texts) {
                    texts.remove(name);
                }
            }
            _ => {}
        }
    }

    /// A reply has come that may be the end of a statement. Before it is noted.
    pub(super) fn time_reply(&mut self, tag: BackendTag) {
        let ends = match tag {
            BackendTag::COMMAND_COMPLETE
            | BackendTag::EMPTY_QUERY_RESPONSE
            | BackendTag::PORTAL_SUSPENDED => self.ledger.is_at_execute(),
            BackendTag::ERROR_RESPONSE => !self.ledger.is_at_end(),
            // A Sync is of the batch whose statements were answered just before.
            BackendTag::READY_FOR_QUERY => !self.ledger.is_at_sync() || !self.slow.has_answered,
            BackendTag::COPY_IN_RESPONSE => {
                // Once data has been sent behind it, the text is at hand no more.
                let text = self.current_text().map(|text| Ran::Text(text.into()));
                self.slow.bound.get_or_insert_default().copies = text;
                return;
            }
            _ => false,
        };
        let is_complete = tag == BackendTag::READY_FOR_QUERY;
        if let Some(line) = &mut self.slow.line {
            line.statements += u32::from(ends && !line.is_complete);
            line.is_complete |= is_complete;
        }
        let Some(began) = self.slow.began.filter(|_| ends) else {
            return;
        };
        let now = *self.now.get_or_insert_with(Instant::now);
        let took = now.saturating_duration_since(began);
        if !self.slow.has_answered && self.slow.is_slow(took) {
            let fingerprint = self.text_of_reply().and_then(Fingerprint::of);
            self.slow.line = Some(Box::new(Line {
                fingerprint,
                took,
                statements: 1,
                is_complete,
            }));
        }
        self.slow.has_answered = true;
    }

    /// The text that the next reply is about, where it is at hand.
    fn text_of_reply(&self) -> Option<&[u8]> {
        let current = self.current_text();
        if current.is_some() || self.ledger.len() != 1 {
            return current;
        }
        // With the Sync alone owed, the last that was sent is what it ends.
        let bound = self.slow.bound.as_ref()?;
        match self.ledger.is_at_sync() {
            true => bound.last.as_ref()?.text(),
            false => bound.copies.as_ref()?.text(),
        }
    }

    /// All that was read is dealt with.
    #[inline]
    pub(super) fn end_timing(&mut self) {
        if self.slow.began.is_some() {
            self.tell_answered();
        }
    }

    fn tell_answered(&mut self) {
        if let Some(line) = self.slow.line.take() {
            self.tell(&line, true);
        }
        if std::mem::take(&mut self.slow.has_answered) {
            self.slow.waited = Duration::ZERO;
            if let Some(bound) = &mut self.slow.bound {
                bound.copies = None;
            }
            self.slow.began = self.now;
        }
        if self.ledger.is_empty() {
            self.slow.began = None;
        }
    }

    /// The client or the server has gone, or is to go, in the middle of a statement or of a
    /// transaction.
    pub fn tell_unfinished(&mut self) {
        self.tell_unanswered();
        let Transaction { statements, server } = std::mem::take(&mut self.slow.transaction);
        let Some(time) = self.transaction_began.take().map(|began| began.elapsed()) else {
            return;
        };
        if statements > 0 && self.slow.limit.is_some_and(|limit| time >= limit) {
            self.tell_transaction(time, statements, server, false);
        }
    }

    fn tell_unanswered(&mut self) {
        let Some(took) = self.slow.began.take().map(|began| began.elapsed()) else {
            return;
        };
        if self.slow.is_slow(took) && !self.ledger.is_empty() {
            let fingerprint = self.text_of_reply().and_then(Fingerprint::of);
            let line = Line {
                fingerprint,
                took,
                statements: 1,
                is_complete: false,
            };
            self.tell(&line, false);
        }
    }

    fn tell(&self, line: &Line, answered: bool) {
        let Line {
            fingerprint,
            took,
            statements,
            ..
        } = line;
        let statement = fingerprint.as_ref().map(|known| known.text.as_str());
        let fingerprint = fingerprint
            .as_ref()
            .map(|known| format!("{:016x}", known.hash));
        tracing::warn!(target: "pgtenant::slow", tenant = %self.handle.tenant, user = %self.handle.user,
            database = %self.handle.database, placement = self.slow.placement,
            server = %self.server.server().name, client = self.handle.id, statement, fingerprint, statements, answered,
            wait_ms = milliseconds(self.slow.waited), server_ms = milliseconds(*took), "slow statement");
    }

    #[cold]
    fn tell_transaction(&self, took: Duration, statements: u32, server: Duration, ended: bool) {
        tracing::warn!(target: "pgtenant::slow", tenant = %self.handle.tenant, user = %self.handle.user,
            database = %self.handle.database, placement = self.slow.placement,
            server = %self.server.server().name, client = self.handle.id, statements, ended,
            server_ms = milliseconds(server), transaction_ms = milliseconds(took), "slow transaction");
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `+name=text` parses, `-name` closes; then what each name means.
    fn play(script: &str) -> Texts {
        let mut texts = Texts::default();
        for word in script.split_whitespace() {
            match word.split_at(1) {
                ("+", rest) => {
                    let (name, text) = rest.split_once('=').unwrap();
                    let text = (text != "?").then_some(text.as_bytes());
                    texts.parse(name.as_bytes(), text);
                }
                (_, name) => {
                    texts.remove(name.as_bytes());
                }
            }
        }
        texts
    }

    #[test]
    fn a_name_means_what_it_surely_means_and_nothing_else() {
        for (script, name, expected) in [
            ("", "a", None),
            ("+a=one", "a", Some("one")),
            ("+a=one", "", None),
            ("+=one +=two", "", Some("two")),
            // The server refuses the second, unless SQL has deallocated the first.
            ("+a=one +a=two", "a", None),
            ("+a=one +a=one", "a", Some("one")),
            ("+a=one -a +a=two", "a", Some("two")),
            ("+a=one -a", "a", None),
            ("+a=? +b=two", "a", None),
            ("+a=? +a=one", "a", None),
            ("+a=? -a +a=one", "a", Some("one")),
        ] {
            let texts = play(script);
            let ran = texts.get(name.as_bytes());
            let text = ran.as_ref().and_then(Ran::text);
            assert_eq!(text, expected.map(str::as_bytes), "{script}");
        }
    }

    #[test]
    fn a_client_can_have_only_so_much_remembered() {
        let mut texts = Texts::default();
        let text = vec![b'x'; 1000];
        for number in 0..10_000 {
            texts.parse(format!("{number:04}").as_bytes(), Some(&text));
            assert!(texts.size <= MAX_TEXTS);
        }
        assert_eq!(texts.known.len(), MAX_TEXTS / (ENTRY + 1004));
        for number in 0..10_000 {
            texts.remove(format!("{number:04}").as_bytes());
        }
        assert_eq!((texts.size, texts.known.len()), (0, 0));
        // The server has one of this name, which is not known.
        texts.parse(b"9999", Some(b"another"));
        assert!(texts.get(b"9999").is_none());
        texts.parse(b"", Some(b"without a name"));
        assert!(texts.get(b"").is_some());
        assert!(texts.get(b"0000").is_none());
    }
}
