//! A change of tenant that goes ahead of the client's first bytes, in one write with them.
//!
//! ```text
//!   proxy   DISCARD ALL │ BEGIN │ SELECT set_config(…), … │ COMMIT │ client: Query, or Parse … Sync │ (waits)
//!           └──────────── extended messages, no Sync ─────────────┘
//!   server  an error in any of them: skips everything up to the next Sync
//! ```
//!
//! It fails closed by the protocol's own rule: what follows a failed extended message is not looked
//! at until a Sync comes, and no Sync is sent but the client's first, behind which nothing is sent
//! until the change is acknowledged. So no byte of a client is run without its context: either the
//! change was made before, or the client's message was skipped with it. COMMIT makes it independent
//! of what the client does next: it is not the client's transaction that holds it, and a ROLLBACK
//! does not take it back. A connection on which it failed is closed.
//!
//! It costs no exchange, and no write of the server: the answers come with those to the client.

use crate::backend::binding::{Binding, not_set, not_set_for};
use crate::backend::seal::Credential;
use crate::error::Error;
use crate::protocol::frame::{self, BackendTag, FrontendTag};
use crate::protocol::reply::ErrorFields;

/// query_canceled: the client itself had it cancelled, with its query.
const CANCELED: &str = "57014";

/// A change that was sent, or is about to be, and is not acknowledged.
pub struct Switch {
    /// What the connection carries afterwards.
    binding: Binding,
    /// Statements to be answered.
    left: usize,
    /// What the first of them is answered by next.
    next: Next,
    /// So many of them, the last, are of the client's own transaction.
    clients: usize,
}

/// The answers to Parse, Bind and Execute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    ParseComplete,
    BindComplete,
    Rows,
}

/// What became of it.
pub enum Progress {
    Pending,
    Done,
    /// Nothing of the client was run. The connection must be closed.
    Failed(Error),
}

/// Extended messages of the unnamed statement. DISCARD ALL drops all others.
pub struct Batch {
    pub request: Vec<u8>,
    statements: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            request: Vec::with_capacity(Self::USUAL),
            statements: 0,
        }
    }
}

impl Batch {
    /// Room for a change of a tenant with a few variables.
    const USUAL: usize = 512;

    pub fn statement(&mut self, sql: &str, arguments: &[&str]) {
        let request = &mut self.request;
        frame::put(request, FrontendTag::PARSE.0, |body| {
            body.push(0);
            body.extend_from_slice(sql.as_bytes());
            body.extend_from_slice(b"\0\0\0");
        });
        frame::put(request, FrontendTag::BIND.0, |body| {
            // Unnamed portal and statement, all in text; then the arguments; the result as text.
            body.extend_from_slice(b"\0\0\0\0");
            let count = u16::try_from(arguments.len()).unwrap_or(u16::MAX);
            body.extend_from_slice(&count.to_be_bytes());
            for argument in arguments {
                let length = u32::try_from(argument.len()).unwrap_or(u32::MAX);
                body.extend_from_slice(&length.to_be_bytes());
                body.extend_from_slice(argument.as_bytes());
            }
            body.extend_from_slice(&[0, 0]);
        });
        frame::put(request, FrontendTag::EXECUTE.0, |body| {
            body.extend_from_slice(b"\0\0\0\0\0");
        });
        self.statements += 1;
    }

    /// One statement for all, in this order, in a transaction of its own. The values are
    /// parameters: one text for all tenants, and none in `pg_stat_activity`.
    pub fn set(
        &mut self,
        credential: Option<&Credential>,
        seed: Option<&str>,
        variables: &[(&str, &str)],
    ) {
        let mut arguments = Vec::with_capacity(2 * variables.len() + 2);
        let mut numbers = itoa::Buffer::new();
        let mut next = |sql: &mut String, value| {
            arguments.push(value);
            sql.push('$');
            sql.push_str(numbers.format(arguments.len()));
        };
        let mut sql = String::with_capacity(Self::USUAL);
        // With nothing to set, it still is a statement.
        sql += "SELECT ";
        let mut before = "";
        if let Some(Credential { function, sealed }) = credential {
            // It returns its argument, which need not come back.
            sql += "pgtenant.";
            sql += function;
            sql += "(";
            next(&mut sql, sealed.as_str());
            sql += ") IS NOT NULL";
            before = ", ";
        }
        if let Some(seed) = seed {
            sql += std::mem::replace(&mut before, ", ");
            sql += "pg_catalog.setseed(";
            next(&mut sql, seed);
            sql += ")";
        }
        for &(name, value) in variables {
            sql += std::mem::replace(&mut before, ", ");
            sql += "pg_catalog.set_config(";
            next(&mut sql, name);
            sql += ", ";
            next(&mut sql, value);
            sql += ", false)";
        }
        // A session may be read-only by default, and then is bound to nobody.
        let begin = match credential {
            Some(_) => "BEGIN READ WRITE",
            None => "BEGIN",
        };
        self.statement(begin, &[]);
        self.statement(&sql, &arguments);
        self.statement("COMMIT", &[]);
    }
}

impl Switch {
    /// A change that is about to be sent as this batch.
    pub(super) fn of(binding: Binding, batch: &Batch) -> Self {
        Self {
            binding,
            left: batch.statements,
            next: Next::ParseComplete,
            clients: 0,
        }
    }

    /// Statements with which the client's transaction begins are sent behind it.
    pub(super) fn add_clients(&mut self, batch: &Batch) {
        self.left += batch.statements;
        self.clients = batch.statements;
    }

    pub fn binding(&self) -> &Binding {
        &self.binding
    }

    /// Takes an answer, which is to it and not to anything of the client's.
    pub fn take(&mut self, tag: BackendTag, body: &[u8]) -> Progress {
        match (tag, self.next) {
            (BackendTag::PARSE_COMPLETE, Next::ParseComplete) => self.next = Next::BindComplete,
            (BackendTag::BIND_COMPLETE, Next::BindComplete) => self.next = Next::Rows,
            (BackendTag::DATA_ROW, Next::Rows) => {}
            (BackendTag::COMMAND_COMPLETE, Next::Rows) => {
                self.next = Next::ParseComplete;
                self.left = self.left.saturating_sub(1);
                if self.left == 0 {
                    return Progress::Done;
                }
            }
            (BackendTag::ERROR_RESPONSE, _) => {
                let fields = ErrorFields::read(body);
                return Progress::Failed(match self.left <= self.clients {
                    true => {
                        let kind = crate::error::Kind::InvalidParameterValue;
                        fields.clone().into_error(kind)
                    }
                    false => failed(&fields),
                });
            }
            // What the last client listened to.
            (
                BackendTag::PARAMETER_STATUS
                | BackendTag::NOTICE_RESPONSE
                | BackendTag::NOTIFICATION_RESPONSE,
                _,
            ) => {}
            _ => return Progress::Failed(not_set("the server says what it was not asked")),
        }
        Progress::Pending
    }
}

/// The error of what was canceled. `body`: of an ErrorResponse.
pub fn canceled(body: &[u8]) -> Option<Error> {
    let fields = ErrorFields::read(body);
    (fields.sqlstate == CANCELED).then(|| failed(&fields))
}

fn failed(fields: &ErrorFields) -> Error {
    match fields.sqlstate.as_str() {
        CANCELED => fields.clone().into_error(crate::error::Kind::QueryCanceled),
        _ => not_set_for(fields),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::protocol::frame::{HEADER, Header, frame};

    #[test]
    fn a_batch_has_no_sync_and_no_value_in_its_text() {
        let mut batch = Batch::default();
        let credential = Credential {
            function: "bind_0".to_owned(),
            sealed: "a'b".to_owned(),
        };
        batch.set(
            Some(&credential),
            Some("0.5"),
            &[("app.tenant", "a'b"), ("x", "y")],
        );
        let mut tags = String::new();
        let mut rest = &batch.request[..];
        while let Some(header) = Header::read(rest) {
            let size = header.size(1 << 20).unwrap();
            tags.push(header.tag as char);
            if header.tag == b'P' {
                let text = String::from_utf8_lossy(&rest[HEADER..size]);
                assert!(!text.contains("a'b"), "{text}");
            }
            rest = &rest[size..];
        }
        assert_eq!((tags.as_str(), rest.len()), ("PBEPBEPBE", 0));
        assert_eq!(batch.statements, 3);
    }

    #[test]
    fn a_change_is_acknowledged_by_its_own_answers_in_their_order() {
        let text = "servers: { s: { host: localhost, max_connections: 10 } }
placements: { p: { tier: pool, server: s, database: d, login: { user: u }, context: { a.t: \"{tenant}\" } } }
tenants: { a: { placement: p, users: { app: { password: a } } } }";
        let config = crate::config::load_text(text, std::path::Path::new("."), &|_| None).unwrap();
        let tenant = config.tenants.values().next().unwrap();
        let switch = || Switch {
            binding: Binding {
                tenant: tenant.id.clone(),
                route: tenant.route.clone(),
                settings: Arc::default(),
                stale: false,
            },
            left: 3,
            next: Next::ParseComplete,
            clients: 0,
        };
        let good = "12C12DC12C";
        let play = |tags: &str| {
            let mut switch = switch();
            let progress = tags
                .bytes()
                .map(|tag| match switch.take(BackendTag(tag), b"") {
                    Progress::Pending => '.',
                    Progress::Done => '!',
                    Progress::Failed(_) => 'x',
                });
            progress.collect::<String>()
        };
        assert_eq!(play(good), ".........!");
        assert_eq!(play("S1N2ACA12DC12NC"), "..............!");
        for at in 0..good.len() {
            for stray in "12CZTIsVGHWn3tKR~EdD".chars() {
                let mut tags = good.to_owned();
                tags.insert(at, stray);
                let seen = play(&tags);
                // A row more is a row of the answer.
                let is_row = stray == 'D' && matches!(at, 2 | 5 | 6 | 9);
                assert_eq!(seen.contains('x'), !is_row, "{tags}: {seen}");
            }
        }
    }

    #[test]
    fn what_sets_nothing_is_a_statement_too() {
        let mut batch = Batch::default();
        batch.set(None, None, &[]);
        let parse = frame(FrontendTag::PARSE.0, &[b"\0SELECT \0\0\0"]);
        assert!(memchr::memmem::find(&batch.request, &parse).is_some());
    }
}
