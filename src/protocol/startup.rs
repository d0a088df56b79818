//! What a client says before it is logged in: SSLRequest, GSSENCRequest, CancelRequest or a
//! StartupMessage, as `ProcessStartupPacket` in PostgreSQL's backend_startup.c reads it.
//!
//! Reads exactly the bytes of one packet and never more, so that nothing sent in plain text can be
//! taken for part of what follows under TLS.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

use smallvec::SmallVec;

use crate::error::{Error, Kind, Result};
use crate::protocol::frame::split_cstr;

/// PostgreSQL's MAX_STARTUP_PACKET_LENGTH (pqcomm.h), in bytes without the length field.
const MAX_PACKET: usize = 10_000;
/// Longest cancel key in bytes (protocol 3.2).
pub const MAX_CANCEL_KEY: usize = 256;

const CANCEL_REQUEST: u32 = 80_877_102;
const SSL_REQUEST: u32 = 80_877_103;
const GSSENC_REQUEST: u32 = 80_877_104;

/// Newest protocol version spoken to clients and to servers.
pub const NEWEST: Version = Version { major: 3, minor: 2 };

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u16,
    pub minor: u16,
}

impl Version {
    pub fn code(self) -> i32 {
        (i32::from(self.major) << 16) | i32::from(self.minor)
    }
}

/// A client's first packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Packet {
    SslRequest,
    GssEncRequest,
    Cancel(CancelKey),
    Startup(Startup),
    /// A StartupMessage of another protocol.
    Unsupported(Version),
}

/// What a client cancels with: 4 bytes, or 32 since protocol 3.2. There is one for each client, so
/// the usual one takes no memory of its own.
pub type Secret = SmallVec<[u8; 16]>;

/// What names a query to cancel: the proxy's own keys toward clients, a server's toward servers.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CancelKey {
    pub pid: i32,
    /// 4 bytes, or up to 256 since protocol 3.2.
    pub secret: Secret,
}

impl std::fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CancelKey({}, ***)", self.pid)
    }
}

impl CancelKey {
    /// The CancelRequest packet for this key.
    pub fn request(&self) -> Vec<u8> {
        let length = u32::try_from(12 + self.secret.len()).unwrap_or(u32::MAX);
        let mut packet = Vec::with_capacity(12 + self.secret.len());
        packet.extend_from_slice(&length.to_be_bytes());
        packet.extend_from_slice(&CANCEL_REQUEST.to_be_bytes());
        packet.extend_from_slice(&self.pid.to_be_bytes());
        packet.extend_from_slice(&self.secret);
        packet
    }
}

/// A connection that streams WAL or its changes instead of serving an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replication {
    /// Of the whole instance; the server looks at no database.
    Physical,
    /// Of one database, where plain queries are served, too.
    Database,
}

impl Replication {
    /// Reads the `replication` parameter as ProcessStartupPacket does: a boolean as `parse_bool`
    /// (bool.c) takes it, or `database`.
    ///
    /// # Errors
    /// 22023 for anything else.
    fn parse(value: &str) -> Result<Option<Self>> {
        if value == "database" {
            return Ok(Some(Self::Database));
        }
        let starts = |word: &str, least: usize| {
            let length = value.len();
            (least..=word.len()).contains(&length)
                && word.as_bytes()[..length].eq_ignore_ascii_case(value.as_bytes())
        };
        if value == "1" || starts("true", 1) || starts("yes", 1) || starts("on", 2) {
            Ok(Some(Self::Physical))
        } else if value == "0" || starts("false", 1) || starts("no", 1) || starts("off", 2) {
            Ok(None)
        } else {
            let message = format!("invalid value for parameter \"replication\": \"{value}\"");
            Err(Error::new(Kind::InvalidParameterValue, message)
                .with_hint("Valid values are: \"false\", 0, \"true\", 1, \"database\"."))
        }
    }

    /// What the parameter is given as.
    pub fn value(self) -> &'static str {
        match self {
            Self::Physical => "true",
            Self::Database => "database",
        }
    }
}

/// A StartupMessage. Parameter names are as sent; the values of `user`, `database`, `options` and
/// `replication` are taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup {
    pub version: Version,
    pub user: String,
    /// None where the client left it out (PostgreSQL then takes the user's name).
    pub database: Option<String>,
    pub replication: Option<Replication>,
    /// Run-time parameters of `options` first, then those of their own, as PostgreSQL applies them.
    pub parameters: Vec<(String, String)>,
    /// Names of protocol extensions (`_pq_.…`); none is known.
    pub extensions: Vec<String>,
}

fn violation(message: &str) -> Error {
    Error::new(Kind::ProtocolViolation, message)
}

/// Bytes of a packet's length, which counts itself.
const LENGTH: usize = 4;

/// How Terminate begins. No packet has this length, and drivers that are ended before they have
/// begun say it (node-postgres).
const TERMINATE: [u8; LENGTH] = *b"X\0\0\0";

/// The size of the packet that `bytes` begin with, if they hold all of it.
pub fn whole_packet(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_be_bytes(*bytes.first_chunk()?) as usize;
    (2 * LENGTH..=bytes.len())
        .contains(&length)
        .then_some(length)
}

/// Reads one packet, and no byte more: what follows it may be TLS. `None`: the client left without
/// a word, as a port check does, or by Terminate. `size`: of the packet, where it is known, which
/// spares a system call.
///
/// Not cancel safe: a partly read packet is lost.
///
/// # Errors
/// 08P01 for bytes that are no packet, and what [`Startup`] refuses; `Err` of the socket as 08006.
/// Those that `ProcessStartupPacket` reports to its log alone are [untold](Error::is_untold).
pub async fn read<S: AsyncRead + Unpin>(io: &mut S, size: Option<usize>) -> Result<Option<Packet>> {
    let mut packet = vec![0; size.unwrap_or(LENGTH)];
    let here = match io.read(&mut packet).await {
        Ok(0) => return Ok(None),
        Ok(n) => n,
        Err(e) => return Err(lost(&e)),
    };
    let rest = &mut packet[here..];
    io.read_exact(rest).await.map_err(|e| lost(&e))?;
    let here = packet.len();
    let length: [u8; LENGTH] = packet.first_chunk().copied().unwrap_or_default();
    if length == TERMINATE {
        return Ok(None);
    }
    let length = u32::from_be_bytes(length) as usize;
    if !(2 * LENGTH..=MAX_PACKET + LENGTH).contains(&length) {
        return Err(violation("invalid length of startup packet").untold());
    }
    packet.resize(length, 0);
    let rest = packet.get_mut(here..).unwrap_or_default();
    io.read_exact(rest).await.map_err(|e| lost(&e))?;
    parse(&packet[LENGTH..]).map(Some)
}

fn lost(e: &io::Error) -> Error {
    Error::new(
        Kind::ConnectionFailure,
        "could not receive the startup packet",
    )
    .caused_by(e)
    .untold()
}

fn parse(body: &[u8]) -> Result<Packet> {
    let Some((code, rest)) = body.split_first_chunk::<4>() else {
        return Err(violation("invalid length of startup packet").untold());
    };
    match u32::from_be_bytes(*code) {
        SSL_REQUEST if rest.is_empty() => Ok(Packet::SslRequest),
        GSSENC_REQUEST if rest.is_empty() => Ok(Packet::GssEncRequest),
        CANCEL_REQUEST => parse_cancel(rest),
        SSL_REQUEST | GSSENC_REQUEST => Err(violation("invalid length of startup packet")),
        code => {
            let version = Version {
                major: (code >> 16) as u16,
                minor: (code & 0xffff) as u16,
            };
            if version.major != NEWEST.major {
                return Ok(Packet::Unsupported(version));
            }
            parse_startup(version, rest).map(Packet::Startup)
        }
    }
}

fn parse_cancel(rest: &[u8]) -> Result<Packet> {
    match rest.split_first_chunk::<4>() {
        Some((pid, secret)) if (4..=MAX_CANCEL_KEY).contains(&secret.len()) => {
            Ok(Packet::Cancel(CancelKey {
                pid: i32::from_be_bytes(*pid),
                secret: secret.into(),
            }))
        }
        _ => Err(violation("invalid length of cancel request packet").untold()),
    }
}

fn parse_startup(version: Version, mut rest: &[u8]) -> Result<Startup> {
    let bad_layout =
        || violation("invalid startup packet layout: expected terminator as last byte");
    let (mut user, mut database, mut options, mut replication) = (None, None, None, None);
    let mut own = Vec::new();
    let mut extensions = Vec::new();
    loop {
        let (name, after) = split_cstr(rest).ok_or_else(bad_layout)?;
        if name.is_empty() {
            if !after.is_empty() {
                return Err(bad_layout());
            }
            break;
        }
        let (value, after) = split_cstr(after).ok_or_else(bad_layout)?;
        rest = after;
        let twice = |name: &str| {
            // PostgreSQL takes the last; a proxy that decides by one and is read by the other
            // would let two tenants be named at once.
            violation(&format!("startup packet gives \"{name}\" more than once"))
        };
        let once = |what: &str, slot: &mut Option<String>, name: &str| match slot
            .replace(text(what, value)?.to_owned())
        {
            Some(_) => Err(twice(name)),
            None => Ok(()),
        };
        match name {
            b"user" => once("user name", &mut user, "user")?,
            b"database" => once("database name", &mut database, "database")?,
            b"options" => {
                if options.replace(value).is_some() {
                    return Err(twice("options"));
                }
            }
            b"replication" => once("parameter \"replication\"", &mut replication, "replication")?,
            _ if name.starts_with(b"_pq_.") => {
                extensions.push(text("name of an extension", name)?.to_owned());
            }
            _ => own.push(parameter(name, value)?),
        }
    }
    let user = user.filter(|user| !user.is_empty()).ok_or_else(|| {
        Error::new(
            Kind::InvalidAuthorization,
            "no PostgreSQL user name specified in startup packet",
        )
    })?;
    let mut parameters = parse_options(options.unwrap_or_default())?;
    parameters.extend(own);
    Ok(Startup {
        version,
        user,
        database: database.filter(|database| !database.is_empty()),
        replication: match replication {
            Some(value) => Replication::parse(&value)?,
            None => None,
        },
        parameters,
        extensions,
    })
}

/// A text of the packet that decides who logs in to what, or names a parameter.
fn text<'b>(what: &str, bytes: &'b [u8]) -> Result<&'b str> {
    std::str::from_utf8(bytes).map_err(|_| {
        violation(&format!(
            "{what} in startup packet is not valid UTF-8: \"{}\"",
            bytes.escape_ascii()
        ))
    })
}

/// A run-time parameter. A client's encoding is not known before it is logged in, and PostgreSQL
/// takes any bytes: of an `application_name` it makes printable ASCII, as `pg_clean_ascii` does
/// before PostgreSQL 16.
///
/// # Errors
/// 42704 for a name that no parameter can have, 22021 for another value that is not UTF-8.
fn parameter(name: &[u8], value: &[u8]) -> Result<(String, String)> {
    let Ok(name) = std::str::from_utf8(name) else {
        let message = format!(
            "unrecognized configuration parameter \"{}\"",
            name.escape_ascii()
        );
        return Err(Error::new(Kind::UndefinedObject, message));
    };
    let value = match std::str::from_utf8(value) {
        Ok(value) => value.to_owned(),
        Err(_) if name.eq_ignore_ascii_case("application_name") => {
            let clean = |&byte: &u8| match byte {
                b' '..=b'~' => char::from(byte),
                _ => '?',
            };
            value.iter().map(clean).collect()
        }
        Err(_) => {
            let message =
                format!("value of parameter \"{name}\" in startup packet is not valid UTF-8");
            return Err(Error::new(Kind::InvalidParameterValue, message).with_sqlstate("22021"));
        }
    };
    Ok((name.to_owned(), value))
}

/// Reads the `options` parameter as PostgreSQL's `pg_split_opts` and `process_postgres_switches`
/// do for a client that is no superuser: `-c name=value`, `-cname=value` and `--name=value`.
///
/// # Errors
/// 42601, with PostgreSQL's words, for any other switch.
fn parse_options(options: &[u8]) -> Result<Vec<(String, String)>> {
    let mut parameters = Vec::new();
    let mut arguments = split_options(options).into_iter();
    while let Some(argument) = arguments.next() {
        let (flag, setting) = if let Some(long) = argument.strip_prefix(b"--") {
            ("--", long.to_vec())
        } else if argument == b"-c" {
            let next = arguments.next();
            ("-c ", next.ok_or_else(|| invalid_switch(&argument))?)
        } else if let Some(short) = argument.strip_prefix(b"-c") {
            ("-c ", short.to_vec())
        } else {
            return Err(invalid_switch(&argument));
        };
        let Some(equals) = memchr::memchr(b'=', &setting) else {
            let setting = String::from_utf8_lossy(&setting);
            return Err(Error::new(
                Kind::SyntaxError,
                format!("{flag}{setting} requires a value"),
            ));
        };
        let (name, value) = parameter(&setting[..equals], &setting[equals + 1..])?;
        parameters.push((name.replace('-', "_"), value));
    }
    Ok(parameters)
}

fn invalid_switch(argument: &[u8]) -> Error {
    let argument = String::from_utf8_lossy(argument);
    Error::new(
        Kind::SyntaxError,
        format!("invalid command-line argument for server process: {argument}"),
    )
}

/// Splits at white space; a backslash takes the next character as it is.
fn split_options(options: &[u8]) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut bytes = options.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte.is_ascii_whitespace() || byte == b'\x0b' {
            words.extend(word.take());
        } else {
            let byte = match byte {
                b'\\' => bytes.next(),
                _ => Some(byte),
            };
            word.get_or_insert_default().extend(byte);
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(version: u32, pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut body = version.to_be_bytes().to_vec();
        for (name, value) in pairs {
            for text in [name, value] {
                body.extend_from_slice(text.as_bytes());
                body.push(0);
            }
        }
        body.push(0);
        body
    }

    fn startup(pairs: &[(&str, &str)]) -> Result<Startup> {
        match parse(&packet(0x0003_0000, pairs))? {
            Packet::Startup(startup) => Ok(startup),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_startup_message_is_taken_apart() {
        let startup = startup(&[
            ("user", "app.globex"),
            ("TimeZone", "UTC"),
            ("options", r"-c geqo=off --statement-timeout=5s -cx.y=a\ b"),
            ("_pq_.command_tag", "1"),
        ])
        .unwrap();
        assert_eq!(
            (startup.user.as_str(), startup.database),
            ("app.globex", None)
        );
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs
                .iter()
                .map(|&(n, v)| (n.to_owned(), v.to_owned()))
                .collect()
        };
        assert_eq!(
            startup.parameters,
            pairs(&[
                ("geqo", "off"),
                ("statement_timeout", "5s"),
                ("x.y", "a b"),
                ("TimeZone", "UTC")
            ])
        );
        assert_eq!(startup.extensions, ["_pq_.command_tag"]);
    }

    #[test]
    fn what_postgresql_would_not_accept_is_refused_with_its_sqlstate() {
        for (pairs, sqlstate) in [
            (&[("database", "x")][..], "28000"),
            (&[("user", "")], "28000"),
            (&[("user", "a"), ("user", "b")], "08P01"),
            (
                &[("user", "a"), ("database", "a"), ("database", "b")],
                "08P01",
            ),
            (&[("user", "a"), ("options", "-d 5")], "42601"),
            (&[("user", "a"), ("options", "-c")], "42601"),
            (&[("user", "a"), ("options", "-c geqo")], "42601"),
            (&[("user", "a"), ("options", "stray")], "42601"),
        ] {
            assert_eq!(
                startup(pairs).unwrap_err().sqlstate(),
                sqlstate,
                "{pairs:?}"
            );
        }
        assert_eq!(
            parse(&packet(0x0002_0000, &[])).unwrap(),
            Packet::Unsupported(Version { major: 2, minor: 0 })
        );
        for body in [
            &b"\0\x03\0\0user\0a"[..],
            b"\0\x03\0\0user\0a\0",
            b"\0\x03\0\0user\0a\0\0extra",
            b"\0\x03\0\0user\0\xff\xfe\0\0",
            b"\0\x03\0\0",
            b"\x04\xd2\x16\x2e\0\0\0\x01",
            b"\x04\xd2\x16\x2fextra",
        ] {
            assert_eq!(parse(body).unwrap_err().sqlstate(), "08P01", "{body:?}");
        }
    }

    #[test]
    fn texts_in_any_encoding_are_read_where_nothing_hangs_on_them() {
        let startup = |parts: &[&[u8]]| match parse(
            &[b"\0\x03\0\0user\0a\0", &parts.concat()[..], b"\0"].concat(),
        ) {
            Ok(Packet::Startup(startup)) => Ok(startup.parameters),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err((error.sqlstate().to_owned(), error.message().to_owned())),
        };
        let named = |value: &str| Ok(vec![("application_name".to_owned(), value.to_owned())]);
        let cleaned: &[&[u8]] = &[b"application_name\0caf\xe9 \x07\0"];
        assert_eq!(startup(cleaned), named("caf? ?"));
        let option: &[&[u8]] = &[b"options\0-c application_name=\\ \xe9\xfc\0"];
        assert_eq!(startup(option), named(" ??"));
        // What is UTF-8 is the server's to clean.
        assert_eq!(
            startup(&["application_name\0caf\u{e9}\0".as_bytes()]),
            named("caf\u{e9}")
        );
        for (parts, sqlstate, named) in [
            (&b"search_path\0caf\xe9\0"[..], "22021", "\"search_path\""),
            (b"options\0-csearch_path=\xe9\0", "22021", "\"search_path\""),
            (b"caf\xe9\0on\0", "42704", "\"caf\\xe9\""),
            (b"database\0caf\xe9\0", "08P01", "database name"),
        ] {
            let (code, message) = startup(&[parts]).unwrap_err();
            assert_eq!(code, sqlstate);
            assert!(message.contains(named), "{message}");
        }
    }

    #[test]
    fn replication_is_a_boolean_or_the_database() {
        for (values, expected) in [
            (
                &["true", "T", "tr", "yes", "Y", "on", "ON", "1"][..],
                Ok(Some(Replication::Physical)),
            ),
            (&["false", "F", "n", "No", "of", "off", "0"], Ok(None)),
            (&["database"], Ok(Some(Replication::Database))),
            (
                &[
                    "", "o", "Database", "data", "2", "10", "truest", "onn", "true ", "logical",
                ],
                Err("22023"),
            ),
        ] {
            for value in values {
                let read = startup(&[("user", "a"), ("replication", value)]);
                let read = read.map(|startup| startup.replication);
                let read = read.as_ref().copied().map_err(Error::sqlstate);
                assert_eq!(read, expected, "{value:?}");
            }
        }
    }

    #[test]
    fn a_cancel_request_survives_the_round_trip() {
        for secret in [vec![1, 2, 3, 4], vec![7; 32]] {
            let key = CancelKey {
                pid: -5,
                secret: secret.into(),
            };
            assert_eq!(parse(&key.request()[4..]).unwrap(), Packet::Cancel(key));
        }
    }

    #[tokio::test]
    async fn a_packet_of_known_size_is_read_to_its_last_byte_and_no_further() {
        let request = [&8_u32.to_be_bytes()[..], &SSL_REQUEST.to_be_bytes()].concat();
        let bytes = [&request[..], b"\x16\x03\x01 of TLS"].concat();
        assert_eq!(whole_packet(&bytes), Some(8));
        for here in 0..8 {
            assert_eq!(whole_packet(&bytes[..here]), None);
        }
        for size in [None, Some(8)] {
            let mut io = &bytes[..];
            let packet = read(&mut io, size).await.unwrap();
            assert_eq!(packet, Some(Packet::SslRequest));
            assert_eq!(io, b"\x16\x03\x01 of TLS");
        }
        for lie in [0, 3, 7, u32::MAX] {
            assert_eq!(
                whole_packet(&[&lie.to_be_bytes()[..], &bytes].concat()),
                None
            );
        }
    }

    #[tokio::test]
    async fn lengths_that_lie_are_refused_without_waiting_for_the_rest() {
        for bytes in [
            &b"\0\0\0\x07"[..],
            b"\0\0\0\0",
            b"\xff\xff\xff\xff",
            b"\x7f\xff\xff\xff",
        ] {
            let mut io = bytes;
            assert_eq!(read(&mut io, None).await.unwrap_err().sqlstate(), "08P01");
        }
        assert_eq!(read(&mut &b""[..], None).await.unwrap(), None);
        let terminate = read(&mut &b"X\0\0\0\x04"[..], None).await;
        assert_eq!(terminate.unwrap(), None);
        assert_eq!(
            read(&mut &b"\0\0"[..], None).await.unwrap_err().sqlstate(),
            "08006"
        );
    }
}
