//! What a client's session holds beside its transaction, and where that is kept.
//!
//! ```text
//!   text passes ──note()──► suspected ──question()──► asked of the server at the clean point ──answer()──►
//!                                                        carried: run-time parameters, to every server connection
//!                                                        pinned:  what only this server connection has
//! ```
//!
//! In session pooling the client keeps its connection anyway; there only the tenant context
//! matters, which the client may have changed, and what it gave at startup, to which RESET must
//! return.

use std::sync::Arc;
use std::time::Instant;

use thin_vec::ThinVec;

use crate::backend::binding::{REPORTED, Settings, is_reported};
use crate::backend::functions::{Functions, Own};
use crate::backend::prepared::is_meaningless;
use crate::backend::residue::{Answer, Pins, Question, can_ask};
use crate::config::{Pooling, Route};
use crate::sql::effects::{Effects, What};

/// What of a session is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// Session pooling, with nothing to bring back.
    Nothing,
    /// Session pooling: what may change the tenant context, or return to what the server connection
    /// began with.
    Resets,
    /// Transaction pooling: all of it.
    Everything,
}

/// Most bytes of names and values of one client's parameters that are carried.
const MAX_SETTINGS: usize = 256 * 1024;

/// What begins a kind of state, what may end it.
const KINDS: [(Pins, What, What); 5] = [
    (Pins::TEMPORARY, What::TEMPORARY, What::DROPS),
    (Pins::HOLD, What::HOLD, What::CLOSES),
    (Pins::LISTEN, What::LISTEN, What::UNLISTENS),
    (Pins::ADVISORY, What::ADVISORY, What::UNLOCKS),
    (Pins::PREPARED, What::PREPARE, What::DEALLOCATES),
];

#[derive(Debug)]
pub struct SessionState {
    watch: Watch,
    /// Its server connections were, or may have been, other clients' before.
    shares_connections: bool,
    /// What the client asked for at its start: what RESET returns to.
    startup: Arc<Settings>,
    /// What its texts may have done since.
    suspected: Effects,
    /// Session pooling: a statement was prepared that may change the context whenever it is run.
    context_in_doubt: bool,
    /// It asks for sequence values; after it may have got one, it keeps the connection for a while.
    reads_sequences: bool,
    /// It discarded all of its session, and the server has said so.
    discarded: bool,
    /// The server may not have reported what the client set, since the last tenant had it so.
    reports_doubted: bool,
    /// Since the last clean point something failed or was rolled back, so that what texts set may
    /// not be set.
    failed: bool,
    /// What of its temporary objects was asked of the server, while it has any.
    own: Option<Box<Own>>,
    pins: Pins,
}

impl SessionState {
    pub fn new(route: &Route, startup: &Arc<Settings>) -> Self {
        Self {
            watch: match route.pooling {
                Pooling::Transaction => Watch::Everything,
                // What cannot be discarded ends a connection that another client would get.
                Pooling::Session
                    if route.context.is_empty()
                        && startup.is_empty()
                        && route.placement.transaction.is_none()
                        && !route.placement.reuse =>
                {
                    Watch::Nothing
                }
                Pooling::Session => Watch::Resets,
            },
            shares_connections: !route.has_connections_of_their_own(),
            startup: startup.clone(),
            ..Self::unwatched()
        }
    }

    /// Of a replication client, whose server connection nobody else ever gets.
    pub fn unwatched() -> Self {
        Self {
            watch: Watch::Nothing,
            shares_connections: false,
            startup: Arc::default(),
            suspected: Effects::default(),
            context_in_doubt: false,
            reads_sequences: false,
            discarded: false,
            reports_doubted: false,
            failed: false,
            own: None,
            pins: Pins::empty(),
        }
    }

    /// Whether texts must be looked at.
    pub fn is_watched(&self) -> bool {
        self.watch != Watch::Nothing
    }

    pub fn shares_connections(&self) -> bool {
        self.shares_connections
    }

    #[cfg(test)]
    pub fn share_connections(&mut self) {
        self.shares_connections = true;
    }

    /// Whether the client gave a parameter, named in lower case, at its start, or has named it to
    /// set since the last clean point.
    pub fn has_named(&self, name: &str) -> bool {
        let Effects {
            settings, local, ..
        } = &self.suspected;
        self.startup.contains_key(name)
            || settings.iter().any(|setting| *setting.name == *name)
            || local.iter().any(|known| **known == *name)
    }

    pub fn pins(&self) -> Pins {
        self.pins
    }

    /// Whether the client may have left what no DISCARD ALL takes away; also by what it sent last.
    pub fn is_stuck(&self) -> bool {
        self.pins.contains(Pins::STUCK) || self.suspected.what.contains(What::STUCK)
    }

    /// Whether code, and with it an extension or a language, may have been made since the last
    /// clean point.
    pub fn may_have_made_code(&self) -> bool {
        self.suspected.what.contains(What::DEFINES)
    }

    /// Takes note of what may be done by a statement that is run now.
    pub fn note(&mut self, effects: &Effects) {
        if !effects.is_empty() {
            self.suspected.add(effects);
            if effects.what.contains(What::CALLS) {
                self.suspected.what |= What::OPAQUE;
            }
            self.suspected.what.remove(What::FOR_GUARD);
            self.suspected.uses.clear();
            self.reads_sequences |= effects.what.contains(What::READS_SEQUENCE);
        }
    }

    /// Whether the change of tenant went ahead of what the client says now. PostgreSQL reports what
    /// is other than when it last reported, and between the last tenant's end and the client's
    /// first message it did not.
    pub fn doubt_reports(&mut self, doubted: bool) {
        self.reports_doubted = doubted;
    }

    /// A statement failed, or a transaction was rolled back. What was set in it has not happened.
    pub fn note_failure(&mut self) {
        self.failed = true;
    }

    /// A statement was prepared that only the connection at hand has.
    pub fn pin_statement(&mut self) {
        self.pins |= Pins::STATEMENT;
    }

    /// Whether the client will bind an unnamed statement that only the connection at hand has.
    pub fn pin_unbound(&mut self, awaits: bool) {
        self.pins.set(Pins::UNBOUND, awaits);
    }

    /// All prepared statements are gone.
    pub fn unpin_statements(&mut self) {
        self.pins.remove(Pins::STATEMENT);
    }

    /// It asked for sequence values in vain: from now on it keeps the connection where it gets one.
    pub fn note_sequence_wanted(&mut self) {
        self.reads_sequences = true;
    }

    /// Takes note of a statement that is prepared in session pooling, and may be run at any time.
    pub fn note_prepared(&mut self, effects: &Effects) {
        self.note(effects);
        self.context_in_doubt |= may_change_context(effects);
    }

    /// Whether parameters that change what a statement means may be other than is known: texts
    /// since the last clean point, of the batch at hand too, or functions that they call, have set
    /// or reset some, or may have.
    pub fn may_have_changed_meaning(&self, functions: &Functions) -> bool {
        let suspected = &self.suspected;
        if may_change_meaning(suspected) {
            return true;
        }
        if suspected.functions.is_empty() && !suspected.what.contains(What::WRITES) {
            return false;
        }
        let own = self.own.as_deref();
        let verdict = functions.judge(suspected, own, Instant::now());
        let has_own =
            self.pins.contains(Pins::TEMPORARY) || suspected.what.contains(What::TEMPORARY);
        (own.is_none() && has_own)
            || !verdict.unknown.is_empty()
            || verdict.triggers_unknown
            || may_change_meaning(&verdict.effects)
    }

    /// Whether the tenant context may be another since the last clean point.
    pub fn may_have_changed_context(&self) -> bool {
        self.context_in_doubt || may_change_context(&self.suspected)
    }

    /// Whether an object may have been made, changed or dropped since the last clean point.
    pub fn may_have_changed_schema(&self) -> bool {
        self.suspected
            .what
            .intersects(What::CREATES | What::DROPS | What::OPAQUE)
    }

    /// What was noted since the last clean point was never run, and the connection at hand is given
    /// up.
    pub fn give_up(&mut self) {
        self.suspected = Effects::default();
        self.discarded = false;
        self.failed = false;
        self.own = None;
        self.pins = Pins::empty();
    }

    /// Whether there is nothing to see to at a clean point.
    pub fn is_settled(&self) -> bool {
        self.suspected.is_empty()
            && self.pins.is_empty()
            && !self.discarded
            && !self.context_in_doubt
    }

    /// The client discarded all of its session, and the server has said so.
    pub fn discard(&mut self) {
        self.discarded = true;
    }

    /// Whether the session is as after login: it was discarded, and nothing can have been left in
    /// it since.
    pub fn is_discarded(&self) -> bool {
        self.discarded
    }

    /// Was something else sent in the same pipeline, it may have come behind the DISCARD ALL: then
    /// all is asked.
    fn doubt_discard(&mut self) {
        let suspected = &self.suspected;
        let is_alone = (suspected.what - What::CONTROL).is_empty()
            && suspected.settings.is_empty()
            && suspected.functions.is_empty();
        if self.discarded && !is_alone {
            self.discarded = false;
            self.pins &= Pins::STUCK;
            self.suspected.what |= What::RESETS_ALL | What::OPAQUE;
        }
    }

    /// What must be asked before it is known what the client holds; empty if it is known.
    #[expect(clippy::too_many_lines, reason = "one kind of state after the other")]
    pub fn question(&mut self, settings: &Settings, functions: &Functions) -> Question {
        self.doubt_discard();
        if self.discarded {
            return Question::default();
        }
        if self.watch != Watch::Everything {
            return self.question_of_resets();
        }
        let verdict = functions.judge(&self.suspected, self.own.as_deref(), Instant::now());
        let own = self.must_ask_for_own(self.suspected.what | verdict.effects.what, settings);
        if !verdict.unknown.is_empty() || verdict.triggers_unknown || own {
            return Question {
                functions: verdict.unknown,
                triggers: verdict.triggers_unknown,
                own,
                ..Question::default()
            };
        }
        let names = (verdict.effects.what).intersects(What::PREPARE | What::DEALLOCATES);
        // What functions do counts as done.
        self.suspected.functions.clear();
        self.suspected.add(&Effects {
            functions: ThinVec::new(),
            ..verdict.effects
        });
        let what = self.suspected.what;
        let everything = what.contains(What::OPAQUE) || self.pins.contains(Pins::UNKNOWN);
        let mut question = Question {
            locks_are_unlikely: !what.contains(What::ADVISORY)
                && !self.pins.contains(Pins::ADVISORY),
            names,
            ..Question::default()
        };
        for (pin, begins, ends) in KINDS {
            if everything
                || what.intersects(begins)
                || (self.pins.contains(pin) && what.intersects(ends))
            {
                question.pins |= pin;
            }
        }
        if makes_temporary_by_path(what, settings) {
            question.pins |= Pins::TEMPORARY;
        }
        let mut ask_setting = |name: &str| {
            if can_ask(name) && !question.settings.iter().any(|known| known == name) {
                question.settings.push(name.to_owned());
            }
        };
        for setting in &self.suspected.settings {
            // What is reported is known, but for what it returned to.
            if setting.reset || self.reports_doubted || !is_reported(&setting.name) {
                ask_setting(&setting.name);
            }
        }
        if everything || what.contains(What::RESETS_ALL) {
            for name in settings.keys().chain(self.startup.keys()) {
                ask_setting(name);
            }
        }
        if self.reports_doubted && (everything || what.contains(What::SETS_UNKNOWN)) {
            REPORTED.into_iter().for_each(&mut ask_setting);
        }
        if everything {
            ask_setting("role");
            ask_setting("session_authorization");
            question.all_settings = true;
        }
        let all = what.contains(What::RESETS_ALL);
        // Code may have caught an error of its own.
        let doubted = self.failed || everything;
        let resets = question.settings.iter();
        question.resets = resets
            .filter(|name| all || doubted || self.resets(name))
            .cloned()
            .collect();
        question
    }

    /// Whether to look up what the session may have called, or set off, of its own temporary
    /// objects. `what`: all that it did since the last clean point.
    fn must_ask_for_own(&mut self, what: What, settings: &Settings) -> bool {
        if what.intersects(What::CREATES | What::DROPS | What::TEMPORARY) {
            // What was known of them may be true no more.
            self.own.take_if(|own| !own.is_new);
        }
        let has_any = self.pins.contains(Pins::TEMPORARY)
            || what.contains(What::TEMPORARY)
            || makes_temporary_by_path(what, settings);
        let uses = what.contains(What::WRITES) || !self.suspected.functions.is_empty();
        self.own.is_none() && has_any && uses
    }

    /// Takes over what the server says of the session's own temporary objects.
    pub fn learn_own(&mut self, answer: &Answer) {
        self.own = Some(Box::new(Own::new(answer)));
    }

    /// In session pooling: what may have returned to other than the client gave at startup.
    fn question_of_resets(&self) -> Question {
        let all = self.suspected.what.contains(What::RESETS_ALL);
        let names = self.startup.keys();
        let names: Vec<_> = names
            .filter(|name| can_ask(name) && (all || self.resets(name)))
            .cloned()
            .collect();
        Question {
            settings: names.clone(),
            resets: names,
            ..Question::default()
        }
    }

    /// Whether a RESET of this parameter is suspected.
    fn resets(&self, name: &str) -> bool {
        let mut named = self.suspected.settings.iter();
        named.any(|setting| setting.reset && *setting.name == *name)
    }

    /// A lookup of functions failed: they may do anything.
    pub fn despair_of_functions(&mut self) {
        self.suspected.functions.clear();
        self.suspected.what.remove(What::WRITES);
        self.suspected.what |= What::OPAQUE;
    }

    /// Takes over what the server says, which is None if it would not. Afterwards `settings` are
    /// what the client has, and `applied` what the connection has. `login`: the role of the server
    /// connection.
    pub fn answer(
        &mut self,
        question: &Question,
        answer: Option<&Answer>,
        settings: &mut Arc<Settings>,
        applied: &mut Settings,
        login: &str,
    ) {
        if std::mem::take(&mut self.discarded) {
            self.pins &= Pins::STUCK;
            self.own = None;
            *settings = self.startup.clone();
            self.settled();
            return;
        }
        let what = self.suspected.what;
        let sequences = what.intersects(What::ADVANCES_SEQUENCE | What::READS_SEQUENCE);
        self.pins
            .set(Pins::SEQUENCE, self.reads_sequences && sequences);
        let Some(answer) = answer else {
            let locks = match question.locks_are_unlikely {
                true => Pins::empty(),
                false => question.pins & Pins::ADVISORY,
            };
            self.pins |= Pins::UNKNOWN | locks;
            return;
        };
        self.pins &= !(question.pins | Pins::UNKNOWN);
        self.pins |= answer.pins;
        if what.contains(What::STUCK) {
            self.pins |= Pins::STUCK;
        }
        let unaskable = |name: &str| !can_ask(name);
        // What is no parameter was not set either, and what may not be read can hardly be set.
        let is_told = |name: &String| answer.settings.iter().any(|(told, _)| told == name);
        let untold = question.is_careful && !self.failed && !question.settings.iter().all(is_told);
        if what.contains(What::SETS_UNKNOWN)
            || answer.unreadable
            || untold
            || self.suspected.settings.iter().any(|s| unaskable(&s.name))
        {
            self.pins |= Pins::SETTINGS;
        }
        if !question.is_empty() {
            self.take_settings(question, answer, settings, applied, login);
        }
        self.settled();
    }

    fn take_settings(
        &mut self,
        question: &Question,
        answer: &Answer,
        settings: &mut Arc<Settings>,
        applied: &mut Settings,
        login: &str,
    ) {
        let all = self.suspected.what.contains(What::RESETS_ALL);
        let mut now = (**settings).clone();
        for (name, value) in &answer.settings {
            // It has the value that a session begins with, and there is nothing to undo on the
            // connection: the role may be one that may not even reset it.
            let is_unset = answer.resets.contains(name);
            if is_unset && !(all || self.resets(name)) {
                // Setting it failed, or was taken back. It is not carried to other connections,
                // where it would fail again.
                applied.remove(name);
                continue;
            }
            let value = value
                .as_ref()
                .filter(|value| !is_nobody(name, value, login));
            match value {
                Some(value) if !is_unset => applied.insert(name.clone(), value.clone()),
                _ => applied.remove(name),
            };
            // A RESET that failed, or was rolled back, has changed nothing. Parameters of the
            // application's own are in no catalog; reset, they are empty.
            let is_own = name.contains('.') && value.is_some_and(String::is_empty);
            let reset = (all || self.resets(name))
                && (value.is_none() || is_own || answer.resets.contains(name));
            let value = if reset { self.startup.get(name) } else { value };
            match value {
                Some(value) => now.insert(name.clone(), value.clone()),
                None => now.remove(name),
            };
        }
        if question.all_settings {
            for (name, value) in &answer.all_settings {
                if !name.starts_with("transaction_") {
                    applied.insert(name.clone(), value.clone());
                    now.insert(name.clone(), value.clone());
                }
            }
        }
        let size: usize = now
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if size > MAX_SETTINGS {
            // The server connection keeps what was asked about; it is not known here any more.
            self.pins |= Pins::SETTINGS;
            let listed = answer.all_settings.iter().map(|(name, _)| name);
            for name in answer.settings.iter().map(|(name, _)| name).chain(listed) {
                now.remove(name);
                applied.remove(name);
            }
        }
        if now != **settings {
            *settings = Arc::new(now);
        }
    }

    fn settled(&mut self) {
        self.suspected = Effects::default();
        self.failed = false;
        let keeps = self.pins.contains(Pins::TEMPORARY);
        self.own = self.own.take().filter(|_| keeps);
        if let Some(own) = &mut self.own {
            own.is_new = false;
        }
        if self.watch != Watch::Everything {
            self.pins &= Pins::STUCK;
        }
    }
}

fn may_change_meaning(effects: &Effects) -> bool {
    const ANY: What = What::RESETS_ALL
        .union(What::SETS_UNKNOWN)
        .union(What::SETS_UNKNOWN_LOCALLY)
        .union(What::OPAQUE);
    // Those of the application's own, with a dot, are read when a statement runs.
    let is_meaningful = |name: &str| !is_meaningless(name) && !name.contains('.');
    let Effects {
        what,
        settings,
        local,
        ..
    } = effects;
    what.intersects(ANY)
        || settings.iter().any(|setting| is_meaningful(&setting.name))
        || local.iter().any(|name| is_meaningful(name))
}

fn may_change_context(effects: &Effects) -> bool {
    effects
        .what
        .intersects(What::CONTROL | What::OPAQUE | What::SETS_UNKNOWN | What::RESETS_ALL)
        || !effects.functions.is_empty()
}

/// Whether an object may have been made in the temporary schema because that is where `search_path`
/// begins.
fn makes_temporary_by_path(what: What, settings: &Settings) -> bool {
    what.contains(What::CREATES)
        && settings
            .get("search_path")
            .is_some_and(|path| path.contains("pg_temp"))
}

/// Whether a role is the one the connection has by itself.
fn is_nobody(name: &str, value: &str, login: &str) -> bool {
    match name {
        "role" => value == "none",
        "session_authorization" => value == login,
        _ => false,
    }
}
