//! One connection to a server, with what the proxy knows of its state.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::ops::{Deref, RangeInclusive};
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::{Duration, Instant};

use crate::backend::binding::Context;
use crate::backend::cancel::{self, Fence};
use crate::backend::prepared::Parsed;
use crate::backend::seal::Sealed;
use crate::backend::switch::Switch;
use crate::config::Server;
use crate::error::{Error, Kind, Result};
use crate::id::TenantId;
use crate::net::stream::Stream;
use crate::protocol::buffer::Buffer;
use crate::protocol::frame::{BackendTag, HEADER, Header, split_pair};
use crate::protocol::reply;
use crate::protocol::startup::{CancelKey, Secret};
use crate::timer;
use crate::workers::WorkerId;

/// Run-time parameters as a server reports them (ParameterStatus), by the name it gives them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parameters {
    values: BTreeMap<String, String>,
    /// Bytes of all names and values.
    size: usize,
    backslashes: bool,
}

/// Most parameters that a server may report. PostgreSQL 18 reports 15 (GUC_REPORT in guc_tables.c);
/// extensions may add their own, and other servers have more.
const MAX_PARAMETERS: usize = 256;

/// Most bytes of their names and values: as many as the longest message that is
/// [collected](MAX_COLLECTED), since a client can set one of them (`search_path`, reported since
/// PostgreSQL 18) to a value of any length.
const MAX_PARAMETERS_SIZE: usize = MAX_COLLECTED;

/// The server reports more than is kept.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the server reports more than {MAX_PARAMETERS} parameters, or {MAX_PARAMETERS_SIZE} bytes of them"
)]
pub struct TooMuchReported;

impl Parameters {
    /// # Errors
    /// There would be too many of them; nothing is changed.
    pub fn insert(&mut self, name: &str, value: &str) -> Result<(), TooMuchReported> {
        let (size, number) = match self.values.get(name) {
            Some(before) => (self.size - before.len() + value.len(), self.values.len()),
            None => (self.size + name.len() + value.len(), self.values.len() + 1),
        };
        if number > MAX_PARAMETERS || size > MAX_PARAMETERS_SIZE {
            return Err(TooMuchReported);
        }
        self.size = size;
        if name == "standard_conforming_strings" {
            self.backslashes = value == "off";
        }
        self.values.insert(name.to_owned(), value.to_owned());
        Ok(())
    }

    /// Whether plain strings have backslash escapes.
    pub fn backslashes(&self) -> bool {
        self.backslashes
    }
}

impl Deref for Parameters {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &BTreeMap<String, String> {
        &self.values
    }
}

/// Longest frame that is collected in memory outside of a relay, in bytes. Nothing the proxy asks
/// for itself has answers near this size.
const MAX_COLLECTED: usize = 1 << 20;

/// Most bytes that a server may say during a login. PostgreSQL 18 says about 700: what it asks for,
/// 15 parameters and a key of at most 260 bytes. It is room for all
/// [parameters](MAX_PARAMETERS_SIZE) that are kept, and as much for notices of login triggers.
pub const MAX_LOGIN: usize = 2 * MAX_COLLECTED;

/// Most bytes of the answers to one question of the proxy's own. The longest are the sources of
/// functions.
pub const MAX_ANSWER: usize = 16 * MAX_COLLECTED;

/// An idle connection whose server has said more than this in bytes, of things that PostgreSQL may
/// say at any time, is closed.
const MAX_SAID_IDLE: usize = 64 * 1024;

/// How long a server may take to close its side after Terminate.
const CLOSE_DEADLINE: Duration = Duration::from_secs(5);

/// A whole message from a server.
pub struct Frame {
    pub tag: BackendTag,
    pub body: Vec<u8>,
}

pub struct ServerConnection {
    pub stream: Stream,
    /// Where that is registered.
    pub worker: WorkerId,
    /// Bytes from the server, to the server.
    pub inbox: Buffer,
    pub outbox: Buffer,
    /// Bytes that were [received](Self::receive) since something was last [sent](Self::send).
    received: usize,
    /// Whose context it carries.
    pub context: Context,
    /// The tenant that had it last, whatever it carries now.
    pub had_by: Option<TenantId>,
    /// The next change of context sets the state of `random()` anew.
    pub reseed: bool,
    /// A change of it that goes ahead of the client's bytes and is not acknowledged.
    pub switch: Option<Switch>,
    /// What that context is sealed with, where it is.
    pub sealed: Sealed,
    pub parameters: Arc<Parameters>,
    /// Named statements it has parsed for clients in transaction pooling.
    pub parsed: Parsed,
    /// The client that last may have advanced a sequence here: `lastval()` is that one's.
    pub sequences_of: Option<u64>,
    fence: Arc<Fence>,
    server: Arc<Server>,
    /// The address that it was made to, if the server's host is a name.
    pub peer: Option<IpAddr>,
    pub born: Instant,
    /// Its part of the lifetime that the config gives, in thousandths.
    lives: u32,
    pub idle_since: Instant,
    /// Leases in a row to the tenant it is bound to, while others waited.
    pub turn: u32,
    /// When the first of these came back.
    pub turn_began: Instant,
    pub kept: Kept,
}

/// How much of the lifetime of the config a connection lives, in thousandths: those that were made
/// together, after a restart or under a load, do not all end together.
const LIVES: RangeInclusive<u32> = 800..=1000;

/// For whom an idle connection is kept for a moment while others wait, and until when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kept {
    #[default]
    No,
    /// For the tenant that it carries the context of.
    ForTenant(Instant),
    /// For whatever client of its pool.
    ForPool(Instant),
}

impl ServerConnection {
    /// A connection that has not logged in.
    pub fn new(stream: Stream, server: Arc<Server>, peer: Option<IpAddr>) -> Self {
        let key = CancelKey {
            pid: 0,
            secret: Secret::default(),
        };
        let now = Instant::now();
        let fence = Arc::new(Fence::new(server.clone(), peer, key, stream.is_tls()));
        Self {
            stream,
            worker: WorkerId::default(),
            inbox: Buffer::new(),
            outbox: Buffer::new(),
            received: 0,
            context: Context::Clean,
            had_by: None,
            reseed: false,
            switch: None,
            sealed: Sealed::default(),
            parameters: Arc::default(),
            parsed: Parsed::default(),
            sequences_of: None,
            fence,
            server,
            peer,
            born: now,
            lives: rand::random_range(LIVES),
            idle_since: now,
            turn: 0,
            turn_began: now,
            kept: Kept::No,
        }
    }

    pub fn set_key(&mut self, key: CancelKey) {
        let tls = self.stream.is_tls();
        self.fence = Arc::new(Fence::new(self.server.clone(), self.peer, key, tls));
    }

    /// Whether it is to be replaced, where connections live so long.
    pub fn has_outlived(&self, lifetime: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.born) > lifetime * self.lives / *LIVES.end()
    }

    pub fn fence(&self) -> &Arc<Fence> {
        &self.fence
    }

    pub fn server(&self) -> &Arc<Server> {
        &self.server
    }

    /// Takes over a ParameterStatus body; a malformed one says nothing.
    ///
    /// # Errors
    /// 08006: the server reports more than is kept.
    pub fn note_parameter(&mut self, body: &[u8]) -> Result<()> {
        if let Some((name, value)) = split_pair(body)
            && self.parameters.get(name).is_none_or(|known| known != value)
        {
            let noted = Arc::make_mut(&mut self.parameters).insert(name, value);
            noted.map_err(|error| self.lost(error))?;
        }
        Ok(())
    }

    /// Takes note that all of the session is discarded (DISCARD ALL).
    pub fn note_discard(&mut self) {
        self.parsed.clear();
        self.sequences_of = None;
        self.sealed.discard();
    }

    /// Sends all of `bytes`.
    ///
    /// Not cancel safe.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.received = 0;
        self.outbox.extend(bytes);
        let Self { outbox, stream, .. } = self;
        poll_fn(|cx| outbox.poll_drain(cx, stream))
            .await
            .map_err(|e| self.lost(e).passing())
    }

    /// The next whole message, of the answers to what was [sent](Self::send) last.
    ///
    /// Cancel safe: a part of a message stays in the inbox.
    ///
    /// # Errors
    /// 08006: the connection is lost, or the server says more than [`MAX_ANSWER`].
    pub async fn receive(&mut self) -> Result<Frame> {
        loop {
            if let Some(frame) = self.cut()? {
                self.received += HEADER + frame.body.len();
                if self.received > MAX_ANSWER {
                    return Err(self.lost("the server answers more than was asked for"));
                }
                return Ok(frame);
            }
            let Self { inbox, stream, .. } = self;
            match poll_fn(|cx| inbox.poll_fill(cx, stream)).await {
                Ok(0) => return Err(self.lost("the server closed the connection").passing()),
                Ok(_) => {}
                Err(e) => return Err(self.lost(e).passing()),
            }
        }
    }

    /// A whole message from the inbox, if there is one.
    pub fn cut(&mut self) -> Result<Option<Frame>> {
        let Some((tag, size)) = self.whole()? else {
            return Ok(None);
        };
        let body = self.inbox.bytes()[HEADER..size].to_vec();
        self.inbox.consume(size);
        Ok(Some(Frame { tag, body }))
    }

    /// Tag and size of the message that the inbox begins with, if all of it is there.
    pub fn whole(&self) -> Result<Option<(BackendTag, usize)>> {
        let Some(header) = Header::read(self.inbox.bytes()) else {
            return Ok(None);
        };
        let size = header
            .size(MAX_COLLECTED)
            .ok_or_else(|| self.lost("the server sent a message of impossible length"))?;
        Ok((self.inbox.len() >= size).then_some((BackendTag(header.tag), size)))
    }

    /// Registers it with `worker`, which this is called on.
    ///
    /// # Errors
    /// The operating system's; it is then to be closed.
    pub async fn move_to(&mut self, worker: WorkerId) -> io::Result<()> {
        self.stream.adopt().await?;
        self.worker = worker;
        Ok(())
    }

    /// The same, of an idle one, if it is elsewhere. What the server said meanwhile is seen as if
    /// it had always been here.
    ///
    /// Not cancel safe.
    ///
    /// # Errors
    /// The operating system's; it is then to be closed.
    pub async fn come_to(&mut self, worker: WorkerId) -> io::Result<()> {
        self.move_to(worker).await?;
        if self.stream.has_unread()? {
            self.stream.readable().await?;
        }
        Ok(())
    }

    /// Whether an idle connection is still good: takes in what the server said meanwhile, without
    /// waiting. A server that shuts down or was restarted says so here.
    pub fn is_alive(&mut self) -> bool {
        if self.inbox.is_empty() && self.stream.is_silent() {
            return true;
        }
        let mut cx = TaskContext::from_waker(Waker::noop());
        loop {
            match self.inbox.poll_fill(&mut cx, &mut self.stream) {
                Poll::Ready(Ok(n)) if n > 0 && self.inbox.len() <= MAX_SAID_IDLE => {}
                Poll::Ready(_) => return false,
                Poll::Pending => break,
            }
        }
        loop {
            match self.cut() {
                Ok(Some(Frame {
                    tag: BackendTag::PARAMETER_STATUS,
                    body,
                })) => {
                    if self.note_parameter(&body).is_err() {
                        return false;
                    }
                }
                Ok(Some(Frame {
                    tag: BackendTag::NOTICE_RESPONSE | BackendTag::NOTIFICATION_RESPONSE,
                    ..
                })) => {}
                Ok(None) => return self.inbox.is_empty(),
                _ => return false,
            }
        }
    }

    /// The connection is gone, or must be treated so.
    fn lost(&self, cause: impl std::fmt::Display) -> Error {
        Error::new(Kind::ConnectionFailure, "the server connection was lost")
            .caused_by(format_args!("server {}: {cause}", self.server.name))
    }

    /// Ends it and waits (up to a deadline) until the server has let go, so that its slot can be
    /// counted as free. What still runs is cancelled first.
    pub async fn close(mut self: Box<Self>, busy: bool) {
        let goodbye = async {
            if busy {
                let fence = self.fence.clone();
                fence.open(cancel::PROXY);
                if let Err(error) = fence.cancel(cancel::PROXY, CLOSE_DEADLINE).await {
                    tracing::debug!(%error, "could not cancel on a connection that is closed");
                }
            }
            let mut goodbye = Buffer::new();
            goodbye.extend(reply::TERMINATE);
            // A frame cut off half-way would swallow the Terminate; then the end of the stream says
            // it. It may have been said before; what counts is that the server lets go.
            if self.outbox.is_empty() {
                let _ = poll_fn(|cx| goodbye.poll_drain(cx, &mut self.stream)).await;
            }
            let _ = tokio::io::AsyncWriteExt::shutdown(&mut self.stream).await;
            loop {
                self.inbox.consume(self.inbox.len());
                let Self { inbox, stream, .. } = &mut *self;
                if poll_fn(|cx| inbox.poll_fill(cx, stream)).await? == 0 {
                    return Ok::<_, std::io::Error>(());
                }
            }
        };
        let _ = timer::timeout(CLOSE_DEADLINE, goodbye).await;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use tokio::net::UnixStream;
    use tokio::runtime::{Builder, Runtime};

    use super::*;
    use crate::config::load_text;
    use crate::protocol::frame::frame;

    const CONFIG: &str = "\
listen: [{ address: \"127.0.0.1:0\" }]
servers:
  s: { host: /tmp, max_connections: 1 }
placements:
  p: { tier: pool, server: s, database: d, login: { user: u, password: x }, context: { a.b: \"{tenant}\" } }
tenants:
  t: { placement: p, users: { app: { password: x } } }
";

    #[test]
    fn a_server_can_report_so_much_and_no_more() {
        let mut parameters = Parameters::default();
        for number in 0..MAX_PARAMETERS {
            parameters.insert(&format!("p{number}"), "v").unwrap();
        }
        assert_eq!(parameters.insert("more", ""), Err(TooMuchReported));
        // What is known may change, as long as there is room.
        let size = parameters.size;
        let room = "v".repeat(MAX_PARAMETERS_SIZE - size + 1);
        parameters.insert("p0", &room).unwrap();
        assert_eq!(parameters.insert("p1", "vv"), Err(TooMuchReported));
        assert_eq!(parameters["p1"], "v");
        parameters.insert("p0", "v").unwrap();
        assert_eq!(parameters.size, size);
        parameters.insert("p1", "vv").unwrap();
    }

    #[test]
    fn an_idle_connection_that_comes_from_another_worker_is_seen_as_it_is_at_once() {
        let config = load_text(CONFIG, Path::new("."), &|_| None).unwrap();
        let server = config.servers.values().next().unwrap().clone();
        let runtimes = [0, 1].map(|_| Builder::new_current_thread().enable_all().build().unwrap());
        let (near, mut far) = std::os::unix::net::UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let stream = {
            let _reactor = runtimes[0].enter();
            UnixStream::from_std(near).unwrap()
        };
        let mut connection = ServerConnection::new(Stream::Plain(stream.into()), server, None);
        let come = |runtime: &Runtime, connection: &mut ServerConnection| {
            runtime.block_on(async {
                connection.come_to(WorkerId::from(1)).await.unwrap();
                connection.is_alive()
            })
        };
        assert!(come(&runtimes[1], &mut connection));
        let status = BackendTag::PARAMETER_STATUS.0;
        far.write_all(&frame(status, &[b"TimeZone\0UTC\0"]))
            .unwrap();
        assert!(come(&runtimes[0], &mut connection));
        assert_eq!(connection.parameters["TimeZone"], "UTC");
        drop(far);
        assert!(!come(&runtimes[1], &mut connection));
    }

    #[tokio::test]
    async fn connections_that_were_made_together_do_not_end_together() {
        const LIFETIME: Duration = Duration::from_secs(1000);
        let config = load_text(CONFIG, Path::new("."), &|_| None).unwrap();
        let server = config.servers.values().next().unwrap().clone();
        let made = |_| {
            let (near, _) = UnixStream::pair().unwrap();
            ServerConnection::new(Stream::Plain(near.into()), server.clone(), None)
        };
        let connections: Vec<_> = (0..200).map(made).collect();
        let born = |connection: &ServerConnection| connection.born;
        let ended = |after: u64| {
            let after = Duration::from_secs(after);
            let ended = connections.iter();
            ended
                .filter(|c| c.has_outlived(LIFETIME, born(c) + after))
                .count()
        };
        assert_eq!((ended(799), ended(1001)), (0, 200));
        // In each of the four quarters of that time a quarter of them ends, about.
        for quarter in 0..4 {
            let from = 800 + 50 * quarter;
            let count = ended(from + 50) - ended(from);
            assert!((20..=90).contains(&count), "{quarter}: {count}");
        }
    }
}
