//! What the functions of a database do to a session, as far as their sources tell: looked up when a client first
//! calls one, and again after a while.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::residue::{Answer, Question, Source, can_ask};
use crate::sql::effects::{Effects, What};

/// For how long a source is taken to be what it was. A change that passes through the proxy is noticed at once.
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

    /// What the functions that `effects` names do, and the triggers where it writes.
    pub fn judge(&self, effects: &Effects, now: Instant) -> Verdict {
        let mut verdict = Verdict::default();
        let known = self.known();
        known.follow_functions(effects, now, &mut verdict);
        if (effects.what | verdict.effects.what).contains(What::WRITES) {
            match &known.triggers {
                Some((found, when)) if now - *when < FRESH => {
                    known.follow(found, now, &mut verdict);
                }
                _ => verdict.triggers_unknown = true,
            }
        }
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

impl Known {
    fn follow(&self, found: &Effects, now: Instant, verdict: &mut Verdict) {
        let mut own = found.clone();
        own.functions.clear();
        verdict.effects.add(&own);
        self.follow_functions(found, now, verdict);
    }

    fn follow_functions(&self, effects: &Effects, now: Instant, verdict: &mut Verdict) {
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
            match self.functions.get(name) {
                Some((found, when)) if now - *when < FRESH => self.follow(found, now, verdict),
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
        "sql" | "plpgsql" => {
            let mut effects = Effects::of_body(source.text.as_bytes());
            // What it writes is written by whoever calls it; that is asked for by the caller's own text.
            effects
                .what
                .remove(What::CONTROL | What::RUNS_STRINGS | What::HIDDEN);
            effects
        }
        // An aggregate, of functions that are not told here.
        "internal" if source.text == "aggregate_dummy" => opaque(What::OPAQUE),
        // Their source is the name of a symbol; extensions keep to themselves, but for connections of their own.
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
        assert_eq!(functions.judge(&call, now).unknown, ["f"]);
        learn(&functions, "f", "BEGIN PERFORM g(); RETURN f(2); END", now);
        assert_eq!(functions.judge(&call, now).unknown, ["g"]);
        let sets = "BEGIN PERFORM set_config('app.x', '1', false); END";
        learn(&functions, "g", sets, now);
        let verdict = functions.judge(&call, now);
        assert!(verdict.unknown.is_empty());
        assert_eq!(&*verdict.effects.settings[0].name, "app.x");
        assert_eq!(functions.judge(&call, now + FRESH).unknown, ["f"]);
        functions.forget();
        assert_eq!(functions.judge(&call, now).unknown, ["f"]);
    }

    #[test]
    fn a_function_that_does_nothing_to_its_session_is_known_as_such() {
        let functions = Functions::default();
        let now = Instant::now();
        let call = Effects::of(b"SELECT f(1)", false);
        learn(&functions, "f", "BEGIN RETURN $1 + 1; END", now);
        let mut verdict = functions.judge(&call, now);
        verdict.effects.functions.clear();
        assert_eq!(verdict, Verdict::default());
    }

    #[test]
    fn triggers_are_looked_up_for_what_writes() {
        let functions = Functions::default();
        let now = Instant::now();
        let write = Effects::of(b"INSERT INTO t VALUES (1)", false);
        assert!(functions.judge(&write, now).triggers_unknown);
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
                .judge(&write, now)
                .effects
                .what
                .contains(What::LISTEN)
        );
    }
}
