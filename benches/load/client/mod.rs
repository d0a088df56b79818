//! The bench's own client, for what pgbench does not do: each connection another tenant's,
//! thousands of them, a login for each query, COPY, and the time of each transaction. The same code
//! for every target.

mod scram;

use std::os::fd::AsFd;
use std::sync::Arc;

use pgtenant::cluster::{Error, Result};
use pgtenant::net::stream::Stream;
use pgtenant::protocol::frame::{BackendTag, FrontendTag, HEADER, Header, frame};
use pgtenant::protocol::reply::{ErrorFields, TERMINATE};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub use self::scram::Keys;
const SSL_REQUEST: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];
/// Bytes that are read at once, unless there is to be more room.
const INBOX: usize = 4096;
const PROTOCOL_3_0: u32 = 196_608;

/// AuthenticationOk, -SASL, -SASLContinue and -SASLFinal.
const AUTHENTICATED: u32 = 0;
const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;

/// How to reach a target.
#[derive(Clone)]
pub struct Door {
    pub port: u16,
    pub database: &'static str,
    pub keys: Arc<Keys>,
    /// None: without TLS.
    pub tls: Option<TlsConnector>,
}

/// A connection that has logged in.
pub struct Client {
    stream: Stream,
    inbox: Vec<u8>,
}

fn lost(error: impl std::fmt::Display) -> Error {
    Error::new(format!("a client lost its connection: {error}"))
}

/// What the server says in an ErrorResponse.
fn refused(body: &[u8]) -> Error {
    let fields = ErrorFields::read(body);
    Error::new(format!("{} {}", fields.sqlstate, fields.message))
}

/// A Query.
pub fn query(sql: &str) -> Vec<u8> {
    frame(FrontendTag::QUERY.0, &[sql.as_bytes(), b"\0"])
}

/// Parse, Bind and Execute of unnamed things, without arguments.
pub fn unsynced(sql: &str) -> Vec<u8> {
    [
        frame(FrontendTag::PARSE.0, &[b"\0", sql.as_bytes(), b"\0\0\0"]),
        frame(FrontendTag::BIND.0, &[&[0; 8]]),
        frame(FrontendTag::EXECUTE.0, &[&[0; 5]]),
    ]
    .concat()
}

/// Parse, Bind, Describe, Execute and Sync of unnamed things, with one argument as text: what
/// pgbench and libpq's PQexecParams send.
pub fn extended(sql: &str, argument: &str) -> Vec<u8> {
    let length = u32::try_from(argument.len()).unwrap_or(u32::MAX);
    let bind: [&[u8]; 4] = [
        b"\0\0\0\0\0\x01",
        &length.to_be_bytes(),
        argument.as_bytes(),
        b"\0\0",
    ];
    [
        frame(FrontendTag::PARSE.0, &[b"\0", sql.as_bytes(), b"\0\0\0"]),
        frame(FrontendTag::BIND.0, &bind),
        frame(FrontendTag::DESCRIBE.0, &[b"P\0"]),
        frame(FrontendTag::EXECUTE.0, &[b"\0\0\0\0\0"]),
        pgtenant::protocol::reply::SYNC.to_vec(),
    ]
    .concat()
}

impl Door {
    /// Connects and logs in with SCRAM.
    ///
    /// # Errors
    /// It is refused.
    pub async fn log_in(&self, user: &str) -> Result<Client> {
        let mut client = Client {
            stream: self.stream().await?,
            inbox: Vec::with_capacity(INBOX),
        };
        // As drivers on libpq do, with a name.
        let database = self.database;
        let parameters = format!("user\0{user}\0database\0{database}\0application_name\0bench\0\0");
        let length = u32::try_from(parameters.len() + 8).unwrap_or(u32::MAX);
        let startup = [
            &length.to_be_bytes()[..],
            &PROTOCOL_3_0.to_be_bytes(),
            parameters.as_bytes(),
        ];
        client.send(&startup.concat()).await?;
        client.authenticate(&self.keys).await?;
        client.answer(|_| Ok(())).await?;
        Ok(client)
    }

    async fn stream(&self) -> Result<Stream> {
        let mut tcp = TcpStream::connect(("127.0.0.1", self.port))
            .await
            .map_err(lost)?;
        tcp.set_nodelay(true).map_err(lost)?;
        let Some(connector) = &self.tls else {
            return Ok(Stream::Plain(tcp.into()));
        };
        tcp.write_all(SSL_REQUEST).await.map_err(lost)?;
        match tcp.read_u8().await.map_err(lost)? {
            b'S' => {}
            _ => return Err(lost("TLS is not offered")),
        }
        let name = ServerName::try_from("localhost").map_err(lost)?;
        let tls = connector.connect(name, tcp.into()).await.map_err(lost)?;
        Ok(Stream::tls(tls))
    }
}

impl Client {
    async fn authenticate(&mut self, keys: &Keys) -> Result<()> {
        let mut scram = scram::Exchange::new();
        loop {
            let (tag, body) = self.message().await?;
            if tag != BackendTag::AUTHENTICATION {
                return Err(refused(&body));
            }
            let (code, data) = body
                .split_first_chunk::<4>()
                .ok_or_else(|| refused(&body))?;
            let answer = match u32::from_be_bytes(*code) {
                SASL => {
                    let first = scram.first();
                    let length = u32::try_from(first.len()).unwrap_or(u32::MAX).to_be_bytes();
                    [b"SCRAM-SHA-256\0", &length[..], first.as_bytes()].concat()
                }
                SASL_CONTINUE => scram.last(data, keys)?.into_bytes(),
                SASL_FINAL => {
                    scram.check(data)?;
                    continue;
                }
                AUTHENTICATED => return Ok(()),
                _ => return Err(refused(&body)),
            };
            self.send(&frame(FrontendTag::PASSWORD.0, &[&answer]))
                .await?;
        }
    }

    /// Makes room to read so many bytes at once; else it grows to what the longest message needs.
    pub fn make_room(&mut self, bytes: usize) {
        self.inbox.reserve(bytes);
    }

    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await.map_err(lost)?;
        self.stream.flush().await.map_err(lost)
    }

    /// The next message whole.
    async fn message(&mut self) -> Result<(BackendTag, Vec<u8>)> {
        loop {
            if let Some((tag, size)) = self.whole(0)? {
                let body = self.inbox[HEADER..size].to_vec();
                self.inbox.drain(..size);
                return Ok((tag, body));
            }
            self.fill().await?;
        }
    }

    /// Tag and size of the message at `at`, if all of it is here.
    fn whole(&self, at: usize) -> Result<Option<(BackendTag, usize)>> {
        let Some(header) = Header::read(&self.inbox[at..]) else {
            return Ok(None);
        };
        let size = header
            .backend_size()
            .ok_or_else(|| lost("a message of impossible length"))?;
        Ok((self.inbox.len() - at >= size).then_some((BackendTag(header.tag), size)))
    }

    async fn fill(&mut self) -> Result<()> {
        match self.stream.read_buf(&mut self.inbox).await {
            Ok(0) => Err(lost("it was closed")),
            Ok(_) => Ok(()),
            Err(error) => Err(lost(error)),
        }
    }

    /// Reads up to ReadyForQuery, or to the CopyInResponse of a COPY … FROM STDIN; `look` is given
    /// each DataRow. What was looked at is not kept. Returns the bytes of all messages.
    ///
    /// # Errors
    /// An ErrorResponse, with its words.
    pub async fn answer(&mut self, mut look: impl FnMut(&[u8]) -> Result<()>) -> Result<usize> {
        let (mut at, mut total) = (0, 0);
        loop {
            let Some((tag, size)) = self.whole(at)? else {
                self.inbox.drain(..at);
                at = 0;
                self.fill().await?;
                continue;
            };
            let body = &self.inbox[at + HEADER..at + size];
            at += size;
            total += size;
            match tag {
                BackendTag::DATA_ROW => look(body)?,
                BackendTag::ERROR_RESPONSE => return Err(refused(body)),
                BackendTag::READY_FOR_QUERY | BackendTag::COPY_IN_RESPONSE => {
                    self.inbox.drain(..at);
                    return Ok(total);
                }
                _ => {}
            }
        }
    }

    /// One message, or several with one ReadyForQuery for all, and the answers. Returns the bytes
    /// of these.
    ///
    /// # Errors
    /// An ErrorResponse, with its words.
    pub async fn exchange(&mut self, messages: &[u8]) -> Result<usize> {
        self.send(messages).await?;
        self.answer(|_| Ok(())).await
    }

    /// The socket alone, non-blocking, for who does without a runtime.
    ///
    /// # Errors
    /// It speaks TLS, or the operating system's.
    pub fn into_socket(self) -> Result<std::net::TcpStream> {
        match self.stream {
            Stream::Plain(socket) => {
                let duplicate = socket.as_fd().try_clone_to_owned();
                duplicate.map(Into::into).map_err(lost)
            }
            Stream::Tls(_) => Err(lost("it is no plain socket")),
        }
    }

    /// The first column of the first row, as text; empty if it is NULL.
    ///
    /// # Errors
    /// An ErrorResponse, with its words.
    pub async fn value(&mut self, sql: &str) -> Result<String> {
        self.send(&query(sql)).await?;
        let mut value = None;
        self.answer(|row| {
            // A DataRow: number of columns, then the length of the first one and its bytes.
            let text = row.get(6..).unwrap_or_default();
            value.get_or_insert_with(|| String::from_utf8_lossy(text).into_owned());
            Ok(())
        })
        .await?;
        Ok(value.unwrap_or_default())
    }

    /// As libpq: Terminate, and the socket is closed.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn close(mut self) -> Result<()> {
        self.send(TERMINATE).await
    }
}
