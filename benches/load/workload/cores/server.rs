//! A server that speaks PostgreSQL's protocol and does nothing: it lets everybody in and has an answer ready for `SELECT 1`. With a
//! real one, a proxy could not be what a machine of two cores is short of. It runs in a thread of the bench.

use std::thread::JoinHandle;

use pgtenant::backend::prepared::frame;
use pgtenant::cluster::{Error, Result};
use pgtenant::protocol::frame::{BackendTag, FrontendTag, HEADER, Header};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// The one query with an answer of its own.
pub const QUERY: &str = "SELECT 1";
/// What is read at once.
const CHUNK: usize = 256 << 10;
const PROTOCOL_3: std::ops::Range<u32> = 0x0003_0000..0x0004_0000;

/// What PostgreSQL says of itself. The application's name is the clients' already, so that nobody has to set it.
const PARAMETERS: [(&str, &str); 10] = [
    ("application_name", "bench"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("integer_datetimes", "on"),
    ("IntervalStyle", "postgres"),
    ("is_superuser", "off"),
    ("server_encoding", "UTF8"),
    ("server_version", "15.0"),
    ("standard_conforming_strings", "on"),
    ("TimeZone", "Etc/UTC"),
];

/// Several instances in one thread.
pub struct Servers {
    pub ports: Vec<u16>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Servers {
    pub fn start(instances: usize) -> Result<Self> {
        let failed = |error| Error::new(format!("cannot make a server: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let mut ports = Vec::new();
        for _ in 0..instances {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(failed)?;
            listener.set_nonblocking(true).map_err(failed)?;
            ports.push(listener.local_addr().map_err(failed)?.port());
            let _context = runtime.enter();
            let listener = TcpListener::from_std(listener).map_err(failed)?;
            runtime.spawn(accept(listener));
        }
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("server".to_owned())
            .spawn(move || {
                // Ends when the sender is dropped.
                let _ = runtime.block_on(stopped);
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        Ok(Self {
            ports,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: TcpListener) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(serve(client));
    }
}

/// The answer to [`QUERY`].
pub fn answer() -> Vec<u8> {
    [
        frame(
            BackendTag::ROW_DESCRIPTION.0,
            &[b"\0\x01?column?\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0"],
        ),
        frame(BackendTag::DATA_ROW.0, &[b"\0\x01\0\0\0\x011"]),
        frame(BackendTag::COMMAND_COMPLETE.0, &[b"SELECT 1\0"]),
        ready(),
    ]
    .concat()
}

fn ready() -> Vec<u8> {
    frame(BackendTag::READY_FOR_QUERY.0, &[b"I"])
}

fn greeting() -> Vec<u8> {
    let mut greeting = frame(BackendTag::AUTHENTICATION.0, &[&[0; 4]]);
    for (name, value) in PARAMETERS {
        let parts: [&[u8]; 4] = [name.as_bytes(), b"\0", value.as_bytes(), b"\0"];
        greeting.extend(frame(BackendTag::PARAMETER_STATUS.0, &parts));
    }
    greeting.extend(frame(BackendTag::BACKEND_KEY_DATA.0, &[&[0; 8]]));
    greeting.extend(ready());
    greeting
}

async fn serve(mut client: TcpStream) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    loop {
        let length = client.read_u32().await?;
        let code = client.read_u32().await?;
        let mut rest = vec![0; length.saturating_sub(8) as usize];
        client.read_exact(&mut rest).await?;
        if PROTOCOL_3.contains(&code) {
            break;
        }
        // SSLRequest and its like.
        client.write_all(b"N").await?;
    }
    client.write_all(&greeting()).await?;
    let replies = Replies::new();
    let (mut inbox, mut outbox) = (Vec::with_capacity(CHUNK), Vec::with_capacity(CHUNK));
    while client.read_buf(&mut inbox).await? > 0 {
        let mut at = 0;
        while let Some(size) = whole(&inbox[at..]) {
            replies.to(&inbox[at..at + size], &mut outbox);
            at += size;
        }
        inbox.drain(..at);
        client.write_all(&outbox).await?;
        outbox.clear();
    }
    Ok(())
}

/// The size of the frame at the start, if all of it is there.
fn whole(bytes: &[u8]) -> Option<usize> {
    let size = Header::read(bytes)?.backend_size()?;
    (bytes.len() >= size).then_some(size)
}

struct Replies {
    query: Vec<u8>,
    answer: Vec<u8>,
    other_query: Vec<u8>,
    called: Vec<u8>,
    done: Vec<u8>,
    ready: Vec<u8>,
}

impl Replies {
    fn new() -> Self {
        let done = frame(BackendTag::COMMAND_COMPLETE.0, &[b"SET\0"]);
        // NULL.
        let called = frame(BackendTag::FUNCTION_CALL_RESPONSE.0, &[&[0xff; 4]]);
        Self {
            query: [QUERY.as_bytes(), b"\0"].concat(),
            answer: answer(),
            other_query: [&done[..], &ready()].concat(),
            called: [called, ready()].concat(),
            done,
            ready: ready(),
        }
    }

    /// The reply to one message; whatever is not the query is what a proxy sets, and is done.
    fn to(&self, message: &[u8], outbox: &mut Vec<u8>) {
        let reply: &[u8] = match FrontendTag(message[0]) {
            FrontendTag::QUERY if message[HEADER..] == self.query => &self.answer,
            FrontendTag::QUERY => &self.other_query,
            FrontendTag::FUNCTION_CALL => &self.called,
            FrontendTag::PARSE => b"1\0\0\0\x04",
            FrontendTag::BIND => b"2\0\0\0\x04",
            FrontendTag::CLOSE => b"3\0\0\0\x04",
            FrontendTag::DESCRIBE => b"n\0\0\0\x04",
            FrontendTag::EXECUTE => &self.done,
            FrontendTag::SYNC => &self.ready,
            _ => &[],
        };
        outbox.extend_from_slice(reply);
    }
}
