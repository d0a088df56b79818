//! Running statements: as much of SQL as the programs of the simulation and the proxy itself use.

use super::session::{Session, State, aborted};
use super::sql::{after, after_any, call, top_level, unquoted};
use super::{Failure, frame, row_of, rows_of};

/// What a statement comes to.
#[derive(Debug, Default)]
pub struct Done {
    /// None: it returns no rows.
    pub columns: Option<Vec<String>>,
    /// DataRow frames.
    pub rows: Vec<Vec<u8>>,
    pub tag: String,
    pub notices: Vec<Failure>,
    pub copies_in: bool,
}

impl Done {
    fn tag(tag: &str) -> Self {
        Self {
            tag: tag.to_owned(),
            ..Self::default()
        }
    }

    fn warning(tag: &str, sqlstate: &'static str, message: &str) -> Self {
        Self {
            notices: vec![Failure::new(sqlstate, message)],
            ..Self::tag(tag)
        }
    }
}

/// RowDescription: all columns are text.
pub fn description(columns: &[String]) -> Vec<u8> {
    let mut body = u16::try_from(columns.len())
        .expect("few columns")
        .to_be_bytes()
        .to_vec();
    for name in columns {
        body.extend(name.as_bytes());
        body.push(0);
        // Table, column, type (text), length, modifier, format.
        body.extend([
            0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 255, 255, 255, 255, 255, 255, 0, 0,
        ]);
    }
    frame(b'T', &body)
}

fn row(values: &[Option<String>]) -> Vec<u8> {
    let mut body = u16::try_from(values.len())
        .expect("few columns")
        .to_be_bytes()
        .to_vec();
    for value in values {
        match value {
            None => body.extend((-1_i32).to_be_bytes()),
            Some(value) => {
                body.extend(
                    u32::try_from(value.len())
                        .expect("a short value")
                        .to_be_bytes(),
                );
                body.extend(value.as_bytes());
            }
        }
    }
    frame(b'D', &body)
}

/// Whether a statement may be run in a transaction that has failed.
pub fn ends_transaction(text: &str) -> bool {
    let words = ["COMMIT", "END", "ROLLBACK", "ABORT"];
    after_any(text.trim(), &words).is_some()
}

/// What the parser says of a text.
pub fn check(text: &str) -> Result<(), Failure> {
    match after(text.trim(), "SELEC") {
        None => Ok(()),
        Some(_) => Err(Failure::new("42601", "syntax error at or near \"SELEC\"")),
    }
}

/// The columns of what a statement returns.
pub fn columns(text: &str) -> Option<Vec<String>> {
    let text = text.trim();
    if let Some(name) = after(text, "SHOW") {
        return Some(vec![unquoted(name)]);
    }
    if is_question(text) {
        return Some(vec!["?column?".to_owned(), "?column?".to_owned()]);
    }
    let (list, _) = select(text)?;
    let name = |item: &str| {
        let lower = item.to_ascii_lowercase();
        if let Some(at) = lower.find(" as ") {
            return unquoted(&item[at + 4..]);
        }
        match call(item) {
            Some((name, _)) => name,
            None if item.chars().all(|c| c.is_alphanumeric() || c == '_')
                && !item.starts_with(|c: char| c.is_ascii_digit()) =>
            {
                item.to_owned()
            }
            None => "?column?".to_owned(),
        }
    };
    let mut names: Vec<_> = list.iter().map(|item| name(item)).collect();
    names.retain(|name| !name.is_empty());
    Some(names)
}

/// What a SELECT selects, and what it is from.
fn select(text: &str) -> Option<(Vec<&str>, Option<&str>)> {
    let rest = after(text.trim(), "SELECT")?;
    let lower = rest.to_ascii_lowercase();
    let (list, from) = match lower.find(" from ") {
        Some(at) => (&rest[..at], Some(rest[at + 6..].trim())),
        None => (rest, None),
    };
    let list = top_level(list, ',').map(str::trim);
    Some((list.filter(|item| !item.is_empty()).collect(), from))
}

/// Whether it is what the proxy asks of a session.
fn is_question(text: &str) -> bool {
    let begins = [
        "SELECT 'temporary'",
        "SELECT 'hold'",
        "SELECT 'listen'",
        "SELECT 'advisory'",
        "SELECT 'prepared'",
        "SELECT CASE WHEN",
        "SELECT 'reset '",
        "SELECT 'set '",
        "WITH roles",
        "SELECT 'function '",
        "SELECT 'trigger '",
        "(SELECT 'own-",
        "SELECT DISTINCT 'library'",
    ];
    text.contains("pg_catalog.") && begins.iter().any(|begin| text.starts_with(begin))
}

impl Session {
    /// Runs a statement. `simple`: of a Query; `several`: one of several of it.
    pub fn run(
        &mut self,
        text: &str,
        arguments: &[Option<&str>],
        simple: bool,
        several: bool,
    ) -> Result<Done, Failure> {
        let text = text.trim();
        check(text)?;
        self.take_planned()?;
        if self.transaction.state == State::Failed && !ends_transaction(text) {
            return Err(aborted());
        }
        self.note_run(text);
        let alone = simple && !several && self.transaction.state == State::Idle;
        let done = self.dispatch(text, arguments, alone)?;
        if alone && self.transaction.state == State::Idle {
            // It was a transaction of its own.
            self.clear_local();
        }
        Ok(done)
    }

    fn dispatch(
        &mut self,
        text: &str,
        arguments: &[Option<&str>],
        alone: bool,
    ) -> Result<Done, Failure> {
        if let Some(done) = self.control(text).or_else(|| self.savepoint(text)) {
            return done;
        }
        if let Some(rest) = after(text, "SET") {
            return self.set(rest);
        }
        if let Some(rest) = after(text, "RESET") {
            return self.reset(rest);
        }
        if let Some(name) = after(text, "SHOW") {
            let name = unquoted(name);
            let value = self
                .setting(&name)
                .ok_or_else(|| unknown_parameter(&name))?;
            return Ok(Done {
                columns: Some(vec![name]),
                rows: vec![row(&[Some(value)])],
                ..Done::tag("SHOW")
            });
        }
        if is_question(text) {
            return Ok(self.answer(text));
        }
        if after(text, "SELECT").is_some() {
            return self.select(text, arguments);
        }
        if after(text, "INSERT").is_some() {
            return match self.tenant().is_empty() {
                true => Err(Failure::new(
                    "42501",
                    "new row violates row-level security policy for table \"orders\"",
                )),
                false => Ok(Done::tag("INSERT 0 1")),
            };
        }
        if let Some(rest) = after(text, "COPY") {
            return Ok(self.copy_command(rest));
        }
        self.rest(text, alone)
    }

    /// What keeps something in the session.
    fn rest(&mut self, text: &str, alone: bool) -> Result<Done, Failure> {
        if let Some(rest) = after(text, "DISCARD") {
            if !rest.eq_ignore_ascii_case("ALL") {
                return Ok(Done::tag("DISCARD PLANS"));
            }
            if !alone && self.transaction.state != State::Implicit {
                let message = "DISCARD ALL cannot run inside a transaction block";
                return Err(Failure::new("25001", message));
            }
            self.discard();
            return Ok(Done::tag("DISCARD ALL"));
        }
        if let Some(channel) = after(text, "LISTEN") {
            self.listens.insert(unquoted(channel));
            return Ok(Done::tag("LISTEN"));
        }
        if let Some(channel) = after(text, "UNLISTEN") {
            match channel {
                "*" => self.listens.clear(),
                channel => drop(self.listens.remove(&unquoted(channel))),
            }
            return Ok(Done::tag("UNLISTEN"));
        }
        if let Some(rest) = after(text, "NOTIFY") {
            let (channel, payload) = rest.split_once(',').unwrap_or((rest, "''"));
            self.notifies.push((unquoted(channel), unquoted(payload)));
            return Ok(Done::tag("NOTIFY"));
        }
        if let Some(rest) = after(text, "PREPARE") {
            let at = rest.to_ascii_lowercase().find(" as ").unwrap_or(rest.len());
            let name = unquoted(rest[..at].split('(').next().unwrap_or_default());
            if self.prepared.contains_key(&name) {
                let message = format!("prepared statement \"{name}\" already exists");
                return Err(Failure::new("42P05", message));
            }
            let text = rest[at + 4..].into();
            self.prepared
                .insert(name, super::session::Prepared { text, by_sql: true });
            return Ok(Done::tag("PREPARE"));
        }
        if let Some(name) = after(text, "EXECUTE") {
            let name = unquoted(name.split('(').next().unwrap_or_default());
            let known = self.prepared.get(&name);
            let text = known.map(|prepared| prepared.text.clone()).ok_or_else(|| {
                let message = format!("prepared statement \"{name}\" does not exist");
                Failure::new("26000", message)
            })?;
            self.note_run(&text);
            return self.dispatch(&text, &[], false);
        }
        if let Some(name) = after(text, "DEALLOCATE") {
            if name.eq_ignore_ascii_case("ALL") {
                self.prepared.retain(|name, _| name.is_empty());
                return Ok(Done::tag("DEALLOCATE ALL"));
            }
            let name = unquoted(name);
            return match self.prepared.remove(&name) {
                Some(_) => Ok(Done::tag("DEALLOCATE")),
                None => {
                    let message = format!("prepared statement \"{name}\" does not exist");
                    Err(Failure::new("26000", message))
                }
            };
        }
        if let Some(name) = after(text, "CREATE TEMP TABLE") {
            let name = unquoted(name.split('(').next().unwrap_or_default());
            return match self.temporary.insert(name.clone()) {
                true => Ok(Done::tag("CREATE TABLE")),
                false => {
                    let message = format!("relation \"{name}\" already exists");
                    Err(Failure::new("42P07", message))
                }
            };
        }
        if let Some(name) = after(text, "DROP TABLE") {
            let name = unquoted(name);
            return match self.temporary.remove(&name) {
                true => Ok(Done::tag("DROP TABLE")),
                false => {
                    let message = format!("table \"{name}\" does not exist");
                    Err(Failure::new("42P01", message))
                }
            };
        }
        let word = text.split_whitespace().next().unwrap_or_default();
        Err(Failure::new(
            "42601",
            format!("syntax error at or near \"{word}\""),
        ))
    }

    /// DISCARD ALL: the session is as after login.
    fn discard(&mut self) {
        self.changed = true;
        self.session.clear();
        self.local.clear();
        self.prepared.clear();
        self.portals.clear();
        self.listens.clear();
        self.locks.clear();
        self.temporary.clear();
        if self.transaction.state == State::Implicit {
            self.begin(State::Implicit);
        }
    }

    /// Statements about transactions.
    fn control(&mut self, text: &str) -> Option<Result<Done, Failure>> {
        use State::{Failed, Idle, Implicit, Open};
        let state = self.transaction.state;
        let is_open = matches!(state, Open | Failed);
        let outside = |what: &str| {
            Failure::new(
                "25P01",
                format!("{what} can only be used in transaction blocks"),
            )
        };
        if after_any(text, &["BEGIN", "START TRANSACTION"]).is_some() {
            return Some(Ok(match state {
                Open | Failed => {
                    let message = "there is already a transaction in progress";
                    Done::warning("BEGIN", "25001", message)
                }
                Implicit => {
                    self.transaction.state = Open;
                    Done::tag("BEGIN")
                }
                Idle => {
                    self.begin(Open);
                    Done::tag("BEGIN")
                }
            }));
        }
        let none = "there is no transaction in progress";
        if after_any(text, &["COMMIT", "END"]).is_some() {
            return Some(Ok(match state {
                Open => {
                    self.commit();
                    Done::tag("COMMIT")
                }
                Failed => {
                    self.roll_back();
                    Done::tag("ROLLBACK")
                }
                Implicit | Idle => {
                    self.commit();
                    Done::warning("COMMIT", "25P01", none)
                }
            }));
        }
        let rolls_back = after_any(text, &["ROLLBACK", "ABORT"])?;
        if let Some(name) = after(rolls_back, "TO") {
            let name = unquoted(after(name, "SAVEPOINT").unwrap_or(name));
            if !is_open {
                return Some(Err(outside("ROLLBACK TO SAVEPOINT")));
            }
            let mut saved = self.transaction.savepoints.iter();
            let Some(at) = saved.rposition(|(known, _)| *known == name) else {
                let message = format!("savepoint \"{name}\" does not exist");
                return Some(Err(Failure::new("3B001", message)));
            };
            self.transaction.savepoints.truncate(at + 1);
            let saved = self.transaction.savepoints[at].1.clone();
            self.restore(saved);
            self.transaction.state = Open;
            return Some(Ok(Done::tag("ROLLBACK")));
        }
        Some(Ok(match is_open {
            true => {
                self.roll_back();
                Done::tag("ROLLBACK")
            }
            false => {
                self.roll_back();
                Done::warning("ROLLBACK", "25P01", none)
            }
        }))
    }

    fn savepoint(&mut self, text: &str) -> Option<Result<Done, Failure>> {
        let is_open = matches!(self.transaction.state, State::Open);
        let outside = |what: &str| {
            Failure::new(
                "25P01",
                format!("{what} can only be used in transaction blocks"),
            )
        };
        if let Some(name) = after(text, "SAVEPOINT") {
            if !is_open {
                return Some(Err(outside("SAVEPOINT")));
            }
            let saved = (unquoted(name), self.save());
            self.transaction.savepoints.push(saved);
            return Some(Ok(Done::tag("SAVEPOINT")));
        }
        let name = after(text, "RELEASE")?;
        if !is_open {
            return Some(Err(outside("RELEASE SAVEPOINT")));
        }
        let name = unquoted(after(name, "SAVEPOINT").unwrap_or(name));
        let mut saved = self.transaction.savepoints.iter();
        Some(match saved.rposition(|(known, _)| *known == name) {
            Some(at) => {
                self.transaction.savepoints.truncate(at);
                Ok(Done::tag("RELEASE"))
            }
            None => Err(Failure::new(
                "3B001",
                format!("savepoint \"{name}\" does not exist"),
            )),
        })
    }

    fn set(&mut self, rest: &str) -> Result<Done, Failure> {
        let local = after(rest, "LOCAL");
        let rest = local.or_else(|| after(rest, "SESSION")).unwrap_or(rest);
        let at = rest.find('=').map(|at| (at, 1));
        let to = rest.to_ascii_lowercase().find(" to ").map(|at| (at, 4));
        let (at, length) = to
            .or(at)
            .ok_or_else(|| Failure::new("42601", "syntax error"))?;
        let name = unquoted(&rest[..at]);
        let value = unquoted(&rest[at + length..]);
        let is_local = local.is_some();
        match value.eq_ignore_ascii_case("DEFAULT") {
            true => self.reset_one(&name)?,
            false => drop(self.set_config(&name, &value, is_local)?),
        }
        let outside = !matches!(self.transaction.state, State::Open | State::Failed);
        if is_local && outside {
            let message = "SET LOCAL can only be used in transaction blocks";
            return Ok(Done::warning("SET", "25P01", message));
        }
        Ok(Done::tag("SET"))
    }

    /// Sets a parameter, and returns what it is then.
    pub fn set_config(&mut self, name: &str, value: &str, local: bool) -> Result<String, Failure> {
        let known = self.setting(name);
        let lower = name.to_ascii_lowercase();
        if !lower.contains('.') && known.is_none() {
            return Err(unknown_parameter(name));
        }
        let bad = match &*lower {
            "timezone" => value.starts_with("Nowhere"),
            "statement_timeout" | "work_mem" => value.starts_with("much"),
            _ => false,
        };
        if bad {
            let message = format!("invalid value for parameter \"{name}\": \"{value}\"");
            return Err(Failure::new("22023", message));
        }
        self.changed = true;
        match local {
            true => drop(self.local.insert(lower, value.to_owned())),
            false => {
                self.local.remove(&lower);
                self.session.insert(lower, value.to_owned());
            }
        }
        Ok(value.to_owned())
    }

    fn reset_one(&mut self, name: &str) -> Result<(), Failure> {
        let lower = name.to_ascii_lowercase();
        if self.setting(&lower).is_none() && !lower.contains('.') {
            return Err(unknown_parameter(name));
        }
        self.changed = true;
        self.local.remove(&lower);
        match lower.contains('.') && !self.defaults.contains_key(&lower) {
            // What nobody knows is empty after it was set, and not unknown again.
            true if self.session.contains_key(&lower) => {
                self.session.insert(lower, String::new());
            }
            _ => drop(self.session.remove(&lower)),
        }
        Ok(())
    }

    fn reset(&mut self, name: &str) -> Result<Done, Failure> {
        match name.eq_ignore_ascii_case("ALL") {
            true => {
                let names: Vec<_> = self
                    .session
                    .keys()
                    .chain(self.local.keys())
                    .cloned()
                    .collect();
                names.iter().try_for_each(|name| self.reset_one(name))?;
            }
            false => self.reset_one(&unquoted(name))?,
        }
        Ok(Done::tag("RESET"))
    }

    fn copy_command(&mut self, rest: &str) -> Done {
        match rest.to_ascii_uppercase().contains("FROM STDIN") {
            true => Done {
                copies_in: true,
                ..Done::default()
            },
            false => {
                let tenant = self.tenant();
                let count = rows_of(&tenant);
                let mut rows = vec![frame(b'H', &[0, 0, 1, 0, 0])];
                for number in 0..count {
                    let line = format!("{}\n", row_of(&tenant, number));
                    rows.push(frame(b'd', line.as_bytes()));
                }
                rows.push(frame(b'c', &[]));
                Done {
                    rows,
                    ..Done::tag(&format!("COPY {count}"))
                }
            }
        }
    }

    fn select(&mut self, text: &str, arguments: &[Option<&str>]) -> Result<Done, Failure> {
        let (list, from) = select(text).ok_or_else(|| Failure::new("42601", "syntax error"))?;
        let columns = columns(text);
        let mut notices = Vec::new();
        let count = match from {
            Some(from) if from.starts_with("orders") => rows_of(&self.tenant()),
            Some(from) => {
                let name = from.split_whitespace().next().unwrap_or_default();
                if !self.temporary.contains(name) {
                    let message = format!("relation \"{name}\" does not exist");
                    return Err(Failure::new("42P01", message));
                }
                0
            }
            None => 1,
        };
        let mut rows = Vec::new();
        for number in 0..count {
            let mut values = Vec::new();
            for item in &list {
                let item = match item.to_ascii_lowercase().find(" as ") {
                    Some(at) => &item[..at],
                    None => item,
                };
                values.push(self.value(item, arguments, number, &mut notices)?);
            }
            rows.push(row(&values));
        }
        Ok(Done {
            columns,
            rows,
            notices,
            ..Done::tag(&format!("SELECT {count}"))
        })
    }

    /// The value of an expression in a row of this number.
    fn value(
        &mut self,
        item: &str,
        arguments: &[Option<&str>],
        number: usize,
        notices: &mut Vec<Failure>,
    ) -> Result<Option<String>, Failure> {
        let item = item.trim().trim_end_matches("::text");
        if let Some(number) = item.strip_prefix('$') {
            let at: usize = number.parse().unwrap_or(1);
            return Ok(arguments.get(at - 1).copied().flatten().map(str::to_owned));
        }
        if item.starts_with('\'') {
            return Ok(Some(unquoted(item)));
        }
        if item == "1/0" {
            return Err(Failure::new("22012", "division by zero"));
        }
        if item == "body" {
            return Ok(Some(row_of(&self.tenant(), number)));
        }
        if item == "id" {
            return Ok(Some(number.to_string()));
        }
        let Some((name, inner)) = call(item) else {
            return match item.parse::<i64>() {
                Ok(number) => Ok(Some(number.to_string())),
                Err(_) if item.ends_with("IS NOT NULL") => Ok(Some("t".to_owned())),
                Err(_) => Err(Failure::new(
                    "42703",
                    format!("column \"{item}\" does not exist"),
                )),
            };
        };
        let mut values = Vec::new();
        for argument in inner {
            let value = match argument.to_ascii_lowercase().as_str() {
                "true" | "false" => Some(argument.to_ascii_lowercase()),
                _ => self.value(argument, arguments, number, notices)?,
            };
            values.push(value.unwrap_or_default());
        }
        let argument = |at: usize| values.get(at).cloned().unwrap_or_default();
        match name.as_str() {
            "set_config" => {
                let local = argument(2).starts_with('t');
                self.set_config(&argument(0), &argument(1), local).map(Some)
            }
            "current_setting" => match self.setting(&argument(0)) {
                Some(value) => Ok(Some(value)),
                None if argument(1) == "true" => Ok(None),
                None => Err(unknown_parameter(&argument(0))),
            },
            "pg_sleep" => {
                self.slept += argument(0).parse::<u64>().unwrap_or(0);
                Ok(Some(String::new()))
            }
            "pg_advisory_lock" => {
                self.locks.insert(argument(0).parse().unwrap_or(0));
                Ok(Some(String::new()))
            }
            "pg_advisory_unlock_all" => {
                self.locks.clear();
                Ok(Some(String::new()))
            }
            "setseed" => Ok(Some(String::new())),
            "note" => {
                notices.push(Failure::new("01000", argument(0)));
                Ok(Some(String::new()))
            }
            _ => Err(Failure::new(
                "42883",
                format!("function {name} does not exist"),
            )),
        }
    }

    /// What the proxy is told of the session (`backend/residue.rs`, `backend/reach.rs`).
    fn answer(&self, text: &str) -> Done {
        let mut rows = Vec::new();
        let mut say = |word: &str, value: Option<String>| {
            rows.push(row(&[Some(word.to_owned()), value]));
        };
        let quoted = |part: &str, before: &str| {
            let rest = &part[part.find(before)? + before.len()..];
            Some(rest[..rest.find('\'')?].to_owned())
        };
        for part in text.split(" UNION ALL ") {
            let part = part.split("))) SELECT ").last().unwrap_or(part);
            let part = part
                .trim_start_matches("SELECT ")
                .trim_start_matches("(SELECT ");
            let is = |word: &str| part.starts_with(&format!("'{word}'"));
            if is("temporary") && !self.temporary.is_empty() {
                say("temporary", None);
            } else if is("listen") && !self.listens.is_empty() {
                say("listen", None);
            } else if is("advisory") && !self.locks.is_empty() {
                say("advisory", None);
            } else if is("prepared") && self.prepared.values().any(|p| p.by_sql) {
                say("prepared", None);
            } else if is("may-seed") {
                say("may-seed", None);
            } else if part.starts_with("CASE WHEN pg_catalog.octet_length") {
                let name = quoted(part, "'setting ").unwrap_or_default();
                say(
                    &format!("setting {name}"),
                    self.setting(&name).map(|v| hex(&v)),
                );
            } else if part.starts_with("'reset '") {
                let names = part.split("ARRAY[").nth(1).unwrap_or_default();
                for name in names.split('\'').skip(1).step_by(2) {
                    if !name.contains('.') && !self.is_set(name) {
                        say(&format!("reset {name}"), None);
                    }
                }
            } else if part.starts_with("'set '") {
                for name in self.session.keys().filter(|name| !name.contains('.')) {
                    say(&format!("set {name}"), self.setting(name).map(|v| hex(&v)));
                }
            } else if part.starts_with("'function '") && part.contains("'note'") {
                let source = "BEGIN RAISE WARNING '%', $1; END";
                say("function note plpgsql", Some(source.to_owned()));
            } else if part.starts_with("CASE WHEN from_sql") {
                for (name, prepared) in &self.prepared {
                    if !name.is_empty() && !name.starts_with("pgtenant_") {
                        let word = match prepared.by_sql {
                            true => "name prepared",
                            false => "name parsed",
                        };
                        say(word, Some(name.clone()));
                    }
                }
            }
        }
        let tag = format!("SELECT {}", rows.len());
        Done {
            columns: Some(vec!["?column?".to_owned(), "?column?".to_owned()]),
            rows,
            ..Done::tag(&tag)
        }
    }

    fn is_set(&self, name: &str) -> bool {
        self.session.contains_key(name) || self.local.contains_key(name)
    }
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn unknown_parameter(name: &str) -> Failure {
    Failure::new(
        "42704",
        format!("unrecognized configuration parameter \"{name}\""),
    )
}
