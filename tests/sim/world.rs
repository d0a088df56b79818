//! Everything outside of the proxy: the network, the clients and the servers, and what befalls
//! them; and the checkers.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use pgtenant::app::App;
use tokio::sync::{Notify, mpsc};

use crate::client::{Act, Client, Odd};
use crate::configs::{self, PORTS, PROXY_PORT};
use crate::kernel::{self, Conn, Outside};
use crate::plan::{Leave, Plan, Random, What, Who};
use crate::postgres::frame;
use crate::server::{Backend, Failures, Reaction};

const MILLISECOND: u64 = 1_000_000;
/// For how long anything may take, in milliseconds, before a client is said to wait for ever.
const PATIENCE: u64 = 150_000;
/// How often is looked whether somebody waits for what is there, in milliseconds, and after how
/// many such looks in a row nobody is going to serve him: far less than the second after which the
/// proxy itself looks again.
const LOOK: u64 = 10;
const LOOKS: usize = 12;
/// How long after the last client the counts are looked at: all that was under way has ended by
/// then.
const CALM: u64 = 8_000;

/// What is done with the proxy, by a task on its runtime.
#[derive(Debug)]
pub enum Control {
    Reload(usize),
    Pause(usize),
    /// Of all that are paused.
    Resume,
    Drain,
    Kill,
    Close,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// Bytes of the other end come to the proxy.
    ToProxy(Conn),
    /// Bytes of the proxy come to the other end.
    FromProxy(Conn),
    /// A server takes a connection, or does not.
    Answer(Conn),
    Begin(usize),
    Wake(usize),
    BackendWakes(usize, u64),
    Fault(usize),
    Look,
    Resume,
    Drain,
    Kill,
    /// The clients have gone.
    Settled,
    Deadline,
}

#[derive(Debug, Clone, Copy)]
enum Owner {
    Client(usize),
    /// The connection of a CancelRequest.
    Canceller,
    Backend(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Closed,
    Reset,
}

struct Wire {
    owner: Owner,
    to_proxy: VecDeque<u8>,
    from_proxy: VecDeque<u8>,
    /// The other end says nothing behind what is on its way.
    end: Option<End>,
    ended: bool,
    /// The proxy says nothing more, and the other end knows.
    heard_end: bool,
    is_due: [bool; 2],
}

pub struct World {
    plan: Plan,
    random: Random,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    number: u64,
    wires: Vec<Wire>,
    clients: Vec<Client>,
    conns: Vec<Option<Conn>>,
    backends: Vec<Backend>,
    backend_conns: Vec<Conn>,
    servers: [Server; 2],
    app: Arc<App>,
    control: mpsc::UnboundedSender<Control>,
    done: Arc<Notify>,
    began: u64,
    settling: bool,
    /// Looks in a row at which somebody waited for a connection that was idle.
    idle_looks: usize,
    pub statistics: Statistics,
    pub failure: Option<String>,
    /// A hash of all that happened.
    pub trace: u64,
    pub told: Option<Vec<String>>,
    excuses: Excuses,
}

#[derive(Debug, Default, Clone, Copy)]
struct Server {
    /// It lets nobody in until then.
    down_until: u64,
    failures: Failures,
}

#[derive(Debug, Default, Clone, Copy)]
pub struct Statistics {
    pub served: u64,
    pub events: u64,
    pub backends: u64,
    pub oddities: u64,
}

/// What clients may see that clients of direct PostgreSQL would not, since something befell a
/// server or the proxy.
#[derive(Debug, Default)]
struct Excuses {
    /// Server connections that were lost, and changes of tenant that failed: each hurts one client
    /// at most.
    hurt: usize,
    /// Statements that a server would not run.
    failed: usize,
    /// A server has let nobody in.
    was_down: bool,
    reloaded: bool,
    /// A configuration was in force that does not have all tenants.
    may_be_gone: bool,
    drained: bool,
}

impl World {
    pub fn new(
        plan: Plan,
        app: Arc<App>,
        control: mpsc::UnboundedSender<Control>,
        done: Arc<Notify>,
        verbose: bool,
    ) -> Self {
        let clients: Vec<_> = plan.clients.iter().cloned().map(Client::new).collect();
        let mut world = Self {
            random: Random::new(plan.seed.wrapping_mul(31) + 7),
            events: BinaryHeap::new(),
            number: 0,
            wires: Vec::new(),
            conns: vec![None; clients.len()],
            clients,
            backends: Vec::new(),
            backend_conns: Vec::new(),
            servers: [Server::default(); 2],
            app,
            control,
            done,
            began: kernel::now(),
            settling: false,
            idle_looks: 0,
            statistics: Statistics::default(),
            failure: None,
            trace: 0,
            told: verbose.then(Vec::new),
            excuses: Excuses {
                may_be_gone: configs::lacks_tenants(plan.config),
                ..Excuses::default()
            },
            plan,
        };
        for number in 0..world.clients.len() {
            let begins = world.plan.clients[number].begins;
            world.after(begins * MILLISECOND, Event::Begin(number));
        }
        for number in 0..world.plan.faults.len() {
            let at = world.plan.faults[number].at;
            world.after(at * MILLISECOND, Event::Fault(number));
        }
        if let Some(at) = world.plan.drains {
            world.after(at * MILLISECOND, Event::Drain);
        }
        world.after(PATIENCE * MILLISECOND, Event::Deadline);
        world.after(LOOK * MILLISECOND, Event::Look);
        world
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.number += 1;
        let at = kernel::now() + delay;
        self.events.push(Reverse((at, self.number, event)));
    }

    /// Adds to the hash of what happened, and to what is told of it.
    fn note(&mut self, what: &str, conn: usize, bytes: &[u8]) {
        let mut hash = self.trace ^ kernel::now() ^ (conn as u64) << 48;
        for chunk in what.as_bytes().chunks(8).chain(bytes.chunks(8)) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            hash = (hash ^ u64::from_ne_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            hash ^= hash >> 29;
        }
        self.trace = hash;
        if let Some(told) = &mut self.told {
            let words: String = String::from_utf8_lossy(bytes)
                .chars()
                .map(|c| if c.is_control() { '·' } else { c })
                .collect();
            let at = (kernel::now() - self.began) / 1_000;
            told.push(format!("{at:>9} µs  {what} {conn}  {words}"));
        }
    }

    fn fail(&mut self, why: String) {
        if self.failure.is_none() {
            self.note("failure", 0, why.as_bytes());
            self.failure = Some(why);
            self.done.notify_one();
        }
    }

    /// How long something takes on the network.
    fn latency(&mut self) -> u64 {
        let most = match self.random.below(20) {
            0 => 5_000_000,
            1..=4 => 400_000,
            _ => 60_000,
        };
        1_000 + self.random.below(most)
    }

    /// A request to cancel something, on its way to the proxy or to a server.
    fn is_of_a_cancel(&self, conn: Conn) -> bool {
        match self.wires[conn].owner {
            Owner::Canceller => true,
            Owner::Backend(number) => {
                let wire = &self.wires[conn];
                self.backends[number].session.is_none() && wire.from_proxy.len() == 16
            }
            Owner::Client(_) => false,
        }
    }

    fn owner_name(&self, conn: Conn) -> (&'static str, usize) {
        match self.wires[conn].owner {
            Owner::Client(number) => ("client", number),
            Owner::Canceller => ("canceller", conn),
            Owner::Backend(number) => ("backend", number),
        }
    }

    fn schedule(&mut self, conn: Conn, to_proxy: bool) {
        if !std::mem::replace(&mut self.wires[conn].is_due[usize::from(to_proxy)], true) {
            let delay = match self.is_of_a_cancel(conn) {
                true => self.latency() + self.random.below(2_000_000),
                false => self.latency(),
            };
            let event = match to_proxy {
                true => Event::ToProxy(conn),
                false => Event::FromProxy(conn),
            };
            self.after(delay, event);
        }
    }

    fn say(&mut self, conn: Conn, bytes: &[u8]) {
        if !bytes.is_empty() && self.wires[conn].end.is_none() {
            self.wires[conn].to_proxy.extend(bytes);
            self.schedule(conn, true);
        }
    }

    fn end(&mut self, conn: Conn, end: End) {
        if self.wires[conn].end.is_none() {
            self.wires[conn].end = Some(end);
            if end == End::Reset {
                self.wires[conn].to_proxy.clear();
            }
            self.schedule(conn, true);
        }
    }

    /// How many of the bytes that are there come at once.
    fn piece(&mut self, there: usize) -> usize {
        match self.random.below(10) {
            0 | 1 if there > 1 => 1 + self.random.index(there),
            _ => there,
        }
    }

    fn reach_proxy(&mut self, conn: Conn) {
        self.wires[conn].is_due[1] = false;
        let there = self.wires[conn].to_proxy.len();
        if there > 0 {
            let length = self.piece(there);
            let bytes: Vec<_> = self.wires[conn].to_proxy.drain(..length).collect();
            let (what, number) = self.owner_name(conn);
            self.note(what, number, &[b"> ", &bytes[..]].concat());
            kernel::with(|kernel| {
                if !kernel.socket(conn).closed {
                    kernel.deliver(conn, &bytes);
                }
            });
        }
        if !self.wires[conn].to_proxy.is_empty() {
            self.schedule(conn, true);
        } else if let Some(end) = self.wires[conn].end
            && !std::mem::replace(&mut self.wires[conn].ended, true)
        {
            kernel::with(|kernel| match end {
                End::Closed => kernel.end(conn),
                End::Reset => kernel.reset(conn),
            });
        }
    }

    fn leave_proxy(&mut self, conn: Conn) {
        self.wires[conn].is_due[0] = false;
        let there = self.wires[conn].from_proxy.len();
        if there > 0 {
            let length = self.piece(there);
            let bytes: Vec<_> = self.wires[conn].from_proxy.drain(..length).collect();
            let (what, number) = self.owner_name(conn);
            self.note(what, number, &[b"< ", &bytes[..]].concat());
            match self.wires[conn].owner {
                Owner::Client(number) => self.client_hears(number, &bytes),
                Owner::Canceller => {}
                Owner::Backend(number) => {
                    let server = self.backends[number].server;
                    let failures = &mut self.servers[server].failures;
                    let reaction = self.backends[number].hear(&bytes, failures);
                    self.react(number, reaction);
                }
            }
        }
        if !self.wires[conn].from_proxy.is_empty() {
            return self.schedule(conn, false);
        }
        let gone = kernel::with(|kernel| {
            let socket = kernel.socket(conn);
            socket.shut || socket.closed
        });
        if gone && !std::mem::replace(&mut self.wires[conn].heard_end, true) {
            self.hears_end(conn);
        }
    }

    fn hears_end(&mut self, conn: Conn) {
        let (what, number) = self.owner_name(conn);
        self.note(what, number, b"< (end)");
        match self.wires[conn].owner {
            Owner::Client(number) => {
                let ended = self.clients[number].end();
                self.end(conn, End::Closed);
                if let Err(odd) = ended {
                    self.odd(number, &odd);
                }
                self.look_whether_all_are_over();
            }
            Owner::Canceller => self.end(conn, End::Closed),
            Owner::Backend(number) => {
                self.backends[number].dead = true;
                self.end(conn, End::Closed);
            }
        }
    }

    // ---- clients ----

    fn client_hears(&mut self, number: usize, bytes: &[u8]) {
        let mut acts = Vec::new();
        let heard = self.clients[number].hear(bytes, &mut acts);
        if let Err(odd) = heard {
            self.odd(number, &odd);
        }
        self.act(number, acts);
    }

    fn act(&mut self, number: usize, acts: Vec<Act>) {
        let Some(conn) = self.conns[number] else {
            return;
        };
        for act in acts {
            match act {
                Act::Says(bytes) => self.say(conn, &bytes),
                Act::Pauses(ms) => self.after(ms * MILLISECOND, Event::Wake(number)),
                Act::Cancels => self.send_cancel(number),
                Act::Leaves(how) => {
                    if how == Leave::Terminate {
                        self.say(conn, &frame(b'X', &[]));
                    }
                    let end = match how {
                        Leave::Terminate | Leave::Close => End::Closed,
                        Leave::Reset => End::Reset,
                    };
                    self.end(conn, end);
                    if self.random.percent(15) {
                        // It comes too late for itself, and is for nobody else.
                        self.send_cancel(number);
                    }
                }
            }
        }
        if self.clients[number].is_over() {
            self.look_whether_all_are_over();
        }
    }

    fn send_cancel(&mut self, number: usize) {
        let Some(mut key) = self.clients[number].key.clone() else {
            return;
        };
        if self.random.percent(10) {
            // A guess, which is nobody's.
            let last = key.len() - 1;
            key[last] ^= 1;
        }
        let length = u32::try_from(key.len() + 8).expect("short");
        let packet = [
            &length.to_be_bytes()[..],
            &80_877_102_u32.to_be_bytes(),
            &key,
        ]
        .concat();
        if let Some(conn) = self.open(Owner::Canceller) {
            self.say(conn, &packet);
        }
    }

    fn open(&mut self, owner: Owner) -> Option<Conn> {
        let conn = kernel::with(|kernel| kernel.connect_to(PROXY_PORT))?;
        self.add_wire(conn, owner);
        Some(conn)
    }

    fn add_wire(&mut self, conn: Conn, owner: Owner) {
        assert_eq!(conn, self.wires.len());
        self.wires.push(Wire {
            owner,
            to_proxy: VecDeque::new(),
            from_proxy: VecDeque::new(),
            end: None,
            ended: false,
            heard_end: false,
            is_due: [false; 2],
        });
    }

    fn begin(&mut self, number: usize) {
        let conn = self.open(Owner::Client(number));
        self.conns[number] = conn;
        let first = self.clients[number].begin();
        match conn {
            Some(conn) => self.say(conn, &first),
            None => {
                // The proxy has closed its port.
                if let Err(odd) = self.clients[number].end() {
                    self.odd(number, &odd);
                }
                self.look_whether_all_are_over();
            }
        }
    }

    fn look_whether_all_are_over(&mut self) {
        if !self.settling && self.clients.iter().all(Client::is_over) {
            self.settling = true;
            self.after(CALM * MILLISECOND, Event::Settled);
        }
    }

    /// Whether there is a reason for something odd.
    fn odd(&mut self, number: usize, odd: &Odd) {
        self.statistics.oddities += 1;
        self.note("odd", number, format!("{odd:?}").as_bytes());
        let Excuses {
            hurt,
            failed,
            was_down,
            reloaded,
            may_be_gone,
            drained,
        } = &mut self.excuses;
        let take = |count: &mut usize| {
            let is_there = *count > 0;
            *count -= usize::from(is_there);
            is_there
        };
        let is_application = self.clients[number].who() == Who::Application;
        let excused = match odd {
            Odd::Wrong(_) => false,
            Odd::Refused(sqlstate) => match sqlstate.as_str() {
                "57014" => take(&mut self.clients[number].cancels),
                "XX000" => take(failed),
                "08006" | "57P01" => take(hurt) || *was_down,
                "57P03" | "53300" => *was_down,
                "42501" | "25001" => is_application && *may_be_gone,
                _ => false,
            },
            Odd::Fatal(sqlstate) => match sqlstate.as_str() {
                "57P01" => *drained || *reloaded || take(hurt),
                "57P03" => *drained || *was_down,
                "08006" => take(hurt) || *was_down,
                "28P01" | "3D000" => *may_be_gone,
                "XX000" => take(failed),
                _ => false,
            },
            Odd::Lost => *drained || take(hurt),
        };
        if !excused {
            let who = self.clients[number].who();
            let position = self.clients[number].position();
            self.fail(format!(
                "client {number} ({who:?}), which {position}: {odd:?}"
            ));
        }
    }

    // ---- servers ----

    fn react(&mut self, number: usize, reaction: Reaction) {
        let conn = self.backend_conns[number];
        self.excuses.failed += usize::from(reaction.failed);
        self.excuses.hurt += usize::from(reaction.ended);
        if reaction.failed {
            // It may have been a change of tenant.
            self.excuses.hurt += 1;
        }
        let server = self.backends[number].server;
        for (owner, context) in &reaction.ran {
            self.statistics.served += 1;
            let is_nobodys = owner == "nobody" && context.is_empty();
            if owner != context && !is_nobodys {
                self.fail(format!(
                    "a statement of {owner} was run as {context:?} on server {server}"
                ));
            }
            if !configs::may_live(owner, server, self.excuses.reloaded) {
                self.fail(format!("a statement of {owner} was run on server {server}"));
            }
        }
        self.say(conn, &reaction.says);
        if let Some(key) = reaction.cancels {
            let server = self.backends[number].server;
            let mut all = self.backends.iter();
            if let Some(victim) = all.position(|b| b.server == server && b.has_key(&key)) {
                self.note("cancel", victim, b"");
                let failures = &mut self.servers[server].failures;
                let reaction = self.backends[victim].cancel(failures);
                self.react(victim, reaction);
            }
        }
        if reaction.sleeps > 0 {
            let version = self.number;
            self.backends[number].nap = version;
            self.after(
                reaction.sleeps * MILLISECOND,
                Event::BackendWakes(number, version),
            );
        }
        if reaction.closes {
            self.backends[number].dead = true;
            self.end(conn, End::Closed);
        }
        for (channel, payload) in reaction.notifies {
            self.notify(server, number, &channel, &payload);
        }
    }

    fn notify(&mut self, server: usize, sender: usize, channel: &str, payload: &str) {
        let pid = self.backends[sender].pid;
        let words = [channel.as_bytes(), b"\0", payload.as_bytes(), b"\0"].concat();
        let message = frame(b'A', &[&pid.to_be_bytes()[..], &words].concat());
        for at in 0..self.backends.len() {
            let backend = &self.backends[at];
            let listens = backend
                .session
                .as_ref()
                .is_some_and(|session| session.listens.contains(channel) && session.is_at_rest());
            if backend.server == server && !backend.dead && listens && !backend.is_asleep() {
                let conn = self.backend_conns[at];
                self.say(conn, &message);
            }
        }
    }

    /// A connection that the proxy makes.
    fn answer(&mut self, conn: Conn) {
        let Owner::Backend(number) = self.wires[conn].owner else {
            return;
        };
        let server = self.backends[number].server;
        let is_up = self.servers[server].down_until <= kernel::now();
        self.note("answer", number, &[u8::from(is_up)]);
        if !is_up {
            self.backends[number].dead = true;
        }
        kernel::with(|kernel| {
            if !kernel.socket(conn).closed {
                kernel.answer(conn, is_up);
            }
        });
    }

    fn alive(&self, server: usize) -> usize {
        let all = self.backends.iter();
        all.filter(|b| b.server == server && !b.dead && b.session.is_some())
            .count()
    }

    fn kill(&mut self, number: usize, with_a_word: bool) {
        if self.backends[number].dead {
            return;
        }
        self.note("kill", number, b"");
        self.excuses.hurt += 1;
        let conn = self.backend_conns[number];
        if with_a_word {
            let word = self.backends[number].last_word();
            self.say(conn, &word);
        }
        self.backends[number].dead = true;
        let end = match with_a_word || self.random.percent(50) {
            true => End::Closed,
            false => End::Reset,
        };
        self.end(conn, end);
    }

    /// One of the server connections that live.
    fn victim(&self, number: usize) -> Option<usize> {
        let all = self.backends.iter().enumerate();
        let living: Vec<_> = all.filter(|(_, b)| !b.dead).map(|(at, _)| at).collect();
        living.get(number % living.len().max(1)).copied()
    }

    fn fault(&mut self, number: usize) {
        let what = self.plan.faults[number].what;
        self.note("fault", number, format!("{what:?}").as_bytes());
        match what {
            What::Kill(number) | What::Terminate(number) => {
                if let Some(victim) = self.victim(number) {
                    self.kill(victim, matches!(what, What::Terminate(_)));
                }
            }
            What::Restart(server, ms) => {
                self.excuses.was_down = true;
                self.servers[server].down_until = kernel::now() + ms * MILLISECOND;
                for at in 0..self.backends.len() {
                    if self.backends[at].server == server {
                        self.kill(at, true);
                    }
                }
            }
            What::LastWord(server) => self.servers[server].failures.last_words += 1,
            What::FailSwitch(server) => self.servers[server].failures.switches += 1,
            What::FailStatement(server) => self.servers[server].failures.statements += 1,
            What::Garbage(number) => {
                if let Some(victim) = self.victim(number)
                    && self.backends[victim].session.is_some()
                {
                    self.excuses.hurt += 1;
                    let conn = self.backend_conns[victim];
                    // What is right at some place is not told from an answer.
                    let stray: &[u8] = match self.random.below(3) {
                        0 => b"~\0\0\0\x04",
                        1 => b"R\0\0\0\x08\0\0\0\0",
                        _ => b"K\0\0\0\x0c\0\0\0\0\0\0\0\0",
                    };
                    self.say(conn, stray);
                }
            }
            What::Pause(tenant, ms) => {
                let _ = self.control.send(Control::Pause(tenant));
                self.after(ms * MILLISECOND, Event::Resume);
            }
            What::Slow(server, ms) => self.servers[server].failures.slow = ms,
            What::Reload(config) => {
                self.excuses.reloaded = true;
                self.excuses.may_be_gone |= configs::lacks_tenants(config);
                let _ = self.control.send(Control::Reload(config));
            }
        }
    }

    // ---- the end ----

    /// All clients have gone, and nothing is under way.
    fn check_counts(&mut self) {
        let clients = self.app.connections();
        if clients > 0 {
            self.fail(format!("{clients} clients are counted when all have left"));
        }
        for (name, instance) in self.app.instances().iter() {
            let Some(server) = configs::server_number(name.as_str()) else {
                continue;
            };
            let (counted, alive) = (instance.connections(), self.alive(server));
            if counted != alive {
                self.fail(format!(
                    "server {name} has {alive} connections, and {counted} are counted"
                ));
            }
        }
    }

    /// Nobody waits for a server connection of a pool that has an idle one, but those who are
    /// paused.
    fn look(&mut self) {
        let waits = self.app.instances().iter().any(|(name, instance)| {
            // So many are kept for tenants that hold none (`Queue::find`).
            let kept = configs::server_number(name.as_str()).map_or(0, |at| configs::MOST[at] / 4);
            let mut pools = instance.pools().into_iter();
            pools.any(|(_, counts)| counts.waiting > 0 && counts.idle > kept)
        });
        match waits && self.app.all_paused().is_empty() {
            true => self.idle_looks += 1,
            false => self.idle_looks = 0,
        }
        if self.idle_looks >= LOOKS {
            self.fail("somebody waits while a server connection is idle".to_owned());
        }
        if !self.settling {
            self.after(LOOK * MILLISECOND, Event::Look);
        }
    }

    fn check_limits(&mut self) {
        for (server, most) in configs::MOST.iter().enumerate() {
            let alive = self.alive(server);
            if alive > *most {
                self.fail(format!("server {server} has {alive} connections of {most}"));
            }
        }
    }

    fn give_up(&mut self) {
        let clients = self.clients.iter().enumerate();
        let waiting: Vec<_> = clients
            .filter(|(_, client)| !client.is_over())
            .map(|(number, client)| format!("client {number} {}", client.position()))
            .collect();
        self.fail(format!("waits for ever: {}", waiting.join("; ")));
    }
}

impl Outside for World {
    fn absorb(&mut self) {
        while let Some(conn) = kernel::with(kernel::Kernel::next_dirty) {
            if conn >= self.wires.len() {
                let Some(port) = kernel::with(|kernel| kernel.is_connecting(conn)) else {
                    continue;
                };
                let server = PORTS.iter().position(|known| *known == port);
                let server = server.expect("a server that there is");
                let number = self.backends.len();
                let pid = 1000 + i32::try_from(number).expect("few");
                let secret = u32::try_from(self.random.below(1 << 32)).unwrap_or(0);
                self.add_wire(conn, Owner::Backend(number));
                self.backends
                    .push(Backend::new(server, pid, secret.to_be_bytes()));
                self.backend_conns.push(conn);
                self.statistics.backends += 1;
                let delay = self.latency();
                self.after(delay, Event::Answer(conn));
            }
            let bytes = kernel::with(|kernel| kernel.take(conn));
            self.wires[conn].from_proxy.extend(bytes);
            self.schedule(conn, false);
        }
    }

    fn next(&self) -> Option<u64> {
        self.events.peek().map(|Reverse((at, _, _))| *at)
    }

    fn fire(&mut self) {
        let Some(Reverse((_, _, event))) = self.events.pop() else {
            return;
        };
        self.statistics.events += 1;
        match event {
            Event::ToProxy(conn) => self.reach_proxy(conn),
            Event::FromProxy(conn) => self.leave_proxy(conn),
            Event::Answer(conn) => self.answer(conn),
            Event::Begin(number) => self.begin(number),
            Event::Wake(number) => {
                let mut acts = Vec::new();
                self.clients[number].wake(&mut acts);
                self.act(number, acts);
            }
            Event::BackendWakes(number, version) => {
                let backend = &mut self.backends[number];
                if backend.nap == version && backend.is_asleep() && !backend.dead {
                    let failures = &mut self.servers[backend.server].failures;
                    let reaction = backend.wake(failures);
                    self.react(number, reaction);
                }
            }
            Event::Fault(number) => self.fault(number),
            Event::Look => self.look(),
            Event::Resume => {
                let _ = self.control.send(Control::Resume);
            }
            Event::Drain => {
                self.excuses.drained = true;
                let _ = self.control.send(Control::Drain);
                self.after(20_000 * MILLISECOND, Event::Kill);
            }
            Event::Kill => {
                let _ = self.control.send(Control::Kill);
            }
            Event::Settled => {
                self.check_counts();
                let _ = self.control.send(Control::Close);
            }
            Event::Deadline => self.give_up(),
        }
        self.check_limits();
    }

    fn stall(&mut self) {
        self.fail("nothing happens any more".to_owned());
    }
}
