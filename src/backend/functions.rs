//! What the functions of a database do to a session, as far as their sources tell: looked up when a
//! client first calls one, and again after a while.
//!
//! What is remembered is shared by all tenants of a pool, so it is only of objects that every
//! session of the pool's login can reach. What is in a temporary schema is of one session: [`Own`]
//! is kept with it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::reach::{MAX_OWN, MAX_SOURCE};
use crate::backend::residue::{Answer, Question, Source, can_ask};
use crate::sql::effects::{Effects, What};

/// For how long a source is taken to be what it was. A change that passes through the proxy is
/// noticed at once.
const FRESH: Duration = Duration::from_secs(60);
/// Most functions that are remembered, for each pool.
const MAX_KNOWN: usize = 10_000;

/// The functions of one pool's database.
#[derive(Debug, Default)]
pub struct Functions(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    functions: HashMap<Box<str>, (Effects, Instant)>,
    triggers: Option<(Effects, Instant)>,
}

/// Functions in a session's own temporary schema, and those of the triggers of its temporary
/// tables: nobody else has them.
#[derive(Debug, Default)]
pub struct Own {
    functions: Vec<(Box<str>, Effects)>,
    triggers: Effects,
    /// It was asked for at the clean point at hand.
    pub is_new: bool,
}

impl Own {
    pub fn new(answer: &Answer) -> Self {
        let functions = answer.own_functions.iter();
        let mut triggers = Effects::default();
        for source in &answer.own_triggers {
            triggers.add(&effects_of(source));
        }
        if answer.own_functions.len().max(answer.own_triggers.len()) > MAX_OWN {
            triggers.what |= What::OPAQUE;
        }
        Self {
            functions: functions
                .map(|source| (source.name.as_str().into(), effects_of(source)))
                .collect(),
            triggers,
            is_new: true,
        }
    }
}

/// What is known of some functions together.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub effects: Effects,
    /// Functions to look up first.
    pub unknown: Vec<String>,
    /// The triggers are to be looked up.
    pub triggers_unknown: bool,
}

impl Functions {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the functions that `effects` names do, and the triggers where it writes. `own`: of the
    /// session, as far as it was asked for.
    pub fn judge(&self, effects: &Effects, own: Option<&Own>, now: Instant) -> Verdict {
        let known = self.known();
        let sources = Sources {
            known: &known,
            own,
            now,
        };
        let mut verdict = Verdict::default();
        sources.follow_functions(effects, &mut verdict);
        if (effects.what | verdict.effects.what).contains(What::WRITES) {
            match &known.triggers {
                Some((found, when)) if now - *when < FRESH => {
                    sources.follow(found, &mut verdict);
                }
                _ => verdict.triggers_unknown = true,
            }
            if let Some(own) = own {
                sources.follow(&own.triggers, &mut verdict);
            }
        }
        let what = &mut verdict.effects.what;
        if what.contains(What::CALLS) {
            *what |= What::OPAQUE;
        }
        // What it writes is written by whoever calls it; that is asked for by the caller's own
        // text.
        what.remove(What::CONTROL | What::RUNS_STRINGS | What::HIDDEN);
        verdict
    }

    /// All that the functions that `effects` names may run, for the guard: what is put together as
    /// a string, too.
    pub fn judge_for_guard(&self, effects: &Effects, now: Instant) -> Verdict {
        let known = self.known();
        let sources = Sources {
            known: &known,
            own: None,
            now,
        };
        let mut verdict = Verdict::default();
        sources.follow_functions(effects, &mut verdict);
        verdict
    }

    /// Takes over the sources that were asked for; a function without one does not exist.
    pub fn learn(&self, question: &Question, answer: &Answer, now: Instant) {
        let mut known = self.known();
        if known.functions.len() + question.functions.len() > MAX_KNOWN {
            known.functions.clear();
        }
        for name in &question.functions {
            let mut effects = Effects::default();
            let sources = answer.functions.iter();
            for source in sources.filter(|source| source.name == *name) {
                effects.add(&effects_of(source));
            }
            known.functions.insert(name.as_str().into(), (effects, now));
        }
        if question.triggers {
            let mut effects = Effects::default();
            for source in &answer.triggers {
                effects.add(&effects_of(source));
            }
            known.triggers = Some((effects, now));
        }
    }

    /// A function or trigger was made, changed or dropped.
    pub fn forget(&self) {
        *self.known() = Known::default();
    }
}

/// Where what functions do is looked up.
struct Sources<'s> {
    known: &'s Known,
    own: Option<&'s Own>,
    now: Instant,
}

impl Sources<'_> {
    fn follow(&self, found: &Effects, verdict: &mut Verdict) {
        let mut own = found.clone();
        own.functions.clear();
        verdict.effects.add(&own);
        self.follow_functions(found, verdict);
    }

    fn follow_functions(&self, effects: &Effects, verdict: &mut Verdict) {
        for name in &effects.functions {
            // `effects.functions` holds those that were followed.
            if verdict.effects.functions.contains(name) {
                continue;
            }
            if verdict.effects.functions.len() >= 64 || !can_ask(name) {
                verdict.effects.what |= What::OPAQUE;
                return;
            }
            verdict.effects.functions.push(name.clone());
            let own = self.own.iter().flat_map(|own| &own.functions);
            for (_, found) in own.filter(|(known, _)| known == name) {
                self.follow(found, verdict);
            }
            match self.known.functions.get(name) {
                Some((found, when)) if self.now - *when < FRESH => self.follow(found, verdict),
                _ => verdict.unknown.push(name.to_string()),
            }
        }
    }
}

/// What a function does, by its source.
fn effects_of(source: &Source) -> Effects {
    let opaque = |what| Effects {
        what,
        ..Effects::default()
    };
    match &*source.language {
        // Of what is longer only the beginning is there.
        "sql" | "plpgsql" if source.text.len() >= MAX_SOURCE => opaque(What::OPAQUE),
        "sql" | "plpgsql" => Effects::of_body(source.text.as_bytes()),
        // An aggregate, of functions that are not told here.
        "internal" if source.text == "aggregate_dummy" => opaque(What::OPAQUE),
        // Their source is the name of a symbol; extensions keep to themselves, but for connections
        // of their own.
        "c" | "internal" if source.name.starts_with("dblink") => opaque(What::STUCK),
        "c" | "internal" => Effects::default(),
        _ => opaque(What::OPAQUE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(name: &str, text: &str) -> Source {
        Source {
            name: name.to_owned(),
            language: "plpgsql".to_owned(),
            text: text.to_owned(),
        }
    }

    fn learn(functions: &Functions, name: &str, text: &str, now: Instant) {
        let question = Question {
            functions: vec![name.to_owned()],
            ..Question::default()
        };
        let answer = Answer {
            functions: vec![source(name, text)],
            ..Answer::default()
        };
        functions.learn(&question, &answer, now);
    }

    #[test]
    fn what_a_function_does_is_found_through_those_it_calls() {
        let functions = Functions::default();
        let now = Instant::now();
        let call = Effects::of(b"SELECT f(1)", false);
        assert_eq!(functions.judge(&call, None, now).unknown, ["f"]);
        learn(&functions, "f", "BEGIN PERFORM g(); RETURN f(2); END", now);
        assert_eq!(functions.judge(&call, None, now).unknown, ["g"]);
        let sets = "BEGIN PERFORM set_config('app.x', '1', false); END";
        learn(&functions, "g", sets, now);
        let verdict = functions.judge(&call, None, now);
        assert!(verdict.unknown.is_empty());
        assert_eq!(&*verdict.effects.settings[0].name, "app.x");
        assert_eq!(functions.judge(&call, None, now + FRESH).unknown, ["f"]);
        functions.forget();
        assert_eq!(functions.judge(&call, None, now).unknown, ["f"]);
    }

    #[test]
    fn a_function_that_does_nothing_to_its_session_is_known_as_such() {
        let functions = Functions::default();
        let now = Instant::now();
        let call = Effects::of(b"SELECT f(1)", false);
        learn(&functions, "f", "BEGIN RETURN $1 + 1; END", now);
        let mut verdict = functions.judge(&call, None, now);
        verdict.effects.functions.clear();
        assert_eq!(verdict, Verdict::default());
    }

    #[test]
    fn triggers_are_looked_up_for_what_writes() {
        let functions = Functions::default();
        let now = Instant::now();
        let write = Effects::of(b"INSERT INTO t VALUES (1)", false);
        assert!(functions.judge(&write, None, now).triggers_unknown);
        let question = Question {
            triggers: true,
            ..Question::default()
        };
        let answer = Answer {
            triggers: vec![source("t", "BEGIN LISTEN x; RETURN NEW; END")],
            ..Answer::default()
        };
        functions.learn(&question, &answer, now);
        assert!(
            functions
                .judge(&write, None, now)
                .effects
                .what
                .contains(What::LISTEN)
        );
    }

    #[test]
    fn what_is_a_session_s_own_is_known_to_that_session_alone() {
        let functions = Functions::default();
        let now = Instant::now();
        let answer = Answer {
            own_functions: vec![source("f", "BEGIN PERFORM setseed(1); END")],
            own_triggers: vec![source("t", "BEGIN LISTEN x; RETURN NEW; END")],
            ..Answer::default()
        };
        let own = Own::new(&answer);
        let question = Question {
            triggers: true,
            functions: vec!["f".to_owned()],
            ..Question::default()
        };
        functions.learn(&question, &answer, now);
        for (text, found) in [
            ("SELECT f()", What::STUCK),
            ("INSERT INTO t VALUES (1)", What::LISTEN),
        ] {
            let effects = Effects::of(text.as_bytes(), false);
            let with = functions.judge(&effects, Some(&own), now);
            assert!(with.effects.what.contains(found), "{text}");
            let without = functions.judge(&effects, None, now);
            assert!(!without.effects.what.contains(found), "{text}");
        }
    }
}
