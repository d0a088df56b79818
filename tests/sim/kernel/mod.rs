//! The operating system of a simulated thread: its clock, its random numbers, its sockets and its
//! epolls.
//!
//! The proxy runs as it is. Its runtime, `std` and the crates below them call the C library, and
//! [`symbols`] takes the place of the functions of it that a data plane needs. On a thread that has
//! a kernel of its own they end here; on all other threads they are passed on to Linux.
//!
//! Time stands still while the proxy has something to do. When its runtime waits in `epoll_wait`,
//! the [`Outside`] world is asked for what happens next, and the clock jumps there.

mod symbols;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use libc::{
    EADDRINUSE, EAGAIN, EBADF, ECONNREFUSED, ECONNRESET, EEXIST, EINPROGRESS, EINVAL, ENOENT,
    ENOTCONN, EPIPE,
};

/// Descriptors from here on are of a kernel of ours.
const BASE: i32 = 1 << 28;
/// Bytes that a socket takes while its other end does not read.
const ROOM: usize = 64 * 1024;
/// What the clock begins with, in nanoseconds: none of the times that are subtracted from it may be
/// before zero.
const BEGINNING: u64 = 1_000_000_000_000;
/// What is added to the clock of the world, in seconds of Unix time.
const EPOCH: u64 = 1_800_000_000;

thread_local! {
    static KERNEL: RefCell<Option<Kernel>> = const { RefCell::new(None) };
    static OUTSIDE: RefCell<Option<Rc<RefCell<dyn Outside>>>> = const { RefCell::new(None) };
    static IS_SIMULATED: Cell<bool> = const { Cell::new(false) };
    static NOW: Cell<u64> = const { Cell::new(0) };
    static RANDOM: Cell<u64> = const { Cell::new(0) };
}

/// The number of a connection, by which the world outside knows it.
pub type Conn = usize;

/// What is outside of the proxy: clients, servers, and the network between.
pub trait Outside {
    /// Takes over what the proxy has sent since.
    fn absorb(&mut self);
    /// When something happens next, in nanoseconds of [`now`].
    fn next(&self) -> Option<u64>;
    /// Lets it happen.
    fn fire(&mut self);
    /// Nothing happens any more, and the proxy waits for ever.
    fn stall(&mut self);
}

/// Nanoseconds since the beginning of the clock.
pub fn now() -> u64 {
    NOW.get()
}

/// The next of the numbers that a state gives (SplitMix64).
pub fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The calling thread has a kernel of its own from now on, until what is returned is dropped.
pub fn install(seed: u64) -> Installed {
    NOW.set(BEGINNING);
    RANDOM.set(seed);
    KERNEL.set(Some(Kernel::default()));
    IS_SIMULATED.set(true);
    Installed
}

/// The world outside of the calling thread's kernel.
pub fn set_outside(outside: Option<Rc<RefCell<dyn Outside>>>) {
    OUTSIDE.set(outside);
}

pub struct Installed;

impl Drop for Installed {
    fn drop(&mut self) {
        IS_SIMULATED.set(false);
        OUTSIDE.set(None);
        KERNEL.set(None);
    }
}

/// What `does` with the kernel of the calling thread.
pub fn with<T>(does: impl FnOnce(&mut Kernel) -> T) -> T {
    KERNEL.with_borrow_mut(|kernel| does(kernel.as_mut().expect("a kernel")))
}

/// A call's result, or the number of its error.
type Result<T> = std::result::Result<T, i32>;

#[derive(Default)]
pub struct Kernel {
    /// By descriptor: the node it is of.
    descriptors: Vec<Option<usize>>,
    nodes: Vec<Node>,
    conns: Vec<usize>,
    /// Connections on which the proxy did something.
    dirty: VecDeque<Conn>,
}

#[derive(Default)]
struct Node {
    kind: Kind,
    references: usize,
    watchers: Vec<Watcher>,
}

#[derive(Default)]
enum Kind {
    #[default]
    Gone,
    /// Not yet connected, nor listening. Its port, once it is bound.
    New(u16),
    Listener(u16, VecDeque<Conn>),
    Socket(Socket),
    Event(u64),
    Epoll(VecDeque<(usize, i32)>),
}

/// The proxy's end of a connection.
#[derive(Default)]
pub struct Socket {
    conn: Conn,
    port: u16,
    state: State,
    inbox: VecDeque<u8>,
    /// The other end says nothing more.
    ended: bool,
    /// The other end is gone, and what is written is lost.
    reset: bool,
    outbox: Vec<u8>,
    /// The proxy says nothing more.
    pub shut: bool,
    /// The proxy has closed it.
    pub closed: bool,
    /// It had not read all when it closed.
    pub closed_unread: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum State {
    #[default]
    Connected,
    Connecting,
    Refused,
}

struct Watcher {
    epoll: usize,
    descriptor: i32,
    events: u32,
    data: u64,
    queued: bool,
}

const IN: u32 = libc::EPOLLIN as u32;
const OUT: u32 = libc::EPOLLOUT as u32;
const HUP: u32 = libc::EPOLLHUP as u32;
const RDHUP: u32 = libc::EPOLLRDHUP as u32;
const ERR: u32 = libc::EPOLLERR as u32;
const ET: u32 = libc::EPOLLET as u32;

impl Kernel {
    // ---- for the world outside ----

    /// Connects to a port on which the proxy listens. None: it does not.
    pub fn connect_to(&mut self, port: u16) -> Option<Conn> {
        let listener = self
            .nodes
            .iter()
            .position(|node| matches!(node.kind, Kind::Listener(known, _) if known == port))?;
        let conn = self.conns.len();
        self.add_node(Kind::Socket(Socket {
            conn,
            port,
            ..Socket::default()
        }));
        if let Kind::Listener(_, backlog) = &mut self.nodes[listener].kind {
            backlog.push_back(conn);
        }
        self.tell(listener);
        Some(conn)
    }

    /// Answers a connection that the proxy makes.
    pub fn answer(&mut self, conn: Conn, accepted: bool) {
        let socket = self.socket(conn);
        socket.state = match accepted {
            true => State::Connected,
            false => State::Refused,
        };
        self.tell(self.conns[conn]);
    }

    /// What the other end said has come.
    pub fn deliver(&mut self, conn: Conn, bytes: &[u8]) {
        self.socket(conn).inbox.extend(bytes);
        self.tell(self.conns[conn]);
    }

    /// The other end says nothing more.
    pub fn end(&mut self, conn: Conn) {
        self.socket(conn).ended = true;
        self.tell(self.conns[conn]);
    }

    /// The other end is gone.
    pub fn reset(&mut self, conn: Conn) {
        let socket = self.socket(conn);
        socket.reset = true;
        socket.inbox.clear();
        self.tell(self.conns[conn]);
    }

    pub fn socket(&mut self, conn: Conn) -> &mut Socket {
        match &mut self.nodes[self.conns[conn]].kind {
            Kind::Socket(socket) => socket,
            _ => unreachable!("a connection is a socket"),
        }
    }

    /// Takes what the proxy has sent.
    pub fn take(&mut self, conn: Conn) -> Vec<u8> {
        let socket = self.socket(conn);
        let was_full = socket.outbox.len() >= ROOM;
        let bytes = std::mem::take(&mut socket.outbox);
        if was_full {
            self.tell(self.conns[conn]);
        }
        bytes
    }

    /// A connection on which the proxy did something since it was last told.
    pub fn next_dirty(&mut self) -> Option<Conn> {
        self.dirty.pop_front()
    }

    /// Descriptors that the proxy has open.
    pub fn open_sockets(&self) -> usize {
        let open = self.nodes.iter().filter(|node| node.references > 0);
        open.filter(|node| matches!(node.kind, Kind::Socket(_)))
            .count()
    }

    // ---- nodes ----

    fn add_node(&mut self, kind: Kind) -> usize {
        let node = self.nodes.len();
        if let Kind::Socket(_) = &kind {
            self.conns.push(node);
        }
        self.nodes.push(Node {
            kind,
            ..Node::default()
        });
        node
    }

    /// The lowest free descriptor, as Linux gives it.
    fn open(&mut self, node: usize) -> i32 {
        self.nodes[node].references += 1;
        let free = self.descriptors.iter().position(Option::is_none);
        let place = free.unwrap_or(self.descriptors.len());
        if place == self.descriptors.len() {
            self.descriptors.push(None);
        }
        self.descriptors[place] = Some(node);
        BASE + i32::try_from(place).expect("few descriptors")
    }

    fn node(&self, descriptor: i32) -> Result<usize> {
        let place = usize::try_from(descriptor - BASE).map_err(|_| EBADF)?;
        self.descriptors.get(place).copied().flatten().ok_or(EBADF)
    }

    fn socket_of(&mut self, descriptor: i32) -> Result<&mut Socket> {
        let node = self.node(descriptor)?;
        match &mut self.nodes[node].kind {
            Kind::Socket(socket) => Ok(socket),
            _ => Err(ENOTCONN),
        }
    }

    fn soil(&mut self, conn: Conn) {
        if self.dirty.back() != Some(&conn) {
            self.dirty.push_back(conn);
        }
    }

    /// What a node is ready for.
    fn readiness(&self, node: usize) -> u32 {
        match &self.nodes[node].kind {
            Kind::Listener(_, backlog) if !backlog.is_empty() => IN,
            Kind::Event(count) => OUT | if *count > 0 { IN } else { 0 },
            Kind::Epoll(queue) if !queue.is_empty() => IN,
            Kind::Socket(socket) => match socket.state {
                State::Connecting => 0,
                State::Refused => IN | OUT | HUP | ERR | RDHUP,
                State::Connected => {
                    let mut ready = 0;
                    if !socket.inbox.is_empty() || socket.ended || socket.reset {
                        ready |= IN;
                    }
                    if socket.outbox.len() < ROOM || socket.reset {
                        ready |= OUT;
                    }
                    if socket.ended || socket.reset {
                        ready |= RDHUP;
                    }
                    if socket.reset {
                        ready |= HUP | ERR;
                    }
                    ready
                }
            },
            _ => 0,
        }
    }

    /// Something of a node has changed: whoever watches it is told.
    fn tell(&mut self, node: usize) {
        let ready = self.readiness(node);
        let mut told = Vec::new();
        for watcher in &mut self.nodes[node].watchers {
            let interest = watcher.events | HUP | ERR;
            if !watcher.queued && ready & interest != 0 {
                watcher.queued = true;
                told.push((watcher.epoll, watcher.descriptor));
            }
        }
        for (epoll, descriptor) in told {
            if let Kind::Epoll(queue) = &mut self.nodes[epoll].kind {
                queue.push_back((node, descriptor));
            }
            self.tell(epoll);
        }
    }

    // ---- system calls ----

    fn epoll_create(&mut self) -> i32 {
        let node = self.add_node(Kind::Epoll(VecDeque::new()));
        self.open(node)
    }

    fn eventfd(&mut self, count: u64) -> i32 {
        let node = self.add_node(Kind::Event(count));
        self.open(node)
    }

    fn new_socket(&mut self) -> i32 {
        let node = self.add_node(Kind::New(0));
        self.open(node)
    }

    fn epoll_ctl(
        &mut self,
        epoll: i32,
        call: i32,
        descriptor: i32,
        event: (u32, u64),
    ) -> Result<i32> {
        let epoll = self.node(epoll)?;
        if descriptor < BASE {
            // What is of the process, and not of the simulation: the signals of tokio.
            return Ok(0);
        }
        let node = self.node(descriptor)?;
        let watchers = &mut self.nodes[node].watchers;
        let known = watchers
            .iter()
            .position(|w| w.epoll == epoll && w.descriptor == descriptor);
        match (call, known) {
            (libc::EPOLL_CTL_ADD, Some(_)) => return Err(EEXIST),
            (libc::EPOLL_CTL_ADD, None) => watchers.push(Watcher {
                epoll,
                descriptor,
                events: event.0,
                data: event.1,
                queued: false,
            }),
            (_, None) => return Err(ENOENT),
            (libc::EPOLL_CTL_DEL, Some(at)) => {
                watchers.remove(at);
                self.unqueue(epoll, node, descriptor);
                return Ok(0);
            }
            (_, Some(at)) => {
                watchers[at].events = event.0;
                watchers[at].data = event.1;
            }
        }
        self.tell(node);
        Ok(0)
    }

    fn unqueue(&mut self, epoll: usize, node: usize, descriptor: i32) {
        if let Kind::Epoll(queue) = &mut self.nodes[epoll].kind {
            queue.retain(|queued| *queued != (node, descriptor));
        }
    }

    /// Takes what is ready, at most `most`.
    fn collect(&mut self, epoll: i32, most: usize) -> Result<Vec<(u32, u64)>> {
        let epoll = self.node(epoll)?;
        let mut events = Vec::new();
        let mut again = Vec::new();
        while events.len() < most {
            let Kind::Epoll(queue) = &mut self.nodes[epoll].kind else {
                return Err(EINVAL);
            };
            let Some((node, descriptor)) = queue.pop_front() else {
                break;
            };
            let ready = self.readiness(node);
            let watchers = &mut self.nodes[node].watchers;
            let Some(watcher) = watchers
                .iter_mut()
                .find(|w| w.epoll == epoll && w.descriptor == descriptor)
            else {
                continue;
            };
            watcher.queued = false;
            let told = ready & (watcher.events | HUP | ERR);
            if told == 0 {
                continue;
            }
            events.push((told, watcher.data));
            if watcher.events & ET == 0 {
                watcher.queued = true;
                again.push((node, descriptor));
            }
        }
        if let Kind::Epoll(queue) = &mut self.nodes[epoll].kind {
            queue.extend(again);
        }
        Ok(events)
    }

    fn bind(&mut self, descriptor: i32, port: u16) -> Result<i32> {
        let node = self.node(descriptor)?;
        let taken = |node: &Node| matches!(node.kind, Kind::Listener(known, _) if known == port);
        if port != 0 && self.nodes.iter().any(taken) {
            return Err(EADDRINUSE);
        }
        self.nodes[node].kind = Kind::New(port);
        Ok(0)
    }

    fn listen(&mut self, descriptor: i32) -> Result<i32> {
        let node = self.node(descriptor)?;
        let Kind::New(port) = self.nodes[node].kind else {
            return Err(EINVAL);
        };
        self.nodes[node].kind = Kind::Listener(port, VecDeque::new());
        Ok(0)
    }

    fn accept(&mut self, descriptor: i32) -> Result<(i32, u16)> {
        let node = self.node(descriptor)?;
        let Kind::Listener(_, backlog) = &mut self.nodes[node].kind else {
            return Err(EINVAL);
        };
        let conn = backlog.pop_front().ok_or(EAGAIN)?;
        Ok((self.open(self.conns[conn]), client_port(conn)))
    }

    fn connect(&mut self, descriptor: i32, port: u16) -> Result<i32> {
        let node = self.node(descriptor)?;
        let conn = self.conns.len();
        self.conns.push(node);
        self.nodes[node].kind = Kind::Socket(Socket {
            conn,
            port,
            state: State::Connecting,
            ..Socket::default()
        });
        self.soil(conn);
        Err(EINPROGRESS)
    }

    /// Of a connection that the proxy makes, and of which nobody was told: the port that it is to.
    pub fn is_connecting(&mut self, conn: Conn) -> Option<u16> {
        let socket = self.socket(conn);
        (socket.state == State::Connecting).then_some(socket.port)
    }

    fn take_error(&mut self, descriptor: i32) -> i32 {
        match self.socket_of(descriptor) {
            Ok(socket) if socket.state == State::Refused => ECONNREFUSED,
            _ => 0,
        }
    }

    fn read(&mut self, descriptor: i32, buffer: &mut [u8], peek: bool) -> Result<usize> {
        let node = self.node(descriptor)?;
        let socket = match &mut self.nodes[node].kind {
            Kind::Event(count) => {
                if *count == 0 {
                    return Err(EAGAIN);
                }
                let value = std::mem::take(count).to_ne_bytes();
                buffer[..8].copy_from_slice(&value);
                return Ok(8);
            }
            Kind::Socket(socket) => socket,
            _ => return Err(ENOTCONN),
        };
        if socket.state != State::Connected {
            return Err(ENOTCONN);
        }
        if socket.reset {
            return Err(ECONNRESET);
        }
        let length = buffer.len().min(socket.inbox.len());
        if length == 0 && !buffer.is_empty() {
            return match socket.ended {
                true => Ok(0),
                false => Err(EAGAIN),
            };
        }
        for (to, from) in buffer.iter_mut().zip(&socket.inbox) {
            *to = *from;
        }
        if !peek {
            socket.inbox.drain(..length);
        }
        Ok(length)
    }

    fn write(&mut self, descriptor: i32, bytes: &[u8]) -> Result<usize> {
        let node = self.node(descriptor)?;
        let socket = match &mut self.nodes[node].kind {
            Kind::Event(count) => {
                let value = bytes
                    .first_chunk()
                    .map_or(1, |value| u64::from_ne_bytes(*value));
                *count += value;
                self.tell(node);
                return Ok(bytes.len());
            }
            Kind::Socket(socket) => socket,
            _ => return Err(ENOTCONN),
        };
        if socket.state != State::Connected {
            return Err(ENOTCONN);
        }
        if socket.reset || socket.shut {
            return Err(EPIPE);
        }
        let length = bytes.len().min(ROOM.saturating_sub(socket.outbox.len()));
        if length == 0 && !bytes.is_empty() {
            return Err(EAGAIN);
        }
        socket.outbox.extend_from_slice(&bytes[..length]);
        let conn = socket.conn;
        self.soil(conn);
        Ok(length)
    }

    fn shutdown(&mut self, descriptor: i32, how: i32) -> Result<i32> {
        let socket = self.socket_of(descriptor)?;
        if socket.state != State::Connected {
            return Err(ENOTCONN);
        }
        if how != libc::SHUT_RD {
            socket.shut = true;
        }
        if how != libc::SHUT_WR {
            socket.ended = true;
        }
        let conn = socket.conn;
        self.soil(conn);
        let node = self.node(descriptor)?;
        self.tell(node);
        Ok(0)
    }

    fn duplicate(&mut self, descriptor: i32) -> Result<i32> {
        let node = self.node(descriptor)?;
        Ok(self.open(node))
    }

    fn close(&mut self, descriptor: i32) -> Result<i32> {
        let node = self.node(descriptor)?;
        self.descriptors[usize::try_from(descriptor - BASE).map_err(|_| EBADF)?] = None;
        self.nodes[node].references -= 1;
        if self.nodes[node].references > 0 {
            return Ok(0);
        }
        for watcher in std::mem::take(&mut self.nodes[node].watchers) {
            self.unqueue(watcher.epoll, node, watcher.descriptor);
        }
        match &mut self.nodes[node].kind {
            Kind::Socket(socket) => {
                socket.closed = true;
                socket.closed_unread = !socket.inbox.is_empty();
                let conn = socket.conn;
                self.soil(conn);
            }
            Kind::Listener(_, backlog) => {
                for conn in std::mem::take(backlog) {
                    let socket = self.socket(conn);
                    socket.closed = true;
                    socket.closed_unread = true;
                    self.soil(conn);
                }
                self.nodes[node].kind = Kind::Gone;
            }
            kind => *kind = Kind::Gone,
        }
        Ok(0)
    }

    fn port_of(&self, descriptor: i32, peer: bool) -> Result<u16> {
        let node = self.node(descriptor)?;
        match &self.nodes[node].kind {
            Kind::New(port) | Kind::Listener(port, _) => Ok(*port),
            Kind::Socket(socket) if peer => Ok(client_port(socket.conn)),
            Kind::Socket(socket) => Ok(socket.port),
            _ => Err(ENOTCONN),
        }
    }
}

fn client_port(conn: Conn) -> u16 {
    u16::try_from(20_000 + conn % 40_000).unwrap_or(20_000)
}

/// Waits for what is ready, while the world outside goes on.
fn wait(epoll: i32, most: usize, timeout: i32) -> Result<Vec<(u32, u64)>> {
    // No two looks are at the same time.
    NOW.set(NOW.get() + 1_000);
    let deadline = u64::try_from(timeout)
        .ok()
        .map(|ms| NOW.get() + ms * 1_000_000);
    loop {
        let outside = OUTSIDE.with_borrow(Clone::clone);
        if let Some(outside) = &outside {
            let mut outside = outside.borrow_mut();
            outside.absorb();
            // The network goes on while the proxy has much to do.
            while outside.next().is_some_and(|next| next <= NOW.get()) {
                outside.fire();
                outside.absorb();
            }
        }
        let events = with(|kernel| kernel.collect(epoll, most))?;
        if !events.is_empty() || timeout == 0 {
            return Ok(events);
        }
        let next = outside.as_ref().and_then(|outside| outside.borrow().next());
        match (next, deadline) {
            (Some(next), deadline) if deadline.is_none_or(|deadline| next <= deadline) => {
                NOW.set(next.max(NOW.get()));
                if let Some(outside) = outside {
                    outside.borrow_mut().fire();
                }
            }
            (_, Some(deadline)) => {
                NOW.set(deadline);
                return Ok(Vec::new());
            }
            (_, None) => match outside {
                Some(outside) => outside.borrow_mut().stall(),
                None => panic!("nothing can happen any more"),
            },
        }
    }
}
