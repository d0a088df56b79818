//! A server that asks for more than it may gets nothing, whoever logs in to it.

#![allow(clippy::expect_used, clippy::panic)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use deadpool_postgres::Connect;
use pgtenant::config::Config;
use pgtenant::control::door::{self, Door};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Running, SECRET, in_time, parse as parse_config};
use crate::wire::{Wire, message};

/// All that is said to a server that answers each login in one way, behind the StartupMessages.
type Said = Arc<Mutex<Vec<u8>>>;

/// A server that asks for `demand` and lets everybody in who answers. Returns its port.
async fn fake(demand: Vec<u8>) -> (u16, Said) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("a port").port();
    let said = Said::default();
    let heard = said.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(serve(tcp, demand.clone(), heard.clone()));
        }
    });
    (port, said)
}

async fn serve(mut tcp: TcpStream, demand: Vec<u8>, said: Said) -> std::io::Result<()> {
    let length = tcp.read_u32().await? as usize;
    let mut packet = vec![0; length - 4];
    tcp.read_exact(&mut packet).await?;
    tcp.write_all(&demand).await?;
    let mut bytes = [0; 4096];
    loop {
        let n = tcp.read(&mut bytes).await?;
        if n == 0 {
            return Ok(());
        }
        said.lock().expect("no panic").extend(&bytes[..n]);
        let end = [message(b'R', &[&[0; 4]]), message(b'Z', &[b"I"])];
        tcp.write_all(&end.concat()).await?;
    }
}

fn config(port: u16, more: &str) -> String {
    format!(
        "listen: [{{ address: \"127.0.0.1:0\" }}]
servers: {{ s: {{ host: 127.0.0.1, port: {port}, sslmode: disable, max_connections: 8, admin: {{ user: root, password: {SECRET} }}{more} }} }}
placements: {{ p: {{ tier: instance, server: s, database: d, login: {{ user: u, password: {SECRET} }} }} }}
tenants: {{ t: {{ placement: p, users: {{ app: {{ password: t-secret }} }} }} }}
"
    )
}

/// What the control plane is told when it logs in.
async fn admin_login(config: &Config) -> String {
    let server = config.servers[0].clone();
    let login = server.admin.clone().expect("an admin");
    let session = door::config(&login, "postgres", "a test");
    let connected = in_time("a login", Door(server).connect(&session)).await;
    match connected {
        Ok(_) => "in".to_owned(),
        Err(error) => door::words(&error),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_goes_to_no_server_that_may_not_have_it() {
    let cleartext = message(b'R', &[&3_u32.to_be_bytes()]);
    let md5 = message(b'R', &[&5_u32.to_be_bytes(), b"salt"]);
    let scram = message(b'R', &[&10_u32.to_be_bytes(), b"SCRAM-SHA-256\0\0"]);
    let gss = message(b'R', &[&7_u32.to_be_bytes()]);
    let nothing = [
        message(b'R', &[&[0; 4]]),
        message(b'K', &[&[0, 0, 0, 1, 0, 0, 0, 1]]),
        message(b'Z', &[b"I"]),
    ]
    .concat();
    for (more, demand, why) in [
        ("", cleartext.clone(), "\"password\""),
        ("", md5.clone(), "\"md5\""),
        ("", gss, "\"gss\""),
        (", require_auth: scram-sha-256", nothing, "\"none\""),
        (", require_auth: md5", scram, "\"scram-sha-256\""),
        (", require_auth: \"md5,none\"", cleartext, "\"password\""),
    ] {
        let (port, said) = fake(demand).await;
        let yaml = config(port, more);
        let refusal = admin_login(&parse_config(&yaml)).await;
        assert!(
            refusal.contains(why) && refusal.contains("servers.s.require_auth"),
            "{more}: {refusal}"
        );
        let proxy = Running::start(&yaml);
        let mut wire = Wire::tcp(proxy.address).await;
        let pairs = [("user", "app.t"), ("database", "d")];
        let error = wire.log_in(&pairs, "t-secret").await.expect_err("refused");
        assert_eq!(error.sqlstate(), "08006", "{more}: {error}");
        assert!(!error.to_string().contains("require_auth"), "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(proxy);
        // But for Terminate.
        let said = said.lock().expect("no panic").clone();
        let strange = said.chunks(5).find(|bytes| *bytes != b"X\0\0\0\x04");
        assert_eq!(
            strange,
            None,
            "{more}: {:?}",
            said.escape_ascii().to_string()
        );
    }
    // It is not that nothing would have come.
    let (port, said) = fake(md5).await;
    let config = parse_config(&config(port, ", require_auth: md5"));
    assert_eq!(admin_login(&config).await, "in");
    assert!(said.lock().expect("no panic").starts_with(b"p\0\0\0"));
}
