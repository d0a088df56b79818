//! A server whose host is a name: what happens when the name has other addresses, or none, while
//! servers and clients live on.

use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgtenant::backend::dns::Resolver;
use pgtenant::cluster::{Cluster, Options};

use crate::harness::{
    POOLINGS, Running, SECRET, Tenant, connect, eventually, in_time, parse, tenant,
};
use crate::wire::{Wire, cancel_request, errors, query};

const NAME: &str = "db.example";

/// What a name is, as a test has it.
#[derive(Clone, Default)]
struct Zone(Arc<Mutex<Vec<u8>>>);

impl Zone {
    /// Gives the name the addresses 127.0.0.`last`; with none it cannot be resolved.
    fn set(&self, last: &[u8]) {
        *self.0.lock().unwrap() = last.to_vec();
    }

    fn resolver(&self) -> Resolver {
        let zone = self.clone();
        Resolver::new(move |name| {
            assert_eq!(name, NAME);
            let last = zone.0.lock().unwrap();
            match last.is_empty() {
                true => Err(std::io::Error::other("no such name")),
                false => Ok(last.iter().map(|&last| address(last)).collect()),
            }
        })
    }
}

fn address(last: u8) -> IpAddr {
    [127, 0, 0, last].into()
}

/// A server at 127.0.0.1 and 127.0.0.2.
async fn server(name: &str) -> Cluster {
    let settings = [
        ("listen_addresses", "127.0.0.1,127.0.0.2"),
        ("shared_buffers", "16MB"),
    ];
    let cluster = crate::harness::cluster(Options {
        settings: settings.map(|(n, v)| (n.to_owned(), v.to_owned())).into(),
        hba: vec!["host all all 127.0.0.0/8 scram-sha-256".to_owned()],
        ..Options::named(name)
    })
    .await;
    let role = format!("CREATE ROLE app LOGIN PASSWORD '{SECRET}'");
    cluster.run("postgres", &role).await.unwrap();
    cluster
}

fn yaml(cluster: &Cluster, pooling: &str) -> String {
    format!(
        "listen: [{{ address: \"127.0.0.1:0\" }}]
admin: {{ users: {{ admin: {{ password: {SECRET} }} }} }}
timeouts: {{ dns_max_ttl: 1s, connect: 2s }}
servers: {{ s: {{ host: {NAME}, port: {}, sslmode: disable, max_connections: 20 }} }}
placements:
  p: {{ tier: pool, server: s, database: postgres, login: {{ user: app, password: {SECRET} }}, posture: plain, context: {{ app.t: \"{{tenant}}\" }}, pooling: {pooling}, pool: {{ size: 4 }} }}
tenants: {{ t00: {{ placement: p, users: {{ app: {{ password: t00-secret }} }} }}, t01: {{ placement: p, users: {{ app: {{ password: t01-secret }} }} }} }}
",
        cluster.port()
    )
}

fn start(cluster: &Cluster, pooling: &str, zone: &Zone) -> Running {
    Running::resolving(parse(&yaml(cluster, pooling)), None, zone.resolver())
}

/// Tenants of the one database.
fn tenants() -> [Tenant; 2] {
    ["t00", "t01"].map(|name| {
        let mut tenant = tenant(name);
        tenant.database = "postgres".into();
        tenant
    })
}

/// The address of the server, and the process there.
async fn place(client: &mut Wire) -> (String, String) {
    let asked = "SELECT host(inet_server_addr()) || ' ' || pg_backend_pid()";
    let told = client.column(asked).await;
    let (address, pid) = told[0].split_once(' ').unwrap();
    (address.to_owned(), pid.to_owned())
}

/// Long enough for the name to be resolved again.
async fn a_while() {
    tokio::time::sleep(Duration::from_millis(2500)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_follow_a_name_to_another_address_at_their_next_clean_point() {
    let cluster = server("dns-moves").await;
    for pooling in POOLINGS {
        let zone = Zone::default();
        zone.set(&[1]);
        let proxy = start(&cluster, pooling, &zone);
        let [one, two] = tenants();
        let mut idle = proxy.raw(&one).await;
        let mut busy = proxy.raw(&two).await;
        let first = place(&mut idle).await;
        busy.query("BEGIN").await;
        let held = place(&mut busy).await;
        assert_eq!([&*first.0, &*held.0], ["127.0.0.1"; 2]);
        // As long as the address remains, the connections do.
        for addresses in [&[2, 1][..], &[1, 2], &[], &[1]] {
            zone.set(addresses);
            a_while().await;
            assert_eq!(place(&mut idle).await, first, "{addresses:?}");
            assert_eq!(place(&mut busy).await, held, "{addresses:?}");
        }
        zone.set(&[2]);
        if pooling == "transaction" {
            eventually("the idle connection is replaced", async || {
                place(&mut idle).await.0 == "127.0.0.2"
            })
            .await;
        }
        a_while().await;
        assert_eq!(place(&mut busy).await, held, "{pooling}");
        busy.query("COMMIT").await;
        let kept = pooling == "session";
        for client in [&mut idle, &mut busy] {
            assert_eq!(place(client).await.0 == "127.0.0.1", kept, "{pooling}");
        }
        let mut new = proxy.raw(&one).await;
        assert_eq!(place(&mut new).await.0, "127.0.0.2");
        // It cannot be resolved any more: the last addresses are tried.
        zone.set(&[]);
        a_while().await;
        new.query("BEGIN").await;
        busy.query("BEGIN").await;
        let mut other = proxy.raw(&two).await;
        assert_eq!(place(&mut other).await.0, "127.0.0.2");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_goes_where_the_connection_went() {
    let cluster = server("dns-cancel").await;
    let zone = Zone::default();
    zone.set(&[1]);
    let proxy = start(&cluster, "transaction", &zone);
    let [one, _] = tenants();
    let mut client = proxy.raw(&one).await;
    place(&mut client).await;
    client.send(&query("SELECT pg_sleep(50)")).await;
    // Nobody is there.
    zone.set(&[3]);
    a_while().await;
    let mut other = Wire::tcp(proxy.address).await;
    other.send(&cancel_request(&client.key)).await;
    let answered = in_time("the cancelled query", client.until_ready()).await;
    assert_eq!(errors(&answered), ["57014"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_shows_what_a_name_is() {
    let cluster = server("dns-shown").await;
    let zone = Zone::default();
    zone.set(&[2, 1]);
    let proxy = start(&cluster, "transaction", &zone);
    let config = format!(
        "host=127.0.0.1 port={} user=admin password={SECRET} dbname=pgtenant",
        proxy.address.port()
    );
    let console = connect(&config.parse().unwrap()).await.unwrap();
    let shown = async || {
        let rows = console.query("SHOW DNS_HOSTS", &[]).await.unwrap();
        let row = |row: &tokio_postgres::Row| {
            (
                row.get::<_, String>(0),
                row.get::<_, i64>(1),
                row.get::<_, String>(2),
            )
        };
        rows.iter().map(row).collect::<Vec<_>>()
    };
    assert!(shown().await.is_empty());
    let [one, _] = tenants();
    place(&mut proxy.raw(&one).await).await;
    let told = shown().await;
    assert_eq!(told.len(), 1);
    assert_eq!((&*told[0].0, &*told[0].2), (NAME, "127.0.0.2,127.0.0.1"));
    assert!((0..=1).contains(&told[0].1));
    zone.set(&[1]);
    eventually("the new addresses are shown", async || {
        shown().await[0].2 == "127.0.0.1"
    })
    .await;
}
