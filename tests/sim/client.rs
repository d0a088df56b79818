//! A client: it logs in, plays its steps, and looks at every byte that it gets.

use std::collections::BTreeMap;

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

use crate::direct::{Direct, Seen, show};
use crate::plan::{self, Leave, Step, Who};
use crate::postgres::{VARIABLE, cut, frame, marks, text};

pub const PASSWORD: &str = "pw";

pub struct Client {
    plan: plan::Client,
    at: usize,
    stage: Stage,
    inbox: Vec<u8>,
    direct: Direct,
    /// For a CancelRequest.
    pub key: Option<Vec<u8>>,
    /// Cancels of its own that were sent and not seen to strike.
    pub cancels: usize,
    waits: bool,
}

enum Stage {
    New,
    Proves(Box<ScramSha256>),
    /// Proved: parameters and key come.
    Welcomed,
    Up,
    Over,
}

/// What a client does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Act {
    Says(Vec<u8>),
    /// Goes on after so many milliseconds.
    Pauses(u64),
    Cancels,
    Leaves(Leave),
}

/// What happened to a client that no client of direct PostgreSQL would have seen.
#[derive(Debug, PartialEq, Eq)]
pub enum Odd {
    /// An error in the place of a reply.
    Refused(String),
    /// The last word of a connection.
    Fatal(String),
    /// The connection ended while something was owed, or before its time.
    Lost,
    /// That can be nothing but a fault of the proxy.
    Wrong(String),
}

impl Client {
    pub fn new(plan: plan::Client) -> Self {
        let mut parameters = BTreeMap::from([
            ("user".to_owned(), "app".to_owned()),
            ("database".to_owned(), "app".to_owned()),
        ]);
        if let Who::Tenant(tenant) = plan.who {
            parameters.insert(VARIABLE.to_owned(), format!("t{tenant}"));
        }
        for (name, value) in &plan.parameters {
            parameters.insert((*name).to_owned(), (*value).to_owned());
        }
        Self {
            plan,
            at: 0,
            stage: Stage::New,
            inbox: Vec::new(),
            direct: Direct::new(parameters),
            key: None,
            cancels: 0,
            waits: false,
        }
    }

    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    pub fn is_up(&self) -> bool {
        matches!(self.stage, Stage::Up)
    }

    pub fn who(&self) -> Who {
        self.plan.who
    }

    /// Where it is, for reports.
    pub fn position(&self) -> String {
        let what = match &self.stage {
            Stage::New => "has not begun".to_owned(),
            Stage::Proves(_) => "proves who it is".to_owned(),
            Stage::Welcomed => "waits to be welcomed".to_owned(),
            Stage::Up => format!("is at step {} of {}", self.at, self.plan.steps.len()),
            Stage::Over => "is over".to_owned(),
        };
        match self.waits {
            true => format!("{what}, and waits"),
            false => what,
        }
    }

    /// The first packet.
    pub fn begin(&mut self) -> Vec<u8> {
        let (user, database) = match self.plan.who {
            Who::Tenant(tenant) => ("app", format!("t{tenant}")),
            Who::Application => ("web", "web".to_owned()),
        };
        let mut body = 196_608_u32.to_be_bytes().to_vec();
        let named = [("user", user), ("database", database.as_str())];
        for (name, value) in named
            .into_iter()
            .chain(self.plan.parameters.iter().copied())
        {
            for word in [name, value] {
                body.extend(word.as_bytes());
                body.push(0);
            }
        }
        body.push(0);
        let length = u32::try_from(body.len() + 4).expect("short");
        let exchange = ScramSha256::new(PASSWORD.as_bytes(), ChannelBinding::unsupported());
        self.stage = Stage::Proves(Box::new(exchange));
        [&length.to_be_bytes()[..], &body].concat()
    }

    /// What came.
    pub fn hear(&mut self, bytes: &[u8], acts: &mut Vec<Act>) -> Result<(), Odd> {
        self.inbox.extend_from_slice(bytes);
        while let Some((tag, body)) = cut(&mut self.inbox) {
            self.check_marks(tag, &body)?;
            if self.is_over() {
                continue;
            }
            match self.stage {
                Stage::Up => match self.direct.see(tag, &body) {
                    Seen::Owed => {}
                    Seen::Refused(sqlstate) => {
                        self.resume(acts);
                        return self.odd(Odd::Refused(sqlstate), bytes, acts);
                    }
                    Seen::Fatal(sqlstate) => {
                        self.stage = Stage::Over;
                        return Err(Odd::Fatal(sqlstate));
                    }
                    Seen::Wrong(why) => return Err(Odd::Wrong(why)),
                },
                _ => self.log_in(tag, &body, acts)?,
            }
        }
        self.resume(acts);
        Ok(())
    }

    /// An odd thing that the client survives: what came behind it is looked at, too.
    fn odd(&mut self, odd: Odd, _: &[u8], acts: &mut Vec<Act>) -> Result<(), Odd> {
        self.hear(&[], acts)?;
        Err(odd)
    }

    /// No byte is another tenant's.
    fn check_marks(&self, tag: u8, body: &[u8]) -> Result<(), Odd> {
        let Who::Tenant(tenant) = self.plan.who else {
            // What an application gets is compared with what is owed to it.
            return Ok(());
        };
        let own = format!("t{tenant}");
        let words = String::from_utf8_lossy(body);
        // A channel is of all sessions of a database.
        if matches!(tag, b'D' | b'd' | b'E' | b'N' | b'C' | b'T')
            && marks(&words).any(|mark| mark != own)
        {
            let what = show(tag, body);
            return Err(Odd::Wrong(format!("{own} got another tenant's: {what}")));
        }
        Ok(())
    }

    fn log_in(&mut self, tag: u8, body: &[u8], acts: &mut Vec<Act>) -> Result<(), Odd> {
        let wrong = |why: &str| Odd::Wrong(format!("at login: {why}: {}", show(tag, body)));
        match (tag, &mut self.stage) {
            (b'E', _) => {
                self.stage = Stage::Over;
                let at = body.windows(2).position(|part| part == b"\0C");
                let sqlstate = at.map_or_else(String::new, |at| text(&body[at + 2..]).0);
                return Err(Odd::Fatal(sqlstate));
            }
            (b'R', Stage::Proves(exchange)) => {
                let (code, data) = body.split_at(4);
                match code[3] {
                    10 => {
                        let first = exchange.message();
                        let length = u32::try_from(first.len()).expect("short").to_be_bytes();
                        let answer = [&b"SCRAM-SHA-256\0"[..], &length, first].concat();
                        acts.push(Act::Says(frame(b'p', &answer)));
                    }
                    11 => {
                        exchange
                            .update(data)
                            .map_err(|_| wrong("a bad challenge"))?;
                        acts.push(Act::Says(frame(b'p', exchange.message())));
                    }
                    12 => exchange.finish(data).map_err(|_| wrong("a bad proof"))?,
                    0 => self.stage = Stage::Welcomed,
                    _ => return Err(wrong("an unknown request")),
                }
            }
            (b'S', _) => {
                let (name, rest) = text(body);
                self.direct.told(&name, &text(rest).0);
            }
            (b'K', _) => self.key = Some(body.to_vec()),
            (b'N', _) => {}
            (b'Z', Stage::Welcomed) => {
                self.stage = Stage::Up;
                self.resume(acts);
            }
            _ => return Err(wrong("not expected")),
        }
        Ok(())
    }

    /// The end of what comes. Err: it was too early.
    pub fn end(&mut self) -> Result<(), Odd> {
        if self.is_over() {
            return Ok(());
        }
        self.stage = Stage::Over;
        Err(Odd::Lost)
    }

    /// After a pause.
    pub fn wake(&mut self, acts: &mut Vec<Act>) {
        self.go_on(acts);
    }

    fn resume(&mut self, acts: &mut Vec<Act>) {
        let was_waiting = self.waits || self.at == 0;
        if self.is_up() && was_waiting && self.direct.is_quiet() {
            self.waits = false;
            self.go_on(acts);
        }
    }

    fn go_on(&mut self, acts: &mut Vec<Act>) {
        while self.is_up() && !self.waits {
            let Some(step) = self.plan.steps.get(self.at) else {
                self.stage = Stage::Over;
                acts.push(Act::Leaves(Leave::Terminate));
                return;
            };
            self.at += 1;
            match step {
                Step::Say(messages) => {
                    let mut bytes = Vec::new();
                    for message in messages {
                        bytes.extend(self.direct.say(message));
                    }
                    acts.push(Act::Says(bytes));
                }
                Step::Wait => self.waits = !self.direct.is_quiet(),
                Step::Pause(ms) => return acts.push(Act::Pauses(*ms)),
                Step::Cancel => {
                    self.cancels += 1;
                    acts.push(Act::Cancels);
                }
                Step::Leave(how) => {
                    let how = *how;
                    self.stage = Stage::Over;
                    return acts.push(Act::Leaves(how));
                }
            }
        }
    }
}
