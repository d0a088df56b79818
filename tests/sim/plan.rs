//! What one seed plays: which clients say what and when, and what befalls servers and the proxy. A
//! plan is plain data, so that one that fails can be made smaller.

use crate::kernel::random;

/// Numbers that follow from a seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        let mut state = seed ^ 0x5bd1_e995_9d1b_54a5;
        random(&mut state);
        Self(state)
    }

    pub fn below(&mut self, most: u64) -> u64 {
        random(&mut self.0) % most.max(1)
    }

    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }

    /// True in so many of a hundred cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'t, T>(&mut self, of: &'t [T]) -> &'t T {
        &of[self.index(of.len())]
    }
}

pub const TENANTS: usize = 8;

#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    /// Which of the configurations it begins with.
    pub config: usize,
    pub clients: Vec<Client>,
    pub faults: Vec<Fault>,
    /// It ends with a drain while clients are there, after so many milliseconds.
    pub drains: Option<u64>,
}

#[derive(Debug, Clone)]
pub struct Client {
    /// In milliseconds.
    pub begins: u64,
    pub who: Who,
    pub parameters: Vec<(&'static str, &'static str)>,
    pub steps: Vec<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    Tenant(usize),
    Application,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// In one write.
    Say(Vec<Message>),
    /// Until all replies have come.
    Wait,
    /// Milliseconds.
    Pause(u64),
    /// A CancelRequest for itself.
    Cancel,
    Leave(Leave),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    Terminate,
    /// Closes its socket.
    Close,
    /// Its machine is gone: a reset.
    Reset,
}

/// A message to the server. In texts `@` is the tenant for whom the client works when it says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    Query(String),
    Parse(&'static str, String),
    Bind(&'static str, &'static str, Vec<String>),
    /// At most so many rows; 0: all.
    Execute(&'static str, u32),
    Describe(char, &'static str),
    Close(char, &'static str),
    Sync,
    Flush,
    CopyData(String),
    CopyDone,
    CopyFail,
}

#[derive(Debug, Clone)]
pub struct Fault {
    /// In milliseconds.
    pub at: u64,
    pub what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// A server's process dies: one of those there are.
    Kill(usize),
    /// The same with a last word.
    Terminate(usize),
    /// The next process of a server that has answered all that it was asked says its last word with
    /// that.
    LastWord(usize),
    /// A server restarts, and lets nobody in for so many milliseconds.
    Restart(usize, u64),
    /// The next statement of the proxy's own fails on a server: one of a change of tenant.
    FailSwitch(usize),
    /// The next statement of a client fails on a server.
    FailStatement(usize),
    /// A server says something that nobody asked for.
    Garbage(usize),
    /// Statements take so many milliseconds from now on.
    Slow(usize, u64),
    /// The configuration of this number is put in force.
    Reload(usize),
    /// A tenant is paused for so many milliseconds.
    Pause(usize, u64),
}

/// Texts that return rows, and that any session may run at any time.
const READS: [&str; 10] = [
    "SELECT '~@.q~'",
    "SELECT pg_sleep(3), '~@.nap~'",
    "SELECT body, '~@.rows~' FROM orders",
    "SELECT id, body FROM orders WHERE '~@.where~' IS NOT NULL",
    "SELECT '~@.ctx~', current_setting('app.tenant_id', true)",
    "SELECT 1 AS one, '~@.as~' AS mark",
    "SELECT '~@.long~', 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'",
    "SHOW TimeZone",
    "SHOW work_mem",
    "COPY orders TO STDOUT /* '~@.out~' */",
];
const WRITES: [&str; 2] = [
    "INSERT INTO orders VALUES (1, '~@.insert~')",
    "INSERT INTO orders VALUES (2, '~@.insert~')",
];
const WRONG: [&str; 4] = [
    "SELECT 1/0, '~@.zero~'",
    "SELEC '~@.syntax~'",
    "SELECT nothing, '~@.column~'",
    "SELECT '~@.table~' FROM nowhere",
];
const NAMES: [&str; 3] = ["", "s1", "s2"];

struct Author<'r> {
    random: &'r mut Random,
    steps: Vec<Step>,
    /// It works for whom it chooses.
    chooses: bool,
    /// Statements of this name were parsed.
    known: Vec<&'static str>,
    temporary: u32,
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let count = TENANTS;
        let span = 40 + random.below(400);
        let mut clients: Vec<Client> = Vec::new();
        while clients.len() < count || clients.iter().map(Client::messages).sum::<usize>() < 200 {
            let number = clients.len();
            let who = match number < TENANTS || random.percent(50) {
                true if number >= 6 && random.percent(60) => Who::Application,
                true => Who::Tenant(number % TENANTS),
                false => Who::Application,
            };
            clients.push(Client::new(&mut random, who, span));
        }
        let mut faults = Vec::new();
        for _ in 0..1 + random.index(3) {
            faults.push(Fault::new(&mut random, span * 2));
        }
        faults.sort_by_key(|fault| fault.at);
        let drains = random.percent(15).then(|| random.below(span * 3));
        Self {
            seed,
            config: random.index(3),
            clients,
            faults,
            drains,
        }
    }

    /// Messages of all clients.
    pub fn messages(&self) -> usize {
        self.clients.iter().map(Client::messages).sum()
    }
}

impl Fault {
    fn new(random: &mut Random, span: u64) -> Self {
        let server = random.index(2);
        let what = match random.below(15) {
            0 | 1 => What::Kill(random.index(8)),
            2 => What::Terminate(random.index(8)),
            12 => What::LastWord(server),
            13 => What::Pause(random.index(TENANTS), random.below(500)),
            3 => What::Restart(server, 1 + random.below(300)),
            4 | 5 => What::FailSwitch(server),
            6 | 7 => What::FailStatement(server),
            8 => What::Garbage(random.index(8)),
            9 => What::Slow(server, 1 + random.below(30)),
            10 | 11 => What::Reload(random.index(3)),
            _ => What::Reload(random.index(3)),
        };
        Self {
            at: random.below(span),
            what,
        }
    }
}

impl Client {
    fn messages(&self) -> usize {
        let count = |step: &Step| match step {
            Step::Say(messages) => messages.len(),
            _ => 0,
        };
        self.steps.iter().map(count).sum()
    }

    fn new(random: &mut Random, who: Who, span: u64) -> Self {
        let begins = random.below(span);
        let mut parameters = Vec::new();
        if random.percent(30) {
            parameters.push(("application_name", *random.pick(&["web", "batch"])));
        }
        if random.percent(20) {
            parameters.push(("TimeZone", *random.pick(&["Europe/Berlin", "Asia/Tokyo"])));
        }
        let chooses = who == Who::Application;
        let mut author = Author {
            random,
            steps: Vec::new(),
            chooses,
            known: Vec::new(),
            temporary: 0,
        };
        let wanted = 19 + author.random.index(11);
        let mut said = 0;
        while said < wanted {
            let before = author.steps.len();
            author.act();
            said += author.steps[before..]
                .iter()
                .map(|step| match step {
                    Step::Say(messages) => messages.len(),
                    _ => 0,
                })
                .sum::<usize>();
        }
        author.leave();
        Self {
            begins,
            who,
            parameters,
            steps: author.steps,
        }
    }
}

impl Author<'_> {
    fn say(&mut self, messages: Vec<Message>) {
        self.steps.push(Step::Say(messages));
        // What an application chooses counts before it says more.
        if self.chooses || self.random.percent(75) {
            self.steps.push(Step::Wait);
        }
        if self.random.percent(15) {
            let long = self.random.percent(10);
            let most = if long { 2_000 } else { 20 };
            let pause = 1 + self.random.below(most);
            self.steps.push(Step::Pause(pause));
        }
    }

    fn query(&mut self, text: impl Into<String>) {
        self.say(vec![Message::Query(text.into())]);
    }

    fn read(&mut self) -> String {
        (*self.random.pick(&READS)).to_owned()
    }

    /// Something that leaves the session outside of a transaction.
    fn act(&mut self) {
        if self.chooses {
            return self.work_for_somebody();
        }
        match self.random.below(22) {
            0..=3 => {
                let text = self.read();
                self.query(text);
            }
            4 => {
                let text = *self.random.pick(&WRITES);
                self.query(text);
            }
            5 => {
                let text = *self.random.pick(&WRONG);
                self.query(text);
            }
            6..=8 => self.transaction(),
            9..=12 => self.extended(),
            13 => self.pipeline(),
            14 => {
                let mut texts = vec![self.read(), self.read()];
                if self.random.percent(30) {
                    texts.insert(1, (*self.random.pick(&WRONG[..1])).to_owned());
                }
                texts.retain(|text| !text.starts_with("COPY"));
                self.query(texts.join("; "));
            }
            15 | 16 => self.setting(),
            17 => self.copy(),
            18 => self.state(),
            19 => {
                // A cancel that comes at the very end is the one that could strike somebody else.
                let is_tight = self.random.percent(60);
                let pause = match is_tight {
                    true => 2 + self.random.below(6),
                    false => 20 + self.random.below(60),
                };
                self.steps.push(Step::Say(vec![Message::Query(format!(
                    "SELECT pg_sleep({pause}), '~@.sleep~'"
                ))]));
                let before = match is_tight {
                    true => pause - 1 + self.random.below(3),
                    false => self.random.below(pause + 20),
                };
                self.steps.push(Step::Pause(before));
                self.steps.push(Step::Cancel);
                self.steps.push(Step::Wait);
            }
            20 => self.query("SELECT note('~@.notice~')"),
            _ => {
                let text = *self.random.pick(&["", " ;"]);
                self.query(text);
            }
        }
    }

    fn transaction(&mut self) {
        let begin = *self.random.pick(&["BEGIN", "BEGIN", "START TRANSACTION"]);
        self.query(begin);
        let mut savepoints = 0;
        for _ in 0..1 + self.random.index(4) {
            match self.random.below(10) {
                0..=4 => {
                    let text = self.read();
                    self.query(text);
                }
                5 => {
                    let text = *self.random.pick(&WRITES);
                    self.query(text);
                }
                6 => {
                    savepoints += 1;
                    self.query(format!("SAVEPOINT p{savepoints}"));
                }
                7 if savepoints > 0 => {
                    let number = 1 + self.random.below(savepoints);
                    let word = *self
                        .random
                        .pick(&["ROLLBACK TO SAVEPOINT", "RELEASE SAVEPOINT"]);
                    self.query(format!("{word} p{number}"));
                }
                8 => {
                    let text = *self.random.pick(&[WRONG[0], "SET LOCAL work_mem = '8MB'"]);
                    self.query(text);
                }
                _ => self.extended_in_transaction(),
            }
        }
        let end = *self.random.pick(&["COMMIT", "COMMIT", "ROLLBACK", "END"]);
        self.query(end);
    }

    fn extended_in_transaction(&mut self) {
        let most = u32::try_from(self.random.below(3)).unwrap_or(0);
        let mut messages = vec![
            Message::Parse("", "SELECT body, $1 FROM orders".to_owned()),
            Message::Bind("c1", "", vec!["~@.cursor~".to_owned()]),
            Message::Execute("c1", most),
        ];
        if self.random.percent(50) {
            messages.push(Message::Flush);
        }
        messages.push(Message::Execute("c1", 0));
        messages.push(Message::Close('P', "c1"));
        messages.push(Message::Sync);
        self.say(messages);
    }

    /// One statement by the extended protocol.
    fn statement(&mut self, messages: &mut Vec<Message>) {
        let name = *self.random.pick(&NAMES);
        let is_known = self.known.contains(&name);
        if !is_known || name.is_empty() {
            let texts = [
                "SELECT $1, body FROM orders",
                "SELECT $1",
                "SELECT $1 AS mark, current_setting('app.tenant_id', true)",
            ];
            let text = match self.random.percent(8) {
                true => "SELEC $1",
                false => *self.random.pick(&texts),
            };
            messages.push(Message::Parse(name, text.to_owned()));
            if !name.is_empty() {
                self.known.push(name);
            }
        }
        if self.random.percent(25) {
            messages.push(Message::Describe('S', name));
        }
        let arguments = match self.random.percent(5) {
            true => vec![],
            false => vec!["~@.argument~".to_owned()],
        };
        messages.push(Message::Bind("", name, arguments));
        if self.random.percent(50) {
            messages.push(Message::Describe('P', ""));
        }
        messages.push(Message::Execute("", 0));
        if !name.is_empty() && self.random.percent(15) {
            messages.push(Message::Close('S', name));
            self.known.retain(|known| *known != name);
        }
    }

    fn extended(&mut self) {
        let mut messages = Vec::new();
        for _ in 0..1 + self.random.index(2) {
            self.statement(&mut messages);
        }
        messages.push(Message::Sync);
        self.say(messages);
    }

    /// Several batches without waiting.
    fn pipeline(&mut self) {
        let mut messages = Vec::new();
        for _ in 0..2 + self.random.index(3) {
            match self.random.percent(70) {
                true => {
                    self.statement(&mut messages);
                    messages.push(Message::Sync);
                }
                false => {
                    let text = self.read();
                    messages.push(Message::Query(text));
                }
            }
        }
        self.say(messages);
    }

    fn setting(&mut self) {
        let texts = [
            "SET TimeZone = 'America/Lima'",
            "SET application_name = 'renamed'",
            "SET work_mem = '16MB'",
            "RESET TimeZone",
            "RESET work_mem",
            "SET TimeZone = 'Nowhere'",
            "SET search_path = 'public'",
            "SELECT set_config('work_mem', '1MB', false)",
            "SET LOCAL work_mem = '2MB'",
            "RESET ALL",
            "DISCARD ALL",
        ];
        let text = *self.random.pick(&texts);
        self.query(text);
        if text.ends_with(" ALL") {
            // What was prepared is gone, or is there still.
            self.known.retain(|_| !text.starts_with("DISCARD"));
        }
        let text = *self.random.pick(&["SHOW TimeZone", "SHOW work_mem"]);
        self.query(text);
    }

    fn copy(&mut self) {
        let mut messages = vec![Message::Query("COPY orders FROM STDIN".to_owned())];
        for _ in 0..self.random.index(4) {
            messages.push(Message::CopyData("1\t~@.copied~\n".to_owned()));
        }
        let end = match self.random.percent(70) {
            true => Message::CopyDone,
            false => Message::CopyFail,
        };
        messages.push(end);
        match self.random.percent(50) {
            true => self.say(messages),
            false => {
                let rest = messages.split_off(1);
                self.steps.push(Step::Say(messages));
                let pause = self.random.below(5);
                self.steps.push(Step::Pause(pause));
                self.say(rest);
            }
        }
    }

    /// What ties it to its server connection for a while.
    fn state(&mut self) {
        match self.random.below(5) {
            0 => {
                self.temporary += 1;
                let name = format!("t{}", self.temporary);
                self.query(format!("CREATE TEMP TABLE {name} (a text)"));
                self.query(format!("SELECT '~@.temp~' FROM {name}"));
                if self.random.percent(70) {
                    self.query(format!("DROP TABLE {name}"));
                }
            }
            1 => {
                self.query("LISTEN news");
                self.query("NOTIFY news, '~@.news~'");
                self.query("UNLISTEN *");
            }
            2 => {
                self.query("SELECT pg_advisory_lock(7)");
                self.query("SELECT '~@.locked~'");
                self.query("SELECT pg_advisory_unlock_all()");
            }
            3 => {
                self.query("PREPARE q1 AS SELECT '~@.prepared~'");
                self.query("EXECUTE q1");
                self.query("DEALLOCATE q1");
            }
            _ => self.query("DEALLOCATE ALL"),
        }
        if self.steps.iter().rev().take(2).any(|step| {
            matches!(step, Step::Say(said) if said == &[Message::Query("DEALLOCATE ALL".to_owned())])
        }) {
            self.known.clear();
        }
    }

    /// A transaction, or a few statements, for a tenant that is chosen first.
    fn work_for_somebody(&mut self) {
        let tenant = self.random.index(TENANTS);
        match self.random.below(6) {
            0 | 1 => {
                self.query("BEGIN");
                self.query(format!("SET LOCAL app.tenant_id = 't{tenant}'"));
                self.some_statements();
                let end = *self.random.pick(&["COMMIT", "ROLLBACK"]);
                self.query(end);
            }
            2 => {
                self.query(format!("SET app.tenant_id = 't{tenant}'"));
                self.some_statements();
            }
            3 => {
                self.say(vec![
                    Message::Query("BEGIN".to_owned()),
                    Message::Parse("", "SELECT set_config('app.tenant_id', $1, true)".to_owned()),
                    Message::Bind("", "", vec![format!("t{tenant}")]),
                    Message::Execute("", 0),
                    Message::Sync,
                ]);
                self.some_statements();
                self.query("COMMIT");
            }
            4 => self.query(format!(
                "BEGIN; SET LOCAL app.tenant_id = 't{tenant}'; SELECT '~t{tenant}.text~', body FROM orders; COMMIT"
            )),
            _ => {
                self.query(format!("SELECT set_config('app.tenant_id', 't{tenant}', false)"));
                self.some_statements();
                self.query("RESET app.tenant_id");
            }
        }
    }

    fn some_statements(&mut self) {
        for _ in 0..1 + self.random.index(3) {
            match self.random.below(8) {
                0..=4 => {
                    let text = *self.random.pick(&READS[..7]);
                    self.query(text);
                }
                5 => {
                    let mut messages = vec![
                        Message::Parse("", "SELECT body, $1 FROM orders".to_owned()),
                        Message::Bind("", "", vec!["~@.argument~".to_owned()]),
                        Message::Execute("", 0),
                        Message::Sync,
                    ];
                    if self.random.percent(30) {
                        messages.insert(2, Message::Describe('P', ""));
                    }
                    self.say(messages);
                }
                6 => self.query(WRONG[0]),
                _ => self.query(READS[2]),
            }
        }
    }

    /// Ends: at a point of its choice, or somewhere before.
    fn leave(&mut self) {
        let how = *self
            .random
            .pick(&[Leave::Terminate, Leave::Close, Leave::Reset]);
        if self.random.percent(25) {
            let from = self.steps.len() * 2 / 3;
            let at = from + self.random.index(self.steps.len() - from);
            self.steps.truncate(at);
            self.steps.push(Step::Leave(how));
        } else {
            self.steps.push(Step::Wait);
            self.steps.push(Step::Leave(Leave::Terminate));
        }
    }
}
