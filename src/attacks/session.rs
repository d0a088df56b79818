//! A client of bytes: what it sends is what it is told, and what it hears is kept as it came.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::connect;
use crate::backend::connection::ServerConnection;
use crate::backend::dns::{Names, Resolver};
use crate::config::{
    Login, PoolKey, Rates, RequireAuth, Secret, Server, ServerAddress, ServerTls, SslMode,
    TcpKeepalives,
};
use crate::error::Error;
use crate::id::ServerName;
use crate::protocol::frame::{BackendTag, FrontendTag, HEADER, Header, frame};
use crate::protocol::reply::ErrorFields;
use crate::timer;

/// How long an answer, or a login, may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Nobody waits for another for long, nor keeps others waiting.
const BOUNDS: [(&str, &str); 3] = [
    ("lock_timeout", "700"),
    ("statement_timeout", "5000"),
    ("idle_in_transaction_session_timeout", "15000"),
];

/// Where a tenant comes in, and as whom.
#[derive(Debug, Clone)]
pub struct Way {
    pub server: Arc<Server>,
    pub key: PoolKey,
}

impl Way {
    /// Through a proxy's main port, without TLS.
    pub fn through(proxy: SocketAddr, user: String, password: Secret, database: String) -> Self {
        let name = ServerName::new("proxy").unwrap_or_else(|_| unreachable!("it is a name"));
        let server = Server {
            name: name.clone(),
            address: ServerAddress::Tcp {
                host: proxy.ip().to_string(),
                port: proxy.port(),
            },
            tcp_keepalives: TcpKeepalives::default(),
            tls: ServerTls {
                mode: SslMode::Disable,
                root_cert_pem: None,
            },
            require_auth: RequireAuth::default(),
            max_connections: 0,
            max_clients: None,
            max_waiting: None,
            rates: Rates::default(),
            fail_fast: false,
            admin: None,
            admin_database: String::new(),
            seal: None,
        };
        let login = Login {
            user,
            password: Some(password),
        };
        let key = PoolKey {
            server: name,
            database,
            login: Arc::new(login),
            startup: Vec::new(),
            has_own: false,
            application: None,
        };
        Self {
            server: Arc::new(server),
            key,
        }
    }

    /// The same with other startup parameters; `user` and `database` are those of the login.
    fn with(&self, parameters: &[(String, String)]) -> PoolKey {
        let mut key = self.key.clone();
        let bounds = BOUNDS.map(|(name, value)| (name.to_owned(), value.to_owned()));
        key.startup.extend(bounds);
        for (name, value) in parameters {
            match &**name {
                "user" => {
                    key.login = Arc::new(Login {
                        user: value.clone(),
                        ..(*key.login).clone()
                    });
                }
                "database" => key.database.clone_from(value),
                _ => key.startup.push((name.clone(), value.clone())),
            }
        }
        key
    }
}

/// What came back.
#[derive(Debug, Default)]
pub struct Heard {
    /// All bytes of all messages.
    pub said: Vec<u8>,
    /// SQLSTATEs of the errors.
    pub codes: Vec<String>,
    /// The connection ended.
    pub ended: bool,
}

impl Heard {
    pub fn holds(&self, needle: &str) -> bool {
        let needle = needle.as_bytes();
        self.said
            .windows(needle.len())
            .any(|window| window == needle)
    }
}

pub struct Session(ServerConnection);

impl Session {
    /// Logs in.
    ///
    /// # Errors
    /// The refusal.
    pub async fn open(way: &Way, parameters: &[(String, String)]) -> Result<Self, Error> {
        let key = way.with(parameters);
        let names = Names::new(Resolver::default());
        let connection = connect::connect(&way.server, &names, &key, PATIENCE).await?;
        Ok(Self(connection))
    }

    /// Sends messages and reads up to as many ReadyForQuery, or the end.
    ///
    /// # Errors
    /// No answer came in time.
    pub async fn ask(&mut self, messages: &[u8], readies: usize) -> Result<Heard, String> {
        self.send(messages).await;
        self.listen(readies).await
    }

    /// An end is heard by [`listen`](Self::listen).
    pub async fn send(&mut self, messages: &[u8]) {
        let _ = self.0.send(messages).await;
    }

    /// # Errors
    /// No answer came in time.
    pub async fn listen(&mut self, mut readies: usize) -> Result<Heard, String> {
        let mut heard = Heard::default();
        while readies > 0 {
            let frame = timer::timeout(PATIENCE, self.0.receive())
                .await
                .map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))?;
            let Ok(frame) = frame else {
                heard.ended = true;
                return Ok(heard);
            };
            match frame.tag {
                BackendTag::READY_FOR_QUERY => readies -= 1,
                BackendTag::ERROR_RESPONSE => {
                    heard.codes.push(ErrorFields::read(&frame.body).sqlstate);
                }
                _ => {}
            }
            heard.said.extend_from_slice(&frame.body);
            heard.said.push(0);
        }
        Ok(heard)
    }
}

pub fn query(sql: &[u8]) -> Vec<u8> {
    frame(FrontendTag::QUERY.0, &[sql, b"\0"])
}

pub fn parse(name: &str, sql: &[u8]) -> Vec<u8> {
    let tag = FrontendTag::PARSE.0;
    frame(tag, &[name.as_bytes(), b"\0", sql, b"\0\0\0"])
}

/// Of a statement to the unnamed portal, with parameters and results in text.
pub fn bind(statement: &str, parameters: &[Vec<u8>]) -> Vec<u8> {
    let values = arguments(parameters);
    let tag = FrontendTag::BIND.0;
    frame(
        tag,
        &[b"\0", statement.as_bytes(), b"\0\0\0", &values, b"\0\0"],
    )
}

pub fn execute() -> Vec<u8> {
    frame(FrontendTag::EXECUTE.0, &[b"\0\0\0\0\0"])
}

pub fn sync() -> Vec<u8> {
    frame(FrontendTag::SYNC.0, &[])
}

/// Parse, Bind and Execute of the unnamed statement.
pub fn step(sql: &[u8], parameters: &[Vec<u8>]) -> Vec<u8> {
    [parse("", sql), bind("", parameters), execute()].concat()
}

pub fn function_call(oid: u32, parameters: &[Vec<u8>]) -> Vec<u8> {
    let tag = FrontendTag::FUNCTION_CALL.0;
    let values = arguments(parameters);
    frame(tag, &[&oid.to_be_bytes(), b"\0\0", &values, b"\0\0"])
}

pub fn copy_in(sql: &[u8], data: &[u8]) -> Vec<u8> {
    let data = frame(FrontendTag::COPY_DATA.0, &[data]);
    let done = frame(FrontendTag::COPY_DONE.0, &[]);
    [query(sql), data, done].concat()
}

/// The SQL of messages, for people.
pub fn shown(mut messages: &[u8]) -> String {
    let mut texts = Vec::new();
    while let Some(header) = Header::read(messages) {
        let size = header.size(usize::MAX).unwrap_or(messages.len());
        let (message, rest) = messages.split_at(size.min(messages.len()));
        let body = message.get(HEADER..).unwrap_or_default();
        let mut strings = body.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        match FrontendTag(header.tag) {
            FrontendTag::QUERY => texts.extend(strings.next()),
            // Its name comes first.
            FrontendTag::PARSE => texts.extend(strings.nth(1)),
            FrontendTag::FUNCTION_CALL => texts.push("a FunctionCall".into()),
            FrontendTag::BIND => texts.push("Bind".into()),
            _ => {}
        }
        messages = rest;
    }
    let text = texts.join("; ");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn arguments(parameters: &[Vec<u8>]) -> Vec<u8> {
    let number = u16::try_from(parameters.len()).unwrap_or(u16::MAX);
    let mut bytes = number.to_be_bytes().to_vec();
    for value in parameters {
        let length = i32::try_from(value.len()).unwrap_or(i32::MAX);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(value);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_shown_as_their_sql() {
        let messages = [
            parse("s", b"SELECT\n 1"),
            bind("s", &[]),
            sync(),
            query(b"SELECT 2"),
        ];
        assert_eq!(shown(&messages.concat()), "SELECT 1; Bind; SELECT 2");
        assert_eq!(shown(b"Q"), "");
    }
}
