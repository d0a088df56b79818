//! What the fuzz targets do with their bytes. Ordinary functions: cargo-fuzz runs them long, guided
//! by coverage (`make fuzz`), and `tests/it/fuzz_bodies.rs` runs the same on the corpus and
//! mutations of it.

use std::collections::HashMap;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use pgtenant::backend::prepared::{Interner, Parsed};
use pgtenant::config::TransactionLimits;
use pgtenant::frontend::ledger::{Ledger, Reply};
use pgtenant::frontend::locks::Locks;
use pgtenant::frontend::owed::Owed;
use pgtenant::frontend::statements::{Rewritten, Statements, Target, translate};
use pgtenant::protocol::buffer::Buffer;
use pgtenant::protocol::frame::{
    BackendTag, FrontendTag, HEADER, Header, frame, split_cstr, split_pair,
};
use pgtenant::protocol::startup::{self, Packet};
use pgtenant::sql::effects::Effects;

/// The first packet of a client.
pub fn startup(bytes: &[u8]) {
    let mut rest = bytes;
    let read = pin!(startup::read(&mut rest, startup::whole_packet(bytes)))
        .poll(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(read) = read else {
        panic!("all there is has been read");
    };
    let Ok(Some(packet)) = read else {
        // Nothing, or Terminate in place of a packet.
        assert!(read.is_err() || bytes.is_empty() || bytes.starts_with(b"X\0\0\0"));
        return;
    };
    let length = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
    assert_eq!(
        rest,
        &bytes[length..],
        "what follows the packet is not touched"
    );
    match packet {
        Packet::Cancel(key) => assert_eq!(key.request(), bytes[..length]),
        Packet::Startup(startup) => {
            assert!(!startup.user.is_empty() && startup.version.major == 3);
            let texts = startup
                .parameters
                .iter()
                .flat_map(|(name, value)| [name, value]);
            assert!(
                texts
                    .chain([&startup.user])
                    .all(|text| !text.contains('\0'))
            );
        }
        Packet::SslRequest | Packet::GssEncRequest => assert_eq!(length, 8),
        Packet::Unsupported(version) => assert_ne!(version.major, 3),
    }
}

/// Bytes as the messages of either side.
pub fn frames(bytes: &[u8]) {
    let mut rest = bytes;
    while let Some(header) = Header::read(rest) {
        let limit = FrontendTag(header.tag).limit();
        let size = limit.and_then(|limit| header.size(limit));
        if let Some(size) = size {
            assert!(size >= HEADER && size <= limit.unwrap() + 1);
            assert!(header.backend_size().is_some(), "a server may say as much");
        }
        let Some(size) = header.backend_size().filter(|size| *size <= rest.len()) else {
            break;
        };
        assert_eq!(size, header.length as usize + 1);
        let body = &rest[HEADER..size];
        if let Some((text, after)) = split_cstr(body) {
            assert!(!text.contains(&0));
            assert_eq!([text, b"\0", after].concat(), body);
        }
        if let Some((name, value)) = split_pair(body) {
            assert!(body.starts_with(format!("{name}\0{value}\0").as_bytes()));
        }
        rest = &rest[size..];
    }
    assert!(rest.len() <= bytes.len());
}

/// A server that knows statements and nothing else. A text that begins with `!` is wrong.
#[derive(Default)]
struct Server {
    statements: HashMap<Vec<u8>, Vec<u8>>,
    skipping: bool,
}

/// An answer: its tag, and what it tells.
type Answer = (u8, Vec<u8>);

impl Server {
    fn take(&mut self, tag: u8, body: &[u8]) -> Vec<Answer> {
        match tag {
            b'S' => {
                self.skipping = false;
                vec![(b'Z', Vec::new())]
            }
            _ if self.skipping => Vec::new(),
            b'Q' => {
                self.statements.remove(&b""[..]);
                vec![(b'C', Vec::new()), (b'Z', Vec::new())]
            }
            _ => self.answer(tag, body).unwrap_or_else(|error| {
                self.skipping = true;
                vec![(b'E', error)]
            }),
        }
    }

    fn answer(&mut self, tag: u8, body: &[u8]) -> Result<Vec<Answer>, Vec<u8>> {
        let malformed = || b"malformed".to_vec();
        let known = |server: &Self, name: &[u8]| {
            let definition = server.statements.get(name).cloned();
            definition.ok_or_else(|| [b"no \"", name, b"\""].concat())
        };
        match tag {
            b'P' => {
                let (name, definition) = split_cstr(body).ok_or_else(malformed)?;
                let (text, types) = split_cstr(definition).ok_or_else(malformed)?;
                if types != [0, 0] {
                    return Err(malformed());
                }
                if name.is_empty() {
                    self.statements.remove(name);
                }
                if text.starts_with(b"!") {
                    return Err(b"wrong".to_vec());
                }
                if self.statements.contains_key(name) {
                    return Err([b"have \"", name, b"\""].concat());
                }
                self.statements.insert(name.to_vec(), text.to_vec());
                Ok(vec![(b'1', Vec::new())])
            }
            b'B' => {
                let (_, rest) = split_cstr(body).ok_or_else(malformed)?;
                let (name, _) = split_cstr(rest).ok_or_else(malformed)?;
                Ok(vec![(b'2', known(self, name)?)])
            }
            b'D' | b'C' => {
                let (name, rest) = body.get(1..).and_then(split_cstr).ok_or_else(malformed)?;
                match (tag, body[0], rest.is_empty()) {
                    (_, _, false) => Err(malformed()),
                    (b'D', b'S', _) => Ok(vec![(b't', Vec::new()), (b'n', known(self, name)?)]),
                    (b'C', b'S', _) => {
                        self.statements.remove(name);
                        Ok(vec![(b'3', Vec::new())])
                    }
                    (b'C', b'P', _) => Ok(vec![(b'3', Vec::new())]),
                    _ => Err(malformed()),
                }
            }
            _ => Err(malformed()),
        }
    }
}

/// A client behind the proxy, and the same client without it.
#[derive(Default)]
struct Client {
    statements: Statements,
    direct: Server,
    expected: Vec<Answer>,
    seen: Vec<Answer>,
}

/// A server connection, and what is on its way back from it.
#[derive(Default)]
struct Connection {
    server: Server,
    parsed: Parsed,
    answers: std::collections::VecDeque<Answer>,
}

/// A client holds a connection, as `frontend::relay` does it.
struct Lease<'a> {
    client: &'a mut Client,
    connection: &'a mut Connection,
    interner: &'a Interner,
    ledger: Ledger,
}

impl Lease<'_> {
    fn say(&mut self, tag: u8, body: &[u8]) {
        let expected = self.client.direct.take(tag, body);
        self.client.expected.extend(expected);
        let whole = frame(tag, &[body]);
        let mut outbox = Buffer::new();
        match tag {
            b'S' => self.ledger.push(Owed::Sync),
            b'Q' => {
                let undo = self.client.statements.query();
                self.ledger.push(Owed::Query(undo));
            }
            _ => {
                let tag = FrontendTag(tag);
                while self.client.statements.must_wait(tag, body, &self.ledger)
                    && self.ledger.owes_ready()
                {
                    self.hear();
                }
                let mut target = Target {
                    parsed: &mut self.connection.parsed,
                    outbox: &mut outbox,
                    ledger: &mut self.ledger,
                    interner: self.interner,
                    settings: &Default::default(),
                    is_meaning_open: &|| false,
                    backslashes: false,
                    owns_sequences: true,
                    locks: (&Locks::default(), &TransactionLimits::NONE),
                    guard: None,
                    effects: Effects::default(),
                    pins: false,
                    obscure: false,
                };
                let statements = &mut self.client.statements;
                match statements.rewrite(tag, &whole, whole.len(), &mut target) {
                    Ok(Rewritten::Consumed(n)) => outbox.extend(&whole[n..]),
                    other => panic!("a whole short message: {other:?}"),
                }
                self.send(outbox.bytes());
                self.undo();
                return self.fake();
            }
        }
        self.send(&whole);
        self.undo();
        self.fake();
    }

    fn send(&mut self, mut frames: &[u8]) {
        while let Some(header) = Header::read(frames) {
            let size = header.size(1 << 20).unwrap();
            let answers = self
                .connection
                .server
                .take(header.tag, &frames[HEADER..size]);
            self.connection.answers.extend(answers);
            frames = &frames[size..];
        }
        assert!(frames.is_empty(), "whole messages are sent");
    }

    /// Closes what the connection has under the client's own names, as `frontend::session` does.
    fn give_back(&mut self) {
        let copies = self.client.statements.take_copies();
        self.send(&copies);
        self.connection.answers.clear();
        self.client.statements.leave_connection();
    }

    fn undo(&mut self) {
        let failed = self.ledger.take_failed();
        let Connection { parsed, .. } = &mut *self.connection;
        self.client
            .statements
            .undo(failed, parsed, &mut self.ledger);
    }

    fn fake(&mut self) {
        while let Some(fake) = self.ledger.take_fake() {
            self.client.seen.push((fake[0], Vec::new()));
        }
    }

    /// The next answer arrives.
    fn hear(&mut self) {
        self.fake();
        let Some((tag, mut told)) = self.connection.answers.pop_front() else {
            return;
        };
        if let (b'E', Some((name, statement))) = (tag, self.ledger.renamed()) {
            told = translate(&told, name, statement).unwrap_or(told);
        }
        let reply = self.ledger.reply(BackendTag(tag), b'I');
        self.undo();
        if reply == Reply::Forward {
            self.client.seen.push((tag, told));
        }
        self.fake();
    }
}

/// Two clients and two server connections: what the clients are told is what they would be told
/// direct. Each byte says who does what; some take further bytes for text.
pub fn statements(bytes: &[u8]) {
    let interner = Interner::default();
    let mut clients = [Client::default(), Client::default()];
    let mut connections = [Connection::default(), Connection::default()];
    let mut rest = bytes.iter().copied();
    while let Some(who) = rest.next() {
        let (client, connection) = (usize::from(who & 1), usize::from(who >> 1 & 1));
        clients[client].statements.begin_lease();
        let mut lease = Lease {
            client: &mut clients[client],
            connection: &mut connections[connection],
            interner: &interner,
            ledger: Ledger::default(),
        };
        for _ in 0..who >> 2 {
            let Some(what) = rest.next() else {
                break;
            };
            say(&mut lease, what, &mut rest);
        }
        lease.say(b'S', b"");
        while !lease.connection.answers.is_empty() {
            lease.hear();
        }
        assert!(lease.ledger.is_clean(), "all is answered");
        lease.give_back();
        assert_eq!(lease.client.seen, lease.client.expected);
    }
}

/// What one byte, and perhaps some after it, has the client do.
fn say(lease: &mut Lease<'_>, what: u8, rest: &mut impl Iterator<Item = u8>) {
    let name = [&b""[..], b"a", b"b", b"pgtenant_1"][usize::from(what >> 4 & 3)];
    let text = [&b"x"[..], b"y", b"!", b"z"][usize::from(what >> 6)];
    match what & 15 {
        0..3 => lease.say(b'P', &[name, b"\0", text, b"\0\0\0"].concat()),
        3..5 => lease.say(b'B', &[b"\0", name, b"\0\0\0\0\0\0\0"].concat()),
        5 => lease.say(b'D', &[b"S", name, b"\0"].concat()),
        6 => lease.say(b'C', &[b"S", name, b"\0"].concat()),
        7 => lease.say(b'C', &[b"P", name, b"\0"].concat()),
        8..10 => lease.say(b'S', b""),
        10 => lease.say(b'Q', b"q\0"),
        11..14 => lease.hear(),
        _ => {
            let length = usize::from(rest.next().unwrap_or(0) & 15);
            let body: Vec<_> = rest.take(length).collect();
            lease.say(b"PBDC"[usize::from(what >> 4 & 3)], &body);
        }
    }
}
