//! What a variable is set to in a session of PostgreSQL, by the commands that were carried out in
//! it: `SET`, `SET LOCAL`, transactions, savepoints. Pure, so that it can be compared with
//! PostgreSQL's own word, `current_setting`.

use std::sync::Arc;

pub type Value = Arc<str>;

/// What one command does, if it is carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Nothing,
    Begin,
    Commit {
        chain: bool,
    },
    Rollback {
        chain: bool,
    },
    Savepoint(String),
    Release(String),
    RollbackTo(String),
    Choose {
        value: Option<Value>,
        is_local: bool,
    },
    ResetAll,
}

/// Whether a transaction is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Block {
    #[default]
    None,
    /// The transaction of a text, or of a pipeline up to its Sync.
    Implicit,
    Explicit,
}

/// The session's value, which outlives its transaction, and the one in force.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Values {
    session: Option<Value>,
    current: Option<Value>,
}

#[derive(Debug, Clone, Default)]
pub struct Model {
    values: Values,
    /// The session's value when the open transaction began.
    before: Option<Value>,
    block: Block,
    /// By name, what the values were when they were made.
    savepoints: Vec<(String, Values)>,
    has_failed: bool,
}

impl Model {
    pub fn current(&self) -> Option<&Value> {
        self.values.current.as_ref()
    }

    pub fn block(&self) -> Block {
        self.block
    }

    pub fn is_explicit(&self) -> bool {
        self.block == Block::Explicit
    }

    pub fn has_failed(&self) -> bool {
        self.has_failed
    }

    pub fn has_savepoint(&self, name: &str) -> bool {
        self.savepoints.iter().any(|(own, _)| own == name)
    }

    /// What ReadyForQuery says.
    pub fn status(&self) -> u8 {
        match (self.block, self.has_failed) {
            (Block::Explicit, true) => b'E',
            (Block::Explicit, false) => b'T',
            _ => b'I',
        }
    }

    /// A text or a pipeline begins to be run.
    pub fn begin_implicit(&mut self) {
        if self.block == Block::None {
            self.block = Block::Implicit;
            self.before = self.values.session.clone();
        }
    }

    /// A text or a pipeline is over.
    pub fn end_implicit(&mut self) {
        if self.block == Block::Implicit {
            match self.has_failed {
                true => self.roll_back(),
                false => self.commit(),
            }
        }
    }

    /// A command has failed.
    pub fn fail(&mut self) {
        self.has_failed |= self.block != Block::None;
    }

    /// A command was carried out.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Nothing => {}
            Event::Begin => {
                self.begin_implicit();
                self.block = Block::Explicit;
            }
            Event::Commit { chain } => {
                match self.has_failed {
                    true => self.roll_back(),
                    false => self.commit(),
                }
                self.go_on(*chain);
            }
            Event::Rollback { chain } => {
                self.roll_back();
                self.go_on(*chain);
            }
            Event::Savepoint(name) => self.savepoints.push((name.clone(), self.values.clone())),
            Event::Release(name) => {
                if let Some(at) = self.last_savepoint(name) {
                    self.savepoints.truncate(at);
                }
            }
            Event::RollbackTo(name) => {
                if let Some(at) = self.last_savepoint(name) {
                    self.savepoints.truncate(at + 1);
                    self.values = self.savepoints[at].1.clone();
                    self.has_failed = false;
                }
            }
            Event::Choose { value, is_local } => self.choose(value.clone(), *is_local),
            Event::ResetAll => self.choose(None, false),
        }
    }

    fn choose(&mut self, value: Option<Value>, is_local: bool) {
        match (is_local, self.block) {
            // It is over with the statement.
            (true, Block::None) => {}
            (true, _) => self.values.current = value,
            (false, _) => {
                self.values = Values {
                    session: value.clone(),
                    current: value,
                }
            }
        }
    }

    fn last_savepoint(&self, name: &str) -> Option<usize> {
        self.savepoints.iter().rposition(|(own, _)| own == name)
    }

    fn commit(&mut self) {
        let session = self.values.session.take();
        self.end(session);
    }

    fn roll_back(&mut self) {
        if self.block != Block::None {
            let before = self.before.take();
            self.end(before);
        }
    }

    fn end(&mut self, session: Option<Value>) {
        *self = Self {
            values: Values {
                current: session.clone(),
                session,
            },
            ..Self::default()
        };
    }

    fn go_on(&mut self, chain: bool) {
        if chain {
            self.apply(&Event::Begin);
        }
    }

    /// The server says that it is ready, and what for. `is_certain`: all that was sent is accounted
    /// for.
    pub fn ready(&mut self, status: u8, is_certain: bool) {
        match (status, self.block) {
            (b'I', Block::Explicit) => self.roll_back(),
            (b'I', _) => self.end_implicit(),
            (_, Block::Explicit) => {}
            // A transaction was begun by what is not understood.
            _ => self.apply(&Event::Begin),
        }
        self.has_failed = status == b'E';
        if !is_certain {
            self.values = Values::default();
            self.before = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays commands and tells the value in force after each.
    fn play(script: &str) -> String {
        let mut model = Model::default();
        let mut seen = Vec::new();
        for word in script.split_whitespace() {
            let (verb, argument) = word.split_once(':').unwrap_or((word, ""));
            let value = || Some(argument.into()).filter(|_| argument != "-");
            let name = argument.to_owned();
            let event = match verb {
                "begin" => Event::Begin,
                "commit" => Event::Commit {
                    chain: argument == "chain",
                },
                "rollback" => Event::Rollback {
                    chain: argument == "chain",
                },
                "savepoint" => Event::Savepoint(name),
                "release" => Event::Release(name),
                "to" => Event::RollbackTo(name),
                "local" => Event::Choose {
                    value: value(),
                    is_local: true,
                },
                "set" => Event::Choose {
                    value: value(),
                    is_local: false,
                },
                "fail" => {
                    model.fail();
                    Event::Nothing
                }
                "text" => {
                    model.begin_implicit();
                    Event::Nothing
                }
                "end" => {
                    model.end_implicit();
                    Event::Nothing
                }
                other => panic!("{other}"),
            };
            model.apply(&event);
            seen.push(model.current().map_or("-", |value| value).to_owned());
        }
        seen.join(" ")
    }

    #[test]
    fn a_choice_lives_as_long_as_postgresql_says() {
        for (script, expected) in [
            ("set:a begin local:b commit", "a a b a"),
            ("local:a", "-"),
            ("begin set:a commit", "- a a"),
            ("begin set:a rollback", "- a -"),
            ("set:a begin set:b fail commit", "a a b b a"),
            ("begin set:a local:b commit", "- a b a"),
            ("begin local:b set:a commit", "- b a a"),
            ("begin savepoint:s local:a to:s commit", "- - a - -"),
            ("begin savepoint:s set:a release:s rollback", "- - a a -"),
            ("begin savepoint:s set:a release:s commit", "- - a a a"),
            (
                "begin set:a savepoint:s set:b savepoint:s set:c to:s to:s release:s to:s",
                "- a a b b c b b b a",
            ),
            ("begin set:a commit:chain local:b rollback", "- a a b a"),
            ("text local:a end", "- a -"),
            ("text set:a fail end", "- a a -"),
            ("text set:a begin end rollback", "- a a a -"),
        ] {
            assert_eq!(play(script), expected, "{script}");
        }
    }
}
