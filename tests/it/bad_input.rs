//! Bytes that are not what they should be: an error or the end, soon, and the others do not notice.

use std::io::ErrorKind;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use pgtenant::client::Activity;

use crate::harness::{Running, Setup, assert_no_panics, eventually, in_time, tenant};
use crate::wire::{
    CANCEL_REQUEST, GSSENC_REQUEST, PROTOCOL_3_0, SSL_REQUEST, Wire, bind, copy_data, errors,
    execute, message, packet, parse, query, rows, startup, sync, terminate,
};

const SEED: u64 = 0x6261_6462;

async fn proxy() -> Running {
    Setup {
        // Whatever waits for more bytes is given up soon.
        sections: "timeouts: { login: 1s, checkout: 60s }".into(),
        ..Setup::default()
    }
    .start()
    .await
}

/// Sends bytes, says no more, and reads to the end, which has to come.
async fn swallow(proxy: &Running, bytes: &[u8]) -> Vec<u8> {
    let mut tcp = TcpStream::connect(proxy.address).await.expect("connects");
    let mut answer = Vec::new();
    let talk = async {
        // The proxy may be gone before all is sent.
        let _ = tcp.write_all(bytes).await;
        match tcp.read_to_end(&mut answer).await {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    };
    in_time("the end of the connection", talk).await;
    answer
}

async fn still_serves(proxy: &Running) {
    let mut wire = proxy.raw(&tenant("t44")).await;
    let seen = wire
        .column("SELECT body FROM items WHERE id < 900 ORDER BY id")
        .await;
    assert_eq!(seen, tenant("t44").bodies());
    assert_no_panics();
}

async fn eventually_empty(proxy: &Running) {
    eventually("all clients are gone", async || {
        proxy.proxy.app().connections() == 0
    })
    .await;
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
async fn a_startup_packet_that_is_none_ends_the_connection() {
    let proxy = proxy().await;
    let good = startup(PROTOCOL_3_0, &[("user", "app.t44"), ("database", "app")]);
    let mut packets: Vec<Vec<u8>> = Vec::new();
    for length in [
        0_u32,
        1,
        3,
        4,
        5,
        7,
        8,
        9,
        10_005,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
    ] {
        packets.push(length.to_be_bytes().to_vec());
        packets.push([&length.to_be_bytes()[..], &good[4..]].concat());
    }
    for version in [
        0,
        1,
        0x0001_0000,
        0x0002_0000,
        0x0004_0000,
        0xffff_ffff,
        1234 << 16,
    ] {
        packets.push(startup(version, &[("user", "app.t44")]));
    }
    for code in [SSL_REQUEST, GSSENC_REQUEST, CANCEL_REQUEST] {
        for body in [&b"x"[..], &[0; 7], &[0; 300], &[0xff; 9_000]] {
            packets.push(packet(code, body));
        }
    }
    packets.push(packet(CANCEL_REQUEST, b""));
    packets.push(packet(PROTOCOL_3_0, b""));
    packets.push(packet(PROTOCOL_3_0, b"user"));
    packets.push(packet(PROTOCOL_3_0, b"user\0"));
    packets.push(packet(PROTOCOL_3_0, b"\0\0\0\0"));
    packets.push(packet(PROTOCOL_3_0, &[b'a'; 9_990]));
    packets.push(packet(PROTOCOL_3_0, &[0xff; 500]));
    packets.push(startup(PROTOCOL_3_0, &[("user", "")]));
    packets.push(startup(PROTOCOL_3_0, &[("user", "x"), ("options", "-c")]));
    packets.push(startup(PROTOCOL_3_0, &[("user", "x"), ("options", "\\")]));
    packets.push(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec());
    packets.push(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec());
    packets.push(message(b'Q', &[b"SELECT 1\0"]));
    for length in 0..good.len() {
        packets.push(good[..length].to_vec());
    }
    let mut tries = tokio::task::JoinSet::new();
    let proxy = std::sync::Arc::new(proxy);
    for bytes in packets {
        let proxy = proxy.clone();
        tries.spawn(async move {
            let answer = swallow(&proxy, &bytes).await;
            let first = answer.first().copied();
            assert!(
                matches!(first, None | Some(b'E' | b'R' | b'N')),
                "{bytes:?}: {answer:?}"
            );
            let text = String::from_utf8_lossy(&answer).into_owned();
            assert!(!text.contains("item"), "{text}");
        });
    }
    while let Some(ended) = tries.join_next().await {
        if let Err(error) = ended {
            std::panic::resume_unwind(error.into_panic());
        }
    }
    eventually_empty(&proxy).await;
    still_serves(&proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_message_that_is_none_ends_the_login() {
    let proxy = proxy().await;
    let good = startup(PROTOCOL_3_0, &[("user", "app.t44"), ("database", "app")]);
    let first = |text: &[u8]| {
        let length = u32::try_from(text.len()).expect("short").to_be_bytes();
        message(b'p', &[b"SCRAM-SHA-256\0", &length, text])
    };
    for bytes in [
        message(b'p', &[]),
        message(b'p', &[b"\0"]),
        message(b'p', &[b"t44-secret\0"]),
        message(b'p', &[b"SCRAM-SHA-256\0\xff\xff\xff\xff"]),
        message(b'p', &[b"SCRAM-SHA-256-PLUS\0\0\0\0\x01p"]),
        message(b'p', &[b"SCRAM-SHA-1\0\0\0\0\0"]),
        message(b'p', &[&[b'x'; 9_000]]),
        first(b""),
        first(b"n,,"),
        first(b"n,,n=,r="),
        first(b"y,,n=,r=x"),
        first(b"p=tls-server-end-point,,n=,r=abc"),
        first(b"n,a=someone,n=,r=abc"),
        first(b"n,,m=ext,n=,r=abc"),
        first(b"n,,n=\xff\xfe,r=\xff"),
        [first(b"n,,n=,r=abcdefgh"), message(b'p', &[b""])].concat(),
        [
            first(b"n,,n=,r=abcdefgh"),
            message(b'p', &[b"c=biws,r=abcdefgh,p="]),
        ]
        .concat(),
        [
            first(b"n,,n=,r=abcdefgh"),
            message(b'p', &[b"c=biws,r=abcdefgh,p=\xff\xff"]),
        ]
        .concat(),
        [first(b"n,,n=,r=abcdefgh"), first(b"n,,n=,r=abcdefgh")].concat(),
        message(b'Q', &[b"SELECT 1\0"]),
        message(b'X', &[]),
        b"p\0\0\0\x03".to_vec(),
        b"p\0\0\0\0".to_vec(),
        b"p\xff\xff\xff\xff".to_vec(),
        b"p\x7f\xff\xff\xff".to_vec(),
        b"p\0\0\x27\x20abc".to_vec(),
    ] {
        let answer = swallow(&proxy, &[&good[..], &bytes].concat()).await;
        assert_eq!(answer.first(), Some(&b'R'), "{bytes:?}");
        let text = String::from_utf8_lossy(&answer);
        assert!(
            !text.contains("application_name"),
            "{bytes:?} logged in: {text}"
        );
    }
    eventually_empty(&proxy).await;
    still_serves(&proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn random_bytes_at_any_stage_do_no_harm() {
    let proxy = proxy().await;
    let good = startup(PROTOCOL_3_0, &[("user", "app.t44"), ("database", "app")]);
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut tries = tokio::task::JoinSet::new();
    let proxy = std::sync::Arc::new(proxy);
    for number in 0..300 {
        let mut noise = vec![0; rng.random_range(1..4000)];
        rng.fill_bytes(&mut noise);
        let bytes = match number % 3 {
            0 => noise,
            // A length that is right.
            1 => {
                let length = u32::try_from(noise.len() + 4).expect("short");
                [&length.to_be_bytes()[..], &noise].concat()
            }
            _ => [&good[..], &noise].concat(),
        };
        let proxy = proxy.clone();
        tries.spawn(async move { swallow(&proxy, &bytes).await });
    }
    tries.join_all().await;

    // Logged in: noise, and valid messages with noise in them.
    for number in 0..200 {
        let mut wire = proxy.raw(&tenant("t45")).await;
        let mut noise = vec![0; rng.random_range(1..2000)];
        rng.fill_bytes(&mut noise);
        let bytes = match number % 4 {
            0 => noise,
            1 => {
                let tags = b"QPBDECSFHdcfpX";
                let tag = tags[rng.random_range(0..tags.len())];
                message(tag, &[&noise])
            }
            2 => {
                // A good conversation with some bytes changed.
                let mut good = [
                    parse("x", "SELECT body FROM items WHERE id = $1"),
                    bind("", "x", &[Some("1")]),
                    execute("", 0),
                    sync(),
                    query("SELECT 1"),
                ]
                .concat();
                for _ in 0..rng.random_range(1..5) {
                    let at = rng.random_range(0..good.len());
                    good[at] = rng.random();
                }
                good
            }
            _ => [query("BEGIN"), noise].concat(),
        };
        let _ = wire.try_send(&bytes).await;
        wire.shutdown().await;
        let frames = wire.rest().await;
        for frame in frames.iter().filter(|frame| frame.tag == b'D') {
            assert!(!String::from_utf8_lossy(&frame.body).contains("t44"));
        }
    }
    eventually_empty(&proxy).await;
    still_serves(&proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_with_an_impossible_header_ends_its_client_with_an_error() {
    let proxy = proxy().await;
    for in_transaction in [false, true] {
        for header in [
            &b"Q\0\0\0\0"[..],
            b"Q\0\0\0\x03",
            b"Q\xff\xff\xff\xff",
            b"Q\x40\0\0\0",
            b"S\0\x0f\0\0",
            b"X\0\0\0\x03",
            b"\0\0\0\0\x04",
            b"Z\0\0\0\x05I",
            b"R\0\0\0\x08\0\0\0\0",
            b"p\0\0\0\x05x",
            b"\xff\xff\xff\xff\xff",
        ] {
            let mut wire = proxy.raw(&tenant("t45")).await;
            if in_transaction {
                wire.query("BEGIN").await;
            }
            wire.send(header).await;
            let frames = wire.rest().await;
            assert_eq!(errors(&frames), ["08P01"], "{header:?}");
            assert_eq!(frames[0].field(b'V').as_deref(), Some("FATAL"));
        }
    }
    still_serves(&proxy).await;
}

/// Clients that promise a gigabyte and send little of it: nothing is set aside for what has not
/// come.
#[tokio::test(flavor = "multi_thread")]
async fn long_messages_that_never_come_take_no_memory() {
    let proxy = proxy().await;
    let before = resident();
    let mut wires = Vec::new();
    // A Parse and a Bind that are collected in part, and a query that streams.
    for header in [
        &b"P\x01\0\0\0name"[..],
        b"B\x01\0\0\0portal",
        b"P\x01\0\0\0\0",
    ] {
        let mut wire = proxy.raw(&tenant("t46")).await;
        wire.send(header).await;
        for _ in 0..64 {
            if wire.try_send(&[b'x'; 64 * 1024]).await.is_err() {
                break;
            }
        }
        wires.push(wire);
    }
    // More than there are server connections: most of them wait for one.
    for number in 0..60 {
        let mut wire = proxy.raw(&tenant("t46")).await;
        let tag = b"QPBF"[number % 4];
        wire.send(&[tag, 0x3f, 0xff, 0xff, 0xfe]).await;
        wire.send(&[b'x'; 5000]).await;
        wires.push(wire);
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 100 << 20, "{grown} bytes");
    drop(wires);
    eventually_empty(&proxy).await;
    still_serves(&proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_too_slow_to_log_in_is_shown_out_and_others_are_served() {
    let proxy = proxy().await;
    let good = startup(PROTOCOL_3_0, &[("user", "app.t44"), ("database", "app")]);
    let mut slow = Vec::new();
    for number in 0..60 {
        let mut wire = Wire::tcp(proxy.address).await;
        match number % 4 {
            0 => {}
            1 => wire.send(&good[..10]).await,
            2 => wire.send(&good).await,
            _ => wire.send(&packet(SSL_REQUEST, b"")).await,
        }
        slow.push(wire);
    }
    still_serves(&proxy).await;
    for wire in &mut slow {
        while wire.byte().await.is_some() {}
    }
    // A byte now and then does not help.
    let mut wire = Wire::tcp(proxy.address).await;
    let trickle = async {
        for byte in good.iter().cycle() {
            if wire.try_send(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    in_time("the end of a trickle", trickle).await;
    eventually_empty(&proxy).await;
    still_serves(&proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_closes_its_side_gets_the_answers_it_is_owed() {
    for pooling in ["transaction", "session"] {
        let proxy = Setup {
            pooling,
            ..Setup::default()
        }
        .start()
        .await;
        let mut wire = proxy.raw(&tenant("t47")).await;
        let batch = [
            query("SELECT 'one' FROM pg_sleep(0.05)"),
            parse("", "SELECT repeat('x', 100000)"),
            bind("", "", &[]),
            execute("", 0),
            sync(),
            query("SELECT 'last'"),
        ];
        wire.send(&batch.concat()).await;
        wire.shutdown().await;
        let seen = rows(&wire.rest().await);
        assert_eq!(seen.len(), 3, "{pooling}: {} rows", seen.len());
        assert_eq!(
            (&*seen[0], seen[1].len(), &*seen[2]),
            ("one", 100_000, "last")
        );
        eventually_empty(&proxy).await;
    }
}

/// The COPY never ends: its server connection must not wait for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_before_the_copy_it_asked_for_begins_is_let_go() {
    let proxy = proxy().await;
    let mut wire = proxy.raw(&tenant("t47")).await;
    let batch = [
        query("SELECT 1"),
        query("COPY plain FROM STDIN"),
        copy_data(b"x"),
    ];
    wire.send(&batch.concat()).await;
    wire.shutdown().await;
    assert_eq!(rows(&wire.rest().await), ["1"]);
    eventually_empty(&proxy).await;
    still_serves(&proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_said_before_a_bad_header_is_done_and_answered() {
    let proxy = proxy().await;
    let mut wire = proxy.raw(&tenant("t47")).await;
    let bytes = [query("SELECT 'before'"), b"Q\0\0\0\x03".to_vec()].concat();
    wire.send(&bytes).await;
    let frames = wire.rest().await;
    assert_eq!(errors(&frames), ["08P01"]);
    assert_eq!(rows(&frames), ["before"]);
    still_serves(&proxy).await;
}

/// As PostgreSQL: it looks at what it was sent in order, and only then sees that the client has
/// gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_middle_of_a_batch_has_what_came_before_it_done() {
    let proxy = proxy().await;
    let insert = query("INSERT INTO items (id, body) SELECT 800, 'done' FROM pg_sleep(0.05)");
    for last in [terminate(), Vec::new()] {
        let mut wire = proxy.raw(&tenant("t48")).await;
        let batch = [
            insert.clone(),
            parse("", "SELECT 1"),
            bind("", "", &[]),
            last,
        ];
        wire.send(&batch.concat()).await;
        wire.shutdown().await;
        let tags: Vec<_> = wire.rest().await.iter().map(|frame| frame.tag).collect();
        assert_eq!(tags, *b"CZ");
        let mut wire = proxy.raw(&tenant("t48")).await;
        let deleted = wire
            .column("DELETE FROM items WHERE id = 800 RETURNING body")
            .await;
        assert_eq!(deleted, ["done"]);
    }
    eventually_empty(&proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_never_runs_the_unnamed_statement_of_another() {
    let proxy = Setup {
        pool_size: 1,
        ..Setup::default()
    }
    .start()
    .await;
    let mut one = proxy.raw(&tenant("t49")).await;
    one.send(&[parse("", "SELECT 'of one'"), sync()].concat())
        .await;
    one.until_ready().await;
    let mut other = proxy.raw(&tenant("t49")).await;
    other
        .send(&[bind("", "", &[]), execute("", 0), sync()].concat())
        .await;
    assert_eq!(errors(&other.until_ready().await), ["26000"]);
}

/// What a client that does not read, and then leaves, was answered before; `most`: so many queries
/// at most.
async fn ask_without_reading(proxy: &Running, most: usize) -> (Wire, usize) {
    let t = tenant("t48");
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let mut wire = Wire::over(socket.connect(proxy.address).await.unwrap());
    let pairs = [("user", &*t.user()), ("database", &t.database)];
    wire.log_in(&pairs, &t.password()).await.unwrap();
    let app = proxy.proxy.app();
    let queries = || {
        let clients = app.clients();
        let client = clients.iter().max_by_key(|client| client.id).unwrap();
        let answered = app.tenant(&client.tenant).metrics.queries.get();
        (answered, client.activity() == Activity::Idle)
    };
    let before = queries().0;
    for asked in 0..most {
        wire.send(&query("SELECT repeat('x', 5000)")).await;
        let is_answered = async {
            while queries() != (before + asked as u64 + 1, true) {
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
        };
        if tokio::time::timeout(Duration::from_millis(300), is_answered)
            .await
            .is_err()
        {
            return (wire, asked);
        }
    }
    (wire, most)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_gets_all_that_it_was_answered_before() {
    let proxy = Setup {
        // It takes longer than that to read.
        sections: "timeouts: { connect: 100ms }".into(),
        ..Setup::default()
    }
    .start()
    .await;
    // The system takes some of the answers, and the proxy holds the others: the more, the nearer to
    // what it does not take any more.
    let (_wire, most) = ask_without_reading(&proxy, 10_000).await;
    assert!(most > 10, "{most}");
    for less in 1..=4 {
        let (mut wire, asked) = ask_without_reading(&proxy, most - less).await;
        wire.send(&terminate()).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let frames = in_time("the end", wire.rest()).await;
        let answered = frames.iter().filter(|frame| frame.tag == b'Z').count();
        assert_eq!(
            (answered, frames.last().map(|f| f.tag)),
            (asked, Some(b'Z'))
        );
    }
}
