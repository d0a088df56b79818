//! Everything at once: clients of all tenants check every reply, while servers, the config, the log
//! and descriptors fail.
//!
//! `PGTENANT_CHAOS_SECONDS` says for how long (two minutes by default), `PGTENANT_CHAOS_SEED` where
//! chance begins.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgtenant::cluster::{Cluster, Shutdown};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;

use crate::harness::{Process, Setup, Tenant, World, all_tenants, world_of_its_own};
use crate::wire::{Frame, Wire, bind, execute, parse, query, sync};

/// What a client may be told instead of its rows, while things fail: the server is away, full,
/// starting or stopping, the client is cancelled, ended or in a transaction that failed, or its
/// tenant is removed just now.
const EXCUSES: [&str; 12] = [
    "08006", "57P01", "57P02", "57P03", "53300", "53200", "57014", "25P02", "25P03", "28P01",
    "55006", "58000",
];
const PATIENCE: Duration = Duration::from_secs(40);

/// Values of rows.
type Rows = Vec<Vec<Option<String>>>;

struct Run {
    stops: AtomicBool,
    checked: AtomicU64,
    excused: AtomicU64,
    /// Connections that ended before their clients were done.
    ended: AtomicU64,
}

fn number(variable: &str, usual: u64) -> u64 {
    std::env::var(variable).map_or(usual, |text| text.parse().expect("a number"))
}

/// The values of each row, or None: the client was told why it gets none.
fn rows_or_excuse(frames: &[Frame], what: &str) -> Option<Rows> {
    if let Some(error) = frames.iter().find(|frame| frame.tag == b'E') {
        let code = error.sqlstate();
        assert!(
            EXCUSES.contains(&code.as_str()),
            "{what}: {code} {:?}",
            error.field(b'M')
        );
        return None;
    }
    let rows = frames.iter().filter(|frame| frame.tag == b'D');
    Some(rows.map(Frame::values).collect())
}

/// Frames up to a ReadyForQuery. None: the connection ended, or nothing came for too long.
async fn answer(wire: &mut Wire) -> Option<Vec<Frame>> {
    let mut frames = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let frame = tokio::time::timeout(left, wire.frame()).await;
        let frame = frame.expect("an answer in time")?;
        let ends = frame.tag == b'Z';
        frames.push(frame);
        if ends {
            return Some(frames);
        }
    }
}

/// One thing that a client does. None: its connection has ended.
async fn act(wire: &mut Wire, tenant: &Tenant, rng: &mut StdRng, run: &Run) -> Option<()> {
    let marker = rng.random::<u64>().to_string();
    let own = "SELECT body FROM items ORDER BY id";
    let bodies: Vec<_> = tenant
        .bodies()
        .into_iter()
        .map(|body| vec![Some(body)])
        .collect();
    let sleep = ["", "", "", ", pg_sleep(0.01)", ", pg_sleep(0.3)"].choose(rng)?;
    let asks = format!("SELECT '{marker}' FROM (SELECT 1) x{sleep}");
    let told = vec![vec![Some(marker.clone())]];
    // What is sent, and the rows of each answer.
    let (sent, expected): (Vec<u8>, Vec<Rows>) = match rng.random_range(0..7) {
        0 | 1 => (query(own), vec![bodies]),
        2 => (query(&asks), vec![told]),
        3 => (
            [query("BEGIN"), query(own), query(&asks), query("COMMIT")].concat(),
            vec![vec![], bodies, told, vec![]],
        ),
        4 => (
            [
                parse("", "SELECT $1::text"),
                bind("", "", &[Some(&marker)]),
                execute("", 0),
                sync(),
                query(own),
            ]
            .concat(),
            vec![told, bodies],
        ),
        5 => (
            [query("SET application_name = 'chaos'"), query(&asks)].concat(),
            vec![vec![], told],
        ),
        _ => (
            query(&format!("BEGIN; SELECT '{marker}'; ROLLBACK")),
            vec![told],
        ),
    };
    wire.try_send(&sent).await.ok()?;
    if rng.random_range(0..60) == 0 {
        // It vanishes.
        return None;
    }
    for rows in expected {
        let frames = answer(wire).await?;
        let what = format!("{}: {}", tenant.name, String::from_utf8_lossy(&sent));
        match rows_or_excuse(&frames, &what) {
            Some(found) => {
                assert_eq!(found, rows, "{what}");
                run.checked.fetch_add(1, Relaxed);
            }
            None => _ = run.excused.fetch_add(1, Relaxed),
        }
    }
    // One that failed in the middle is in no transaction afterwards.
    wire.try_send(&query("ROLLBACK")).await.ok()?;
    answer(wire).await.map(drop)
}

async fn client(address: std::net::SocketAddr, tenant: Tenant, seed: u64, run: Arc<Run>) {
    let mut rng = StdRng::seed_from_u64(seed);
    while !run.stops.load(Relaxed) {
        let Some(mut wire) = log_in(address, &tenant).await else {
            tokio::time::sleep(Duration::from_millis(rng.random_range(20..200))).await;
            continue;
        };
        while !run.stops.load(Relaxed) {
            if act(&mut wire, &tenant, &mut rng, &run).await.is_none() {
                run.ended.fetch_add(1, Relaxed);
                break;
            }
        }
    }
}

async fn log_in(address: std::net::SocketAddr, tenant: &Tenant) -> Option<Wire> {
    let tcp = tokio::net::TcpStream::connect(address).await.ok()?;
    let mut wire = Wire::over(tcp);
    let pairs = [
        ("user", tenant.user()),
        ("database", tenant.database.clone()),
    ];
    let pairs = pairs
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let startup = crate::wire::startup(crate::wire::PROTOCOL_3_0, &pairs);
    wire.try_send(&startup).await.ok()?;
    let password = tenant.password();
    let login = tokio::time::timeout(PATIENCE, wire.try_authenticate(&password, None));
    match login.await.expect("an answer in time").ok()? {
        Ok(()) => Some(wire),
        Err(refused) => {
            rows_or_excuse(&[refused], &tenant.name);
            None
        }
    }
}

/// What goes wrong next, and is mended again before this returns.
async fn fail(rng: &mut StdRng, world: &World, process: &Process, yaml: &str) {
    let cluster: &Cluster = if rng.random_range(0..3) == 0 {
        &world.silo
    } else {
        &world.shared
    };
    let pause = Duration::from_millis(rng.random_range(50..1200));
    let fault = rng.random_range(0..9);
    println!("fault {fault} for {pause:?}");
    match fault {
        0 => {
            let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND random() < 0.3";
            let _ = cluster.run("postgres", sql).await;
        }
        1 => {
            cluster.shut_down(Shutdown::Immediate).await.expect("ends");
            tokio::time::sleep(pause).await;
            cluster.start_again().await.expect("starts");
        }
        2 => {
            cluster.shut_down(Shutdown::Kill).await.expect("ends");
            tokio::time::sleep(pause / 4).await;
            cluster.start_again().await.expect("starts");
        }
        3 => {
            let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() LIMIT 5";
            let Ok(watching) = cluster.connect("postgres").await else {
                return;
            };
            let pids: Vec<i32> = match watching.query(sql, &[]).await {
                Ok(rows) => rows.iter().map(|row| row.get(0)).collect(),
                Err(_) => return,
            };
            for signal in [Signal::SIGSTOP, Signal::SIGCONT] {
                for &pid in &pids {
                    let _ = kill(Pid::from_raw(pid), signal);
                }
                tokio::time::sleep(pause).await;
            }
        }
        4 => {
            for role in ["app", "app_spread", "r_b0", "db_d1"] {
                for limit in ["1", "-1"] {
                    let sql = format!("ALTER ROLE {role} CONNECTION LIMIT {limit}");
                    let _ = cluster.run("postgres", &sql).await;
                    tokio::time::sleep(pause / 4).await;
                }
            }
        }
        5 => reload(process, &yaml.replace("size: 8", "size: 3"), yaml, pause).await,
        6 => {
            let removed = |line: &&str| {
                !["  t1", "  b1:", "  d2:"]
                    .iter()
                    .any(|name| line.starts_with(name))
            };
            let fewer: Vec<_> = yaml.lines().filter(removed).collect();
            reload(process, &(fewer.join("\n") + "\n"), yaml, pause).await;
        }
        7 => {
            // No descriptor is left.
            let limit = |soft: usize| {
                let pid = process.child.id().to_string();
                let limit = format!("--nofile={soft}:4096");
                let set = std::process::Command::new("prlimit")
                    .args(["--pid", &pid, &limit])
                    .status();
                assert!(set.expect("prlimit").success());
            };
            limit(descriptors(process) + 2);
            tokio::time::sleep(pause).await;
            limit(4096);
        }
        _ => tokio::time::sleep(pause).await,
    }
}

async fn reload(process: &Process, other: &str, yaml: &str, pause: Duration) {
    let port = format!("127.0.0.1:{}", process.address.port());
    for text in [other, yaml] {
        let path = process.dir.path().join("pgtenant.yaml");
        std::fs::write(path, text.replace("127.0.0.1:0", &port)).expect("a file");
        let pid = i32::try_from(process.child.id()).expect("a process id");
        kill(Pid::from_raw(pid), Signal::SIGHUP).expect("it is there");
        tokio::time::sleep(pause).await;
    }
}

fn descriptors(process: &Process) -> usize {
    let dir = format!("/proc/{}/fd", process.child.id());
    std::fs::read_dir(dir).map_or(0, Iterator::count)
}

fn resident_kilobytes(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.child.id()));
    let status = status.expect("the process is there");
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number
        .and_then(|number| number.parse().ok())
        .expect("a number")
}

/// All but those whose server the proxy chooses by a hash.
fn tenants() -> Vec<Tenant> {
    let tenants = all_tenants().into_iter();
    tenants
        .filter(|tenant| tenant.placement != "spread")
        .collect()
}

/// Every tenant reads its rows.
async fn all_are_served(process: &Process) {
    for tenant in tenants() {
        let began = Instant::now();
        loop {
            assert!(began.elapsed() < PATIENCE, "{} is not served", tenant.name);
            if let Some(mut wire) = log_in(process.address, &tenant).await {
                wire.send(&query("SELECT body FROM items ORDER BY id"))
                    .await;
                if let Some(frames) = answer(&mut wire).await
                    && let Some(rows) = rows_or_excuse(&frames, &tenant.name)
                {
                    let bodies = tenant.bodies().into_iter().map(|body| vec![Some(body)]);
                    assert_eq!(rows, bodies.collect::<Vec<_>>(), "{}", tenant.name);
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// `cl_active`, `cl_waiting`, `sv_active` of each pool that has any.
async fn busy_pools(process: &Process) -> BTreeMap<String, String> {
    let mut wire = Wire::tcp(process.address).await;
    let login = [("user", "root"), ("database", "pgtenant")];
    wire.log_in(&login, "root").await.expect("the console");
    let frames = wire.query("SHOW POOLS").await;
    let header = frames
        .iter()
        .find(|frame| frame.tag == b'T')
        .expect("columns");
    let names = column_names(&header.body);
    let at = |name: &str| {
        names
            .iter()
            .position(|n| n == name)
            .unwrap_or_else(|| panic!("{name} of {names:?}"))
    };
    let wanted = ["cl_active", "cl_waiting", "sv_active"].map(at);
    let mut busy = BTreeMap::new();
    for row in frames.iter().filter(|frame| frame.tag == b'D') {
        let values = row.values();
        let numbers = wanted.map(|at| values[at].clone().unwrap_or_default());
        if numbers.iter().any(|number| number != "0") {
            busy.insert(format!("{:?}", &values[..3]), format!("{numbers:?}"));
        }
    }
    busy
}

fn column_names(row_description: &[u8]) -> Vec<String> {
    let mut rest = &row_description[2..];
    let mut names = Vec::new();
    while let Some(end) = rest.iter().position(|&byte| byte == 0) {
        names.push(String::from_utf8_lossy(&rest[..end]).into_owned());
        // Table, column, type, length, modifier, format.
        rest = &rest[end + 1 + 18..];
    }
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_nobody_gets_a_wrong_reply_and_nothing_is_lost() {
    let seconds = number("PGTENANT_CHAOS_SECONDS", 120);
    let seed = number("PGTENANT_CHAOS_SEED", 16);
    let world = world_of_its_own("chaos").await;
    let setup = Setup {
        pool_size: 8,
        max_connections: 40,
        sections: "timeouts: { checkout: 5s, connect: 3s, revoked: 1s }\n\
                   limits: { clients: 1000, logins: 100 }\n\
                   admin: { users: { root: { password: root } } }\n\
                   doctor: { enabled: false }"
            .into(),
        ..Setup::default()
    };
    let yaml = setup.yaml(&world);
    // The disk of its log is full from beginning to end.
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("/dev/full");
    let process = Process::serve(&yaml, Stdio::from(full)).await;
    all_are_served(&process).await;
    let (descriptors_before, memory_before) = (descriptors(&process), resident_kilobytes(&process));

    let run = Arc::new(Run {
        stops: AtomicBool::new(false),
        checked: AtomicU64::new(0),
        excused: AtomicU64::new(0),
        ended: AtomicU64::new(0),
    });
    let mut clients = JoinSet::new();
    for (number, tenant) in (0..).zip(tenants()) {
        clients.spawn(client(process.address, tenant, seed + number, run.clone()));
    }
    let mut rng = StdRng::seed_from_u64(seed);
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        fail(&mut rng, &world, &process, &yaml).await;
        if let Some(Err(error)) = clients.try_join_next() {
            panic!("seed {seed}: {error}");
        }
    }
    run.stops.store(true, Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
    let counts = [&run.checked, &run.excused, &run.ended].map(|count| count.load(Relaxed));
    let [checked, excused, ended] = counts;
    println!(
        "{checked} replies were right, {excused} told why there was none, {ended} connections ended"
    );
    assert!(checked > 10 * seconds && checked > excused, "{counts:?}");
    assert!(excused + ended > seconds, "nothing failed: {counts:?}");

    all_are_served(&process).await;
    crate::harness::eventually("no slot is lost", async || {
        busy_pools(&process).await.is_empty()
    })
    .await;
    let (descriptors, memory) = (descriptors(&process), resident_kilobytes(&process));
    assert!(
        descriptors <= descriptors_before + 40,
        "{descriptors_before} descriptors before, {descriptors} now"
    );
    assert!(
        memory < memory_before + 100_000,
        "{memory_before} kB before, {memory} kB now"
    );
}
