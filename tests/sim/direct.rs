//! What a client is owed: what a session of its own, beside the proxy, answers to the same
//! messages.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use crate::plan::Message;
use crate::postgres::{Failure, REPORTED, Session, frame, frames, text};

/// A session that hears what the client says, and the replies that have not come yet.
pub struct Direct {
    session: Session,
    owed: VecDeque<Owed>,
    /// What the client was told of the parameters that are reported.
    told: BTreeMap<String, String>,
    is_reset: bool,
    /// What was not told as it is at the last ReadyForQuery: it has to be before the next reply.
    late: Option<String>,
}

/// A message, and its replies.
struct Owed {
    tag: u8,
    body: Vec<u8>,
    before: Session,
    replies: VecDeque<(u8, Vec<u8>)>,
    /// How many of its statements are complete.
    complete: usize,
    /// What is reported when it has been answered.
    reported: Rc<BTreeMap<String, String>>,
    /// It is, or is pipelined behind, a RESET: what is reported until the next statement is what
    /// the server falls back to (docs/session-state.md).
    is_reset: bool,
}

/// What a reply is.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    Owed,
    /// An error in the place of what is owed.
    Refused(String),
    /// It ends the connection.
    Fatal(String),
    Wrong(String),
}

impl Direct {
    pub fn new(parameters: BTreeMap<String, String>) -> Self {
        Self {
            session: Session::new(0, parameters),
            owed: VecDeque::new(),
            told: BTreeMap::new(),
            is_reset: false,
            late: None,
        }
    }

    /// For whom the client works now.
    pub fn tenant(&self) -> String {
        self.session.tenant()
    }

    pub fn told(&mut self, name: &str, value: &str) {
        self.told.insert(name.to_owned(), value.to_owned());
    }

    /// Whether all has come.
    pub fn is_quiet(&self) -> bool {
        self.owed.iter().all(|owed| owed.replies.is_empty())
    }

    /// What a message is in bytes; its replies are owed from now on.
    pub fn say(&mut self, message: &Message) -> Vec<u8> {
        let mark = match self.tenant() {
            tenant if tenant.is_empty() => "nobody".to_owned(),
            tenant => tenant,
        };
        let (tag, body) = encode(message, &mark);
        let words = String::from_utf8_lossy(&body);
        let resets = words.contains("RESET") || words.contains("DISCARD");
        self.is_reset = resets || (self.is_reset && !self.is_quiet());
        let bytes = frame(tag, &body);
        let owed = self.hear(tag, body);
        self.owed.push_back(owed);
        bytes
    }

    fn hear(&mut self, tag: u8, body: Vec<u8>) -> Owed {
        let before = self.session.clone();
        let replies = self.session.hear(tag, &body);
        self.session.ran.clear();
        self.session.notifies.clear();
        Owed {
            tag,
            body,
            before,
            replies: owed_frames(replies),
            complete: 0,
            reported: self.session.told.clone(),
            is_reset: self.is_reset,
        }
    }

    /// A reply has come.
    pub fn see(&mut self, tag: u8, body: &[u8]) -> Seen {
        if tag == b'S' {
            let (name, rest) = text(body);
            self.told(&name, &text(rest).0);
            return Seen::Owed;
        }
        if tag == b'A' {
            return Seen::Owed;
        }
        if let Some(name) = self.late.take()
            && let Some(value) = self.owed.front().and_then(|owed| owed.reported.get(&name))
            && self.told.get(&name) != Some(value)
        {
            let told = self.told.get(&name);
            return Seen::Wrong(format!(
                "was told that {name} is {told:?}, and it is {value:?}"
            ));
        }
        while self
            .owed
            .front()
            .is_some_and(|owed| owed.replies.is_empty())
        {
            self.owed.pop_front();
        }
        if let Some(owed) = self.owed.front_mut()
            && owed
                .replies
                .front()
                .is_some_and(|(t, b)| *t == tag && b == body)
        {
            owed.replies.pop_front();
            owed.complete += usize::from(matches!(tag, b'C' | b'I'));
            if tag == b'Z' {
                self.check_told();
            }
            return Seen::Owed;
        }
        if tag == b'E' {
            return self.see_error(body);
        }
        let wanted = self.owed.front().and_then(|owed| owed.replies.front());
        Seen::Wrong(format!(
            "got {}, and is owed {}",
            show(tag, body),
            wanted.map_or_else(|| "nothing".to_owned(), |(t, b)| show(*t, b))
        ))
    }

    /// What the client knows of its parameters is what direct PostgreSQL would have told.
    fn check_told(&mut self) {
        let Some(owed) = self.owed.front() else {
            return;
        };
        for (name, value) in &*owed.reported {
            let told = self.told.get(name);
            let fallen = REPORTED.iter().any(|(known, default)| {
                owed.is_reset && known == name && told.is_some_and(|told| told == default)
            });
            if told != Some(value) && !fallen {
                self.late = Some(name.clone());
            }
        }
    }

    fn see_error(&mut self, body: &[u8]) -> Seen {
        let field = |name: u8| {
            let mut rest = body;
            while let [code, after @ ..] = rest {
                let (value, after) = text(after);
                if *code == name {
                    return value;
                }
                rest = after;
            }
            String::new()
        };
        let sqlstate = field(b'C');
        if matches!(field(b'V').as_str(), "FATAL" | "PANIC") {
            self.owed.clear();
            return Seen::Fatal(sqlstate);
        }
        if self.owed.is_empty() && self.session.copies.is_none() {
            return Seen::Wrong(format!("got {}, and is owed nothing", show(b'E', body)));
        }
        self.refuse();
        Seen::Refused(sqlstate)
    }

    /// The message that is answered next fails where it is, and those behind it are heard anew.
    fn refuse(&mut self) {
        let Some(first) = self.owed.pop_front() else {
            // A COPY of which not all was said yet.
            let mut unused = Vec::new();
            let extended = self.session.copies == Some(true);
            let failure = Failure::new("57014", "");
            let simple = self.session.copies == Some(false);
            self.session.fail(&failure, &mut unused);
            self.session.skips = extended;
            if simple {
                let mut out = Vec::new();
                self.session.ready(&mut out);
                let after = self.session.clone();
                self.owed.push_back(Owed {
                    tag: b'd',
                    body: Vec::new(),
                    before: after.clone(),
                    replies: owed_frames(out),
                    complete: 0,
                    reported: after.told,
                    is_reset: self.is_reset,
                });
            }
            return;
        };
        let later: Vec<_> = self.owed.drain(..).collect();
        self.session = first.before;
        let failure = Failure::new("XX000", "in the place of what is owed");
        self.session.plan(first.complete, failure);
        let mut again = self.hear(first.tag, first.body);
        self.session.forget_plan();
        // The error has come, and all before it.
        while let Some((tag, _)) = again.replies.pop_front()
            && tag != b'E'
        {}
        again.complete = first.complete;
        again.is_reset |= first.is_reset;
        self.is_reset |= first.is_reset;
        self.owed.push_back(again);
        for owed in later {
            let owed = self.hear(owed.tag, owed.body);
            self.owed.push_back(owed);
        }
    }
}

/// Without what comes at any time.
fn owed_frames(replies: Vec<u8>) -> VecDeque<(u8, Vec<u8>)> {
    let all = frames(replies).into_iter();
    all.filter(|(tag, _)| !matches!(tag, b'S' | b'A')).collect()
}

pub fn show(tag: u8, body: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(body)
        .chars()
        .map(|c| if c.is_control() { '·' } else { c })
        .collect();
    format!("{} {text:?}", tag as char)
}

fn encode(message: &Message, mark: &str) -> (u8, Vec<u8>) {
    let marked = |text: &str| text.replace("~@.", &format!("~{mark}."));
    let strings = |parts: &[&str]| {
        let mut body = Vec::new();
        for part in parts {
            body.extend(part.as_bytes());
            body.push(0);
        }
        body
    };
    match message {
        Message::Query(text) => (b'Q', strings(&[&marked(text)])),
        Message::Parse(name, text) => {
            let mut body = strings(&[name, &marked(text)]);
            body.extend([0, 0]);
            (b'P', body)
        }
        Message::Bind(portal, name, arguments) => {
            let mut body = strings(&[portal, name]);
            body.extend([0, 0]);
            body.extend(u16::try_from(arguments.len()).expect("few").to_be_bytes());
            for argument in arguments {
                let argument = marked(argument);
                body.extend(u32::try_from(argument.len()).expect("short").to_be_bytes());
                body.extend(argument.as_bytes());
            }
            body.extend([0, 0]);
            (b'B', body)
        }
        Message::Execute(portal, most) => {
            let mut body = strings(&[portal]);
            body.extend(most.to_be_bytes());
            (b'E', body)
        }
        Message::Describe(kind, name) => (b'D', kinded(*kind, name)),
        Message::Close(kind, name) => (b'C', kinded(*kind, name)),
        Message::Sync => (b'S', Vec::new()),
        Message::Flush => (b'H', Vec::new()),
        Message::CopyData(text) => (b'd', marked(text).into_bytes()),
        Message::CopyDone => (b'c', Vec::new()),
        Message::CopyFail => (b'f', strings(&["given up"])),
    }
}

fn kinded(kind: char, name: &str) -> Vec<u8> {
    let mut body = vec![u8::try_from(kind).unwrap_or(b'S')];
    body.extend(name.as_bytes());
    body.push(0);
    body
}
