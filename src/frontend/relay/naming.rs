//! SQL that names prepared statements, on its way: what is sent ahead of it, what waits behind it,
//! and what its answers tell ([`in_sql`](crate::frontend::statements) has the whole picture).

use std::collections::VecDeque;

use thin_vec::ThinVec;

use crate::backend::connection::ServerConnection;
use crate::frontend::statements::Target;
use crate::protocol::frame::{HEADER, split_cstr};
use crate::protocol::reply;
use crate::sql::effects::Effects;
use crate::sql::effects::uses::{Use, Verb};

use super::Relay;

/// Most portals that are remembered for what their statements name. Those of a client that has more
/// and uses the oldest are treated as if they named nothing.
const MAX_PORTALS: usize = 256;
/// Longest Execute that is collected to be looked at, in bytes.
const MAX_EXECUTE: usize = 8 * 1024;

/// What is known of texts that name prepared statements. Hardly any transaction has one, so what is
/// always there is small.
#[derive(Debug, Default)]
pub(super) struct Names {
    named: Option<Box<Named>>,
    /// Nothing more is sent before all is answered.
    drains: bool,
    /// The server was asked for its answers (Flush).
    drain_asked: bool,
}

#[derive(Debug, Default)]
struct Named {
    /// What the message that was sent last names, and its answers have not told yet.
    sent: VecDeque<Use>,
    /// Portals of such statements.
    portals: Vec<(Box<[u8]>, ThinVec<Use>)>,
}

/// What became of a look at an Execute.
pub(super) enum Executed {
    Passes,
    NeedMore,
    Names(ThinVec<Use>),
}

impl Names {
    /// A message is sent that names these.
    pub(super) fn begin(&mut self, uses: ThinVec<Use>) {
        if self.named.is_some() || !uses.is_empty() {
            self.named.get_or_insert_default().sent = uses.into_iter().collect();
        }
    }

    /// What the answer is about that comes now, to a statement with this verb. What code names has
    /// no answer of its own.
    fn next(&mut self, verb: Verb) -> Option<Use> {
        let named = self.named.as_mut()?;
        while let Some(used) = named.sent.pop_front() {
            if used.verb == verb && !used.in_code {
                return Some(used);
            }
        }
        None
    }

    /// The message has failed, or is answered.
    pub(super) fn end(&mut self) {
        if let Some(named) = &mut self.named {
            named.sent.clear();
        }
    }

    /// The transaction is over, and its portals are gone.
    pub(super) fn forget_portals(&mut self) {
        if let Some(named) = &mut self.named {
            named.portals.clear();
        }
    }

    /// Whether an earlier message must be answered first.
    pub(super) fn drains(&self) -> bool {
        self.drains
    }
}

impl Relay<'_> {
    /// Whether the client waits for answers.
    pub(super) fn note_drained(&mut self) {
        self.names.drains = self.names.drains && self.ledger.will_answer();
        self.names.drain_asked &= self.names.drains;
    }

    /// Asks for the answers that the client waits for. All before was handed to the server.
    pub(super) fn ask_to_drain(&mut self) {
        if self.names.drains && !std::mem::replace(&mut self.names.drain_asked, true) {
            self.server.outbox.extend(reply::FLUSH);
        }
    }

    /// A text that names statements is sent next; all before was handed to the server.
    pub(super) fn begin_names(&mut self, uses: ThinVec<Use>) {
        let uses = self.followed(uses);
        self.note_executed(&uses);
        self.lend(&uses);
        self.names.begin(uses);
    }

    /// The same for a message that has no end of its own: what is sent behind it waits.
    pub(super) fn begin_names_in_batch(&mut self, uses: ThinVec<Use>) {
        self.begin_names(uses);
        self.names.drains = true;
    }

    fn lend(&mut self, uses: &[Use]) {
        let backslashes = self.backslashes();
        let Some(statements) = &mut self.client.statements else {
            return;
        };
        let ServerConnection { parsed, outbox, .. } = &mut *self.server;
        let mut target = Target {
            parsed,
            outbox,
            ledger: &mut self.ledger,
            interner: &self.pool.statements,
            settings: &self.client.settings,
            is_meaning_open: &|| false,
            backslashes,
            owns_sequences: true,
            locks: (&self.locks, &self.client.limits),
            guard: self.client.guard.as_deref(),
            effects: Effects::default(),
            pins: false,
            obscure: false,
        };
        statements.doubt_names(uses, target.parsed);
        statements.lend(uses, false, &mut target);
        self.undo_failed();
    }

    /// What a text names, and what that names in turn.
    pub(super) fn followed(&self, uses: ThinVec<Use>) -> ThinVec<Use> {
        match &self.client.statements {
            Some(statements) => statements.followed(uses),
            None => uses,
        }
    }

    /// Takes note of what is done by statements that SQL executes by name.
    pub(super) fn note_executed(&mut self, uses: &[Use]) {
        let Some(statements) = &self.client.statements else {
            return;
        };
        let effects = statements.executed(uses);
        if !effects.is_empty() {
            self.locks.note(&effects);
            self.note_effects(&effects);
        }
    }

    /// A Bind was sent, whose body begins the client's inbox behind the header, of a statement that
    /// names these.
    pub(super) fn note_portal(&mut self, uses: ThinVec<Use>) {
        if uses.is_empty() && self.names.named.is_none() {
            return;
        }
        let body = self.client.inbox.bytes().get(HEADER..).unwrap_or_default();
        let Some((portal, _)) = split_cstr(body) else {
            return;
        };
        let portals = &mut self.names.named.get_or_insert_default().portals;
        portals.retain(|(name, _)| **name != *portal);
        if !uses.is_empty() {
            if portals.len() >= MAX_PORTALS {
                portals.remove(0);
            }
            portals.push((portal.into(), uses));
        }
    }

    /// Looks at an Execute of `size` bytes at `at` in the client's inbox, of which `here` are
    /// there.
    pub(super) fn look_at_execute(&self, at: usize, here: usize, size: usize) -> Executed {
        let Some(named) = &self.names.named else {
            return Executed::Passes;
        };
        if named.portals.is_empty() || size > MAX_EXECUTE {
            return Executed::Passes;
        }
        if here < size {
            return Executed::NeedMore;
        }
        let body = &self.client.inbox.bytes()[at + HEADER..at + size];
        let portal = split_cstr(body).map(|(portal, _)| portal);
        let mut portals = named.portals.iter();
        match portals.find(|(name, _)| Some(&**name) == portal) {
            Some((_, uses)) => Executed::Names(uses.clone()),
            None => Executed::Passes,
        }
    }

    /// The server has carried out a DEALLOCATE of one name, or a Close of what SQL prepared.
    pub(super) fn note_deallocated(&mut self) {
        let used = self.names.next(Verb::Deallocate);
        if let Some(statements) = &mut self.client.statements {
            statements.note_deallocated(used.as_ref(), &mut self.server.parsed);
        }
    }

    /// The server has carried out a PREPARE.
    pub(super) fn note_prepared(&mut self) {
        let used = self.names.next(Verb::Prepare);
        if let (Some(statements), Some(used)) = (&mut self.client.statements, used) {
            statements.note_prepared(used);
        }
    }

    /// The server has parsed something. If that was of a name that was taken, code had deallocated
    /// it.
    pub(super) fn note_redefined(&mut self) {
        if let Some(statements) = &mut self.client.statements
            && let Some((name, statement)) = self.ledger.redefinition()
        {
            let epoch = self.pool.statements.epoch();
            statements.note_redefined(name, statement, epoch);
        }
    }

    /// The server has closed something by the protocol. Where that was the last message sent, and
    /// names something, it was a name that SQL had given.
    pub(super) fn note_closed(&mut self) {
        let named = self.names.named.as_ref();
        if named.is_some_and(|named| !named.sent.is_empty()) && self.ledger.len() == 1 {
            self.note_deallocated();
        }
    }
}
