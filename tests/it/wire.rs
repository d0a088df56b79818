//! A client of bytes: sends frames as given and collects the frames that come back, so that what
//! the proxy says can be compared with what PostgreSQL says.

use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use pgtenant::cluster::Cluster;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::harness::PATIENCE;

pub const PROTOCOL_3_0: u32 = 0x0003_0000;
pub const PROTOCOL_3_2: u32 = 0x0003_0002;
pub const SSL_REQUEST: u32 = 80_877_103;
pub const GSSENC_REQUEST: u32 = 80_877_104;
pub const CANCEL_REQUEST: u32 = 80_877_102;

pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A message from a server.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    pub tag: u8,
    pub body: Vec<u8>,
}

impl Frame {
    /// A field of an ErrorResponse or NoticeResponse.
    pub fn field(&self, code: u8) -> Option<String> {
        self.body
            .split(|byte| *byte == 0)
            .find(|field| field.first() == Some(&code))
            .map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
    }

    pub fn sqlstate(&self) -> String {
        self.field(b'C').unwrap_or_default()
    }

    /// The values of a DataRow, as text.
    pub fn values(&self) -> Vec<Option<String>> {
        let mut rest = &self.body[2..];
        let mut values = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let length = i32::from_be_bytes(*length);
            let Ok(length) = usize::try_from(length) else {
                values.push(None);
                rest = after;
                continue;
            };
            values.push(Some(String::from_utf8_lossy(&after[..length]).into_owned()));
            rest = &after[length..];
        }
        values
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.body[..self.body.len().min(300)];
        write!(f, "{}({}", self.tag as char, shown.escape_ascii())?;
        if shown.len() < self.body.len() {
            write!(f, "… {} bytes", self.body.len())?;
        }
        f.write_str(")")
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

pub struct Wire {
    io: Box<dyn Io>,
    inbox: Vec<u8>,
    /// BackendKeyData: process id and secret.
    pub key: (i32, Vec<u8>),
    /// What came between the StartupMessage and the first ReadyForQuery.
    pub greeting: Vec<Frame>,
}

impl Wire {
    pub fn over(io: impl Io + 'static) -> Self {
        Self {
            io: Box::new(io),
            inbox: Vec::new(),
            key: (0, Vec::new()),
            greeting: Vec::new(),
        }
    }

    pub async fn tcp(address: SocketAddr) -> Self {
        let tcp = TcpStream::connect(address).await.expect("connects");
        tcp.set_nodelay(true).expect("a socket");
        Self::over(tcp)
    }

    pub async fn unix(cluster: &Cluster) -> Self {
        let path = cluster
            .socket_dir()
            .join(format!(".s.PGSQL.{}", cluster.port()));
        Self::over(UnixStream::connect(path).await.expect("connects"))
    }

    /// # Panics
    /// The other end does not take the bytes.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).await.expect("sends");
    }

    /// Sends, and reads meanwhile what comes if the other end would not take more otherwise.
    pub async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let Self { io, inbox, .. } = self;
        let mut left = bytes;
        let mut buffer = vec![0; 64 * 1024];
        let sending = poll_fn(|cx| {
            while !left.is_empty() {
                match Pin::new(&mut **io).poll_write(cx, left) {
                    Poll::Ready(Ok(n)) => left = &left[n..],
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => {
                        let mut read = ReadBuf::new(&mut buffer);
                        ready!(Pin::new(&mut **io).poll_read(cx, &mut read))?;
                        if read.filled().is_empty() {
                            return Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into()));
                        }
                        inbox.extend_from_slice(read.filled());
                    }
                }
            }
            Pin::new(&mut **io).poll_flush(cx)
        });
        tokio::time::timeout(PATIENCE, sending)
            .await
            .unwrap_or_else(|_| panic!("{} bytes are not taken", bytes.len()))
    }

    /// The same, a byte a write.
    pub async fn send_slowly(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.send(&[*byte]).await;
            tokio::task::yield_now().await;
        }
    }

    pub async fn shutdown(&mut self) {
        let _ = self.io.shutdown().await;
    }

    /// The next message; none at the end of the stream.
    pub async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.cut() {
                return Some(frame);
            }
            if self.fill().await == 0 {
                return None;
            }
        }
    }

    /// A message that has to come.
    pub async fn expect(&mut self) -> Frame {
        self.frame().await.expect("a message, not the end")
    }

    fn cut(&mut self) -> Option<Frame> {
        let (head, rest) = self.inbox.split_first_chunk::<5>()?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4;
        let body = rest.get(..length)?.to_vec();
        let tag = head[0];
        self.inbox.drain(..5 + length);
        Some(Frame { tag, body })
    }

    /// Reads once; 0 at the end. A reset is an end.
    async fn fill(&mut self) -> usize {
        let mut buffer = vec![0; 64 * 1024];
        let read = tokio::time::timeout(PATIENCE, self.io.read(&mut buffer))
            .await
            .unwrap_or_else(|_| panic!("nothing came; the inbox holds {} bytes", self.inbox.len()));
        let n = read.unwrap_or(0);
        self.inbox.extend_from_slice(&buffer[..n]);
        n
    }

    /// One byte that is no message: the answer to SSLRequest. None at the end.
    pub async fn byte(&mut self) -> Option<u8> {
        if self.inbox.is_empty() && self.fill().await == 0 {
            return None;
        }
        Some(self.inbox.remove(0))
    }

    /// Everything up to the end of the stream.
    pub async fn rest(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.frame().await {
            frames.push(frame);
        }
        frames
    }

    /// Messages up to and including the first of this tag, or the end of the stream.
    pub async fn until(&mut self, tag: u8) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.frame().await {
            let last = frame.tag == tag;
            frames.push(frame);
            if last {
                break;
            }
        }
        frames
    }

    pub async fn until_ready(&mut self) -> Vec<Frame> {
        self.until(b'Z').await
    }

    /// Reads up to ReadyForQuery and keeps nothing; returns the bytes of rows and COPY data.
    ///
    /// # Panics
    /// An error comes, or the end.
    pub async fn discard_until_ready(&mut self) -> usize {
        let (mut tag, mut rest, mut data) = (0, 0, 0);
        loop {
            let here = rest.min(self.inbox.len());
            self.inbox.drain(..here);
            rest -= here;
            if matches!(tag, b'D' | b'd') {
                data += here;
            }
            if rest == 0 && tag == b'Z' {
                return data;
            }
            if rest == 0
                && let Some((head, _)) = self.inbox.split_first_chunk::<5>()
            {
                tag = head[0];
                assert_ne!(tag, b'E', "an error");
                rest = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize + 1;
                continue;
            }
            assert_ne!(self.fill().await, 0, "the end");
        }
    }

    /// Whether nothing comes for a moment. Only to let something wrong show itself.
    pub async fn is_silent(&mut self, moment: Duration) -> bool {
        let mut buffer = [0; 1024];
        match tokio::time::timeout(moment, self.io.read(&mut buffer)).await {
            Err(_) => self.inbox.is_empty(),
            Ok(read) => {
                self.inbox.extend_from_slice(&buffer[..read.unwrap_or(0)]);
                false
            }
        }
    }

    /// Logs in by whatever the server asks for.
    ///
    /// # Errors
    /// The ErrorResponse.
    pub async fn log_in(&mut self, pairs: &[(&str, &str)], password: &str) -> Result<(), Frame> {
        self.send(&startup(PROTOCOL_3_0, pairs)).await;
        self.authenticate(password, None).await
    }

    /// From the first answer to the StartupMessage on. `certificate`: the hash of the server's, to
    /// bind the exchange to it.
    ///
    /// # Errors
    /// The ErrorResponse.
    pub async fn authenticate(
        &mut self,
        password: &str,
        certificate: Option<Vec<u8>>,
    ) -> Result<(), Frame> {
        let authenticated = self.try_authenticate(password, certificate).await;
        authenticated.expect("the connection is open")
    }

    /// The same where the connection may end.
    pub async fn try_authenticate(
        &mut self,
        password: &str,
        certificate: Option<Vec<u8>>,
    ) -> std::io::Result<Result<(), Frame>> {
        let mut scram = None;
        loop {
            let frame = self
                .frame()
                .await
                .ok_or(std::io::ErrorKind::UnexpectedEof)?;
            self.greeting.push(frame.clone());
            match (frame.tag, frame.body.get(3)) {
                (b'E', _) => return Ok(Err(frame)),
                (b'Z', _) => return Ok(Ok(())),
                (b'K', _) => {
                    let (pid, secret) = frame.body.split_first_chunk::<4>().expect("a key");
                    self.key = (i32::from_be_bytes(*pid), secret.to_vec());
                }
                (b'R', Some(10)) => {
                    let (mechanism, binding): (&[u8], _) = match &certificate {
                        Some(hash) => (
                            b"SCRAM-SHA-256-PLUS\0",
                            ChannelBinding::tls_server_end_point(hash.clone()),
                        ),
                        None => (b"SCRAM-SHA-256\0", ChannelBinding::unsupported()),
                    };
                    let client = ScramSha256::new(password.as_bytes(), binding);
                    let first = client.message();
                    let length = u32::try_from(first.len()).expect("short").to_be_bytes();
                    self.try_send(&message(b'p', &[mechanism, &length, first]))
                        .await?;
                    scram = Some(client);
                }
                (b'R', Some(11)) => {
                    let client = scram.as_mut().expect("SASL began");
                    client.update(&frame.body[4..]).expect("a challenge");
                    let answer = message(b'p', &[client.message()]);
                    self.try_send(&answer).await?;
                }
                (b'R', Some(12)) => {
                    let client = scram.as_mut().expect("SASL began");
                    client.finish(&frame.body[4..]).expect("the server's proof");
                }
                (b'R', Some(0)) | (b'S' | b'N' | b'v', _) => {}
                _ => panic!("unexpected {frame}"),
            }
        }
    }

    /// Runs a simple query and returns all it is answered with.
    pub async fn query(&mut self, sql: &str) -> Vec<Frame> {
        self.send(&query(sql)).await;
        self.until_ready().await
    }

    /// The first column of every row of a query that succeeds.
    pub async fn column(&mut self, sql: &str) -> Vec<String> {
        let frames = self.query(sql).await;
        column(&frames)
    }
}

/// The first column of every DataRow among `frames`, none of which may be an error.
pub fn column(frames: &[Frame]) -> Vec<String> {
    if let Some(error) = frames.iter().find(|frame| frame.tag == b'E') {
        panic!("{error}");
    }
    rows(frames)
}

/// The first column of every DataRow among `frames`.
pub fn rows(frames: &[Frame]) -> Vec<String> {
    frames
        .iter()
        .filter(|frame| frame.tag == b'D')
        .map(|frame| frame.values().remove(0).unwrap_or_default())
        .collect()
}

/// The SQLSTATE of each error among `frames`.
pub fn errors(frames: &[Frame]) -> Vec<String> {
    frames
        .iter()
        .filter(|frame| frame.tag == b'E')
        .map(Frame::sqlstate)
        .collect()
}

// ---- what a client says ----

/// A packet without a tag: length, code, body.
pub fn packet(code: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 8).expect("short");
    [&length.to_be_bytes(), &code.to_be_bytes(), body].concat()
}

pub fn startup(version: u32, pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in pairs {
        for text in [name, value] {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
    }
    body.push(0);
    packet(version, &body)
}

pub fn cancel_request(key: &(i32, Vec<u8>)) -> Vec<u8> {
    packet(CANCEL_REQUEST, &[&key.0.to_be_bytes()[..], &key.1].concat())
}

/// A frame of `tag` around the given parts.
pub fn message(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let length = u32::try_from(length + 4).expect("short");
    let mut frame = vec![tag];
    frame.extend_from_slice(&length.to_be_bytes());
    for part in parts {
        frame.extend_from_slice(part);
    }
    frame
}

pub fn query(sql: &str) -> Vec<u8> {
    message(b'Q', &[sql.as_bytes(), b"\0"])
}

pub fn parse(name: &str, sql: &str) -> Vec<u8> {
    parse_typed(name, sql, &[])
}

pub fn parse_typed(name: &str, sql: &str, types: &[u32]) -> Vec<u8> {
    let mut oids = i16::try_from(types.len())
        .expect("few")
        .to_be_bytes()
        .to_vec();
    for oid in types {
        oids.extend_from_slice(&oid.to_be_bytes());
    }
    message(
        b'P',
        &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0", &oids],
    )
}

/// A Bind of text values with text results.
pub fn bind(portal: &str, statement: &str, values: &[Option<&str>]) -> Vec<u8> {
    let values: Vec<_> = values.iter().map(|v| v.map(str::as_bytes)).collect();
    bind_formats(portal, statement, &[], &values, &[])
}

pub fn bind_formats(
    portal: &str,
    statement: &str,
    formats: &[i16],
    values: &[Option<&[u8]>],
    results: &[i16],
) -> Vec<u8> {
    let list = |formats: &[i16]| {
        let mut bytes = i16::try_from(formats.len())
            .expect("few")
            .to_be_bytes()
            .to_vec();
        for format in formats {
            bytes.extend_from_slice(&format.to_be_bytes());
        }
        bytes
    };
    let mut data = i16::try_from(values.len())
        .expect("few")
        .to_be_bytes()
        .to_vec();
    for value in values {
        match value {
            None => data.extend_from_slice(&(-1_i32).to_be_bytes()),
            Some(value) => {
                data.extend_from_slice(&i32::try_from(value.len()).expect("short").to_be_bytes());
                data.extend_from_slice(value);
            }
        }
    }
    message(
        b'B',
        &[
            portal.as_bytes(),
            b"\0",
            statement.as_bytes(),
            b"\0",
            &list(formats),
            &data,
            &list(results),
        ],
    )
}

/// `what`: `S` a statement, `P` a portal.
pub fn describe(what: u8, name: &str) -> Vec<u8> {
    message(b'D', &[&[what], name.as_bytes(), b"\0"])
}

pub fn close(what: u8, name: &str) -> Vec<u8> {
    message(b'C', &[&[what], name.as_bytes(), b"\0"])
}

/// `limit`: most rows, 0 for all.
pub fn execute(portal: &str, limit: i32) -> Vec<u8> {
    message(b'E', &[portal.as_bytes(), b"\0", &limit.to_be_bytes()])
}

pub fn sync() -> Vec<u8> {
    message(b'S', &[])
}

pub fn flush() -> Vec<u8> {
    message(b'H', &[])
}

pub fn terminate() -> Vec<u8> {
    message(b'X', &[])
}

pub fn copy_data(data: &[u8]) -> Vec<u8> {
    message(b'd', &[data])
}

pub fn copy_done() -> Vec<u8> {
    message(b'c', &[])
}

pub fn copy_fail(why: &str) -> Vec<u8> {
    message(b'f', &[why.as_bytes(), b"\0"])
}

/// A FunctionCall with text arguments and a text result.
pub fn function_call(oid: u32, arguments: &[Option<&str>]) -> Vec<u8> {
    let mut data = i16::try_from(arguments.len())
        .expect("few")
        .to_be_bytes()
        .to_vec();
    for argument in arguments {
        match argument {
            None => data.extend_from_slice(&(-1_i32).to_be_bytes()),
            Some(text) => {
                data.extend_from_slice(&i32::try_from(text.len()).expect("short").to_be_bytes());
                data.extend_from_slice(text.as_bytes());
            }
        }
    }
    message(b'F', &[&oid.to_be_bytes(), &[0, 0], &data, &[0, 0]])
}
