//! A catalog of many tenants: how long it takes to read, what it takes of memory, how long a
//! look-up takes beside changes, and when a change is in force.
//!
//! `cargo bench --bench fleet -- --tenants 1000000 --changes 1000`. The proxy runs in this process,
//! beside a private PostgreSQL; both take from the same cores.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a bench ends where it cannot go on"
)]

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use pgtenant::cluster::{Binaries, Cluster, Options, describe};
use pgtenant::config::load_text;
use pgtenant::server::Proxy;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

const SQL: &str = include_str!("../src/control/sql/catalog.sql");

const SCRAM: &str = "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| {
        let at = arguments.iter().position(|own| own == name)?;
        arguments.get(at + 1)?.parse().ok()
    };
    let tenants: usize = value("--tenants").unwrap_or(1_000_000);
    let changes: usize = value("--changes").unwrap_or(1000);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(catalog(tenants, changes));
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or_default() * 4096
}

/// The most that was resident, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok());
    kilobytes.unwrap_or_default() * 1024
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    format!(
        "p50 {:.1?}, p99 {:.1?}, longest {:.1?}",
        at(0.5),
        at(0.99),
        at(1.0)
    )
}

async fn fill(cluster: &Cluster, tenants: usize) {
    for (database, sql) in [
        ("postgres", "CREATE DATABASE catalog".to_owned()),
        ("catalog", SQL.to_owned()),
        (
            "catalog",
            format!(
                "CREATE ROLE looker LOGIN PASSWORD 'x' IN ROLE pgtenant_catalog_reader;
                 INSERT INTO pgtenant_catalog.tenants (tenant, state, spec, revision, changed_by)
                 SELECT 't' || n, 'active', jsonb_build_object('placement', (ARRAY['free', 'safe', 'schema', 'own'])[1 + n % 100 / 97],
                     'attributes', jsonb_build_object('region', 'eu'), 'users', jsonb_build_object('app', jsonb_build_object('scram', '{SCRAM}'))), n, 'bench'
                 FROM generate_series(1, {tenants}) n;
                 UPDATE pgtenant_catalog.about SET revision = {tenants}; ANALYZE;"
            ),
        ),
    ] {
        cluster.run(database, &sql).await.expect("valid SQL");
    }
}

fn yaml(cluster: &Cluster) -> String {
    format!(
        "listen: [{{ address: \"127.0.0.1:0\" }}]\nworkers: 1\ndoctor: {{ enabled: false }}\n\
         catalog: {{ server: own, database: catalog, login: {{ user: looker, password: x }}, \
         copy: {{ file: catalog.copy, key_file: catalog.key }} }}\nservers:\n\
         \x20 own: {{ host: {}, port: {}, sslmode: disable, max_connections: 20, seal: {{ key: 0123456789abcdef0123456789abcdef }} }}\n\
         placements:\n\
         \x20 free: {{ tier: pool, server: own, database: app, posture: guarded, context: {{ app.tenant_id: \"{{tenant}}\" }}, login: {{ user: app, password: x }} }}\n\
         \x20 safe: {{ tier: pool, server: own, database: safe, posture: sealed, context: {{ app.tenant_id: \"{{tenant}}\" }}, login: {{ user: app, password: x }} }}\n\
         \x20 schema: {{ tier: schema, server: own, database: app, schema: \"s_{{tenant}}\", login: {{ user: app, password: x }} }}\n\
         \x20 own: {{ tier: database, server: own, database: \"d_{{tenant}}\", login: {{ user: app, password: x }} }}\n",
        cluster.host(),
        cluster.port()
    )
}

fn start(yaml: &str, dir: &Path) -> Proxy {
    let path = dir.join("pgtenant.yaml");
    std::fs::write(&path, yaml).expect("a file");
    let config = load_text(yaml, dir, &|_| None).expect("a valid config");
    Proxy::start(config, Some(path)).expect("a proxy")
}

async fn catalog(tenants: usize, changes: usize) {
    let binaries = Binaries::find().expect("PostgreSQL");
    let cluster = Cluster::start(&binaries, Options::named("fleet"))
        .await
        .expect("a server");
    fill(&cluster, tenants).await;
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("catalog.key"), [7; 32]).expect("a file");
    let before = resident();
    let started = Instant::now();
    let proxy = start(&yaml(&cluster), dir.path());
    let app = proxy.app().clone();
    println!(
        "{tenants} tenants of the catalog: read and in force in {:.2?}",
        started.elapsed()
    );
    assert_eq!(app.config().tenants.len(), tenants);
    let each = (resident() - before) as f64 / tenants as f64;
    println!(
        "memory: {each:.0} bytes a tenant, at most {:.0}",
        (peak() - before) as f64 / tenants as f64
    );
    let client = cluster.connect("catalog").await.expect("connects");
    let mut times = Vec::new();
    for n in 0..changes {
        let (name, state) = (
            n % 100 + 1,
            if n / 100 % 2 == 0 { "paused" } else { "active" },
        );
        let sql = format!("SELECT pgtenant_catalog.set_state('t{name}', '{state}')");
        client
            .batch_execute(&sql)
            .await
            .unwrap_or_else(|error| panic!("{}", describe(&error)));
        let committed = Instant::now();
        let tenant = format!("t{name}");
        while app.config().tenants[&*tenant].lifecycle.now().word() != state {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        times.push(committed.elapsed());
    }
    println!("a change is in force: {}", percentiles(times));
    lookups(&app, tenants, "alone");
    let writer = tokio::spawn(async move {
        for n in 0..changes {
            let state = if n % 2 == 0 { "paused" } else { "active" };
            let sql = format!(
                "SELECT pgtenant_catalog.set_state('t{}', '{state}')",
                200 + n / 2
            );
            client
                .batch_execute(&sql)
                .await
                .unwrap_or_else(|error| panic!("{}", describe(&error)));
        }
    });
    lookups(&app, tenants, "beside changes");
    writer.await.expect("changes");
    drop((app, proxy));
    cluster.stop().await.expect("stops");
    let started = Instant::now();
    let proxy = start(&yaml_again(dir.path()), dir.path());
    assert_eq!(proxy.app().config().tenants.len(), tenants);
    println!(
        "without the catalog, of its copy: in force in {:.2?}",
        started.elapsed()
    );
}

fn yaml_again(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("pgtenant.yaml")).expect("a file")
}

/// Means of batches of a hundred random look-ups.
fn lookups(app: &pgtenant::app::App, tenants: usize, how: &str) {
    let mut rng = StdRng::seed_from_u64(1);
    let mut means = Vec::new();
    for _ in 0..1000 {
        let names: Vec<_> = (0..100)
            .map(|_| format!("t{}", rng.random_range(1..=tenants)))
            .collect();
        let started = Instant::now();
        for name in &names {
            let config = app.config();
            black_box(config.tenants.get(name).map(|tenant| tenant.terms.limits));
        }
        means.push(started.elapsed() / 100);
    }
    println!(
        "a look-up, {how}, as the mean of a hundred: {}",
        percentiles(means)
    );
}
