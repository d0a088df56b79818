//! A server that says what nobody is owed: its connection is closed, and nobody is told another's
//! answer.

#![allow(clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pgtenant::control::door::{self, Door};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use deadpool_postgres::Connect;

use crate::harness::{
    POOLINGS, Running, SECRET, assert_no_panics, in_time, parse as parse_config, tenant, world,
};
use crate::wire::{Frame, Wire, bind, execute, message, parse, query, sync};

/// When the server says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    /// Ahead of the answer.
    Before,
    /// Behind the first row of it.
    Inside,
    /// Behind its ReadyForQuery, in one write.
    With,
    /// A moment later.
    Late,
}

const ALL: [When; 4] = [When::Before, When::Inside, When::With, When::Late];

/// How long is late.
const MOMENT: Duration = Duration::from_millis(20);

fn row(value: &str) -> Vec<u8> {
    let length = u32::try_from(value.len()).expect("short").to_be_bytes();
    message(b'D', &[&[0, 1], &length, value.as_bytes()])
}

fn error(severity: &str) -> Vec<u8> {
    let fields = format!("S{severity}\0V{severity}\0CXX000\0Mstray\0\0");
    message(b'E', &[fields.as_bytes()])
}

/// What it says that nobody is owed, by name.
fn stray(name: &str) -> Vec<u8> {
    let ready = message(b'Z', &[b"I"]);
    let complete = message(b'C', &[b"SELECT 1\0"]);
    let columns = message(
        b'T',
        &[b"\0\x01body\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0"],
    );
    match name {
        "ready" => ready,
        "in-transaction" => message(b'Z', &[b"T"]),
        "bad-status" => message(b'Z', &[b"Q"]),
        "long-status" => message(b'Z', &[b"IIII"]),
        "complete" => [complete, ready].concat(),
        "reply" => [columns, row("STRAY"), complete, ready].concat(),
        "row" => row("STRAY"),
        "parse" => message(b'1', &[]),
        "bind" => message(b'2', &[]),
        "close" => message(b'3', &[]),
        "extended" => [
            message(b'1', &[]),
            message(b'2', &[]),
            row("STRAY"),
            complete,
        ]
        .concat(),
        "suspended" => message(b's', &[]),
        "error" => error("ERROR"),
        "error-ready" => [error("ERROR"), ready].concat(),
        "demand" => message(b'R', &[&3_u32.to_be_bytes()]),
        "key" => message(b'K', &[&[0, 0, 0, 1, 0, 0, 0, 2]]),
        "unknown" => message(b'~', &[b"STRAY"]),
        "length" => vec![b'C', 0, 0, 0, 3, b'x'],
        "status" => message(b'S', &[b"TimeZone\0UTC\0"]),
        "notice" => message(b'N', &[b"SNOTICE\0VNOTICE\0C00000\0Mstray\0\0"]),
        "notification" => message(b'A', &[b"\0\0\0\x01stray\0\0"]),
        "endless-status" => (0..100_000)
            .flat_map(|n| message(b'S', &[format!("p{n}\0{}\0", "v".repeat(200)).as_bytes()]))
            .collect(),
        "endless-notices" => {
            message(b'N', &[b"SNOTICE\0VNOTICE\0C00000\0Mstray\0\0"]).repeat(9_000)
        }
        other => panic!("{other}"),
    }
}

/// What PostgreSQL may say at any time.
const ANY_TIME: [&str; 3] = ["status", "notice", "notification"];

const NOBODYS: [&str; 18] = [
    "ready",
    "in-transaction",
    "bad-status",
    "long-status",
    "complete",
    "reply",
    "row",
    "parse",
    "bind",
    "close",
    "extended",
    "suspended",
    "error",
    "error-ready",
    "demand",
    "key",
    "unknown",
    "length",
];

/// How many of them a server has said.
type Count = Arc<AtomicUsize>;

/// Between the proxy and a server: says what queries ask for, by a comment `/* stray NAME WHEN */`.
async fn between(port: u16) -> (u16, Count) {
    let count = Count::default();
    let said = count.clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let own = listener.local_addr().expect("a port").port();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else {
                continue;
            };
            let order = Arc::<std::sync::Mutex<Option<(Vec<u8>, When)>>>::default();
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = far.into_split();
            tokio::spawn(ask(near_read, far_write, order.clone()));
            tokio::spawn(answer(far_read, near_write, order, said.clone()));
        }
    });
    (own, count)
}

type Order = Arc<std::sync::Mutex<Option<(Vec<u8>, When)>>>;

async fn ask(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, order: Order) -> Option<()> {
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let n = from.read(&mut bytes).await.ok().filter(|n| *n > 0)?;
        let text = String::from_utf8_lossy(&bytes[..n]);
        if let Some((_, words)) = text.split_once("/* stray ") {
            let mut words = words.split(' ');
            let bytes = stray(words.next()?);
            let when = words.next()?;
            let when = ALL.into_iter().find(|known| format!("{known:?}") == when);
            *order.lock().expect("no panic") = Some((bytes, when?));
        }
        to.write_all(&bytes[..n]).await.ok()?;
    }
}

async fn answer(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    order: Order,
    said: Count,
) -> Option<()> {
    loop {
        let mut frame = vec![0; 5];
        from.read_exact(&mut frame).await.ok()?;
        let length = u32::from_be_bytes([frame[1], frame[2], frame[3], frame[4]]) as usize;
        frame.resize(1 + length, 0);
        from.read_exact(&mut frame[5..]).await.ok()?;
        let due = order
            .lock()
            .expect("no panic")
            .take_if(|(_, when)| match when {
                When::Before => true,
                When::Inside => frame[0] == b'D' && frame.windows(3).any(|bytes| bytes == b"own"),
                When::With | When::Late => frame[0] == b'Z',
            });
        let is_due = due.is_some();
        match due {
            Some((bytes, When::Before)) => to.write_all(&[bytes, frame].concat()).await.ok()?,
            Some((bytes, When::Late)) => {
                to.write_all(&frame).await.ok()?;
                tokio::time::sleep(MOMENT).await;
                to.write_all(&bytes).await.ok()?;
            }
            Some((bytes, _)) => to.write_all(&[frame, bytes].concat()).await.ok()?,
            None => to.write_all(&frame).await.ok()?,
        }
        said.fetch_add(usize::from(is_due), Ordering::Release);
    }
}

/// Waits until the server has said it, and the proxy can have heard it.
async fn heard(count: &Count, before: usize) {
    for _ in 0..100 {
        tokio::time::sleep(MOMENT).await;
        if count.load(Ordering::Acquire) > before {
            break;
        }
    }
    tokio::time::sleep(MOMENT).await;
}

fn config(port: u16, pooling: &str) -> String {
    format!(
        "listen: [{{ address: \"127.0.0.1:0\" }}]
workers: 2
servers: {{ s: {{ host: 127.0.0.1, port: {port}, sslmode: disable, max_connections: 20 }} }}
placements:
  p: {{ tier: pool, server: s, database: app, pooling: {pooling}, login: {{ user: app, password: {SECRET} }},
       pool: {{ size: 3, reserve: 0 }}, posture: plain, context: {{ app.tenant_id: \"{{tenant}}\" }} }}
tenants:
  t00: {{ placement: p, users: {{ app: {{ password: t00-secret }} }} }}
  t01: {{ placement: p, users: {{ app: {{ password: t01-secret }} }} }}
"
    )
}

async fn client(address: SocketAddr, name: &str) -> Wire {
    let tenant = tenant(name);
    let mut wire = Wire::tcp(address).await;
    let (user, password) = (tenant.user(), tenant.password());
    let pairs = [("user", &*user), ("database", &*tenant.database)];
    let done = in_time("a login", wire.log_in(&pairs, &password)).await;
    done.unwrap_or_else(|error| panic!("{error}"));
    wire
}

/// What an answer has: its rows, or the errors in it; and whether the connection has ended.
async fn told(wire: &mut Wire, bytes: &[u8]) -> (Vec<String>, Vec<String>, bool) {
    if wire.try_send(bytes).await.is_err() {
        return (Vec::new(), Vec::new(), true);
    }
    let frames = in_time("an answer", wire.until_ready()).await;
    let ended = frames.last().is_none_or(|frame| frame.tag != b'Z');
    let rows = frames.iter().filter(|frame| frame.tag == b'D');
    let rows = rows.map(|frame| frame.values().concat_values()).collect();
    let errors = frames.iter().filter(|frame| frame.tag == b'E');
    let errors = errors.map(Frame::sqlstate).collect();
    (rows, errors, ended)
}

trait Concat {
    fn concat_values(self) -> String;
}

impl Concat for Vec<Option<String>> {
    fn concat_values(self) -> String {
        self.into_iter().flatten().collect::<Vec<_>>().join("|")
    }
}

fn simple(sql: &str) -> Vec<u8> {
    query(sql)
}

fn extended(sql: &str) -> Vec<u8> {
    let batch = [parse("", sql), bind("", "", &[]), execute("", 0), sync()];
    batch.concat()
}

/// Asks for a stray message in one way. Returns the process id of the server connection, if the
/// answer had it.
async fn attack(
    wire: &mut Wire,
    name: &str,
    when: When,
    how: fn(&str) -> Vec<u8>,
) -> Option<String> {
    let label = format!("{name} {when:?}");
    let sql = format!("SELECT 'own', pg_backend_pid() /* stray {name} {when:?} */");
    let (rows, errors, ended) = told(wire, &how(&sql)).await;
    let good = rows.first().and_then(|row| row.strip_prefix("own|"));
    let is_any_time = ANY_TIME.contains(&name);
    if is_any_time || matches!(when, When::With | When::Late) {
        assert!(good.is_some(), "{label}: {rows:?} {errors:?}");
    }
    // What is in the middle of an answer to a Query may be a part of it.
    if when != When::Inside && when != When::Before {
        assert!(
            rows.iter().all(|row| row.starts_with("own")),
            "{label}: {rows:?}"
        );
    }
    if ended {
        // An error ahead of the answer passes for it.
        let expected =
            |code: &String| code == "08006" || (code == "XX000" && name.contains("error"));
        assert!(errors.iter().all(expected), "{label}: {errors:?}");
        assert!(!is_any_time, "{label} ended its client");
    }
    good.map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_is_owed_ends_its_server_connection_and_reaches_nobody_else() {
    let (port, said) = between(world().await.shared.port()).await;
    for pooling in POOLINGS {
        let proxy = Running::start(&config(port, pooling));
        let mut neighbour = client(proxy.address, "t01").await;
        let mut other = client(proxy.address, "t00").await;
        for name in NOBODYS.into_iter().chain(ANY_TIME) {
            for when in ALL {
                let hows = [
                    (simple as fn(&str) -> Vec<u8>, false),
                    (simple, true),
                    (extended, true),
                ];
                let hows = match pooling {
                    "session" => &hows[1..],
                    _ => &hows[..],
                };
                for &(how, in_transaction) in hows {
                    let label =
                        format!("{pooling}: {name} {when:?}, in a transaction: {in_transaction}");
                    let mut wire = client(proxy.address, "t00").await;
                    if in_transaction {
                        wire.query("BEGIN").await;
                    }
                    let before = said.load(Ordering::Acquire);
                    let pid = attack(&mut wire, name, when, how).await;
                    heard(&said, before).await;
                    // Nothing that was said is the answer to what comes next.
                    let (rows, errors, ended) = told(&mut wire, &simple("SELECT 'next'")).await;
                    match ended {
                        true => assert!(
                            rows.is_empty() && errors.iter().all(|code| code == "08006"),
                            "{label}: {rows:?} {errors:?}"
                        ),
                        false => assert!(
                            rows == ["next"] || errors == ["25P02"],
                            "{label}: {rows:?} {errors:?}"
                        ),
                    }
                    let is_any_time = ANY_TIME.contains(&name);
                    if in_transaction && matches!(when, When::With | When::Late) {
                        assert_eq!(ended, !is_any_time, "{label}");
                    }
                    for wire in [&mut neighbour, &mut other] {
                        let frames = wire.column("SELECT 'mine' || pg_backend_pid()").await;
                        let seen = frames[0].strip_prefix("mine").expect("its own");
                        let is_spoilt = matches!(when, When::With | When::Late) && !is_any_time;
                        assert!(!is_spoilt || pid.as_deref() != Some(seen), "{label}");
                    }
                }
            }
        }
    }
    assert_no_panics();
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = status
        .split(' ')
        .nth(1)
        .and_then(|n| n.parse::<usize>().ok());
    pages.expect("a number") * 4096
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_cannot_make_the_proxy_keep_all_it_says() {
    let (port, said) = between(world().await.shared.port()).await;
    for pooling in POOLINGS {
        let proxy = Running::start(&config(port, pooling));
        for name in ["endless-status", "endless-notices"] {
            for when in ALL {
                let mut wire = client(proxy.address, "t00").await;
                let sql = format!("SELECT 'own' /* stray {name} {when:?} */");
                let before = said.load(Ordering::Acquire);
                let (_, errors, _) = told(&mut wire, &simple(&sql)).await;
                heard(&said, before).await;
                let (rows, more, ended) = told(&mut wire, &simple("SELECT 'next'")).await;
                let codes = [errors, more].concat();
                assert!(ended || rows == ["next"], "{name} {when:?}: {rows:?}");
                assert!(codes.iter().all(|code| code == "08006"), "{codes:?}");
                if name == "endless-status" && pooling == "session" {
                    assert!(ended, "{name} {when:?}");
                }
                let mut wire = client(proxy.address, "t01").await;
                assert_eq!(wire.column("SELECT 'mine'").await, ["mine"]);
            }
        }
    }
    assert_no_panics();
}

/// A server that says `frames` without end during a login, behind what begins it. Returns its port,
/// and counts bytes.
async fn endless(begin: Vec<u8>, frames: fn(usize) -> Vec<u8>) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("a port").port();
    let said = Arc::<AtomicUsize>::default();
    let count = said.clone();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let (begin, count) = (begin.clone(), count.clone());
            tokio::spawn(async move {
                let _ = tcp.read(&mut [0; 4096]).await;
                let mut next = begin;
                for number in 0.. {
                    if tcp.write_all(&next).await.is_err() {
                        return;
                    }
                    count.fetch_max(number * 20_000, Ordering::Relaxed);
                    next = (0..100).flat_map(|n| frames(100 * number + n)).collect();
                }
            });
        }
    });
    (port, said)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_does_not_end_takes_no_memory() {
    let status = |n: usize| message(b'S', &[format!("p{n}\0{}\0", "v".repeat(200)).as_bytes()]);
    let same = |_: usize| {
        message(
            b'S',
            &[format!("TimeZone\0{}\0", "v".repeat(200)).as_bytes()],
        )
    };
    let notice = |_: usize| {
        let text = "v".repeat(200);
        message(b'N', &[format!("SNOTICE\0C00000\0M{text}\0\0").as_bytes()])
    };
    let ok = message(b'R', &[&[0; 4]]);
    let before = resident();
    for (begin, frames) in [
        (ok.clone(), status as fn(usize) -> Vec<u8>),
        (ok.clone(), same),
        (ok, notice),
        (Vec::new(), notice),
    ] {
        let (port, said) = endless(begin, frames).await;
        let yaml = config(port, "transaction").replace(
            "max_connections: 20",
            &format!("max_connections: 20, admin: {{ user: root, password: {SECRET} }}"),
        );
        let server = parse_config(&yaml).servers[0].clone();
        let login = server.admin.clone().expect("an admin");
        let session = door::config(&login, "postgres", "a test");
        let refused = in_time("a login", Door(server).connect(&session)).await;
        assert!(refused.is_err());
        let proxy = Running::start(&yaml);
        let mut wire = Wire::tcp(proxy.address).await;
        let tenant = tenant("t00");
        let (user, password) = (tenant.user(), tenant.password());
        let pairs = [("user", &*user), ("database", &*tenant.database)];
        let refused = in_time("a login", wire.log_in(&pairs, &password)).await;
        assert_eq!(refused.expect_err("refused").sqlstate(), "08006");
        // And what the sockets hold.
        let said = said.load(Ordering::Relaxed);
        assert!(said < 16 << 20, "{said} bytes");
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
    assert_no_panics();
}
