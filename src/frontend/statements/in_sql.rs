//! SQL that names prepared statements (PREPARE, EXECUTE, DEALLOCATE), in transaction pooling.
//!
//! The server knows a client's statements by names of the proxy's own, and SQL names them as the
//! client does. So before a text goes on that names some, the server connection gets copies of
//! these under the client's own names. The text itself passes as it is, and nothing is sent behind
//! it before it is answered: its CommandComplete messages, in the order of the statements in the
//! text, tell which names are gone. What is left of the copies is closed at the next clean point.
//!
//! ```text
//!   client   Query "SAVEPOINT x; DEALLOCATE a"
//!   server   Parse a "" │ Query "SAVEPOINT x; DEALLOCATE a"      ──►  SAVEPOINT, DEALLOCATE: the client has no "a" any more
//! ```
//!
//! To be deallocated, a statement need not be parsed: its copy is of the empty text, which succeeds
//! in a transaction that has failed, and whatever became of the tables.

use std::collections::HashMap;
use std::sync::Arc;

use thin_vec::ThinVec;

use crate::backend::prepared::{Has, Parsed, Statement};
use crate::error::{Error, Kind};
use crate::frontend::owed::Owed;
use crate::guard::Guard;
use crate::protocol::frame::{FrontendTag, frame};
use crate::sql::effects::uses::{Use, Verb, Which};
use crate::sql::effects::{Effects, What};

use super::{Known, Name, Statements, Target, ensure_parsed, is_ours, parse_on, surely_has};

/// What the server connection at hand has under the client's own names.
#[derive(Debug, Default)]
pub struct Own {
    /// Copies of statements of the protocol.
    copies: HashMap<Name, Copy>,
    /// What SQL PREPARE has prepared, and what it does when it is executed.
    prepared: HashMap<Name, Effects>,
    /// Code may have prepared or deallocated something.
    in_doubt: bool,
}

#[derive(Debug, Clone)]
enum Copy {
    /// Of the empty text.
    Empty,
    Whole(Arc<Statement>),
    /// The server may have it or not.
    Doubtful,
}

/// What a text needs of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// That it is taken.
    Taken,
    /// What it names.
    Statement,
}

/// The body of a Parse message behind the name: no text, no parameter types.
const EMPTY: &[u8] = b"\0\0\0";
/// So many statements are followed of which one executes the next by name.
const MAX_DEPTH: u8 = 4;

/// Why a text may not be sent that names what only the proxy may.
pub fn reserved(uses: &[Use]) -> Option<Error> {
    let (verb, name) = uses.iter().find_map(|used| match &used.which {
        Which::Name(name) if is_ours(name) => Some((used.verb, String::from_utf8_lossy(name))),
        _ => None,
    })?;
    Some(match verb {
        Verb::Prepare => Error::new(
            Kind::FeatureNotSupported,
            format!("the name of the prepared statement \"{name}\" is reserved"),
        ),
        Verb::Execute | Verb::Deallocate => Error::new(
            Kind::UndefinedStatement,
            format!("prepared statement \"{name}\" does not exist"),
        ),
    })
}

/// Whether a statement executes another by name. SQL never gets to execute it by name in turn:
/// PostgreSQL would follow a circle of EXPLAIN EXECUTE until its process dies, and with it every
/// session of the server (ExplainOneUtility in explain.c, up to 18).
pub(super) fn executes(statement: &Statement) -> bool {
    let mut uses = statement.effects.uses.iter();
    uses.any(|used| used.verb == Verb::Execute)
}

fn copy_frame(name: &[u8], definition: &[u8]) -> Vec<u8> {
    frame(FrontendTag::PARSE.0, &[name, b"\0", definition])
}

fn close_frame(name: &[u8]) -> Vec<u8> {
    frame(FrontendTag::CLOSE.0, &[b"S", name, b"\0"])
}

impl Statements {
    /// Whether a text could name a statement of the client's.
    pub fn has_names(&self) -> bool {
        self.named.len() > 0
    }

    /// Gives the server connection copies of what a text names that is sent next. `only_executed`:
    /// the text is only parsed or described now, for which the server looks at what it executes.
    pub fn lend(&mut self, uses: &[Use], only_executed: bool, target: &mut Target<'_>) {
        let needs = self.needs(uses);
        for (name, need) in needs {
            if need == Need::Taken && only_executed {
                continue;
            }
            // In a transaction that has failed the server parses nothing but the empty text, and a
            // Query may begin with ROLLBACK.
            if need == Need::Statement && !only_executed && !target.ledger.is_healthy() {
                continue;
            }
            self.lend_one(name, need, target);
        }
    }

    /// The names of the client's that a text needs. Where it first deallocates one, or prepares it,
    /// which fails, it never gets to execute it.
    fn needs(&self, uses: &[Use]) -> Vec<(Name, Need)> {
        let mut needs: Vec<(Name, Need)> = Vec::new();
        let mut add = |name: &Name, used: &Use| {
            let need = match used.verb {
                Verb::Execute => Need::Statement,
                Verb::Prepare | Verb::Deallocate => Need::Taken,
            };
            match needs.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) if used.in_code && need == Need::Statement => *known = need,
                Some(_) => {}
                // What code does is not done in the order of the text.
                None if used.in_code => needs.push((name.clone(), Need::Statement)),
                None => needs.push((name.clone(), need)),
            }
        };
        for used in uses {
            match &used.which {
                Which::Name(name) => {
                    if let Some((name, _)) = self.named.get_key_value(name) {
                        add(name, used);
                    }
                }
                Which::Unread => self.named.names().for_each(|name| add(name, used)),
                // Whether it is carried out is found out by what is left.
                Which::All if used.in_code => {
                    let plain = Use {
                        in_code: false,
                        ..used.clone()
                    };
                    self.named.names().for_each(|name| add(name, &plain));
                }
                Which::All => {}
            }
        }
        needs
    }

    /// A name like those of the proxy is never lent: on the server it is another statement's.
    fn lend_one(&mut self, name: Name, need: Need, target: &mut Target<'_>) {
        if is_ours(&name) {
            return;
        }
        let Some(known) = self.named.get(&name) else {
            return;
        };
        if need == Need::Statement && executes(&known.statement) {
            return;
        }
        // What sets a variable of the context by its parameters is looked at in each Bind, and SQL
        // has others for it.
        let is_refused = |guard: &Guard| guard.check(&known.statement.effects).is_err();
        if need == Need::Statement && target.guard.is_some_and(is_refused) {
            return;
        }
        let own = self.own.get_or_insert_default();
        match own.copies.get(&name) {
            Some(Copy::Whole(copied)) if Arc::ptr_eq(copied, &known.statement) => return,
            Some(Copy::Empty | Copy::Whole(_)) if need == Need::Taken => return,
            Some(_) => {
                target.outbox.extend(&close_frame(&name));
                target.ledger.push(Owed::CloseCopy(name.clone()));
            }
            None => {}
        }
        let (copy, frame) = match need {
            Need::Taken => (Copy::Empty, copy_frame(&name, EMPTY)),
            Need::Statement => (
                Copy::Whole(known.statement.clone()),
                copy_frame(&name, known.statement.definition()),
            ),
        };
        own.copies.insert(name.clone(), copy);
        target.outbox.extend(&frame);
        target.ledger.push(Owed::Copy(name));
    }

    /// What a text names, and behind what it executes what that names in turn: the protocol may
    /// prepare any statement.
    pub fn followed(&self, uses: ThinVec<Use>) -> ThinVec<Use> {
        let is_followed = |used: &Use| !self.of_executed(used).is_empty();
        if !uses.iter().any(is_followed) {
            return uses;
        }
        let mut followed = ThinVec::new();
        self.follow(&uses, 0, &mut followed);
        followed
    }

    fn follow(&self, uses: &[Use], depth: u8, followed: &mut ThinVec<Use>) {
        for used in uses {
            followed.push(used.clone());
            if depth < MAX_DEPTH {
                self.follow(self.of_executed(used), depth + 1, followed);
            }
        }
    }

    /// What the statement names that is executed there.
    fn of_executed(&self, used: &Use) -> &[Use] {
        match (used.verb, &used.which) {
            (Verb::Execute, Which::Name(name)) => {
                let known = self.named.get(name);
                known.map_or(&[], |known| &known.statement.effects.uses)
            }
            _ => &[],
        }
    }

    /// What is done by the statements that a text executes by name.
    pub fn executed(&self, uses: &[Use]) -> Effects {
        let mut effects = Effects::default();
        for used in uses.iter().filter(|used| used.verb == Verb::Execute) {
            if let Which::Name(name) = &used.which {
                if let Some(known) = self.named.get(name) {
                    effects.add(&known.statement.effects);
                }
                if let Some(prepared) = self.effects_of_prepared(name) {
                    effects.add(prepared);
                }
            }
        }
        effects.uses.clear();
        effects
    }

    /// What a statement does that SQL has prepared.
    pub fn effects_of_prepared(&self, name: &[u8]) -> Option<&Effects> {
        self.own.as_ref()?.prepared.get(name)
    }

    /// Before a text is sent that names statements in code, or that nobody can read.
    pub fn doubt_names(&mut self, uses: &[Use], parsed: &mut Parsed) {
        let is_doubtful = |used: &&Use| used.in_code || used.which == Which::Unread;
        for used in uses.iter().filter(is_doubtful) {
            let own = self.own.get_or_insert_default();
            own.in_doubt = true;
            if used.which == Which::All {
                parsed.doubt_all();
            }
            if let (Verb::Prepare, Which::Name(name)) = (used.verb, &used.which) {
                own.prepared.entry((**name).into()).or_insert_with(anything);
            }
        }
    }

    /// The server has deallocated what a text named. None: it is not known what.
    pub fn note_deallocated(&mut self, used: Option<&Use>, parsed: &mut Parsed) {
        let Some(Which::Name(name)) = used.map(|used| &used.which) else {
            parsed.outdate();
            return;
        };
        self.named.remove(name);
        if let Some(own) = &mut self.own {
            own.copies.remove(&**name);
            own.prepared.remove(&**name);
        }
    }

    /// The server has prepared what a text named.
    pub fn note_prepared(&mut self, used: Use) {
        let own = self.own.get_or_insert_default();
        match used.which {
            Which::Name(name) => {
                let effects = used.effects.map_or_else(anything, |effects| *effects);
                own.prepared.insert(name.into(), effects);
            }
            Which::All | Which::Unread => own.in_doubt = true,
        }
    }

    /// Whether a Parse of this name is to be refused.
    pub(super) fn is_taken(&self, name: &[u8]) -> bool {
        self.named.contains_key(name) || self.effects_of_prepared(name).is_some()
    }

    /// Passes a Parse of a name that is taken: the server says what is wrong with the definition,
    /// and if nothing is, that the name is taken. What code may have deallocated is waited for.
    pub(super) fn pass_redefinition(
        &mut self,
        name: &[u8],
        definition: &[u8],
        frame: &[u8],
        target: &mut Target<'_>,
    ) {
        let statement = self.intern(definition, target);
        if is_ours(name) {
            return self.pass_reserved_redefinition(name, statement, target);
        }
        if self.is_in_doubt() {
            target.effects.uses.push(Use {
                verb: Verb::Prepare,
                which: Which::Name(name.into()),
                in_code: false,
                effects: None,
            });
        }
        let known = self.named.get_key_value(name);
        let name = known.map_or_else(|| name.into(), |(name, _)| name.clone());
        self.lend_one(name.clone(), Need::Taken, target);
        match executes(&statement) {
            true => target.outbox.extend(&copy_frame(&name, EMPTY)),
            false => target.outbox.extend(frame),
        }
        target.ledger.push(Owed::Redefine(name, statement));
    }

    /// The same of a name like those of the proxy, which the server knows by another.
    fn pass_reserved_redefinition(
        &mut self,
        name: &[u8],
        statement: Arc<Statement>,
        target: &mut Target<'_>,
    ) {
        let other = Known {
            statement,
            since: target.interner.epoch(),
        };
        let has = surely_has(&other, target);
        if has != Has::Yes {
            let owed = Owed::SwallowedParse(Some(other.statement.clone()));
            parse_on(&other, has, target, owed);
        }
        if let Some((name, known)) = self.known(name) {
            ensure_parsed(&known, target);
            target.outbox.extend(&known.statement.parse_frame());
            target.ledger.push(Owed::Redefine(name, known.statement));
        }
    }

    /// The server has taken a Parse of a name that code had deallocated.
    pub fn note_redefined(&mut self, name: Name, statement: Arc<Statement>, epoch: u64) {
        if is_ours(&name) {
            // It is the proxy's statement that was gone, and is there again.
            return;
        }
        let own = self.own.get_or_insert_default();
        own.in_doubt = true;
        own.prepared.remove(&name);
        let copy = match executes(&statement) {
            true => Copy::Empty,
            false => Copy::Whole(statement.clone()),
        };
        own.copies.insert(name.clone(), copy);
        let since = epoch;
        self.named.insert(name, Known { statement, since });
    }

    /// Whether messages about a name are to find what the server connection has by it: code may
    /// have deallocated it.
    pub(super) fn is_copy_used(&self, name: &[u8]) -> bool {
        let own = self.own.as_ref().filter(|own| own.in_doubt);
        own.is_some_and(|own| matches!(own.copies.get(name), Some(Copy::Whole(_))))
    }

    /// A copy was not made, or not closed.
    pub(super) fn doubt_copy(&mut self, name: Name) {
        let own = self.own.get_or_insert_default();
        own.copies.insert(name, Copy::Doubtful);
    }

    /// Before a message that is to find nothing of this name: the client has no such statement any
    /// more.
    pub(super) fn close_copy(&mut self, name: &[u8], target: &mut Target<'_>) {
        let own = self.own.as_mut();
        if let Some((name, _)) = own.and_then(|own| own.copies.remove_entry(name)) {
            target.outbox.extend(&close_frame(&name));
            target.ledger.push(Owed::CloseCopy(name));
        }
    }

    /// Whether the server connection has, or may have, copies, or something unseen may have
    /// happened to names.
    pub fn must_tidy(&self) -> bool {
        let own = self.own.as_ref();
        own.is_some_and(|own| own.in_doubt || !own.copies.is_empty())
    }

    pub fn is_in_doubt(&self) -> bool {
        self.own.as_ref().is_some_and(|own| own.in_doubt)
    }

    /// Takes over what the server has under names that are not the proxy's, of SQL and of the
    /// protocol. It was asked since something was in doubt.
    pub fn settle_doubt(&mut self, prepared: &[Box<[u8]>], parsed: &[Box<[u8]>]) {
        let Some(own) = &mut self.own else {
            return;
        };
        own.in_doubt = false;
        let named = &mut self.named;
        own.copies.retain(|name, copy| {
            let has = parsed.iter().any(|other| **other == **name);
            if !has && !matches!(copy, Copy::Doubtful) {
                named.remove(name);
            }
            has
        });
        let mut before = std::mem::take(&mut own.prepared);
        for name in prepared {
            let effects = before.remove(&**name).unwrap_or_else(anything);
            own.prepared.insert(name.clone().into(), effects);
        }
    }

    /// The Close messages for all copies that are left, which are to be sent at a clean point.
    pub fn take_copies(&mut self) -> Vec<u8> {
        let Some(own) = &mut self.own else {
            return Vec::new();
        };
        let names = std::mem::take(&mut own.copies).into_keys();
        let ours = names.filter(|name| !own.prepared.contains_key(name));
        ours.flat_map(|name| close_frame(&name)).collect()
    }

    /// The server connection is given back: what it has under the client's own names is not the
    /// client's any more.
    pub fn leave_connection(&mut self) {
        self.own = None;
    }
}

/// What a statement does that nobody has read.
fn anything() -> Effects {
    Effects {
        what: What::OPAQUE | What::SETS_UNKNOWN | What::CONTROL,
        ..Effects::default()
    }
}
