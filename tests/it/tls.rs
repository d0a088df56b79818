//! TLS and passwords, on both sides of the proxy.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use pgtenant::cluster::{Cluster, Options, Tls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::{Running, SECRET, Setup, cluster, in_time, parse_in, tenant, world};
use crate::wire::{
    CANCEL_REQUEST, Frame, GSSENC_REQUEST, PROTOCOL_3_0, SSL_REQUEST, Wire, column, errors, packet,
    query, startup,
};

const ALPN: &[&[u8]] = &[b"postgresql"];

/// An authority, and a certificate of its for some names.
struct Pair {
    ca_pem: String,
    ca: CertificateDer<'static>,
    cert_pem: String,
    cert: CertificateDer<'static>,
    key_pem: String,
}

fn certificate(names: &[&str]) -> Pair {
    let mut params = CertificateParams::new(Vec::<String>::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Unlike the other's: OpenSSL takes a certificate of its issuer's name for one signed by itself.
    params
        .distinguished_name
        .push(DnType::CommonName, "pgtenant test authority");
    let ca_key = KeyPair::generate().expect("a key");
    let ca = CertifiedIssuer::self_signed(params, ca_key).expect("an authority");
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let key = KeyPair::generate().expect("a key");
    let cert = CertificateParams::new(names)
        .expect("names")
        .signed_by(&key, &ca)
        .expect("a certificate");
    Pair {
        ca_pem: ca.pem(),
        ca: ca.der().clone(),
        cert_pem: cert.pem(),
        cert: cert.der().clone(),
        key_pem: key.serialize_pem(),
    }
}

fn write(dir: &Path, pair: &Pair) {
    for (name, text) in [
        ("server.crt", &pair.cert_pem),
        ("server.key", &pair.key_pem),
        ("ca.crt", &pair.ca_pem),
    ] {
        std::fs::write(dir.join(name), text).expect("a file");
    }
}

/// A proxy whose main port has TLS, with its certificate.
struct Front {
    proxy: Running,
    pair: Pair,
    dir: tempfile::TempDir,
    yaml: String,
}

async fn front(required: bool, sections: &str) -> Front {
    let dir = tempfile::tempdir().expect("a directory");
    let pair = certificate(&["localhost", "*.db.test", "127.0.0.1"]);
    write(dir.path(), &pair);
    let setup = Setup {
        sections: sections.to_owned(),
        ..Setup::default()
    };
    let yaml = setup.yaml(world().await).replace(
        "address: \"127.0.0.1:0\"",
        &format!(
            "address: \"127.0.0.1:0\", tls: {{ cert: server.crt, key: server.key, required: {required} }}"
        ),
    );
    let proxy = Running::with(parse_in(&yaml, dir.path()), None);
    Front {
        proxy,
        pair,
        dir,
        yaml,
    }
}

impl Front {
    async fn handshake(
        &self,
        tcp: TcpStream,
        name: &str,
        alpn: &[&[u8]],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        handshake(&self.pair.ca, tcp, name, alpn).await
    }

    /// TLS from the first byte.
    async fn direct(&self, name: &str, alpn: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(self.proxy.address).await?;
        self.handshake(tcp, name, alpn).await
    }

    /// TLS after SSLRequest.
    async fn asked(&self, name: &str) -> TlsStream<TcpStream> {
        let mut tcp = TcpStream::connect(self.proxy.address)
            .await
            .expect("connects");
        ask(&mut tcp, SSL_REQUEST, b'S').await;
        self.handshake(tcp, name, &[]).await.expect("TLS")
    }

    async fn psql(&self, options: &str, sql: &str) -> Result<String, String> {
        let t = tenant("t41");
        let dsn = format!(
            "host=localhost hostaddr=127.0.0.1 port={} user={} password={} dbname=app sslrootcert={} {options}",
            self.proxy.address.port(),
            t.user(),
            t.password(),
            self.dir.path().join("ca.crt").display(),
        );
        let mut command = Command::new("psql");
        command.args(["-X", "-At", "-d", &dsn, "-c", sql]);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = in_time("psql", command.output()).await.expect("psql runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }
}

/// Sends a request without a tag and expects its answer of one byte.
async fn ask(tcp: &mut TcpStream, code: u32, answer: u8) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    tcp.write_all(&packet(code, b"")).await.expect("sends");
    assert_eq!(
        in_time("an answer", tcp.read_u8()).await.expect("a byte"),
        answer
    );
}

async fn handshake(
    ca: &CertificateDer<'static>,
    tcp: TcpStream,
    name: &str,
    alpn: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone()).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let connecting = TlsConnector::from(Arc::new(config)).connect(name, tcp);
    in_time("the handshake", connecting).await
}

/// Logs in over `io` and says whose rows are seen.
async fn whose(
    io: TlsStream<TcpStream>,
    user: &str,
    database: &str,
    password: &str,
    certificate: Option<Vec<u8>>,
) -> Result<String, Frame> {
    let mut wire = Wire::over(io);
    let pairs = [("user", user), ("database", database)];
    wire.send(&startup(PROTOCOL_3_0, &pairs)).await;
    wire.authenticate(password, certificate).await?;
    let seen = wire.column("SELECT DISTINCT tenant FROM items").await;
    assert_eq!(seen.len(), 1, "{seen:?}");
    Ok(seen[0].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_uses_tls_of_every_mode_and_binds_the_password_to_it() {
    let front = front(true, "").await;
    for options in [
        "sslmode=require",
        "sslmode=verify-ca",
        "sslmode=verify-full",
        "sslmode=require channel_binding=require",
        "sslmode=require channel_binding=disable",
        "sslmode=require ssl_min_protocol_version=TLSv1.3",
        "sslmode=require ssl_max_protocol_version=TLSv1.2 channel_binding=require",
    ] {
        let seen = front
            .psql(options, "SELECT DISTINCT tenant FROM items")
            .await;
        assert_eq!(seen.as_deref(), Ok("t41\n"), "{options}");
    }
    let big = front
        .psql("sslmode=require", "SELECT repeat('x', 3000000)")
        .await;
    assert_eq!(big.map(|text| text.len()), Ok(3_000_001));
    let refused = front
        .psql("sslmode=disable", "SELECT 1")
        .await
        .expect_err("refused");
    assert!(refused.contains("TLS"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tls_the_mechanism_that_needs_it_is_not_offered() {
    let front = front(false, "").await;
    let seen = front.psql("sslmode=disable", "SELECT 1").await;
    assert_eq!(seen.as_deref(), Ok("1\n"));
    front
        .psql("sslmode=disable channel_binding=require", "SELECT 1")
        .await
        .expect_err("nothing to bind to");
    let mechanisms = async |mut wire: Wire| {
        wire.send(&startup(PROTOCOL_3_0, &[("user", "app.t41")]))
            .await;
        String::from_utf8_lossy(&wire.expect().await.body[4..]).into_owned()
    };
    let plain = mechanisms(Wire::tcp(front.proxy.address).await).await;
    assert_eq!(plain, "SCRAM-SHA-256\0\0");
    let tls = mechanisms(Wire::over(front.asked("localhost").await)).await;
    assert_eq!(tls, "SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_bound_to_another_certificate_is_wrong() {
    let front = front(false, "").await;
    let t = tenant("t41");
    let right = Sha256::digest(&front.pair.cert).to_vec();
    let wrong = Sha256::digest(b"another certificate").to_vec();
    let io = front.asked("localhost").await;
    let seen = whose(io, &t.user(), "app", &t.password(), Some(right)).await;
    assert_eq!(seen.ok().as_deref(), Some("t41"));
    let io = front.asked("localhost").await;
    let error = whose(io, &t.user(), "app", &t.password(), Some(wrong)).await;
    assert_eq!(error.expect_err("is refused").sqlstate(), "28P01");
}

#[tokio::test(flavor = "multi_thread")]
async fn direct_tls_needs_alpn() {
    let front = front(true, "").await;
    let t = tenant("t41");
    let io = front.direct("localhost", ALPN).await.expect("TLS");
    assert_eq!(io.get_ref().1.alpn_protocol(), Some(ALPN[0]));
    let seen = whose(io, &t.user(), "app", &t.password(), None).await;
    assert_eq!(seen.ok().as_deref(), Some("t41"));

    for alpn in [&[][..], &[&b"http/1.1"[..]]] {
        let Ok(io) = front.direct("localhost", alpn).await else {
            continue;
        };
        // TLS 1.3: the client is done before the server says no.
        let mut wire = Wire::over(io);
        let _ = wire
            .try_send(&startup(PROTOCOL_3_0, &[("user", "app.t41")]))
            .await;
        assert!(wire.rest().await.is_empty(), "{alpn:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_name_names_the_tenant() {
    let sections = "identify: { by: [user, sni], sni_suffix: .db.test }";
    let front = front(true, sections).await;
    let (a, b) = (tenant("t42"), tenant("t43"));
    for direct in [false, true] {
        let open = async |name: &str| match direct {
            true => front.direct(name, ALPN).await.expect("TLS"),
            false => front.asked(name).await,
        };
        for (name, user, password, expected) in [
            ("t42.db.test", "app", &a, Ok("t42")),
            ("T42.DB.test", "app", &a, Ok("t42")),
            ("t42.db.test", "app.t42", &a, Ok("t42")),
            ("localhost", "app.t42", &a, Ok("t42")),
            ("t43.db.test", "app", &a, Err("28P01")),
            ("t43.db.test", "app.t42", &a, Err("28P01")),
            ("t42.db.test", "app.t43", &a, Err("28P01")),
            ("t42.db.test", "app.t43", &b, Err("28P01")),
            ("nobody.db.test", "app", &a, Err("28P01")),
            ("localhost", "app", &a, Err("28P01")),
        ] {
            let io = open(name).await;
            let seen = whose(io, user, "app", &password.password(), None).await;
            let seen = seen.map_err(|error| error.sqlstate());
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(seen, expected, "{name} {user}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_encryption_are_answered_once_each_and_in_any_order() {
    let front = front(false, "").await;
    let t = tenant("t41");
    let mut tcp = TcpStream::connect(front.proxy.address)
        .await
        .expect("connects");
    ask(&mut tcp, GSSENC_REQUEST, b'N').await;
    ask(&mut tcp, SSL_REQUEST, b'S').await;
    let io = front.handshake(tcp, "localhost", &[]).await.expect("TLS");
    let seen = whose(io, &t.user(), "app", &t.password(), None).await;
    assert_eq!(seen.ok().as_deref(), Some("t41"));

    // Within TLS there is no more to ask for; nor twice for GSS.
    for (io, code) in [
        (Wire::over(front.asked("localhost").await), SSL_REQUEST),
        (
            {
                let mut tcp = TcpStream::connect(front.proxy.address)
                    .await
                    .expect("connects");
                ask(&mut tcp, GSSENC_REQUEST, b'N').await;
                Wire::over(tcp)
            },
            GSSENC_REQUEST,
        ),
    ] {
        let mut wire = io;
        wire.send(&packet(code, b"")).await;
        // As to a protocol version of that number.
        assert_eq!(errors(&wire.rest().await), ["0A000"]);
    }
}

/// What is sent in plain text behind an SSLRequest must not be taken for what came under TLS.
#[tokio::test(flavor = "multi_thread")]
async fn plain_text_behind_a_request_for_tls_is_not_read_as_if_it_were_encrypted() {
    let front = front(false, "").await;
    let own = startup(PROTOCOL_3_0, &[("user", "app.t41"), ("database", "app")]);
    for injected in [
        own,
        query("SELECT 1"),
        packet(CANCEL_REQUEST, &[0; 8]),
        vec![0; 4],
    ] {
        let mut wire = Wire::tcp(front.proxy.address).await;
        wire.send(&[packet(SSL_REQUEST, b""), injected].concat())
            .await;
        let first = wire.byte().await;
        assert!(matches!(first, Some(b'S' | b'E') | None), "{first:?}");
        // Whatever it says then is a TLS alert or nothing, never an answer to the plain text.
        while let Some(byte) = wire.byte().await {
            assert!(first == Some(b'E') || byte != b'R');
            if byte == 0x15 {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_used_after_a_reload() {
    let front = front(true, "").await;
    let t = tenant("t41");
    let mut old = Wire::over(front.asked("localhost").await);
    let pairs = [("user", &*t.user()), ("database", "app")];
    old.log_in(&pairs, &t.password()).await.expect("logs in");
    let next = certificate(&["localhost"]);
    write(front.dir.path(), &next);
    let config = parse_in(&front.yaml, front.dir.path());
    front.proxy.proxy.app().reload(config).expect("reloads");
    let mut tcp = TcpStream::connect(front.proxy.address)
        .await
        .expect("connects");
    ask(&mut tcp, SSL_REQUEST, b'S').await;
    let io = handshake(&next.ca, tcp, "localhost", &[])
        .await
        .expect("TLS");
    let bound = Sha256::digest(&next.cert).to_vec();
    let seen = whose(io, &t.user(), "app", &t.password(), Some(bound)).await;
    assert_eq!(seen.ok().as_deref(), Some("t41"));
    assert_eq!(old.column("SELECT 'stays'").await, ["stays"]);
}

// ---- toward servers ----

async fn tls_server(names: &[&str]) -> (Cluster, Pair) {
    let pair = certificate(names);
    let options = Options {
        max_connections: 20,
        settings: vec![("shared_buffers".into(), "16MB".into())],
        tls: Some(Tls {
            cert: pair.cert_pem.clone().into_bytes(),
            key: pair.key_pem.clone().into_bytes(),
            client_ca: None,
        }),
        hba: [
            "hostnossl all onlytls all reject",
            "host all by_md5 all md5",
            "host all by_password all password",
            "host all by_scram all scram-sha-256",
            "host all by_trust all trust",
        ]
        .map(str::to_owned)
        .into(),
        ..Options::named("tls")
    };
    let cluster = cluster(options).await;
    let sql = format!(
        "CREATE ROLE onlytls LOGIN PASSWORD '{SECRET}'; CREATE ROLE by_scram LOGIN PASSWORD '{SECRET}';
         CREATE ROLE by_password LOGIN PASSWORD '{SECRET}'; CREATE ROLE by_trust LOGIN;
         SET password_encryption = 'md5'; CREATE ROLE by_md5 LOGIN PASSWORD '{SECRET}'"
    );
    cluster.run("postgres", &sql).await.expect("roles");
    (cluster, pair)
}

/// What a tenant finds whose server is written so: whether its connection is in TLS, or the error.
async fn by_way_of(
    server: &str,
    database: &str,
    login: &str,
    dir: &Path,
) -> Result<Vec<String>, String> {
    let yaml = format!(
        "listen: [{{ address: \"127.0.0.1:0\" }}]\nservers:\n  s: {{ {server}, max_connections: 5 }}\n\
         placements:\n  p: {{ tier: instance, server: s, database: {database}, login: {{ {login} }} }}\n\
         tenants:\n  x: {{ placement: p, users: {{ app: {{ password: x }} }} }}\n"
    );
    let proxy = Running::with(parse_in(&yaml, dir), None);
    let mut wire = Wire::tcp(proxy.address).await;
    let login = wire
        .log_in(&[("user", "app.x"), ("database", database)], "x")
        .await;
    login.map_err(|error| error.sqlstate())?;
    let sql = "SELECT concat(session_user, ' ', (SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()))";
    Ok(column(&wire.query(sql).await))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_is_checked_as_far_as_sslmode_says() {
    let (right, pair) = tls_server(&["localhost", "127.0.0.1"]).await;
    let (misnamed, other) = tls_server(&["db.test"]).await;
    let dir = tempfile::tempdir().expect("a directory");
    for (name, pem) in [("right.crt", &pair.ca_pem), ("misnamed.crt", &other.ca_pem)] {
        std::fs::write(dir.path().join(name), pem).expect("a file");
    }
    let login = format!("user: onlytls, password: {SECRET}");
    for (cluster, sslmode, ca, works) in [
        (&right, "prefer", None, true),
        (&right, "require", None, true),
        (&right, "verify-ca", Some("right"), true),
        (&right, "verify-full", Some("right"), true),
        (&right, "verify-ca", Some("misnamed"), false),
        (&right, "verify-full", Some("misnamed"), false),
        (&right, "verify-full", None, false),
        (&misnamed, "require", None, true),
        (&misnamed, "verify-ca", Some("misnamed"), true),
        (&misnamed, "verify-full", Some("misnamed"), false),
        (&right, "disable", None, false),
    ] {
        let root = ca.map_or_else(String::new, |ca| format!(", root_cert: {ca}.crt"));
        let server = format!(
            "host: 127.0.0.1, port: {}, sslmode: {sslmode}{root}",
            cluster.port()
        );
        let seen = by_way_of(&server, "postgres", &login, dir.path()).await;
        let expected = match works {
            true => Ok(vec!["onlytls t".to_owned()]),
            false => Err("08006".to_owned()),
        };
        assert_eq!(seen, expected, "{server}");
    }
    // By name, as a certificate usually has it.
    let server = format!(
        "host: localhost, port: {}, sslmode: verify-full, root_cert: right.crt",
        right.port()
    );
    let seen = by_way_of(&server, "postgres", &login, dir.path()).await;
    assert_eq!(seen.expect("works"), ["onlytls t"]);
    right.stop().await.expect("ends");
    misnamed.stop().await.expect("ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_may_ask_for_the_password_in_any_way_and_listen_on_a_unix_socket() {
    let (cluster, _) = tls_server(&["127.0.0.1"]).await;
    let dir = tempfile::tempdir().expect("a directory");
    let sockets = cluster.socket_dir();
    for (host, sslmode, tls) in [
        ("127.0.0.1", "disable", "f"),
        ("127.0.0.1", "require", "t"),
        (&*sockets.to_string_lossy(), "prefer", "f"),
    ] {
        let server = format!("host: {host}, port: {}, sslmode: {sslmode}", cluster.port());
        for role in ["by_md5", "by_password", "by_scram", "by_trust"] {
            let login = format!("user: {role}, password: {SECRET}");
            let seen = by_way_of(&server, "postgres", &login, dir.path()).await;
            assert_eq!(seen, Ok(vec![format!("{role} {tls}")]), "{server}");
        }
        if host == "127.0.0.1" {
            for role in ["by_md5", "by_password", "by_scram"] {
                for login in [
                    format!("user: {role}, password: wrong"),
                    format!("user: {role}"),
                ] {
                    let seen = by_way_of(&server, "postgres", &login, dir.path()).await;
                    assert_eq!(seen, Err("08006".to_owned()), "{login}");
                }
            }
        }
    }
    cluster.stop().await.expect("ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_refused_where_it_is_required() {
    let world = world().await;
    let dir = tempfile::tempdir().expect("a directory");
    let login = format!("user: app, password: {SECRET}");
    for (sslmode, works) in [("prefer", true), ("require", false), ("verify-full", false)] {
        let server = format!(
            "host: 127.0.0.1, port: {}, sslmode: {sslmode}",
            world.shared.port()
        );
        let seen = by_way_of(&server, "app", &login, dir.path()).await;
        let expected = match works {
            true => Ok(vec!["app f".to_owned()]),
            false => Err("08006".to_owned()),
        };
        assert_eq!(seen, expected, "{sslmode}");
    }
}
