//! A process of a PostgreSQL server: what it hears of the proxy, and what it says.

use std::collections::BTreeMap;

use crate::postgres::{Failure, Session, cut, frame, problem, text};

/// A CancelRequest (protocol chapter, "Message Formats").
const CANCEL: u32 = 80_877_102;
/// Version 3.0, in which cancel keys have four bytes.
const VERSION_3_0: u32 = 196_608;

/// One connection to a server.
pub struct Backend {
    pub server: usize,
    pub pid: i32,
    secret: [u8; 4],
    inbox: Vec<u8>,
    pub session: Option<Session>,
    /// The answer to a statement that takes a while, and what the session was before it, with its
    /// message.
    asleep: Option<Asleep>,
    pub dead: bool,
    /// Which sleep it is in.
    pub nap: u64,
}

struct Asleep {
    answer: Vec<u8>,
    before: Session,
    message: (u8, Vec<u8>),
}

/// What a server does for a message of the proxy.
#[derive(Default)]
pub struct Reaction {
    pub says: Vec<u8>,
    pub closes: bool,
    /// A CancelRequest for the process of this number and secret.
    pub cancels: Option<(i32, [u8; 4])>,
    /// It says no more until so many milliseconds have passed.
    pub sleeps: u64,
    /// Whose statements were run in whose context.
    pub ran: Vec<(String, String)>,
    pub notifies: Vec<(String, String)>,
    /// A planned failure came true.
    pub failed: bool,
    /// It has ended of its own accord.
    pub ended: bool,
}

/// Statements that are to fail on a server.
#[derive(Debug, Clone, Copy, Default)]
pub struct Failures {
    pub switches: usize,
    pub statements: usize,
    /// Milliseconds that every statement takes.
    pub slow: u64,
    /// Processes that end with the answer to a client's statement.
    pub last_words: usize,
}

impl Backend {
    pub fn new(server: usize, pid: i32, secret: [u8; 4]) -> Self {
        Self {
            server,
            pid,
            secret,
            inbox: Vec::new(),
            session: None,
            asleep: None,
            dead: false,
            nap: 0,
        }
    }

    pub fn has_key(&self, key: &(i32, [u8; 4])) -> bool {
        !self.dead && (self.pid, self.secret) == *key
    }

    pub fn is_asleep(&self) -> bool {
        self.asleep.is_some()
    }

    pub fn hear(&mut self, bytes: &[u8], failures: &mut Failures) -> Reaction {
        self.inbox.extend_from_slice(bytes);
        let mut reaction = Reaction::default();
        self.go_on(failures, &mut reaction);
        let rests = self.session.as_ref().is_some_and(Session::is_at_rest) && !self.is_asleep();
        if failures.last_words > 0 && rests && !reaction.ran.is_empty() && !reaction.closes {
            failures.last_words -= 1;
            reaction.says.extend(self.last_word());
            reaction.closes = true;
            reaction.ended = true;
        }
        reaction
    }

    /// It has slept enough.
    pub fn wake(&mut self, failures: &mut Failures) -> Reaction {
        let mut reaction = Reaction::default();
        if let Some(asleep) = self.asleep.take() {
            reaction.says.extend(asleep.answer);
        }
        self.go_on(failures, &mut reaction);
        reaction
    }

    /// A cancel strikes. What is idle swallows it.
    pub fn cancel(&mut self, failures: &mut Failures) -> Reaction {
        let mut reaction = Reaction::default();
        if let Some(asleep) = self.asleep.take() {
            let mut session = asleep.before;
            let message = "canceling statement due to user request";
            session.plan(0, Failure::new("57014", message));
            reaction.says = session.hear(asleep.message.0, &asleep.message.1);
            session.forget_plan();
            session.ran.clear();
            self.session = Some(session);
            self.go_on(failures, &mut reaction);
        }
        reaction
    }

    fn go_on(&mut self, failures: &mut Failures, reaction: &mut Reaction) {
        while self.asleep.is_none() && !self.dead && !reaction.closes {
            let went = match self.session.is_some() {
                true => self.next_message(failures, reaction),
                false => self.next_packet(reaction),
            };
            if !went {
                return;
            }
        }
    }

    /// The first packet has no tag.
    fn next_packet(&mut self, reaction: &mut Reaction) -> bool {
        let Some(length) = self.inbox.first_chunk() else {
            return false;
        };
        let length = u32::from_be_bytes(*length) as usize;
        if self.inbox.len() < length {
            return false;
        }
        let packet: Vec<_> = self.inbox.drain(..length).collect();
        let number = |at: usize| u32::from_be_bytes(packet[at..at + 4].try_into().expect("four"));
        if number(4) == CANCEL {
            let secret = packet[12..16].try_into().expect("four bytes");
            reaction.cancels = Some((number(8) as i32, secret));
            reaction.closes = true;
            return false;
        }
        let mut parameters = BTreeMap::new();
        let mut rest = &packet[8..];
        while !rest.is_empty() && rest[0] != 0 {
            let (name, after) = text(rest);
            let (value, after) = text(after);
            parameters.insert(name, value);
            rest = after;
        }
        let session = Session::new(self.pid, parameters);
        if number(4) > VERSION_3_0 {
            // NegotiateProtocolVersion: it speaks no newer one.
            let body = [&VERSION_3_0.to_be_bytes()[..], &0_u32.to_be_bytes()].concat();
            reaction.says.extend(frame(b'v', &body));
        }
        reaction.says.extend(frame(b'R', &[0; 4]));
        reaction.says.extend(session.welcome(&self.secret));
        self.session = Some(session);
        true
    }

    fn next_message(&mut self, failures: &mut Failures, reaction: &mut Reaction) -> bool {
        let Some((tag, body)) = cut(&mut self.inbox) else {
            return false;
        };
        let Some(session) = &mut self.session else {
            return false;
        };
        let planned = failures.switches + failures.statements > 0
            && is_planned(tag, &String::from_utf8_lossy(&body), session, failures);
        if planned {
            let failure = Failure::new("XX000", "the server would not");
            session.plan(0, failure);
        }
        let may_sleep = matches!(tag, b'Q' | b'E')
            && (failures.slow > 0 || body.starts_with(b"SELECT pg_sleep"));
        let before = may_sleep.then(|| session.clone());
        let answer = session.hear(tag, &body);
        let refuses = |part: &[u8]| part == b"the server would not";
        reaction.failed |= planned && answer.windows(20).any(refuses);
        session.forget_plan();
        let ran = std::mem::take(&mut session.ran);
        reaction.ran.extend(ran);
        if session.is_at_rest() {
            reaction.notifies.append(&mut session.notifies);
        }
        let sleeps = session.slept.max(if may_sleep { failures.slow } else { 0 });
        if session.ended {
            reaction.closes = true;
            return false;
        }
        match before {
            Some(before) if sleeps > 0 => {
                reaction.sleeps = sleeps;
                self.asleep = Some(Asleep {
                    answer,
                    before,
                    message: (tag, body),
                });
            }
            _ => reaction.says.extend(answer),
        }
        true
    }

    /// What it says when it is told to end, or restarts.
    pub fn last_word(&self) -> Vec<u8> {
        let message = "terminating connection due to administrator command";
        problem(b'E', "FATAL", &Failure::new("57P01", message))
    }
}

/// Whether this is the statement that is to fail.
fn is_planned(tag: u8, words: &str, session: &Session, failures: &mut Failures) -> bool {
    if session.skips {
        return false;
    }
    let is_switch = match tag {
        b'F' => true,
        b'Q' => words.starts_with("DISCARD ALL"),
        b'P' => words.contains("DISCARD ALL") || words.contains("pg_catalog.set_config"),
        _ => false,
    };
    let is_statement = matches!(tag, b'Q' | b'P' | b'B') && words.contains('~');
    let left = match (is_switch, is_statement) {
        (true, _) => &mut failures.switches,
        (_, true) => &mut failures.statements,
        _ => return false,
    };
    let planned = *left > 0;
    *left -= usize::from(planned);
    planned
}
