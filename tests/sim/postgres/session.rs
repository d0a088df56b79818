//! A session: its protocol, its transaction, and what it keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::statements::Done;
use super::{Failure, VARIABLE, cut, frame, marks, problem, text};

/// A session of PostgreSQL.
#[derive(Debug, Clone)]
pub struct Session {
    pub pid: i32,
    /// What RESET returns to.
    pub defaults: Rc<BTreeMap<String, String>>,
    pub session: BTreeMap<String, String>,
    pub local: BTreeMap<String, String>,
    pub transaction: Transaction,
    pub prepared: BTreeMap<String, Prepared>,
    pub portals: BTreeMap<String, Portal>,
    pub listens: BTreeSet<String>,
    pub locks: BTreeSet<i64>,
    pub temporary: BTreeSet<String>,
    /// What was told of the parameters that are reported.
    pub told: Rc<BTreeMap<String, String>>,
    /// A parameter may be other than was told.
    pub changed: bool,
    /// After an error in the extended protocol: nothing is heard up to a Sync.
    pub skips: bool,
    /// A COPY FROM STDIN is open. Within: whether it is of the extended protocol.
    pub copies: Option<bool>,
    /// An error that a statement is to have in its place, and how many are run before it.
    planned: Option<(usize, Failure)>,
    /// How long what was just run takes, in milliseconds.
    pub slept: u64,
    /// What was run by whom in whose context, for the checkers: mark's tenant, context.
    pub ran: Vec<(String, String)>,
    /// A CREATE … or a NOTIFY that others hear of: channel and payload.
    pub notifies: Vec<(String, String)>,
    pub ended: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    pub state: State,
    /// What the session was at BEGIN, and at each savepoint with its name: to return to.
    pub begun: Option<Saved>,
    pub savepoints: Vec<(String, Saved)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    pub session: BTreeMap<String, String>,
    pub local: BTreeMap<String, String>,
    pub listens: BTreeSet<String>,
    pub temporary: BTreeSet<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum State {
    #[default]
    Idle,
    /// A statement of the extended protocol, or one of several of a Query, has begun one that ends
    /// by itself.
    Implicit,
    Open,
    Failed,
}

#[derive(Debug, Clone)]
pub struct Prepared {
    pub text: Rc<str>,
    pub by_sql: bool,
}

#[derive(Debug, Clone)]
pub struct Portal {
    pub text: Rc<str>,
    pub arguments: Vec<Option<String>>,
    /// Rows that are left of it, once it was run: with their command tag.
    pub left: Option<Vec<Vec<u8>>>,
}

/// Parameters that are reported, with what they are in a session in which nobody set them.
pub const REPORTED: [(&str, &str); 7] = [
    ("application_name", ""),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("default_transaction_read_only", "off"),
    ("IntervalStyle", "postgres"),
    ("standard_conforming_strings", "on"),
    ("TimeZone", "UTC"),
];
/// Parameters that are told at login and never change.
const FIXED: [(&str, &str); 6] = [
    ("in_hot_standby", "off"),
    ("integer_datetimes", "on"),
    ("is_superuser", "off"),
    ("server_encoding", "UTF8"),
    ("server_version", "15.8"),
    ("session_authorization", "app"),
];

impl Session {
    /// A session that is logged in. `parameters`: of its StartupMessage.
    pub fn new(pid: i32, parameters: BTreeMap<String, String>) -> Self {
        let mut defaults = parameters;
        defaults.retain(|name, _| name != "user" && name != "database");
        let defaults: BTreeMap<_, _> = defaults
            .into_iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), value))
            .collect();
        let mut session = Self {
            pid,
            session: BTreeMap::new(),
            local: BTreeMap::new(),
            transaction: Transaction::default(),
            prepared: BTreeMap::new(),
            portals: BTreeMap::new(),
            listens: BTreeSet::new(),
            locks: BTreeSet::new(),
            temporary: BTreeSet::new(),
            told: Rc::default(),
            changed: false,
            skips: false,
            copies: None,
            planned: None,
            slept: 0,
            ran: Vec::new(),
            notifies: Vec::new(),
            ended: false,
            defaults: Rc::new(defaults),
        };
        session.told = Rc::new(session.reported());
        session
    }

    /// What follows authentication: parameters, key, and that it is ready.
    pub fn welcome(&self, secret: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, value) in FIXED {
            out.extend(status(name, value));
        }
        for (name, value) in &*self.told {
            out.extend(status(name, value));
        }
        let key = [&self.pid.to_be_bytes()[..], secret].concat();
        out.extend(frame(b'K', &key));
        out.extend(frame(b'Z', b"I"));
        out
    }

    /// The value of a parameter. None: there is none of this name.
    pub fn setting(&self, name: &str) -> Option<String> {
        let name = name.to_ascii_lowercase();
        let set = self.local.get(&name).or_else(|| self.session.get(&name));
        let known = || {
            let known = REPORTED.iter().chain(&FIXED);
            let mut known = known.filter(|(known, _)| known.eq_ignore_ascii_case(&name));
            known.next().map(|(_, value)| (*value).to_owned())
        };
        let builtin = || {
            let value = match &*name {
                "search_path" => "\"$user\", public",
                "statement_timeout" | "lock_timeout" => "0",
                "work_mem" => "4MB",
                "row_security" => "on",
                _ => return None,
            };
            Some(value.to_owned())
        };
        set.cloned()
            .or_else(|| self.defaults.get(&name).cloned())
            .or_else(known)
            .or_else(builtin)
    }

    /// Whose rows statements see now.
    pub fn tenant(&self) -> String {
        self.setting(VARIABLE).unwrap_or_default()
    }

    pub fn reported(&self) -> BTreeMap<String, String> {
        let all = REPORTED.iter();
        all.map(|(name, _)| ((*name).to_owned(), self.setting(name).unwrap_or_default()))
            .collect()
    }

    /// What it is like between transactions and messages: nothing of a batch is under way.
    pub fn is_at_rest(&self) -> bool {
        self.transaction.state == State::Idle && !self.skips && self.copies.is_none()
    }

    /// Hears one message, and says what it has to say. `tag`: of the message.
    pub fn hear(&mut self, tag: u8, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        self.slept = 0;
        match tag {
            b'd' | b'c' | b'f' => self.copy(tag, body, &mut out),
            b'X' => self.ended = true,
            b'S' => {
                self.skips = false;
                // A Sync within a COPY is passed over.
                if self.copies.is_none() {
                    if let Err(failure) = self.take_planned() {
                        self.fail(&failure, &mut out);
                    }
                    self.end_implicit();
                    self.ready(&mut out);
                }
            }
            b'H' => {}
            _ if self.skips => {}
            b'Q' => self.query(&text(body).0, &mut out),
            b'F' => self.function_call(body, &mut out),
            _ => {
                let done = match tag {
                    b'P' => self.parse(body, &mut out),
                    b'B' => self.bind(body, &mut out),
                    b'E' => self.execute(body, &mut out),
                    b'D' => self.describe(body, &mut out),
                    b'C' => self.close(body, &mut out),
                    _ => Err(Failure::new(
                        "08P01",
                        format!("invalid frontend message type {tag}"),
                    )),
                };
                if let Err(failure) = done {
                    self.fail(&failure, &mut out);
                    self.skips = true;
                }
            }
        }
        out
    }

    /// Has what would be run next fail in its place.
    pub fn fail(&mut self, failure: &Failure, out: &mut Vec<u8>) {
        out.extend(problem(b'E', "ERROR", failure));
        match self.transaction.state {
            State::Open => self.transaction.state = State::Failed,
            State::Implicit => self.roll_back(),
            State::Idle | State::Failed => {}
        }
        self.copies = None;
    }

    /// ReadyForQuery, and before it the parameters that have changed.
    pub fn ready(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.changed) {
            let now = self.reported();
            for (name, value) in &now {
                if self.told.get(name) != Some(value) {
                    out.extend(status(name, value));
                }
            }
            self.told = Rc::new(now);
        }
        let state = match self.transaction.state {
            State::Idle | State::Implicit => b'I',
            State::Open => b'T',
            State::Failed => b'E',
        };
        out.extend(frame(b'Z', &[state]));
    }

    fn query(&mut self, query: &str, out: &mut Vec<u8>) {
        // A Query ends the unnamed statement and portal.
        self.prepared.remove("");
        self.portals.remove("");
        self.end_implicit();
        let statements: Vec<_> = match query.contains("pg_catalog.") && query.contains("UNION ALL")
        {
            true => vec![query],
            false => super::sql::split(query),
        };
        if statements.is_empty() {
            match self.take_planned() {
                Ok(()) => out.extend(frame(b'I', &[])),
                Err(failure) => self.fail(&failure, out),
            }
        }
        let several = statements.len() > 1;
        for statement in statements {
            if several && self.transaction.state == State::Idle {
                self.begin(State::Implicit);
            }
            match self.run(statement, &[], true, several) {
                Ok(done) => {
                    for notice in &done.notices {
                        out.extend(problem(b'N', "WARNING", notice));
                    }
                    if done.copies_in {
                        out.extend(frame(b'G', &[0, 0, 0]));
                        self.copies = Some(false);
                        // No program has anything behind it in its text.
                        return;
                    }
                    out.extend(done.description());
                    done.rows.iter().for_each(|row| out.extend(row));
                    out.extend(complete(&done.tag));
                }
                Err(failure) => {
                    self.fail(&failure, out);
                    break;
                }
            }
        }
        self.end_implicit();
        self.ready(out);
    }

    /// `F`: of the functions by which the proxy sets a context.
    fn function_call(&mut self, body: &[u8], out: &mut Vec<u8>) {
        let oid = u32::from_be_bytes(*body.first_chunk().expect("an oid"));
        let formats = usize::from(u16::from_be_bytes([body[4], body[5]]));
        let mut rest = &body[6 + 2 * formats..];
        let count = u16::from_be_bytes([rest[0], rest[1]]);
        rest = &rest[2..];
        let mut arguments = Vec::new();
        for _ in 0..count {
            arguments.push(value(&mut rest).unwrap_or_default());
        }
        let done = match (self.transaction.state, oid) {
            (State::Failed, _) => Err(aborted()),
            (_, 2078) => {
                self.set_config(&arguments[0], &arguments[1], arguments[2].starts_with('t'))
            }
            (_, 1599) => Ok(String::new()),
            _ => Err(Failure::new(
                "42883",
                format!("function with OID {oid} does not exist"),
            )),
        };
        let done = self.take_planned().and(done);
        match done {
            Ok(value) => {
                let length = u32::try_from(value.len()).expect("a short value");
                out.extend(frame(
                    b'V',
                    &[&length.to_be_bytes()[..], value.as_bytes()].concat(),
                ));
            }
            Err(failure) => self.fail(&failure, out),
        }
        // Outside of a transaction block a local value is over.
        if self.transaction.state == State::Idle {
            self.clear_local();
        }
        self.ready(out);
    }

    fn parse(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
        let (name, rest) = text(body);
        let (query, _) = text(rest);
        self.enter()?;
        if self.transaction.state == State::Failed && !super::statements::ends_transaction(&query) {
            return Err(aborted());
        }
        if !name.is_empty() && self.prepared.contains_key(&name) {
            let message = format!("prepared statement \"{name}\" already exists");
            return Err(Failure::new("42P05", message));
        }
        if super::sql::split(&query).len() > 1 {
            let message = "cannot insert multiple commands into a prepared statement";
            return Err(Failure::new("42601", message));
        }
        super::statements::check(&query)?;
        self.prepared.insert(
            name,
            Prepared {
                text: query.into(),
                by_sql: false,
            },
        );
        out.extend(frame(b'1', &[]));
        Ok(())
    }

    fn bind(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
        let (portal, rest) = text(body);
        let (name, rest) = text(rest);
        self.enter()?;
        let prepared = self.prepared.get(&name).ok_or_else(|| {
            let message = match name.is_empty() {
                true => "unnamed prepared statement does not exist".to_owned(),
                false => format!("prepared statement \"{name}\" does not exist"),
            };
            Failure::new("26000", message)
        })?;
        let query = prepared.text.clone();
        if self.transaction.state == State::Failed && !super::statements::ends_transaction(&query) {
            return Err(aborted());
        }
        let formats = usize::from(u16::from_be_bytes([rest[0], rest[1]]));
        let mut rest = &rest[2 + 2 * formats..];
        let count = u16::from_be_bytes([rest[0], rest[1]]);
        rest = &rest[2..];
        let arguments: Vec<_> = (0..count).map(|_| value(&mut rest)).collect();
        let wanted = (1..10)
            .filter(|number| query.contains(&format!("${number}")))
            .count();
        if wanted != arguments.len() {
            let message = format!(
                "bind message supplies {} parameters, but prepared statement \"{name}\" requires {wanted}",
                arguments.len()
            );
            return Err(Failure::new("08P01", message));
        }
        if !portal.is_empty() && self.portals.contains_key(&portal) {
            let message = format!("cursor \"{portal}\" already exists");
            return Err(Failure::new("42P03", message));
        }
        self.portals.insert(
            portal,
            Portal {
                text: query,
                arguments,
                left: None,
            },
        );
        out.extend(frame(b'2', &[]));
        Ok(())
    }

    fn execute(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
        let (name, rest) = text(body);
        let most = u32::from_be_bytes(*rest.first_chunk().expect("a number of rows")) as usize;
        self.enter()?;
        let portal =
            self.portals.get(&name).cloned().ok_or_else(|| {
                Failure::new("34000", format!("portal \"{name}\" does not exist"))
            })?;
        let arguments: Vec<_> = portal.arguments.iter().map(Option::as_deref).collect();
        let mut left = match portal.left {
            Some(left) => left,
            None => {
                if portal.text.trim().is_empty() {
                    out.extend(frame(b'I', &[]));
                    return Ok(());
                }
                let done = self.run(&portal.text, &arguments, false, false)?;
                for notice in &done.notices {
                    out.extend(problem(b'N', "WARNING", notice));
                }
                if done.copies_in {
                    out.extend(frame(b'G', &[0, 0, 0]));
                    self.copies = Some(true);
                    return Ok(());
                }
                let mut left = done.rows;
                left.push(complete(&done.tag));
                left
            }
        };
        let rows = left.len() - 1;
        let rest = match most {
            0 => Vec::new(),
            most if most < rows => left.split_off(most),
            _ => Vec::new(),
        };
        left.iter().for_each(|row| out.extend(row));
        let suspended = !rest.is_empty();
        if suspended {
            out.extend(frame(b's', &[]));
        }
        if let Some(portal) = self.portals.get_mut(&name) {
            portal.left = Some(match suspended {
                true => rest,
                false => vec![complete("SELECT 0")],
            });
        }
        Ok(())
    }

    fn describe(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
        let (name, _) = text(&body[1..]);
        self.enter()?;
        let query = match body[0] {
            b'S' => self
                .prepared
                .get(&name)
                .map(|prepared| prepared.text.clone()),
            _ => self.portals.get(&name).map(|portal| portal.text.clone()),
        };
        let Some(query) = query else {
            return Err(match (body[0], name.is_empty()) {
                (b'S', true) => Failure::new("26000", "unnamed prepared statement does not exist"),
                (b'S', false) => {
                    let message = format!("prepared statement \"{name}\" does not exist");
                    Failure::new("26000", message)
                }
                _ => Failure::new("34000", format!("portal \"{name}\" does not exist")),
            });
        };
        let columns = super::statements::columns(&query);
        if self.transaction.state == State::Failed && columns.is_some() {
            return Err(aborted());
        }
        if body[0] == b'S' {
            let count = (1..10)
                .filter(|number| query.contains(&format!("${number}")))
                .count();
            let count = u16::try_from(count).expect("few parameters");
            let oids = 25_u32.to_be_bytes().repeat(count.into());
            out.extend(frame(b't', &[&count.to_be_bytes()[..], &oids].concat()));
        }
        match columns {
            Some(columns) => out.extend(super::statements::description(&columns)),
            None => out.extend(frame(b'n', &[])),
        }
        Ok(())
    }

    fn close(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), Failure> {
        let (name, _) = text(&body[1..]);
        self.enter()?;
        match body[0] {
            b'S' => drop(self.prepared.remove(&name)),
            _ => drop(self.portals.remove(&name)),
        }
        out.extend(frame(b'3', &[]));
        Ok(())
    }

    /// A message of the extended protocol begins a transaction that its Sync ends.
    fn enter(&mut self) -> Result<(), Failure> {
        if self.transaction.state == State::Idle {
            self.begin(State::Implicit);
        }
        match &self.planned {
            Some((0, _)) => self.take_planned(),
            _ => Ok(()),
        }
    }

    fn copy(&mut self, tag: u8, body: &[u8], out: &mut Vec<u8>) {
        let Some(extended) = self.copies else {
            // The rest of a COPY that has failed.
            return;
        };
        let planned = match tag {
            b'd' => Ok(()),
            _ => self.take_planned(),
        };
        match tag {
            _ if planned.is_err() => {
                planned.unwrap_or_else(|failure| self.fail(&failure, out));
                self.skips = extended;
            }
            b'd' => {
                let line = String::from_utf8_lossy(body).into_owned();
                self.note_run(&line);
                return;
            }
            b'c' => {
                self.copies = None;
                out.extend(complete("COPY 1"));
            }
            _ => {
                let (why, _) = text(body);
                let message = format!("COPY from stdin failed: {why}");
                self.fail(&Failure::new("57014", message), out);
                self.skips = extended;
            }
        }
        if !extended {
            self.end_implicit();
            self.ready(out);
        }
    }

    // ---- transactions ----

    pub fn begin(&mut self, state: State) {
        self.transaction = Transaction {
            state,
            begun: Some(self.save()),
            savepoints: Vec::new(),
        };
    }

    pub fn save(&self) -> Saved {
        Saved {
            session: self.session.clone(),
            local: self.local.clone(),
            listens: self.listens.clone(),
            temporary: self.temporary.clone(),
        }
    }

    pub fn clear_local(&mut self) {
        self.changed |= !self.local.is_empty();
        self.local.clear();
    }

    pub fn restore(&mut self, saved: Saved) {
        self.changed = true;
        self.session = saved.session;
        self.local = saved.local;
        self.listens = saved.listens;
        self.temporary = saved.temporary;
    }

    pub fn commit(&mut self) {
        self.clear_local();
        self.transaction = Transaction::default();
        self.portals.clear();
    }

    pub fn roll_back(&mut self) {
        if let Some(begun) = self.transaction.begun.take() {
            self.restore(begun);
        }
        self.notifies.clear();
        self.commit();
    }

    fn end_implicit(&mut self) {
        if self.transaction.state == State::Implicit {
            self.commit();
        }
    }

    /// Notes for the checkers whose statement runs in whose context.
    pub fn note_run(&mut self, statement: &str) {
        let tenant = self.tenant();
        for mark in marks(statement) {
            self.ran.push((mark.to_owned(), tenant.clone()));
        }
    }

    /// What is run next but so many statements fails with this.
    pub fn plan(&mut self, after: usize, failure: Failure) {
        self.planned = Some((after, failure));
    }

    pub fn forget_plan(&mut self) {
        self.planned = None;
    }

    /// The error that is planned for what is run now, if there is one.
    pub fn take_planned(&mut self) -> Result<(), Failure> {
        match &mut self.planned {
            None => Ok(()),
            Some((0, _)) => self
                .planned
                .take()
                .map_or(Ok(()), |(_, failure)| Err(failure)),
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
        }
    }
}

pub fn aborted() -> Failure {
    Failure::new(
        "25P02",
        "current transaction is aborted, commands ignored until end of transaction block",
    )
}

fn status(name: &str, value: &str) -> Vec<u8> {
    frame(
        b'S',
        &[name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat(),
    )
}

pub fn complete(tag: &str) -> Vec<u8> {
    frame(b'C', &[tag.as_bytes(), b"\0"].concat())
}

/// A value with its length before it. None: NULL.
fn value(rest: &mut &[u8]) -> Option<String> {
    let (length, after) = rest.split_first_chunk::<4>().expect("a length");
    *rest = after;
    let length = usize::try_from(i32::from_be_bytes(*length)).ok()?;
    let (bytes, after) = rest.split_at(length);
    *rest = after;
    Some(String::from_utf8_lossy(bytes).into_owned())
}

impl Done {
    fn description(&self) -> Vec<u8> {
        self.columns
            .as_ref()
            .map_or_else(Vec::new, |columns| super::statements::description(columns))
    }
}

/// Frames of a stream of replies, for those who look at them.
pub fn frames(mut bytes: Vec<u8>) -> Vec<(u8, Vec<u8>)> {
    std::iter::from_fn(|| cut(&mut bytes)).collect()
}
