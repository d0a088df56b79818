//! Two hundred clients of one application for five hundred tenants in all four tiers, on small
//! pools, while clients vanish, statements fail and are cancelled, servers restart and a reload
//! moves tenants from one tier to another. Every row that anybody sees is the chosen tenant's, and
//! after each transaction nobody is chosen.
//!
//! `PGTENANT_CROWD_SECONDS` says for how long (twenty seconds by default), `PGTENANT_CROWD_SEED`
//! where chance begins.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pgtenant::cluster::Shutdown;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, IteratorRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use super::places::{Member, PLACES, Place, Places, Sizes};
use super::{BODIES, extended};
use crate::harness::{Running, assert_no_panics, eventually, in_time};
use crate::wire::{
    Frame, PROTOCOL_3_0, Wire, bind, cancel_request, execute, parse, query, rows, startup, sync,
};

const CLIENTS: u64 = 200;
const SIZES: Sizes = Sizes {
    tenants: [300, 120, 40, 10, 30],
    movers: 3,
};
const LOCAL: &str = "SELECT set_config('app.tenant_id', $1, true)";
/// A row if somebody is chosen.
const WHO: &str =
    "SELECT 'nobody' WHERE coalesce(current_setting('app.tenant_id', true), '') <> ''";
const CANCELED: &str = "57014";

/// What a client may be told instead of its rows: the server is away, full, starting or stopping,
/// or its transaction has failed for such a reason.
const EXCUSES: [&str; 8] = [
    "08006", "57P01", "57P02", "57P03", "53300", "53200", "58000", "25P02",
];

type Key = (i32, Vec<u8>);

/// What the clients have in common.
struct Crowd {
    address: SocketAddr,
    members: Vec<Arc<Member>>,
    stops: AtomicBool,
    right: AtomicU64,
    excused: AtomicU64,
    ended: AtomicU64,
    canceled: AtomicU64,
    /// Cancel keys of clients that have left.
    old_keys: Mutex<Vec<Key>>,
}

/// What a reply must be.
#[derive(Debug, Clone)]
enum Expected {
    /// No error; rows are not looked at.
    Done,
    /// These rows, besides the tenant's name, which `set_config` returns.
    Rows(Vec<String>),
    /// No rows: nobody is chosen.
    Nobody,
    Error(&'static str),
}

/// What is sent, and what each reply must be.
type Asked = Vec<(Vec<u8>, Expected)>;

fn number(name: &str, usual: u64) -> u64 {
    let value = std::env::var(format!("PGTENANT_CROWD_{name}")).ok();
    value.map_or(usual, |text| text.parse().expect("a number"))
}

/// A choice for the transaction, in one of its forms.
fn local_choice(name: &str, rng: &mut StdRng) -> Vec<u8> {
    match rng.random_range(0..3) {
        0 => query(&format!("SET LOCAL app.tenant_id = '{name}'")),
        1 => query(&format!(
            "SELECT set_config('app.tenant_id', '{name}', true)"
        )),
        _ => [extended(LOCAL, &[Some(name)]), sync()].concat(),
    }
}

/// A request in which something fails.
fn failing(name: &str, own: Expected, local: (Vec<u8>, Expected), rng: &mut StdRng) -> Asked {
    use Expected::{Done, Error};
    let say = |sql: &str, expected: Expected| (query(sql), expected);
    let begin = say("BEGIN", Done);
    match rng.random_range(0..4) {
        0 => vec![
            begin,
            local,
            say("SAVEPOINT s", Done),
            say("SELECT 1/0", Error("22012")),
            say("ROLLBACK TO s", Done),
            say(BODIES, own),
            say("ROLLBACK", Done),
        ],
        1 => vec![
            begin,
            local,
            say("SELECT nonsense FROM nowhere", Error("42P01")),
            say(BODIES, Error("25P02")),
            say("COMMIT", Done),
        ],
        // A session's choice that its transaction takes back.
        2 => vec![
            begin,
            say(&format!("SET app.tenant_id = '{name}'"), Done),
            say(BODIES, own),
            say("SELECT 1/0", Error("22012")),
            say("COMMIT", Done),
        ],
        _ => vec![
            begin,
            say("SET LOCAL app.tenant_id = 'nobody'", Error("42501")),
            say(BODIES, Error("25P02")),
            say("ROLLBACK", Done),
            say("RESET app.tenant_id", Done),
        ],
    }
}

/// One request, as an application makes it, and a look at what is chosen after it.
fn request(member: &Member, rng: &mut StdRng) -> Asked {
    use Expected::{Done, Nobody, Rows};
    let name = &member.name;
    let own = Rows(member.bodies.clone());
    let say = |sql: &str, expected: Expected| (query(sql), expected);
    let local = (local_choice(name, rng), Done);
    let begin = say("BEGIN", Done);
    let id = rng.random_range(1000..i32::MAX);
    let body = format!("{name} new {id}");
    let insert = format!("INSERT INTO items (id, body) VALUES ({id}, '{body}') RETURNING body");
    let mut asked = match rng.random_range(0..10) {
        0 => vec![
            say(&format!("SET app.tenant_id = '{name}'"), Done),
            say(BODIES, own.clone()),
            say(BODIES, own),
            say("RESET app.tenant_id", Done),
        ],
        1 => vec![say(
            &format!("BEGIN; SET LOCAL app.tenant_id = '{name}'; {BODIES}; COMMIT"),
            own,
        )],
        2 => vec![(
            [
                extended(LOCAL, &[Some(name)]),
                extended(BODIES, &[]),
                sync(),
            ]
            .concat(),
            own,
        )],
        3 => vec![
            say("BEGIN ISOLATION LEVEL REPEATABLE READ", Done),
            local,
            (
                [parse("", BODIES), bind("", "", &[]), execute("", 0), sync()].concat(),
                own,
            ),
            say("COMMIT", Done),
        ],
        8 => vec![
            begin,
            local,
            say(&insert, Rows(vec![body])),
            say(["COMMIT", "ROLLBACK"].choose(rng).expect("one"), Done),
        ],
        4..=7 => failing(name, own, local, rng),
        _ => vec![begin, local, say(BODIES, own), say("COMMIT", Done)],
    };
    let look = format!("{BODIES}; {WHO}");
    asked.push((query(&look), Nobody));
    asked
}

/// Frames up to a ReadyForQuery; none if the connection ended.
async fn answer(wire: &mut Wire) -> Option<Vec<Frame>> {
    let mut frames = Vec::new();
    loop {
        let frame = in_time("an answer", wire.frame()).await?;
        let ends = frame.tag == b'Z';
        frames.push(frame);
        if ends {
            return Some(frames);
        }
    }
}

fn code(frames: &[Frame]) -> Option<String> {
    let error = frames.iter().find(|frame| frame.tag == b'E');
    error.map(Frame::sqlstate)
}

impl Crowd {
    /// Judges a reply. Returns whether it was an excuse.
    fn judge(&self, member: &Member, frames: &[Frame], expected: &Expected, excused: bool) -> bool {
        let mut seen = rows(frames);
        seen.retain(|row| *row != member.name);
        let foreign = |row: &&String| !row.starts_with(&format!("{} ", member.name));
        let looks = !matches!(expected, Expected::Done);
        assert_eq!(
            seen.iter().find(|row| looks && foreign(row)),
            None,
            "{} {expected:?}: a row of another",
            member.name
        );
        match (code(frames), expected) {
            (None, Expected::Done) => {}
            (None, Expected::Nobody) => assert_eq!(seen, [""; 0], "{}: chosen", member.name),
            (None, Expected::Rows(_)) if seen.is_empty() && excused => {}
            (None, Expected::Rows(own)) => assert_eq!(seen, *own, "{}", member.name),
            (Some(code), Expected::Error(own)) if code == *own => {}
            (None, Expected::Error(_)) if excused => {}
            (Some(code), _) if EXCUSES.contains(&&*code) => {
                self.excused.fetch_add(1, Relaxed);
                return true;
            }
            (Some(_), _) => panic!("{} {expected:?}: {:?}", member.name, details(frames)),
            (None, Expected::Error(code)) => panic!("{}: no error {code}", member.name),
        }
        self.right.fetch_add(1, Relaxed);
        excused
    }

    /// Any tenant, and often one that is moved.
    fn member(&self, rng: &mut StdRng) -> Arc<Member> {
        let moves = rng.random_bool(0.2);
        let found = self.members.iter().filter(|own| own.moves || !moves);
        found.choose(rng).expect("one").clone()
    }

    /// Makes one request. None: the connection has ended, or is left in the middle.
    async fn ask(&self, wire: &mut Wire, rng: &mut StdRng) -> Option<()> {
        let member = self.member(rng);
        let mut asked = request(&member, rng);
        let leaves_at = rng
            .random_bool(0.03)
            .then(|| rng.random_range(0..asked.len()));
        // Some say all of it at once.
        if rng.random_bool(0.2) {
            let all: Vec<_> = asked.iter().map(|(bytes, _)| &**bytes).collect();
            wire.try_send(&all.concat()).await.ok()?;
            asked.iter_mut().for_each(|(bytes, _)| bytes.clear());
        }
        let mut excused = false;
        for (at, (bytes, expected)) in asked.iter().enumerate() {
            if leaves_at == Some(at) {
                // In the middle of a message.
                let half = rng.random_range(0..=bytes.len());
                let _ = wire.try_send(&bytes[..half]).await;
                return None;
            }
            wire.try_send(bytes).await.ok()?;
            let frames = answer(wire).await?;
            excused = self.judge(&member, &frames, expected, excused);
        }
        if excused {
            self.put_right(wire, &member).await?;
        }
        Some(())
    }

    /// After an excuse in the middle: nothing is left of it.
    async fn put_right(&self, wire: &mut Wire, member: &Member) -> Option<()> {
        for sql in ["ROLLBACK", "RESET app.tenant_id", BODIES] {
            wire.try_send(&query(sql)).await.ok()?;
            let frames = answer(wire).await?;
            self.judge(member, &frames, &Expected::Nobody, true);
        }
        Some(())
    }

    /// Asks for what takes long, and cancels it, in the tenant's context.
    async fn cancel_own(&self, wire: &mut Wire, rng: &mut StdRng) -> Option<()> {
        let member = self.member(rng);
        let name = &member.name;
        let text =
            format!("BEGIN; SET LOCAL app.tenant_id = '{name}'; {BODIES}; SELECT pg_sleep(30)");
        wire.try_send(&query(&text)).await.ok()?;
        let mut frames = Vec::new();
        // A cancel that comes before the statement runs ends nothing.
        let frames = loop {
            tokio::time::sleep(Duration::from_millis(rng.random_range(5..60))).await;
            send_cancel(self.address, &wire.key).await;
            match tokio::time::timeout(Duration::from_millis(300), wire.frame()).await {
                Ok(Some(frame)) if frame.tag == b'Z' => break frames,
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => return None,
                Err(_) => {}
            }
            while let Ok(frame) =
                tokio::time::timeout(Duration::from_millis(30), wire.frame()).await
            {
                frames.push(frame?);
                if frames.last().is_some_and(|frame| frame.tag == b'Z') {
                    break;
                }
            }
            if frames.last().is_some_and(|frame| frame.tag == b'Z') {
                break frames;
            }
        };
        match code(&frames) {
            Some(code) if code == CANCELED => _ = self.canceled.fetch_add(1, Relaxed),
            _ => _ = self.judge(&member, &frames, &Expected::Error(CANCELED), false),
        }
        let foreign = |row: &&String| !row.starts_with(&format!("{name} "));
        assert_eq!(rows(&frames).iter().find(foreign), None, "{name}");
        self.put_right(wire, &member).await
    }

    /// Cancels by a key of nobody who is there.
    async fn cancel_nobody(&self, own: &Key, rng: &mut StdRng) {
        let old = {
            let keys = self.old_keys.lock();
            keys.unwrap_or_else(PoisonError::into_inner)
                .choose(rng)
                .cloned()
        };
        let mut forged = own.clone();
        let at = rng.random_range(0..forged.1.len());
        forged.1[at] ^= 1 << rng.random_range(0..8);
        for key in old.iter().chain([&forged]) {
            send_cancel(self.address, key).await;
        }
    }

    async fn client(self: Arc<Self>, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        while !self.stops.load(Relaxed) {
            let Some(mut wire) = log_in(self.address).await else {
                tokio::time::sleep(Duration::from_millis(rng.random_range(20..200))).await;
                continue;
            };
            while !self.stops.load(Relaxed) {
                let goes_on = match rng.random_range(0..60) {
                    0 => self.cancel_own(&mut wire, &mut rng).await,
                    1 => {
                        self.cancel_nobody(&wire.key, &mut rng).await;
                        Some(())
                    }
                    _ => self.ask(&mut wire, &mut rng).await,
                };
                if goes_on.is_none() {
                    self.ended.fetch_add(1, Relaxed);
                    break;
                }
            }
            let keys = self.old_keys.lock();
            keys.unwrap_or_else(PoisonError::into_inner)
                .push(wire.key.clone());
        }
    }
}

fn details(frames: &[Frame]) -> Vec<(String, Option<String>, Option<String>)> {
    let errors = frames.iter().filter(|frame| frame.tag == b'E');
    errors
        .map(|frame| (frame.sqlstate(), frame.field(b'M'), frame.field(b'D')))
        .collect()
}

async fn send_cancel(address: SocketAddr, key: &Key) {
    let mut wire = Wire::tcp(address).await;
    if wire.try_send(&cancel_request(key)).await.is_ok() {
        wire.rest().await;
    }
}

/// None: it is refused for an excuse.
async fn log_in(address: SocketAddr) -> Option<Wire> {
    let tcp = tokio::net::TcpStream::connect(address).await.ok()?;
    tcp.set_nodelay(true).ok()?;
    let mut wire = Wire::over(tcp);
    let hello = startup(PROTOCOL_3_0, &[("user", "web")]);
    wire.try_send(&hello).await.ok()?;
    let login = wire.try_authenticate("web-secret", None);
    match in_time("a login", login).await.ok()? {
        Ok(()) => Some(wire),
        Err(refused) => {
            let code = refused.sqlstate();
            assert!(
                EXCUSES.contains(&&*code),
                "{code} {:?}",
                refused.field(b'M')
            );
            None
        }
    }
}

/// Moves tenants from place to place, and restarts each server twice.
async fn disturb(places: &Places, proxy: &Running, until: Instant, rng: &mut StdRng) -> usize {
    let began = Instant::now();
    let lasts = until - began;
    let mut restarts = [1, 2, 3, 4].map(|n| (n, began + lasts * n / 5)).to_vec();
    let mut reloads = 0;
    while Instant::now() < until {
        let mut now: Vec<_> = PLACES.into();
        now.shuffle(rng);
        let turn = |member: &Member| match member.moves {
            true => now[member.name.bytes().map(usize::from).sum::<usize>() % now.len()],
            false => member.place,
        };
        proxy.reload(&places.yaml(&turn));
        reloads += 1;
        let movers: Vec<_> = places.members.iter().filter(|own| own.moves).collect();
        let moved = movers.choose(rng).expect("one");
        assert_is_served(proxy, moved, turn(moved)).await;
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..600))).await;
        if restarts.first().is_some_and(|(_, at)| Instant::now() > *at) {
            let (number, _) = restarts.remove(0);
            let cluster = match number % 2 {
                0 => &places.silo,
                _ => &places.shared,
            };
            let how = match number {
                1 | 2 => Shutdown::Immediate,
                _ => Shutdown::Kill,
            };
            cluster.shut_down(how).await.expect("ends");
            tokio::time::sleep(Duration::from_millis(200)).await;
            cluster.start_again().await.expect("starts");
        }
    }
    reloads
}

/// No row has come to be another's, by what the servers have.
async fn assert_no_row_is_anothers(places: &Places) {
    let foreign = "SELECT tenant || ': ' || body FROM items WHERE body NOT LIKE tenant || ' %'";
    for place in [Place::Guarded, Place::Sealed, Place::Instance] {
        let cluster = match place {
            Place::Instance => &places.silo,
            _ => &places.shared,
        };
        let client = cluster
            .connect(&place.database(""))
            .await
            .expect("connects");
        let found = client.query(foreign, &[]).await.expect("rows");
        let found: Vec<String> = found.iter().map(|row| row.get(0)).collect();
        assert_eq!(found, [""; 0], "{place:?}");
    }
}

/// A tenant is served in this place.
async fn assert_is_served(proxy: &Running, member: &Member, place: Place) {
    let text = format!(
        "BEGIN; SET LOCAL app.tenant_id = '{}'; {BODIES}; SELECT current_database(); COMMIT",
        member.name
    );
    let mut expected = member.bodies.clone();
    expected.push(place.database(&member.name));
    eventually(&format!("{} is served", member.name), async || {
        let Some(mut wire) = log_in(proxy.address).await else {
            return false;
        };
        if wire.try_send(&query(&text)).await.is_err() {
            return false;
        }
        let frames = answer(&mut wire).await.unwrap_or_default();
        let seen = rows(&frames);
        let excuse = code(&frames).is_some_and(|code| EXCUSES.contains(&&*code));
        assert!(
            seen == expected || excuse || frames.is_empty(),
            "{}: {seen:?} {:?}",
            member.name,
            details(&frames)
        );
        seen == expected
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_sees_no_row_but_those_of_the_tenant_it_chose() {
    let mut places = Places::make("crowd", &SIZES).await;
    places.sections = "timeouts: { checkout: 8s, connect: 3s }\n\
                       limits: { clients: 1000, logins: 100 }"
        .to_owned();
    let proxy = places.start();
    let crowd = Arc::new(Crowd {
        address: proxy.address,
        members: places.members.clone(),
        stops: AtomicBool::new(false),
        right: AtomicU64::new(0),
        excused: AtomicU64::new(0),
        ended: AtomicU64::new(0),
        canceled: AtomicU64::new(0),
        old_keys: Mutex::default(),
    });
    let seed = number("SEED", 1);
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        clients.spawn(crowd.clone().client(seed * 1000 + number));
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let until = Instant::now() + Duration::from_secs(number("SECONDS", 20));
    let reloads = disturb(&places, &proxy, until, &mut rng).await;
    crowd.stops.store(true, Relaxed);
    while let Some(done) = clients.join_next().await {
        done.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    proxy.reload(&places.yaml(&|member| member.place));
    for member in &places.members {
        assert_is_served(&proxy, member, member.place).await;
    }
    assert_no_row_is_anothers(&places).await;
    assert_no_panics();
    let counts = [&crowd.right, &crowd.excused, &crowd.ended, &crowd.canceled];
    let [right, excused, ended, canceled] = counts.map(|count| count.load(Relaxed));
    println!(
        "{right} replies were right, {excused} told why there was none, {ended} connections ended, \
         {canceled} statements were cancelled, {reloads} reloads"
    );
    assert!(right > 2000 && right > 2 * excused, "{right} {excused}");
    assert!(ended > 20 && canceled > 5, "{ended} {canceled}");
}
