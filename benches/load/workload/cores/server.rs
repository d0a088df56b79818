//! Servers that speak PostgreSQL's protocol and do nothing: they let everybody in and have all
//! answers ready. With real ones, a proxy could not be what a machine of two cores is short of. All
//! are one thread of the bench.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use pgtenant::cluster::{Error, Result};
use pgtenant::protocol::frame::{BackendTag, FrontendTag, Header, frame};
use pgtenant::protocol::reply::SYNC;

use super::TICK;

/// Queries that are recognised and answered together.
const RUN: usize = 32;
/// Ticks between looks at who connects, which cost most.
const ACCEPTING: u64 = 16;
/// What is read at once.
const CHUNK: usize = 256 << 10;
const PROTOCOL_3: std::ops::Range<u32> = 0x0003_0000..0x0004_0000;

/// What PostgreSQL says of itself. The application's name is the clients' already, so that nobody
/// has to set it.
const PARAMETERS: [(&str, &str); 10] = [
    ("application_name", "bench"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("integer_datetimes", "on"),
    ("IntervalStyle", "postgres"),
    ("is_superuser", "off"),
    ("server_encoding", "UTF8"),
    ("server_version", "15.0"),
    ("standard_conforming_strings", "on"),
    ("TimeZone", "Etc/UTC"),
];

/// Several instances in one thread.
pub struct Servers {
    pub ports: Vec<u16>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Servers {
    pub fn start(instances: usize) -> Result<Self> {
        let failed = |error| Error::new(format!("cannot make a server: {error}"));
        let (mut listeners, mut ports) = (Vec::new(), Vec::new());
        for _ in 0..instances {
            let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            ports.push(listener.local_addr().map_err(failed)?.port());
            listeners.push(listener);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("servers".to_owned())
            .spawn(move || serve(&listeners, &stopped))
            .map_err(failed)?;
        Ok(Self {
            ports,
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Looks at all sockets each [`TICK`]: waiting for each of them would cost a wake-up for everything
/// that comes.
fn serve(listeners: &[TcpListener], stop: &AtomicBool) {
    let replies = Replies::new();
    let mut sessions: Vec<Session> = Vec::new();
    let mut chunk = vec![0; CHUNK];
    for tick in 0_u64.. {
        if stop.load(Relaxed) {
            return;
        }
        if tick.is_multiple_of(ACCEPTING) {
            for listener in listeners {
                while let Ok((stream, _)) = listener.accept() {
                    sessions.extend(Session::new(stream));
                }
            }
        }
        sessions.retain_mut(|session| session.step(&replies, &mut chunk).is_ok());
        std::thread::sleep(TICK);
    }
}

struct Session {
    stream: TcpStream,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    greeted: bool,
}

impl Session {
    fn new(stream: TcpStream) -> Option<Self> {
        stream.set_nonblocking(true).ok()?;
        stream.set_nodelay(true).ok()?;
        Some(Self {
            stream,
            inbox: Vec::new(),
            outbox: Vec::new(),
            greeted: false,
        })
    }

    /// Reads what is there and answers it.
    fn step(&mut self, replies: &Replies, chunk: &mut [u8]) -> std::io::Result<()> {
        loop {
            match self.stream.read(chunk) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.inbox.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if !self.greeted {
            self.greet();
        }
        if self.greeted {
            let answered = replies.to_all(&self.inbox, &mut self.outbox);
            self.inbox.drain(..answered);
        }
        while !self.outbox.is_empty() {
            match self.stream.write(&self.outbox) {
                Ok(written) => drop(self.outbox.drain(..written)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes the first packet: a StartupMessage, or a request for TLS, which is refused.
    fn greet(&mut self) {
        let word = |at: usize| Some(u32::from_be_bytes(*self.inbox.get(at..)?.first_chunk()?));
        let (Some(length), Some(code)) = (word(0), word(4)) else {
            return;
        };
        if self.inbox.len() < length as usize {
            return;
        }
        self.inbox.drain(..length as usize);
        self.greeted = PROTOCOL_3.contains(&code);
        match self.greeted {
            true => self.outbox.extend(greeting()),
            false => self.outbox.extend(b"N"),
        }
    }
}

/// What clients send: the empty query as Parse, Bind, Execute and Sync. Few bytes for each message,
/// so that most of the work is in looking at messages and not in moving bytes, which costs client
/// and server as much as the proxy.
pub fn query() -> Vec<u8> {
    [
        frame(FrontendTag::PARSE.0, &[b"\0\0\0\0"]),
        frame(FrontendTag::BIND.0, &[&[0; 8]]),
        frame(FrontendTag::EXECUTE.0, &[&[0; 5]]),
        SYNC.to_vec(),
    ]
    .concat()
}

/// The answer to [`query`].
pub fn answer() -> Vec<u8> {
    [PARSED, BOUND, EMPTY, &ready()].concat()
}

const PARSED: &[u8] = b"1\0\0\0\x04";
const BOUND: &[u8] = b"2\0\0\0\x04";
const CLOSED: &[u8] = b"3\0\0\0\x04";
const NO_DATA: &[u8] = b"n\0\0\0\x04";
const EMPTY: &[u8] = b"I\0\0\0\x04";

fn ready() -> Vec<u8> {
    frame(BackendTag::READY_FOR_QUERY.0, &[b"I"])
}

fn greeting() -> Vec<u8> {
    let mut greeting = frame(BackendTag::AUTHENTICATION.0, &[&[0; 4]]);
    for (name, value) in PARAMETERS {
        let parts: [&[u8]; 4] = [name.as_bytes(), b"\0", value.as_bytes(), b"\0"];
        greeting.extend(frame(BackendTag::PARAMETER_STATUS.0, &parts));
    }
    greeting.extend(frame(BackendTag::BACKEND_KEY_DATA.0, &[&[0; 8]]));
    greeting.extend(ready());
    greeting
}

/// The size of the frame at the start, if all of it is there.
fn whole(bytes: &[u8]) -> Option<usize> {
    let size = Header::read(bytes)?.backend_size()?;
    (bytes.len() >= size).then_some(size)
}

struct Replies {
    /// Many queries as the clients send them, and their answers: to compare and to copy costs next
    /// to nothing.
    run: Vec<u8>,
    run_answer: Vec<u8>,
    queried: Vec<u8>,
    called: Vec<u8>,
    ready: Vec<u8>,
}

impl Replies {
    fn new() -> Self {
        // NULL.
        let called = frame(BackendTag::FUNCTION_CALL_RESPONSE.0, &[&[0xff; 4]]);
        Self {
            run: query().repeat(RUN),
            run_answer: answer().repeat(RUN),
            queried: [frame(BackendTag::COMMAND_COMPLETE.0, &[b"SET\0"]), ready()].concat(),
            called: [called, ready()].concat(),
            ready: ready(),
        }
    }

    /// The replies to all whole messages. Returns how much these were.
    fn to_all(&self, inbox: &[u8], outbox: &mut Vec<u8>) -> usize {
        let mut at = 0;
        loop {
            if inbox[at..].starts_with(&self.run) {
                at += self.run.len();
                outbox.extend_from_slice(&self.run_answer);
            } else if let Some(size) = whole(&inbox[at..]) {
                self.to(&inbox[at..at + size], outbox);
                at += size;
            } else {
                return at;
            }
        }
    }

    /// The reply to one message; whatever a proxy sets is set.
    fn to(&self, message: &[u8], outbox: &mut Vec<u8>) {
        let reply: &[u8] = match FrontendTag(message[0]) {
            FrontendTag::QUERY => &self.queried,
            FrontendTag::FUNCTION_CALL => &self.called,
            FrontendTag::PARSE => PARSED,
            FrontendTag::BIND => BOUND,
            FrontendTag::DESCRIBE => NO_DATA,
            FrontendTag::EXECUTE => EMPTY,
            FrontendTag::CLOSE => CLOSED,
            FrontendTag::SYNC => &self.ready,
            _ => &[],
        };
        outbox.extend_from_slice(reply);
    }
}
