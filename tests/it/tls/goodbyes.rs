//! How connections end: a client in TLS is told so by close_notify, and what PostgreSQL leaves
//! unanswered is.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::*;
use crate::wire::{CANCEL_REQUEST, Frame, terminate};

/// What a client of bytes goes on with after it has its first byte in TLS.
#[derive(Debug, Clone)]
enum Said {
    Bytes(Vec<u8>),
    /// It waits for the next bytes of the other end, which are kept.
    Reads,
    /// It says no more.
    Closes,
}

use Said::{Bytes, Closes, Reads};

trait Both: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Both for T {}

/// Plays `script`, and reads to the end. The error: how the end came, if it was not said.
async fn play(mut io: Box<dyn Both>, script: &[Said]) -> (Vec<u8>, Option<std::io::ErrorKind>) {
    let mut answer = Vec::new();
    let talk = async {
        for said in script {
            match said {
                // The other end may be gone before all is sent.
                Bytes(bytes) => {
                    let _ = io.write_all(bytes).await;
                    let _ = io.flush().await;
                }
                Reads => {
                    io.read_buf(&mut answer).await?;
                }
                Closes => {
                    let _ = io.shutdown().await;
                }
            }
        }
        io.read_to_end(&mut answer).await
    };
    let end = in_time("the end of the connection", talk).await;
    (answer, end.err().map(|error| error.kind()))
}

/// Tags, SQLSTATEs and messages; of what is no message, its text.
fn told(answer: &[u8]) -> Vec<String> {
    let mut told = Vec::new();
    let mut rest = answer;
    while let Some((head, after)) = rest.split_first_chunk::<5>() {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let Some(body) = after.get(..length.wrapping_sub(4)) else {
            break;
        };
        let frame = Frame {
            tag: head[0],
            body: body.to_vec(),
        };
        let message = frame.field(b'M').filter(|_| frame.tag == b'E');
        told.push(format!(
            "{} {}",
            char::from(frame.tag),
            message.unwrap_or_default()
        ));
        rest = &after[body.len()..];
    }
    if !rest.is_empty() {
        // Up to the version that is known best, which is the server's.
        let text = String::from_utf8_lossy(rest);
        told.extend(text.split(": server").next().map(str::to_owned));
    }
    told
}

/// What a client may say first, whoever it is: what is left unanswered, and what is not.
fn first_words(user: &str, database: &str) -> Vec<(&'static str, Vec<Said>)> {
    let login = startup(PROTOCOL_3_0, &[("user", user), ("database", database)]);
    let bytes = |bytes: &[u8]| vec![Bytes(bytes.to_vec())];
    let after_login = |said: &[Said]| [&[Bytes(login.clone()), Reads], said].concat();
    let lengths = [0, 4, 7, 10_005, 0x7fff_ffff, u32::MAX];
    let mut words = vec![
        ("Terminate", bytes(&terminate())),
        ("Terminate, and its end", vec![Bytes(terminate()), Closes]),
        (
            "Terminate twice",
            bytes(&[terminate(), terminate()].concat()),
        ),
        ("half of Terminate", bytes(b"X\0\0\0")),
        ("nothing", vec![Closes]),
        ("HTTP", bytes(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")),
        ("a Query", bytes(&query("SELECT 1"))),
        (
            "a layout that is none",
            bytes(&packet(PROTOCOL_3_0, b"user")),
        ),
        ("an old protocol", bytes(&packet(0x0002_0000, b""))),
        ("a cut packet", vec![Bytes(login[..9].to_vec()), Closes]),
        ("a cut length", vec![Bytes(login[..2].to_vec()), Closes]),
        (
            "a cancel of nobody",
            bytes(&packet(CANCEL_REQUEST, &[0; 8])),
        ),
        ("the end of a login", after_login(&[Closes])),
        (
            "Terminate for a password",
            after_login(&[Bytes(terminate()), Closes]),
        ),
        (
            "a Query for a password",
            after_login(&[Bytes(query("SELECT 1"))]),
        ),
    ];
    for length in lengths {
        let packet = [&length.to_be_bytes()[..], b"and no more"].concat();
        words.push(("a length that is none", bytes(&packet)));
    }
    words
}

#[tokio::test(flavor = "multi_thread")]
async fn first_words_are_answered_as_by_a_server() {
    let front = Front::start("", "").await;
    let server = cluster(Options {
        tls: Some(front.authority.leaf(&["proxy.test"]).server()),
        ..Options::named("goodbyes")
    })
    .await;
    let tenant = tenant("t00");
    let ends = [
        (server.port(), first_words("postgres", "postgres")),
        (
            front.proxy.address.port(),
            first_words(&tenant.user(), &tenant.database),
        ),
    ];
    for number in 0..ends[0].1.len() {
        for encrypted in [false, true] {
            let mut answers = Vec::new();
            for (port, words) in &ends {
                let mut tcp = TcpStream::connect(("127.0.0.1", *port))
                    .await
                    .expect("connects");
                let io: Box<dyn Both> = match encrypted {
                    true => {
                        ask_for_tls(&mut tcp).await;
                        Box::new(front.handshake(tcp, &[], "proxy.test").await.expect("TLS"))
                    }
                    false => Box::new(tcp),
                };
                answers.push(play(io, &words[number].1).await);
            }
            let name = ends[0].1[number].0;
            let [(direct, _), (proxied, end)] = &answers[..] else {
                unreachable!()
            };
            assert_eq!(told(proxied), told(direct), "{name}, in TLS: {encrypted}");
            // PostgreSQL 15 itself leaves without close_notify in some of these.
            assert_eq!(*end, None, "{name}, in TLS: {encrypted}");
        }
    }
    assert_no_panics();
}

/// A client in TLS that is logged in, and what it was answered.
async fn logged_in(front: &Front) -> Box<dyn Both> {
    let tenant = tenant("t00");
    let (user, password) = (tenant.user(), tenant.password());
    let tls = front.direct(&[ALPN]).await.expect("a handshake");
    let (near, far) = tokio::io::duplex(64 * 1024);
    let mut wire = Wire::over(near);
    let (mut read, mut write) = tokio::io::split(far);
    let (mut tls_read, mut tls_write) = tokio::io::split(tls);
    let pairs = [("user", &*user), ("database", &*tenant.database)];
    tokio::select! {
        done = wire.log_in(&pairs, &password) => done.expect("logs in"),
        _ = tokio::io::copy(&mut read, &mut tls_write) => panic!("the end"),
        _ = tokio::io::copy(&mut tls_read, &mut write) => panic!("the end"),
    }
    Box::new(tls_read.unsplit(tls_write))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_in_tls_is_told_the_end_of_its_connection() {
    let front = Front::start("", "timeouts: { login: 1s }").await;
    let tenant = tenant("t00");
    let end_of = async |name: &str, io: Box<dyn Both>, script: &[Said], last: &str| {
        let (answer, end) = play(io, script).await;
        let seen = told(&answer).pop().unwrap_or_default();
        assert!(seen.contains(last), "{name}: {seen}");
        assert_eq!(end, None, "{name}");
    };
    let tls = async || Box::new(front.direct(&[ALPN]).await.expect("a handshake"));
    let login = |user: &str, database: &str| {
        startup(PROTOCOL_3_0, &[("user", user), ("database", database)])
    };
    let hello = login(&tenant.user(), &tenant.database);
    let wrong = [
        Bytes(login("nobody", "nowhere")),
        Reads,
        Bytes(message(b'p', &[b"SCRAM-SHA-256\0\0\0\0\x0cn,,n=,r=abcd"])),
        Reads,
        Bytes(message(b'p', &[b"c=biws,r=abcd,p=AAAA"])),
    ];
    end_of("a wrong password", tls().await, &wrong, "E ").await;
    end_of("a silent client", tls().await, &[], "").await;
    end_of("a silent login", tls().await, &[Bytes(hello)], "R").await;
    let mut wire = front.client(&tenant).await;
    let cancel = [Bytes(cancel_request(&wire.key))];
    end_of("a cancel", tls().await, &cancel, "").await;
    wire.column("SELECT 1").await;
    let says = [
        ("Terminate", terminate(), ""),
        ("no message", b"!\0\0\0\x04".to_vec(), "E invalid frontend"),
        (
            "a server that goes",
            query("SELECT pg_terminate_backend(pg_backend_pid())"),
            "E terminating",
        ),
        (
            "Terminate in a batch",
            [parse("", "SELECT 1"), terminate()].concat(),
            "",
        ),
    ];
    for (name, bytes, last) in says {
        let io = logged_in(&front).await;
        end_of(name, io, &[Bytes(bytes)], last).await;
    }
    let without_alpn = front.direct(&[]).await.expect("a handshake");
    end_of("no ALPN", Box::new(without_alpn), &[], "").await;
    let idle = logged_in(&front).await;
    let busy = logged_in(&front).await;
    let half_way = tls().await;
    let query = [Bytes(query("SELECT pg_sleep(60)"))];
    let stop = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        front.proxy.proxy.app().drain();
        front.proxy.proxy.app().kill_clients();
    };
    tokio::join!(
        end_of("an idle client at the end", idle, &[], "E terminating"),
        end_of("a busy client at the end", busy, &query, "E terminating"),
        end_of("a login at the end", half_way, &[], ""),
        stop
    );
    assert_no_panics();
}
