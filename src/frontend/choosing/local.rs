//! What the proxy carries out in a server's place, and what PostgreSQL would say to it.

use super::bound::Bound;
use super::characteristics::{Characteristics, set_by_begin};
use super::model::{Block, Event, Value};
use super::say::Said;
use super::{Choosing, aborted, has_parameters, is_exit, unclear};
use crate::config::Way;
use crate::error::{Error, Kind, Result};
use crate::sql::choice::{SetConfig, Step};
use crate::sql::quoted;

impl Choosing {
    /// Carries a step out, and says what PostgreSQL would. False: it needs a server.
    pub(super) fn run(
        &mut self,
        step: &Step,
        bound: &Bound,
        mode: Mode,
        said: &mut Said,
    ) -> Result<bool> {
        if self.model.has_failed() && !is_exit(step) {
            return Err(aborted());
        }
        if self.served.is_none() && self.may_hold(step) {
            return self.hold(step, said).map(|()| true);
        }
        if step.may_choose() && *step != Step::Unclear && !self.is_always_local(step) {
            return Ok(false);
        }
        match step {
            Step::Set(chosen) => {
                let Event::Choose { value, is_local } = self.set(chosen)? else {
                    return Ok(false);
                };
                self.choose(value, is_local)?;
                let is_in_block = match mode {
                    Mode::Query => self.model.block() != Block::None,
                    _ => self.model.is_explicit() || self.is_pipelined,
                };
                if is_local && !is_in_block {
                    let message = "SET LOCAL can only be used in transaction blocks";
                    said.warning(Kind::NoActiveTransaction.sqlstate(), message);
                }
                said.complete("SET");
            }
            Step::Reset(_) => {
                self.choose(None, false)?;
                said.complete("RESET");
            }
            Step::SetConfig(call, column) => {
                if mode == Mode::Query && has_parameters(call) {
                    return Ok(false);
                }
                let Event::Choose { value, is_local } = self.chosen_by([call], bound)? else {
                    return Ok(false);
                };
                if !self.is_local_call(call, bound) {
                    return Ok(false);
                }
                let told = bound.text(&call.value).flatten().unwrap_or_default();
                self.choose(value, is_local)?;
                self.has_queried = true;
                mode.say_row(column, &told, "SELECT 1", said);
            }
            Step::Show(variable) => {
                let name = self.choices.names[*variable].to_string();
                let value = match (&self.choices.ways[*variable], self.model.current()) {
                    (Way::SearchPath(_) | Way::Json(_), _) => return Ok(false),
                    (Way::Value, Some(value)) => value.to_string(),
                    (Way::Role(affixes), Some(value)) => affixes.around(value),
                    (Way::Role(_), None) => "none".to_owned(),
                    (Way::Value, None) => {
                        let message = format!("unrecognized configuration parameter \"{name}\"");
                        return Err(Error::new(Kind::UndefinedObject, message));
                    }
                };
                mode.say_row(&name, &value, "SHOW", said);
            }
            Step::Unclear => return Err(unclear()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether the proxy carries a call out that chooses.
    pub(super) fn is_local_call(&self, call: &SetConfig, bound: &Bound) -> bool {
        let name = bound.text(&call.name).flatten().unwrap_or_default();
        self.way(&name).is_none_or(Way::is_local)
    }

    pub(super) fn choose(&mut self, value: Option<Value>, is_local: bool) -> Result<()> {
        self.check(value.as_ref())?;
        self.model.apply(&Event::Choose { value, is_local });
        Ok(())
    }

    fn check_characteristics(&self, text: &str) -> Result<()> {
        Characteristics::of(&self.held).check(text, self.has_queried)
    }

    /// Carries out what belongs to a transaction that no server has.
    #[expect(clippy::too_many_lines, reason = "an arm for each statement")]
    fn hold(&mut self, step: &Step, said: &mut Said) -> Result<()> {
        let warns = |said: &mut Said, kind: Kind, message| said.warning(kind.sqlstate(), message);
        match step {
            Step::Begin { starts, text } => {
                match self.model.is_explicit() {
                    true => {
                        let message = "there is already a transaction in progress";
                        warns(said, Kind::ActiveTransaction, message);
                        if let Some(text) = set_by_begin(text) {
                            self.check_characteristics(&text)?;
                            self.keep_for_server(text)?;
                        }
                    }
                    false => {
                        self.has_queried &= self.model.block() != Block::None;
                        self.check_characteristics(text)?;
                        self.model.apply(&Event::Begin);
                        self.held.push(text.clone());
                    }
                }
                said.complete(if *starts {
                    "START TRANSACTION"
                } else {
                    "BEGIN"
                });
            }
            Step::Commit { chain } | Step::Rollback { chain } => {
                let commits = matches!(step, Step::Commit { .. });
                let word = if commits { "COMMIT" } else { "ROLLBACK" };
                if !self.model.is_explicit() {
                    if *chain {
                        let message =
                            format!("{word} AND CHAIN can only be used in transaction blocks");
                        return Err(Error::new(Kind::NoActiveTransaction, message));
                    }
                    let message = "there is no transaction in progress";
                    warns(said, Kind::NoActiveTransaction, message);
                }
                let is_committed = commits && !self.model.has_failed();
                self.model.apply(&match commits {
                    true => Event::Commit { chain: *chain },
                    false => Event::Rollback { chain: *chain },
                });
                self.held = match chain {
                    true => {
                        let said_by = Characteristics::of(&self.held).said_by;
                        said_by.into_iter().map(str::to_owned).collect()
                    }
                    false => Vec::new(),
                };
                said.complete(if is_committed { "COMMIT" } else { "ROLLBACK" });
            }
            Step::Savepoint(name) => {
                self.keep_for_server(format!("SAVEPOINT {}", quoted(name)))?;
                self.model.apply(&Event::Savepoint(name.clone()));
                said.complete("SAVEPOINT");
            }
            Step::Release(name) => {
                self.find_savepoint(name)?;
                self.keep_for_server(format!("RELEASE {}", quoted(name)))?;
                self.model.apply(&Event::Release(name.clone()));
                said.complete("RELEASE");
            }
            Step::RollbackTo(name) => {
                self.find_savepoint(name)?;
                self.keep_for_server(format!("ROLLBACK TO {}", quoted(name)))?;
                self.model.apply(&Event::RollbackTo(name.clone()));
                said.complete("ROLLBACK");
            }
            Step::Empty => said.empty_query(),
            Step::Characteristics(text) | Step::SetsLocally(_, text) => {
                if matches!(step, Step::Characteristics(_)) {
                    self.check_characteristics(text)?;
                }
                self.keep_for_server(text.clone())?;
                said.complete("SET");
            }
            _ => {}
        }
        Ok(())
    }

    fn find_savepoint(&self, name: &str) -> Result<()> {
        if !self.model.is_explicit() {
            let message = "ROLLBACK TO SAVEPOINT can only be used in transaction blocks";
            return Err(Error::new(Kind::NoActiveTransaction, message));
        }
        match self.model.has_savepoint(name) {
            true => Ok(()),
            false => Err(Error::new(
                Kind::InvalidSavepoint,
                format!("savepoint \"{name}\" does not exist"),
            )),
        }
    }
}

/// How a statement is run, and so what of its answer is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Query,
    Execute,
    /// An Execute that asks for one row.
    OneRow,
}

impl Mode {
    fn say_row(self, column: &str, value: &str, tag: &str, said: &mut Said) {
        if self == Self::Query {
            said.row_description(&[column], &[0]);
        }
        said.row(value);
        match self {
            Self::OneRow => said.suspended(),
            _ => said.complete(tag),
        }
    }
}
