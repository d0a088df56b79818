//! TLS on both sides: what clients negotiate, and what the proxy accepts of servers.

#![allow(clippy::expect_used, clippy::panic)]

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use pgtenant::cluster::{Cluster, Options, Tls};
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::{
    Running, SECRET, Setup, Tenant, assert_no_panics, cluster, eventually, in_time, parse_in,
    tenant, world,
};
use crate::wire::{
    GSSENC_REQUEST, PROTOCOL_3_0, PROTOCOL_3_2, SSL_REQUEST, Wire, bind, cancel_request, column,
    errors, execute, message, packet, parse, query, startup, sync,
};

mod goodbyes;

const BODIES: &str = "SELECT body FROM items WHERE id < 900 ORDER BY id";
const ALPN: &[u8] = b"postgresql";
const MEGABYTE: usize = 1 << 20;

// ---- certificates ----

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

#[derive(Clone)]
struct Leaf {
    cert: String,
    key: String,
}

impl Authority {
    /// They all have the same name, so that only the signature tells them apart.
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = named(&[]);
        params
            .distinguished_name
            .push(DnType::CommonName, "the authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    fn leaf(&self, names: &[&str]) -> Leaf {
        let key = KeyPair::generate().expect("a key");
        let mut params = named(names);
        params
            .distinguished_name
            .push(DnType::CommonName, "a server");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        Leaf {
            cert: cert.pem(),
            key: key.serialize_pem(),
        }
    }
}

fn named(names: &[&str]) -> CertificateParams {
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    CertificateParams::new(names).expect("names")
}

impl Leaf {
    fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.cert.as_bytes()).expect("a certificate")
    }

    /// What `tls-server-end-point` binds to.
    fn hash(&self) -> Vec<u8> {
        Sha256::digest(self.der()).to_vec()
    }

    fn server(&self) -> Tls {
        Tls {
            cert: self.cert.clone().into_bytes(),
            key: self.key.clone().into_bytes(),
            client_ca: None,
        }
    }
}

// ---- the client's side ----

/// A proxy whose port speaks TLS.
struct Front {
    proxy: Running,
    authority: Authority,
    leaf: Leaf,
    dir: TempDir,
    yaml: String,
}

impl Front {
    async fn start(about_tls: &str, sections: &str) -> Self {
        let authority = Authority::new();
        let leaf = authority.leaf(&["proxy.test"]);
        let setup = Setup {
            sections: sections.to_owned(),
            ..Setup::default()
        };
        let yaml = setup.yaml(world().await).replace(
            "address: \"127.0.0.1:0\"",
            &format!("address: \"127.0.0.1:0\", tls: {{ cert: s.crt, key: s.key{about_tls} }}"),
        );
        let dir = TempDir::new().expect("a directory");
        install(&dir, &leaf);
        fs::write(dir.path().join("ca.crt"), &authority.pem).expect("writes");
        let proxy = Running::with(parse_in(&yaml, dir.path()), None);
        Self {
            proxy,
            authority,
            leaf,
            dir,
            yaml,
        }
    }

    fn renew(&self, leaf: &Leaf) {
        install(&self.dir, leaf);
        let config = parse_in(&self.yaml, self.dir.path());
        self.proxy.proxy.app().reload(config).expect("reloads");
    }

    async fn socket(&self) -> TcpStream {
        let tcp = TcpStream::connect(self.proxy.address).await;
        let tcp = tcp.expect("connects");
        tcp.set_nodelay(true).expect("a socket");
        tcp
    }

    /// TLS from the first byte.
    async fn direct(&self, alpn: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
        self.handshake(self.socket().await, alpn, "proxy.test")
            .await
    }

    async fn handshake(
        &self,
        tcp: TcpStream,
        alpn: &[&[u8]],
        name: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(self.authority.pem.as_bytes()).expect("a CA");
        roots.add(ca).expect("a root");
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, tcp);
        in_time("a TLS handshake", connecting).await
    }

    /// A client of bytes in TLS that is logged in.
    async fn client(&self, tenant: &Tenant) -> Wire {
        let tls = self.direct(&[ALPN]).await.expect("a handshake");
        let mut wire = Wire::over(tls);
        log_in(&mut wire, tenant).await;
        wire
    }

    fn psql(&self, user: &str, tenant: &Tenant, more: &str) -> Command {
        let mut command = Command::new("psql");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        let dsn = format!(
            "hostaddr=127.0.0.1 port={} user={user} password={} dbname={} {more}",
            self.proxy.address.port(),
            tenant.password(),
            tenant.database,
        );
        command.args(["-XAtw", "-d", &dsn]);
        command.kill_on_drop(true);
        command
    }
}

fn install(dir: &TempDir, leaf: &Leaf) {
    fs::write(dir.path().join("s.crt"), &leaf.cert).expect("writes");
    fs::write(dir.path().join("s.key"), &leaf.key).expect("writes");
}

async fn log_in(wire: &mut Wire, tenant: &Tenant) {
    let (user, password) = (tenant.user(), tenant.password());
    let pairs = [("user", &*user), ("database", &tenant.database)];
    let done = wire.log_in(&pairs, &password).await;
    done.unwrap_or_else(|error| panic!("{}: {error}", tenant.name));
}

/// What a program prints: its output, or its error as `Err`.
async fn run(mut command: Command) -> Result<String, String> {
    let output = in_time("psql", command.output()).await.expect("psql runs");
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_uses_tls_as_it_is_told() {
    let front = Front::start("", "").await;
    let tenant = tenant("t00");
    let bodies = tenant.bodies().join("\n");
    let mut wrong = Vec::new();
    let root = format!("sslrootcert={}", front.dir.path().join("ca.crt").display());
    for (about, encrypted) in [
        ("host=proxy.test sslmode=disable", false),
        ("host=proxy.test sslmode=prefer", true),
        ("host=proxy.test sslmode=require", true),
        (
            "host=proxy.test sslmode=require ssl_max_protocol_version=TLSv1.2",
            true,
        ),
        (
            "host=proxy.test sslmode=require channel_binding=require",
            true,
        ),
        (
            "host=proxy.test sslmode=require channel_binding=require ssl_max_protocol_version=TLSv1.2",
            true,
        ),
        (
            "host=proxy.test sslmode=require channel_binding=disable",
            true,
        ),
        (&format!("sslmode=verify-full host=proxy.test {root}"), true),
    ] {
        let mut command = front.psql(&tenant.user(), &tenant, about);
        command.args(["-c", "\\conninfo", "-c", BODIES]);
        match run(command).await {
            Err(error) => wrong.push(format!("{about}: {error}")),
            Ok(out) => {
                if !out.ends_with(&bodies) || out.contains("SSL connection") != encrypted {
                    wrong.push(format!("{about}: {out}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_no_panics();
}
#[tokio::test(flavor = "multi_thread")]
async fn direct_tls_needs_the_alpn_of_postgresql() {
    let front = Front::start("", "").await;
    let tenant = tenant("t00");
    for alpn in [&[ALPN][..], &[b"h2", ALPN]] {
        let tls = front.direct(alpn).await.expect("a handshake");
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(ALPN));
        let mut wire = Wire::over(tls);
        log_in(&mut wire, &tenant).await;
        assert_eq!(wire.column(BODIES).await, tenant.bodies());
    }
    let others: [&[&[u8]]; 4] = [&[], &[b"h2"], &[b"postgres"], &[b"POSTGRESQL"]];
    for alpn in others {
        // The handshake fails, or the proxy closes after it; it says nothing either way.
        if let Ok(tls) = front.direct(alpn).await {
            let mut wire = Wire::over(tls);
            let hello = startup(PROTOCOL_3_0, &[("user", &tenant.user())]);
            let _ = wire.try_send(&hello).await;
            assert!(wire.rest().await.is_empty(), "{alpn:?}");
        }
    }
    // After SSLRequest ALPN is optional, and another is refused.
    for (alpn, good) in [(&[][..], true), (&[ALPN], true), (&[b"h2"], false)] {
        let mut tcp = front.socket().await;
        ask_for_tls(&mut tcp).await;
        match front.handshake(tcp, alpn, "proxy.test").await {
            Ok(tls) => {
                assert!(good, "{alpn:?}");
                let mut wire = Wire::over(tls);
                log_in(&mut wire, &tenant).await;
                assert_eq!(wire.column(BODIES).await, tenant.bodies());
            }
            Err(error) => assert!(!good, "{alpn:?}: {error}"),
        }
    }
}

async fn ask_for_tls(tcp: &mut TcpStream) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    tcp.write_all(&packet(SSL_REQUEST, &[]))
        .await
        .expect("sends");
    let answer = in_time("the answer to SSLRequest", tcp.read_u8()).await;
    assert_eq!(answer.expect("an answer"), b'S');
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_name_of_tls_names_the_tenant() {
    let sections = "identify: { by: [user, sni], sni_suffix: .db.test }";
    let front = Front::start("", sections).await;
    let (mine, other) = (tenant("t00"), tenant("t01"));
    for (user, host, expected) in [
        ("app", "t00.db.test", true),
        ("app", "T00.DB.Test", true),
        ("app.t00", "t00.db.test", true),
        ("app.t00", "proxy.test", true),
        // Nobody's, or of two tenants.
        ("app", "proxy.test", false),
        ("app", "db.test", false),
        ("app", "x.t00.db.test", false),
        ("app", "nobody.db.test", false),
        ("app.t00", "t01.db.test", false),
        ("app.t01", "t00.db.test", false),
        // Of another one, whose password it is not.
        ("app", "t01.db.test", false),
    ] {
        let label = format!("{user} at {host}");
        let more = format!("sslmode=require host={host}");
        let mut command = front.psql(user, &mine, &more);
        command.args(["-c", BODIES]);
        match run(command).await {
            Ok(out) => {
                assert!(expected, "{label}");
                assert_eq!(out, mine.bodies().join("\n"), "{label}");
            }
            Err(error) => {
                assert!(!expected, "{label}: {error}");
                let wrong = format!("FATAL:  password authentication failed for user \"{user}\"");
                assert!(error.ends_with(&wrong), "{label}: {error}");
            }
        }
    }
    // Without TLS there is no name.
    let mut command = front.psql("app", &other, "sslmode=disable host=t01.db.test");
    command.args(["-c", BODIES]);
    let error = run(command).await.expect_err("it names no tenant");
    assert!(error.contains("password authentication failed"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_requires_tls_refuses_plain_text() {
    let front = Front::start(", required: true", "").await;
    let tenant = tenant("t00");
    let mut wire = Wire::tcp(front.proxy.address).await;
    let pairs = [("user", &*tenant.user()), ("database", &tenant.database)];
    let error = wire.log_in(&pairs, &tenant.password()).await;
    assert_eq!(error.expect_err("refused").sqlstate(), "28000");
    assert_eq!(wire.greeting.len(), 1, "{:?}", wire.greeting);
    assert!(wire.rest().await.is_empty());
    // Encryption by Kerberos is not there, and does not get around it.
    let mut wire = Wire::tcp(front.proxy.address).await;
    wire.send(&packet(GSSENC_REQUEST, &[])).await;
    assert_eq!(wire.byte().await, Some(b'N'));
    let error = wire.log_in(&pairs, &tenant.password()).await;
    assert_eq!(error.expect_err("refused").sqlstate(), "28000");
    let mut encrypted = front.client(&tenant).await;
    assert_eq!(encrypted.column(BODIES).await, tenant.bodies());
}

#[tokio::test(flavor = "multi_thread")]
async fn scram_is_bound_to_the_certificate() {
    let front = Front::start("", "").await;
    let tenant = tenant("t00");
    let (user, password) = (tenant.user(), tenant.password());
    let hello = startup(
        PROTOCOL_3_0,
        &[("user", &user), ("database", &tenant.database)],
    );
    let open = async || {
        let mut wire = Wire::over(front.direct(&[ALPN]).await.expect("a handshake"));
        wire.send(&hello).await;
        wire
    };
    let mut wire = open().await;
    let bound = wire.authenticate(&password, Some(front.leaf.hash())).await;
    bound.expect("logs in");
    assert_eq!(wire.column(BODIES).await, tenant.bodies());
    // Somebody in between has another certificate.
    let other = front.authority.leaf(&["proxy.test"]).hash();
    let error = open().await.authenticate(&password, Some(other)).await;
    assert_eq!(error.expect_err("refused").sqlstate(), "28P01");
    // Or hides that binding is offered: the client says that it could have.
    let mut wire = open().await;
    assert_eq!(wire.expect().await.tag, b'R');
    let mut client = ScramSha256::new(password.as_bytes(), ChannelBinding::unrequested());
    let first = client.message().to_vec();
    assert!(first.starts_with(b"y,,"));
    let length = u32::try_from(first.len()).expect("short").to_be_bytes();
    wire.send(&message(b'p', &[b"SCRAM-SHA-256\0", &length, &first]))
        .await;
    let answer = wire.expect().await;
    if answer.tag == b'R' {
        client.update(&answer.body[4..]).expect("a challenge");
        wire.send(&message(b'p', &[client.message()])).await;
        assert_eq!(wire.expect().await.tag, b'E');
    } else {
        assert_eq!(answer.tag, b'E', "{answer}");
    }
    assert!(wire.rest().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_text_after_the_request_for_tls_is_never_a_login() {
    let front = Front::start("", "").await;
    let tenant = tenant("t00");
    let hello = startup(
        PROTOCOL_3_0,
        &[("user", &tenant.user()), ("database", &tenant.database)],
    );
    let clear = packet(SSL_REQUEST, &[]);
    for smuggled in [
        hello.clone(),
        hello[..1].to_vec(),
        clear.clone(),
        packet(GSSENC_REQUEST, &[]),
        query("SELECT 1"),
    ] {
        let mut wire = Wire::tcp(front.proxy.address).await;
        wire.send(&[&clear[..], &smuggled].concat()).await;
        assert_eq!(wire.byte().await, Some(b'S'));
        // Had it been kept for after the handshake, this would be the handshake.
        wire.shutdown().await;
        let answer = wire.rest().await;
        assert!(
            answer.iter().all(|frame| !b"REZ".contains(&frame.tag)),
            "{answer:?}"
        );
    }
    // In TLS there is no second request.
    let mut wire = Wire::over(front.direct(&[ALPN]).await.expect("a handshake"));
    wire.send(&clear).await;
    assert_eq!(errors(&wire.rest().await), ["0A000"]);
    assert_no_panics();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_says_what_encryption_it_does_not_have() {
    let plain = Setup::default().start().await;
    let front = Front::start("", "").await;
    let tenant = tenant("t00");
    let (ssl, gss) = (packet(SSL_REQUEST, &[]), packet(GSSENC_REQUEST, &[]));
    for requests in [&[&ssl][..], &[&gss], &[&gss, &ssl], &[&ssl, &gss]] {
        let mut wire = Wire::tcp(plain.address).await;
        for request in requests {
            wire.send(request).await;
            assert_eq!(wire.byte().await, Some(b'N'), "{requests:?}");
        }
        log_in(&mut wire, &tenant).await;
        assert_eq!(wire.column(BODIES).await, tenant.bodies());
    }
    // With TLS on offer: Kerberos first, as libpq asks, then TLS or none.
    let mut wire = Wire::tcp(front.proxy.address).await;
    wire.send(&gss).await;
    assert_eq!(wire.byte().await, Some(b'N'));
    log_in(&mut wire, &tenant).await;
    assert_eq!(wire.column(BODIES).await, tenant.bodies());
    {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut tcp = front.socket().await;
        tcp.write_all(&gss).await.expect("sends");
        let answer = in_time("the answer to GSSENCRequest", tcp.read_u8()).await;
        assert_eq!(answer.expect("an answer"), b'N');
        ask_for_tls(&mut tcp).await;
        let tls = front.handshake(tcp, &[], "proxy.test").await;
        let mut wire = Wire::over(tls.expect("a handshake"));
        log_in(&mut wire, &tenant).await;
        assert_eq!(wire.column(BODIES).await, tenant.bodies());
    }
    // A port without TLS has no direct one either.
    let tcp = TcpStream::connect(plain.address).await.expect("connects");
    let failed = front.handshake(tcp, &[ALPN], "proxy.test").await;
    assert!(failed.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_for_the_next_client() {
    let front = Front::start("", "").await;
    let tenant = tenant("t00");
    let mut before = front.client(&tenant).await;
    let renewed = front.authority.leaf(&["proxy.test"]);
    front.renew(&renewed);
    assert_eq!(before.column(BODIES).await, tenant.bodies());
    let tls = front.direct(&[ALPN]).await.expect("a handshake");
    let shown = tls.get_ref().1.peer_certificates().expect("certificates")[0].clone();
    assert_eq!(shown, renewed.der());
    // SCRAM is bound to the new one, too.
    let mut after = Wire::over(tls);
    let hello = startup(
        PROTOCOL_3_0,
        &[("user", &tenant.user()), ("database", &tenant.database)],
    );
    after.send(&hello).await;
    let password = tenant.password();
    let bound = after.authenticate(&password, Some(renewed.hash()));
    bound.await.expect("logs in");
    assert_eq!(after.column(BODIES).await, tenant.bodies());
    assert_eq!(before.column(BODIES).await, tenant.bodies());
}

/// Servers belong to workers, and any worker accepts: about half of the clients move in their TLS
/// session.
#[tokio::test(flavor = "multi_thread")]
async fn clients_in_tls_are_served_on_any_worker() {
    let front = Arc::new(Front::start("", "").await);
    let mut tasks = JoinSet::new();
    for number in 0..32 {
        let front = front.clone();
        tasks.spawn(async move {
            let tenant = tenant(["t00", "c0", "d1", "acme"][number % 4]);
            let mut wire = front.client(&tenant).await;
            assert_eq!(wire.column(BODIES).await, tenant.bodies());
            megabytes(&mut wire).await;
            assert_eq!(wire.column(BODIES).await, tenant.bodies());
        });
    }
    tasks.join_all().await;
    assert_no_panics();
}

/// A client that does not read for a while: what TLS holds back for it goes on when it reads again,
/// wherever the sockets were full.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_in_tls_that_reads_late_gets_everything() {
    let front = Front::start("", "").await;
    let mut wire = front.client(&tenant("t00")).await;
    // In a transaction the server says nothing more that would push the rest.
    wire.query("BEGIN").await;
    for length in (0..6 * MEGABYTE).step_by(48 * 1024) {
        wire.send(&query(&format!("SELECT repeat('x', {length})")))
            .await;
        // Nothing depends on it but how full the sockets are.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let result = column(&wire.until_ready().await);
        assert_eq!(result[0].len(), length);
    }
    wire.query("COMMIT").await;
}

/// A large result, a large parameter, and one that comes back.
async fn megabytes(wire: &mut Wire) {
    let result = wire.column("SELECT repeat('x', 1 << 20)").await;
    assert_eq!(result[0].len(), MEGABYTE);
    let text: String = (0..MEGABYTE)
        .map(|n| char::from(b'a' + u8::try_from(n % 23).unwrap_or_default()))
        .collect();
    for sql in ["SELECT md5($1::text)", "SELECT $1::text"] {
        let batch = [
            parse("", sql),
            bind("", "", &[Some(&text)]),
            execute("", 0),
            sync(),
        ];
        wire.send(&batch.concat()).await;
        let result = column(&wire.until_ready().await);
        match result[0].len() {
            32 => {}
            _ => assert!(result[0] == text, "the parameter came back changed"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_comes_in_tls_or_plain() {
    let front = Front::start("", "").await;
    let tenant = tenant("t00");
    let mut wire = front.client(&tenant).await;
    for (encrypted, mark) in [(true, "cancel in tls"), (false, "cancel in plain text")] {
        let sql = format!("SELECT pg_sleep(60) /* {mark} */");
        wire.send(&query(&sql)).await;
        running(&world().await.shared, mark).await;
        let mut cancel = match encrypted {
            true => Wire::over(front.direct(&[ALPN]).await.expect("a handshake")),
            false => Wire::tcp(front.proxy.address).await,
        };
        cancel.send(&cancel_request(&wire.key)).await;
        assert!(cancel.rest().await.is_empty());
        assert_eq!(errors(&wire.until_ready().await), ["57014"]);
        assert_eq!(wire.column(BODIES).await, tenant.bodies());
    }
}

/// Waits until a query with this mark runs on the server.
async fn running(cluster: &Cluster, mark: &str) {
    let watching = cluster.connect("postgres").await.expect("connects");
    eventually("the query runs", async || {
        let sql = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND query LIKE $1 AND pid <> pg_backend_pid()";
        let rows = watching.query(sql, &[&format!("%{mark}%")]).await;
        !rows.expect("pg_stat_activity").is_empty()
    })
    .await;
}

// ---- the server's side ----

/// A login of the proxy to a server, as the config says it; a tenant of the same name goes there.
struct Way {
    name: String,
    /// Entries of the server: host, port, sslmode, root_cert.
    server: String,
    role: &'static str,
}

fn way(name: &str, cluster: &Cluster, host: &str, tls: &str, role: &'static str) -> Way {
    Way {
        name: name.to_owned(),
        server: format!("host: \"{host}\", port: {}, sslmode: {tls}", cluster.port()),
        role,
    }
}

/// A proxy with these ways, each one a server of its own; `dir` has the roots.
fn back(ways: &[Way], dir: &TempDir) -> Running {
    let lines = |line: fn(&Way) -> String| ways.iter().map(line).collect::<String>();
    let servers = lines(|way| {
        let Way { name, server, .. } = way;
        format!("  {name}: {{ {server}, max_connections: 8 }}\n")
    });
    let placements = lines(|way| {
        let Way { name, role, .. } = way;
        format!(
            "  {name}: {{ tier: instance, server: {name}, database: postgres, login: {{ user: {role}, password: {SECRET} }} }}\n"
        )
    });
    let tenants = lines(|way| {
        let name = &way.name;
        format!(
            "  {name}: {{ placement: {name}, users: {{ app: {{ password: {name}-secret }} }} }}\n"
        )
    });
    let yaml = format!(
        "listen: [{{ address: \"127.0.0.1:0\" }}]\nworkers: 2\nservers:\n{servers}placements:\n{placements}tenants:\n{tenants}"
    );
    Running::with(parse_in(&yaml, dir.path()), None)
}

/// Runs a query as the tenant of this way. An error may come at the login or at the query.
async fn ask(proxy: &Running, way: &Way, sql: &str) -> Result<String, crate::wire::Frame> {
    let mut wire = Wire::tcp(proxy.address).await;
    let user = format!("app.{}", way.name);
    let pairs = [("user", &*user), ("database", "postgres")];
    let password = format!("{}-secret", way.name);
    wire.log_in(&pairs, &password).await?;
    let frames = wire.query(sql).await;
    match frames.iter().find(|frame| frame.tag == b'E') {
        Some(error) => Err(error.clone()),
        None => Ok(column(&frames).remove(0)),
    }
}

/// Whether the server sees TLS; `refused` for 08006, which must tell the client nothing.
async fn seen(proxy: &Running, way: &Way) -> &'static str {
    let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    match ask(proxy, way, sql).await.as_deref() {
        Ok("t") => "tls",
        Ok("f") => "plain",
        Ok(other) => panic!("{}: {other}", way.name),
        Err(error) => {
            assert_eq!(error.sqlstate(), "08006", "{}: {error}", way.name);
            let text = error.to_string().to_lowercase();
            for secret in [
                way.role,
                SECRET,
                "hba",
                "cert",
                "issuer",
                "localhost",
                "127.0.0.1",
                "encryption",
                "ssl",
                "tls",
            ] {
                assert!(!text.contains(secret), "{}: {text}", way.name);
            }
            "refused"
        }
    }
}

struct Server {
    cluster: Cluster,
    /// Has `ca.crt`, `wrong.crt` and `server.crt`.
    dir: TempDir,
}

/// A server with TLS whose certificate is for `localhost`, not for its address.
async fn server(name: &str) -> Server {
    let authority = Authority::new();
    let leaf = authority.leaf(&["localhost"]);
    let dir = roots(&[
        ("ca.crt", &authority.pem),
        ("wrong.crt", &Authority::new().pem),
        ("server.crt", &leaf.cert),
    ]);
    let hba = [
        "hostssl all only_tls 127.0.0.1/32 scram-sha-256",
        "host all only_tls 127.0.0.1/32 reject",
        "hostnossl all only_plain 127.0.0.1/32 scram-sha-256",
        "host all only_plain 127.0.0.1/32 reject",
        "host all by_md5 all md5",
        "host all by_cleartext all password",
        "host all by_scram all scram-sha-256",
        "host all by_trust all trust",
    ];
    let cluster = cluster(Options {
        tls: Some(leaf.server()),
        hba: hba.map(str::to_owned).into(),
        ..Options::named(name)
    })
    .await;
    let roles: String = [
        "only_tls",
        "only_plain",
        "by_cleartext",
        "by_scram",
        "by_trust",
    ]
    .map(|role| format!("CREATE ROLE {role} LOGIN PASSWORD '{SECRET}';"))
    .concat();
    let md5 =
        format!("SET password_encryption = 'md5'; CREATE ROLE by_md5 LOGIN PASSWORD '{SECRET}';");
    let sql = [roles, md5].concat();
    cluster.run("postgres", &sql).await.expect("roles");
    Server { cluster, dir }
}

fn roots(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().expect("a directory");
    for (file, pem) in files {
        fs::write(dir.path().join(file), pem).expect("writes");
    }
    dir
}

#[tokio::test(flavor = "multi_thread")]
async fn sslmode_means_what_it_means_to_libpq() {
    let Server { cluster, dir } = server("sslmodes").await;
    let cases = [
        ("a1", "disable", "only_tls", "refused"),
        ("a2", "prefer", "only_tls", "tls"),
        ("a3", "require", "only_tls", "tls"),
        ("b1", "disable", "only_plain", "plain"),
        ("b2", "prefer", "only_plain", "plain"),
        ("b3", "require", "only_plain", "refused"),
        ("c1", "disable", "by_scram", "plain"),
        ("c2", "prefer", "by_scram", "tls"),
        ("c3", "require", "by_scram", "tls"),
    ];
    let ways = cases.map(|(name, mode, role, _)| way(name, &cluster, "127.0.0.1", mode, role));
    let proxy = back(&ways, &dir);
    let mut got = Vec::new();
    for (way, case) in ways.iter().zip(cases) {
        got.push((case.0, case.1, case.2, seen(&proxy, way).await));
    }
    assert_eq!(got, cases);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_used_only_where_the_mode_allows_it() {
    let shared = &world().await.shared;
    let dir = roots(&[("ca.crt", &Authority::new().pem)]);
    let cases = [
        ("n1", "disable", "plain"),
        ("n2", "prefer", "plain"),
        ("n3", "require", "refused"),
        ("n4", "verify-ca, root_cert: ca.crt", "refused"),
        ("n5", "verify-full, root_cert: ca.crt", "refused"),
    ];
    // `app` may use the database `app` only, where every role may use `postgres`.
    let ways = cases.map(|(name, tls, _)| way(name, shared, "127.0.0.1", tls, "app"));
    let proxy = back(&ways, &dir);
    for (way, case) in ways.iter().zip(cases) {
        assert_eq!(seen(&proxy, way).await, case.2, "{case:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_servers_are_checked_as_the_mode_says() {
    let Server { cluster, dir } = server("certificates").await;
    let cases = [
        ("v1", "localhost", "verify-ca, root_cert: ca.crt", "tls"),
        ("v2", "127.0.0.1", "verify-ca, root_cert: ca.crt", "tls"),
        (
            "v3",
            "localhost",
            "verify-ca, root_cert: wrong.crt",
            "refused",
        ),
        (
            "v4",
            "127.0.0.1",
            "verify-ca, root_cert: wrong.crt",
            "refused",
        ),
        ("v5", "localhost", "verify-ca", "refused"),
        ("v6", "localhost", "verify-full, root_cert: ca.crt", "tls"),
        (
            "v7",
            "127.0.0.1",
            "verify-full, root_cert: ca.crt",
            "refused",
        ),
        (
            "v8",
            "localhost",
            "verify-full, root_cert: wrong.crt",
            "refused",
        ),
        ("v9", "localhost", "verify-full", "refused"),
        ("r1", "127.0.0.1", "require", "tls"),
    ];
    let ways = cases.map(|(name, host, tls, _)| way(name, &cluster, host, tls, "only_tls"));
    let proxy = back(&ways, &dir);
    let mut got = Vec::new();
    for (way, case) in ways.iter().zip(cases) {
        got.push((case.0, case.1, case.2, seen(&proxy, way).await));
    }
    assert_eq!(got, cases);
}

/// What `openssl req -x509` makes: it signs itself and says that it is an authority.
#[tokio::test(flavor = "multi_thread")]
async fn a_self_signed_certificate_can_be_its_own_root() {
    let key = KeyPair::generate().expect("a key");
    for (authority, name) in [
        (IsCa::NoCa, "selfsigned"),
        (IsCa::Ca(BasicConstraints::Unconstrained), "selfsignedca"),
    ] {
        let mut params = named(&["localhost"]);
        params.is_ca = authority;
        let leaf = Leaf {
            cert: params.self_signed(&key).expect("a certificate").pem(),
            key: key.serialize_pem(),
        };
        let dir = roots(&[("own.crt", &leaf.cert)]);
        let cluster = cluster(Options {
            tls: Some(leaf.server()),
            ..Options::named(name)
        })
        .await;
        let role = format!("CREATE ROLE app LOGIN PASSWORD '{SECRET}'");
        cluster.run("postgres", &role).await.expect("a role");
        let modes = [
            "require",
            "verify-ca, root_cert: own.crt",
            "verify-full, root_cert: own.crt",
        ];
        let ways: Vec<_> = (0..)
            .zip(modes)
            .map(|(n, tls)| way(&format!("w{n}"), &cluster, "localhost", tls, "app"))
            .collect();
        let proxy = back(&ways, &dir);
        for (way, mode) in ways.iter().zip(modes) {
            assert_eq!(seen(&proxy, way).await, "tls", "{name}: {mode}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_may_ask_for_passwords_in_any_way() {
    let Server { cluster, dir } = server("passwords").await;
    let mut ways = Vec::new();
    for (role, method) in [
        ("by_md5", "md5"),
        ("by_cleartext", "password"),
        ("by_scram", "scram-sha-256"),
        ("by_trust", "none"),
    ] {
        for tls in ["disable", "require", "verify-full"] {
            if method == "password" && tls != "verify-full" {
                continue;
            }
            let name = format!("{}-{tls}", role.replace('_', "-"));
            let more = format!("{tls}, root_cert: ca.crt, require_auth: {method}");
            ways.push(way(&name, &cluster, "localhost", &more, role));
        }
    }
    let proxy = back(&ways, &dir);
    for way in &ways {
        let user = ask(&proxy, way, "SELECT current_user").await;
        assert_eq!(user.as_deref(), Ok(way.role), "{}", way.name);
    }
    // A password that has changed since is refused, and neither it nor the role is told.
    let sql = "ALTER ROLE by_md5 PASSWORD 'changed'; ALTER ROLE by_cleartext PASSWORD 'changed'; ALTER ROLE by_scram PASSWORD 'changed'";
    cluster.run("postgres", sql).await.expect("roles");
    let proxy = back(&ways, &dir);
    for way in ways.iter().filter(|way| way.role != "by_trust") {
        assert_eq!(seen(&proxy, way).await, "refused", "{}", way.name);
    }
    // And what the config does not have.
    let sql = format!("ALTER ROLE by_scram PASSWORD '{SECRET}'");
    cluster.run("postgres", &sql).await.expect("a role");
    let ways: Vec<_> = [
        ("by_md5", "scram-sha-256,none", "refused"),
        ("by_cleartext", "scram-sha-256,none", "refused"),
        ("by_cleartext", "!password", "refused"),
        ("by_scram", "scram-sha-256,none", "tls"),
        ("by_scram", "!scram-sha-256,!password", "refused"),
        ("by_trust", "scram-sha-256,none", "tls"),
        ("by_trust", "scram-sha-256", "refused"),
        ("by_trust", "!none,!password", "refused"),
    ]
    .into_iter()
    .enumerate()
    .map(|(number, (role, list, seen))| {
        let more = format!("require, require_auth: \"{list}\"");
        (
            way(&format!("w{number}"), &cluster, "127.0.0.1", &more, role),
            seen,
        )
    })
    .collect();
    let (ways, expected): (Vec<_>, Vec<_>) = ways.into_iter().unzip();
    let proxy = back(&ways, &dir);
    for (way, expected) in ways.iter().zip(expected) {
        assert_eq!(seen(&proxy, way).await, expected, "{}", way.server);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_are_reached_by_their_unix_sockets() {
    let Server { cluster, dir } = server("sockets").await;
    let directory = cluster.socket_dir();
    let host = directory.to_str().expect("text");
    let ways = [
        way("u1", &cluster, host, "disable", "by_scram"),
        way("u2", &cluster, host, "prefer", "by_scram"),
    ];
    let proxy = back(&ways, &dir);
    for way in &ways {
        assert_eq!(seen(&proxy, way).await, "plain", "{}", way.name);
        let sql = "SELECT inet_client_addr() IS NULL";
        assert_eq!(ask(&proxy, way, sql).await.as_deref(), Ok("t"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_and_cancels_go_to_servers_in_tls() {
    let Server { cluster, dir } = server("large").await;
    let tls = "verify-full, root_cert: ca.crt";
    let ways = [way("big", &cluster, "localhost", tls, "only_tls")];
    let proxy = back(&ways, &dir);
    assert_eq!(seen(&proxy, &ways[0]).await, "tls");
    let mut wire = Wire::tcp(proxy.address).await;
    let pairs = [("user", "app.big"), ("database", "postgres")];
    wire.log_in(&pairs, "big-secret").await.expect("logs in");
    megabytes(&mut wire).await;
    // The keys of the two sides are as long as their protocols say, each on its own.
    for (version, mark) in [
        (PROTOCOL_3_0, "cancel by 3.0"),
        (PROTOCOL_3_2, "cancel by 3.2"),
    ] {
        let mut wire = Wire::tcp(proxy.address).await;
        wire.send(&startup(version, &pairs)).await;
        let done = wire.authenticate("big-secret", None).await;
        done.expect("logs in");
        let sql = format!("SELECT pg_sleep(60) /* {mark} */");
        wire.send(&query(&sql)).await;
        running(&cluster, mark).await;
        let mut cancel = Wire::tcp(proxy.address).await;
        cancel.send(&cancel_request(&wire.key)).await;
        assert!(cancel.rest().await.is_empty());
        assert_eq!(errors(&wire.until_ready().await), ["57014"]);
    }
    megabytes(&mut wire).await;
    assert_no_panics();
}

/// Certificates by the hash of their signature; one that has none is used without channel binding.
#[tokio::test(flavor = "multi_thread")]
async fn logins_to_servers_are_bound_to_certificates_of_every_kind() {
    for (algorithm, name) in [
        (&rcgen::PKCS_ECDSA_P256_SHA256, "p256"),
        (&rcgen::PKCS_ECDSA_P384_SHA384, "p384"),
        (&rcgen::PKCS_ED25519, "ed25519"),
    ] {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let leaf = Leaf {
            cert: named(&["localhost"])
                .self_signed(&key)
                .expect("signed")
                .pem(),
            key: if name == "ed25519" {
                openssl_ed25519(&key)
            } else {
                key.serialize_pem()
            },
        };
        let dir = roots(&[]);
        let cluster = cluster(Options {
            tls: Some(leaf.server()),
            ..Options::named(name)
        })
        .await;
        let role = format!("CREATE ROLE app LOGIN PASSWORD '{SECRET}'");
        cluster.run("postgres", &role).await.expect("a role");
        let ways = [way(name, &cluster, "localhost", "require", "app")];
        let proxy = back(&ways, &dir);
        assert_eq!(seen(&proxy, &ways[0]).await, "tls", "{name}");
    }
}

/// The key without its public half beside it, which OpenSSL does not read (RFC 8410, section 7).
fn openssl_ed25519(key: &KeyPair) -> String {
    use base64::Engine;
    let whole = key.serialize_der();
    let mark = [4, 0x22, 4, 0x20];
    let at = whole
        .windows(4)
        .position(|bytes| bytes == mark)
        .expect("a seed")
        + 4;
    let head = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70];
    let der = [&head[..], &mark, &whole[at..at + 32]].concat();
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
}

/// Somebody between the proxy and a server who speaks TLS to both and passes all that they say; or
/// hides, besides, that the server offers channel binding. Returns the port.
async fn in_between(server: &Cluster, authority: &str, own: &Leaf, hides: bool) -> u16 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let provider = || Arc::new(rustls::crypto::ring::default_provider());
    let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(own.key.as_bytes());
    let acceptor = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![own.der()], key.expect("a key"))
        .expect("a certificate");
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(authority.as_bytes()).expect("a CA");
    roots.add(ca).expect("a root");
    let connector = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(acceptor));
    let connector = TlsConnector::from(Arc::new(connector));
    let target = (server.host(), server.port());
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let (acceptor, connector) = (acceptor.clone(), connector.clone());
            tokio::spawn(async move {
                let mut request = [0; 8];
                near.read_exact(&mut request).await?;
                near.write_all(b"S").await?;
                let mut near = acceptor.accept(near).await?;
                let mut far = TcpStream::connect(target).await?;
                ask_for_tls(&mut far).await;
                let name = ServerName::try_from("localhost").expect("a name");
                let mut far = connector.connect(name, far).await?;
                let mut startup = vec![0; 4096];
                let n = near.read(&mut startup).await?;
                far.write_all(&startup[..n]).await?;
                far.flush().await?;
                // Up to the mechanisms that the server offers.
                loop {
                    let mut header = [0; 5];
                    far.read_exact(&mut header).await?;
                    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
                    let mut body = vec![0; length as usize - 4];
                    far.read_exact(&mut body).await?;
                    let is_offer = header[0] == b'R' && body.starts_with(&[0, 0, 0, 10]);
                    if is_offer && hides {
                        body = b"\0\0\0\x0aSCRAM-SHA-256\0\0".to_vec();
                    }
                    near.write_all(&message(header[0], &[&body])).await?;
                    near.flush().await?;
                    if is_offer {
                        break;
                    }
                }
                copy_bidirectional(&mut near, &mut far).await?;
                Ok::<_, std::io::Error>(())
            });
        }
    });
    port
}

/// With `require` the certificate is not checked, but the password proves who has it.
#[tokio::test(flavor = "multi_thread")]
async fn somebody_in_between_cannot_pass_a_login_on() {
    let authority = Authority::new();
    let leaf = authority.leaf(&["localhost"]);
    let dir = roots(&[]);
    let cluster = cluster(Options {
        tls: Some(leaf.server()),
        ..Options::named("between")
    })
    .await;
    let role = format!("CREATE ROLE app LOGIN PASSWORD '{SECRET}'");
    cluster.run("postgres", &role).await.expect("a role");
    let other = Authority::new().leaf(&["localhost"]);
    for (own, hides, expected) in [
        // One who has the server's own certificate is the server, as far as anybody can tell.
        (&leaf, false, "tls"),
        (&other, false, "refused"),
        (&other, true, "refused"),
    ] {
        let port = in_between(&cluster, &authority.pem, own, hides).await;
        let ways = [Way {
            name: "between".to_owned(),
            server: format!("host: localhost, port: {port}, sslmode: require"),
            role: "app",
        }];
        let proxy = back(&ways, &dir);
        assert_eq!(seen(&proxy, &ways[0]).await, expected, "hides: {hides}");
    }
}
