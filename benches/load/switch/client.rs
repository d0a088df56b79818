//! The clients of the tenant-switch workload: pgbench logs all of its connections in as one user, and here each is
//! another tenant's. All on one thread and runtime, the same for every target.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use pgtenant::cluster::{Error, Result};
use pgtenant::protocol::frame::{BackendTag, FrontendTag, HEADER, Header};
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use rand::Rng as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{KEYS, ROWS};
use crate::targets::DATABASE;

/// AuthenticationSASL, -Continue, -Final and -Ok.
const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;
const AUTHENTICATED: u32 = 0;

/// What the clients have done so far.
#[derive(Debug, Default)]
pub struct Tally {
    pub transactions: AtomicU64,
    /// From the first message of a transaction to the end of the last answer, ns, summed up.
    pub latency: AtomicU64,
    /// Time is over.
    pub enough: AtomicBool,
}

/// How a client makes a transaction of one SELECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Talk {
    /// The SELECT alone: the proxy sets the tenant.
    Plain,
    /// BEGIN, set_config, SELECT, COMMIT, each sent when the one before is answered: what applications do.
    SetConfig,
    /// The SELECT with its tenant spelled out: what is left when nobody has to set anything.
    Spelled,
}

/// A connection of one tenant.
pub struct Client {
    stream: TcpStream,
    inbox: Vec<u8>,
    tenant: String,
    talk: Talk,
}

fn lost(error: impl std::fmt::Display) -> Error {
    Error::new(format!("a client lost its connection: {error}"))
}

fn frame(tag: FrontendTag, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [&[tag.0][..], &length.to_be_bytes(), &body].concat()
}

impl Client {
    /// Logs in with SCRAM.
    ///
    /// # Errors
    /// It is refused.
    pub async fn log_in(
        port: u16,
        user: &str,
        password: &str,
        tenant: String,
        talk: Talk,
    ) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))
            .await
            .map_err(lost)?;
        stream.set_nodelay(true).map_err(lost)?;
        let mut client = Self {
            stream,
            inbox: Vec::new(),
            tenant,
            talk,
        };
        // As drivers on libpq do, with a name.
        let parameters = format!("user\0{user}\0database\0{DATABASE}\0application_name\0bench\0\0");
        let length = u32::try_from(parameters.len() + 8).unwrap_or(u32::MAX);
        let version = 196_608_u32;
        let startup = [
            &length.to_be_bytes()[..],
            &version.to_be_bytes(),
            parameters.as_bytes(),
        ];
        client.send(&startup.concat()).await?;
        client.authenticate(password).await?;
        client.answer(|_| Ok(())).await?;
        Ok(client)
    }

    async fn authenticate(&mut self, password: &str) -> Result<()> {
        let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
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
                    let first = scram.message();
                    let length = u32::try_from(first.len()).unwrap_or(u32::MAX).to_be_bytes();
                    [b"SCRAM-SHA-256\0", &length[..], first].concat()
                }
                SASL_CONTINUE => {
                    scram.update(data).map_err(lost)?;
                    scram.message().to_vec()
                }
                SASL_FINAL => {
                    scram.finish(data).map_err(lost)?;
                    continue;
                }
                AUTHENTICATED => return Ok(()),
                _ => return Err(refused(&body)),
            };
            self.send(&frame(FrontendTag::PASSWORD, &[&answer])).await?;
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await.map_err(lost)
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

    /// Reads up to ReadyForQuery; `look` is given each DataRow.
    async fn answer(&mut self, mut look: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut at = 0;
        loop {
            let Some((tag, size)) = self.whole(at)? else {
                self.fill().await?;
                continue;
            };
            let body = &self.inbox[at + HEADER..at + size];
            at += size;
            match tag {
                BackendTag::DATA_ROW => look(body)?,
                BackendTag::ERROR_RESPONSE => return Err(refused(body)),
                BackendTag::READY_FOR_QUERY => {
                    self.inbox.drain(..at);
                    return Ok(());
                }
                _ => {}
            }
        }
    }

    async fn say(&mut self, sql: &str) -> Result<()> {
        self.send(&frame(FrontendTag::QUERY, &[sql.as_bytes(), b"\0"]))
            .await?;
        self.answer(|_| Ok(())).await
    }

    /// The rows of one key, all of which must be this tenant's.
    async fn select(&mut self) -> Result<()> {
        let key = rand::rng().random_range(0..KEYS);
        let spelled = match self.talk {
            Talk::Spelled => format!("tenant_id = '{}' AND ", self.tenant),
            _ => String::new(),
        };
        let sql = format!("SELECT tenant_id, body FROM orders WHERE {spelled}key = {key}\0");
        self.send(&frame(FrontendTag::QUERY, &[sql.as_bytes()]))
            .await?;
        let mut rows = 0;
        // A DataRow: number of columns, then the length of the first one and its bytes.
        let start = u32::try_from(self.tenant.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes();
        let start = [&[0, 2], &start[..], self.tenant.as_bytes()].concat();
        self.answer(|row| {
            rows += 1;
            match row.starts_with(&start) {
                true => Ok(()),
                false => Err(Error::new("a row of another tenant came")),
            }
        })
        .await?;
        match rows == ROWS {
            true => Ok(()),
            false => Err(Error::new(format!("{rows} rows came, not {ROWS}"))),
        }
    }

    async fn transaction(&mut self) -> Result<()> {
        if self.talk != Talk::SetConfig {
            return self.select().await;
        }
        self.say("BEGIN").await?;
        let set = format!(
            "SELECT set_config('app.tenant_id', '{}', true)",
            self.tenant
        );
        self.say(&set).await?;
        self.select().await?;
        self.say("COMMIT").await
    }

    /// One transaction after the other, until there were enough.
    ///
    /// # Errors
    /// A transaction fails, or shows other rows than the tenant's.
    pub async fn work(mut self, tally: Arc<Tally>) -> Result<()> {
        while !tally.enough.load(Relaxed) {
            let began = Instant::now();
            self.transaction().await?;
            let latency = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            tally.latency.fetch_add(latency, Relaxed);
            tally.transactions.fetch_add(1, Relaxed);
        }
        self.send(&frame(FrontendTag::TERMINATE, &[])).await
    }
}

/// What the server says in an ErrorResponse.
fn refused(body: &[u8]) -> Error {
    let fields = pgtenant::protocol::reply::ErrorFields::read(body);
    Error::new(format!("{} {}", fields.sqlstate, fields.message))
}
