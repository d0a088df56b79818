//! The parts of a transaction's way that need no server, each alone. Whole processes are compared
//! by `benches/load`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a bench that cannot run must say so

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::hint::black_box;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pgtenant::backend::binding::{Binding, Context, Settings};
use pgtenant::backend::connection::ServerConnection;
use pgtenant::backend::context::{Adopted, adopt};
use pgtenant::backend::dns::Resolver;
use pgtenant::backend::instance::{Instance, Pool};
use pgtenant::backend::prepared::{Interner, Parsed};
use pgtenant::cluster::Dir;
use pgtenant::config::{Config, ServerAddress, Tenant, TransactionLimits, load_text};
use pgtenant::frontend::ledger::Ledger;
use pgtenant::frontend::locks::Locks;
use pgtenant::frontend::owed::{Owed, Portal};
use pgtenant::frontend::prepared::Undo;
use pgtenant::frontend::statements::{Rewritten, Statements, Target};
use pgtenant::guard::Guard;
use pgtenant::id::TenantId;
use pgtenant::net::stream::Stream;
use pgtenant::protocol::buffer::Buffer;
use pgtenant::protocol::frame::{BackendTag, FrontendTag, Header, frame};
use pgtenant::protocol::startup::{self, Packet, Startup};
use pgtenant::sql::effects::Effects;
use pgtenant::tenant::identify::identify;
use pgtenant::tenant::state::TenantState;
use pgtenant::workers::{WorkerId, Workers};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;

const CONFIG: &str = r#"
listen: [{ address: "127.0.0.1:0" }]
servers:
  shared: { host: 127.0.0.1, sslmode: disable, max_connections: 20 }
placements:
  free:
    tier: pool
    server: shared
    database: app
    login: { user: app, password: app }
    posture: plain
    context: { app.tenant_id: "{tenant}" }
  narrow:
    tier: pool
    server: shared
    database: narrow
    login: { user: app, password: app }
    posture: plain
    context: { app.tenant_id: "{tenant}" }
    pool: { size: 1, reserve: 0 }
tenants:
  t0: { placement: free, users: { app: { password: app } } }
  n0: { placement: narrow, users: { app: { password: app } } }
  n1: { placement: narrow, users: { app: { password: app } } }
"#;
const TENANTS: usize = 100_000;

fn config() -> Config {
    load_text(CONFIG, Path::new("."), &|_| None).expect("the config above is valid")
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// The replies to a `SELECT` of `rows` rows.
fn replies(rows: usize) -> Vec<u8> {
    let mut bytes = frame(
        b'T',
        &[b"\0\x01abalance\0\0\0\x40\x02\0\x03\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0"],
    );
    for _ in 0..rows {
        bytes.extend(frame(b'D', &[b"\0\x01\0\0\0\x04-123"]));
    }
    bytes.extend(frame(b'C', &[b"SELECT 1\0"]));
    bytes.extend(frame(b'Z', &[b"I"]));
    bytes
}

fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frames");
    for rows in [1, 1000] {
        let bytes = replies(rows);
        group.throughput(Throughput::Elements(rows as u64 + 3));
        group.bench_function(format!("cut the replies of {rows} row(s)"), |bencher| {
            bencher.iter(|| {
                let mut rest = black_box(&bytes[..]);
                let mut cut = 0;
                while let Some(size) = Header::read(rest).and_then(Header::backend_size) {
                    rest = &rest[size..];
                    cut += 1;
                }
                cut
            });
        });
    }
    group.finish();
}

fn buffer(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("buffer");
    let bytes = replies(1);
    group.bench_function("fill, pass on whole, drain", |bencher| {
        bencher.iter(|| {
            let (mut inbox, mut outbox) = (Buffer::new(), Buffer::new());
            inbox.extend(black_box(&bytes));
            inbox.move_to(&mut outbox, bytes.len());
            outbox.consume(bytes.len());
        });
    });
    group.bench_function("fill, pass on in two parts, drain", |bencher| {
        bencher.iter(|| {
            let (mut inbox, mut outbox) = (Buffer::new(), Buffer::new());
            inbox.extend(black_box(&bytes));
            inbox.move_to(&mut outbox, 10);
            inbox.move_to(&mut outbox, bytes.len() - 10);
            outbox.consume(bytes.len());
        });
    });
    group.finish();
}

/// The body of a StartupMessage as libpq sends it.
fn startup_packet() -> Vec<u8> {
    let mut body = 0x0003_0000_u32.to_be_bytes().to_vec();
    for text in [
        "user",
        "app.t4711",
        "database",
        "app",
        "application_name",
        "psql",
        "client_encoding",
        "UTF8",
        "options",
        "-c statement_timeout=5s",
        "",
    ] {
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    }
    let length = u32::try_from(body.len() + 4).expect("short");
    [&length.to_be_bytes()[..], &body].concat()
}

async fn read_startup(bytes: &[u8]) -> Startup {
    match startup::read(&mut &*bytes, startup::whole_packet(bytes)).await {
        Ok(Some(Packet::Startup(startup))) => startup,
        other => panic!("not a StartupMessage: {other:?}"),
    }
}

fn login(criterion: &mut Criterion) {
    let runtime = runtime();
    let bytes = startup_packet();
    let mut group = criterion.benchmark_group("login");
    group.bench_function("read a StartupMessage", |bencher| {
        bencher.iter_custom(|times| {
            runtime.block_on(async {
                let started = Instant::now();
                for _ in 0..times {
                    black_box(read_startup(black_box(&bytes)).await);
                }
                started.elapsed()
            })
        });
    });

    let mut config = config();
    let first = config.tenants["t0"].clone();
    for number in 1..TENANTS {
        let id = TenantId::new(&format!("t{number}")).expect("a valid name");
        let tenant = Tenant {
            id: id.clone(),
            ..(*first).clone()
        };
        config.tenants.insert(Arc::new(tenant));
    }
    let startup = runtime.block_on(read_startup(&bytes));
    group.bench_function(format!("identify one of {TENANTS} tenants"), |bencher| {
        bencher.iter_batched(
            || startup.clone(),
            |mut startup| identify(&config, &mut startup, None),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn ledger(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ledger");
    group.bench_function("a Query and its replies", |bencher| {
        bencher.iter(|| {
            let mut ledger = Ledger::default();
            ledger.push(Owed::Query(Undo::Nothing));
            for tag in [BackendTag::ROW_DESCRIPTION, BackendTag::COMMAND_COMPLETE] {
                ledger.reply(black_box(tag), 0);
            }
            ledger.reply(BackendTag::READY_FOR_QUERY, b'I');
            ledger.is_clean()
        });
    });
    group.bench_function(
        "500 Queries sent at once, and all their replies",
        |bencher| {
            bencher.iter(|| {
                let mut ledger = Ledger::default();
                for _ in 0..500 {
                    ledger.push(black_box(Owed::Query(Undo::Nothing)));
                }
                for _ in 0..500 {
                    ledger.reply(BackendTag::COMMAND_COMPLETE, 0);
                    ledger.reply(BackendTag::READY_FOR_QUERY, b'I');
                }
                ledger.is_clean()
            });
        },
    );
    group.bench_function("500 Binds and Executes before a Sync", |bencher| {
        bencher.iter(|| {
            let mut ledger = Ledger::default();
            let mut waits = false;
            for _ in 0..500 {
                waits |= ledger.may_change(black_box(b"s1"), None);
                ledger.push(Owed::Bind(Portal::Unnamed, None));
                ledger.push(Owed::Execute(None));
            }
            ledger.push(Owed::Sync);
            for _ in 0..500 {
                ledger.reply(BackendTag::BIND_COMPLETE, 0);
                ledger.reply(BackendTag::COMMAND_COMPLETE, 0);
            }
            ledger.reply(BackendTag::READY_FOR_QUERY, b'I');
            ledger.is_clean() && !waits
        });
    });
    group.bench_function(
        "Parse, Bind, Describe, Execute, Sync and their replies",
        |bencher| {
            bencher.iter(|| {
                let mut ledger = Ledger::default();
                for owed in [
                    Owed::Parse(None, Undo::Nothing),
                    Owed::Bind(Portal::Unnamed, None),
                    Owed::Describe(None),
                    Owed::Execute(None),
                    Owed::Sync,
                ] {
                    ledger.push(black_box(owed));
                }
                for tag in [
                    BackendTag::PARSE_COMPLETE,
                    BackendTag::BIND_COMPLETE,
                    BackendTag::ROW_DESCRIPTION,
                    BackendTag::COMMAND_COMPLETE,
                ] {
                    ledger.reply(black_box(tag), 0);
                }
                ledger.reply(BackendTag::READY_FOR_QUERY, b'I');
                ledger.is_clean()
            });
        },
    );
    group.finish();
}

fn statements(criterion: &mut Criterion) {
    let (mut statements, interner, mut parsed) = (
        Statements::default(),
        Interner::default(),
        Parsed::default(),
    );
    let settings = Arc::default();
    let mut rewrite = |tag: FrontendTag, frame: &[u8]| {
        let (mut outbox, mut ledger) = (Buffer::new(), Ledger::default());
        let mut target = Target {
            parsed: &mut parsed,
            outbox: &mut outbox,
            ledger: &mut ledger,
            interner: &interner,
            settings: &settings,
            is_meaning_open: &|| false,
            backslashes: false,
            owns_sequences: true,
            locks: (&Locks::default(), &TransactionLimits::NONE),
            guard: None,
            effects: Effects::default(),
            pins: false,
            obscure: false,
        };
        let rewritten = statements.rewrite(tag, frame, frame.len(), &mut target);
        assert!(matches!(rewritten, Ok(Rewritten::Consumed(_))));
        black_box(outbox.len())
    };
    let parse = frame(
        b'P',
        &[b"P0_1\0SELECT abalance FROM pgbench_accounts WHERE aid = $1\0\0\0"],
    );
    rewrite(FrontendTag::PARSE, &parse);
    let bind = frame(b'B', &[b"\0P0_1\0\0\0\0\x01\0\0\0\x054711\0\0\0"]);
    criterion.bench_function("statements/rewrite a Bind", |bencher| {
        bencher.iter(|| rewrite(FrontendTag::BIND, black_box(&bind)));
    });
}

/// Looking at texts for what they may leave in their session.
fn effects(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("effects");
    let values: String = (0..1000)
        .map(|n| format!("({n}, 'a string, number {n}'), "))
        .collect();
    let long = format!("INSERT INTO t (a, b) VALUES {values}(0, '')");
    for (name, text) in [
        (
            "SELECT of pgbench",
            "SELECT abalance FROM pgbench_accounts WHERE aid = 4711;",
        ),
        (
            "UPDATE of pgbench",
            "UPDATE pgbench_accounts SET abalance = abalance + 5 WHERE aid = 4711;",
        ),
        (
            "a query of an ORM",
            r#"SELECT "orders"."id", "orders"."total", COUNT("lines"."id") FROM "orders" LEFT OUTER JOIN "lines" ON ("orders"."id" = "lines"."order_id") WHERE ("orders"."tenant" = $1 AND "orders"."created" > NOW()) GROUP BY "orders"."id" ORDER BY "orders"."created" DESC LIMIT 21"#,
        ),
        ("a long INSERT", &long),
    ] {
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| Effects::of(black_box(text.as_bytes()), false));
        });
    }
    group.finish();
}

/// What a statement costs in the posture `guarded` and up: it is read and judged.
fn guard(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("guard");
    let guard = Guard::new(["app.tenant_id"].into_iter(), BTreeSet::new());
    let parameters: Vec<_> = (1..=20).map(|n| format!("${n}")).collect();
    let columns: Vec<_> = (1..=20).map(|n| format!("column_{n}")).collect();
    let insert = format!(
        "INSERT INTO orders ({}) VALUES ({}) RETURNING id",
        columns.join(", "),
        parameters.join(", ")
    );
    let mut long = String::from("SELECT o.id, o.total FROM orders o WHERE o.state = 'open'");
    while long.len() < 4000 {
        long.push_str(" AND (o.created > now() - interval '1 day' OR o.note NOT LIKE '%''late%')");
    }
    for (name, text) in [
        (
            "a SELECT",
            "SELECT id, total, created FROM orders WHERE customer = $1 AND state = 'open' ORDER BY created DESC LIMIT 20",
        ),
        ("an INSERT of 20 parameters", &insert),
        ("a query of 4 kB", &long),
    ] {
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let effects = Effects::of(black_box(text.as_bytes()), false);
                guard.check(&effects).expect("it may run");
            });
        });
    }
    group.finish();
}

/// What precedes a client's message on a connection that carries another tenant's context: built,
/// not sent.
fn injection(criterion: &mut Criterion) {
    let runtime = runtime();
    let config = config();
    let (own, other) = (Client::of(&config, "n0"), Client::of(&config, "n1"));
    let mut connection = runtime.block_on(async {
        let (stream, _) = UnixStream::pair().expect("two sockets");
        ServerConnection::new(
            Stream::Plain(stream.into()),
            config.servers["shared"].clone(),
            None,
        )
    });
    let deadline = Duration::from_secs(1);
    let mut aside = Buffer::new();
    let mut changes = async |times: u64| -> Duration {
        let mut took = Duration::ZERO;
        for _ in 0..times {
            connection.context = Context::Bound(other.binding.clone());
            let reported = connection.parameters.clone();
            let started = Instant::now();
            let changed = adopt(
                &mut connection,
                &own.binding,
                deadline,
                Some(reported),
                &mut aside,
            );
            assert!(matches!(changed.await, Ok(Adopted::Scrubbed)));
            took += started.elapsed();
            connection.switch = None;
            connection.outbox.consume(connection.outbox.len());
        }
        took
    };
    criterion.bench_function("injection/build a change of tenant", |bencher| {
        bencher.iter_custom(|times| runtime.block_on(changes(times)));
    });
}

/// Lets everybody in and has no objections.
async fn serve(mut client: UnixStream) -> std::io::Result<()> {
    let mut length = [0; 4];
    client.read_exact(&mut length).await?;
    let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
    client.read_exact(&mut body).await?;
    let ready = frame(b'Z', &[b"I"]);
    client
        .write_all(&[frame(b'R', &[&[0; 4]]), ready.clone()].concat())
        .await?;
    loop {
        let mut header = [0; 5];
        client.read_exact(&mut header).await?;
        let Some(header) = Header::read(&header) else {
            return Ok(());
        };
        let mut body = vec![0; header.length as usize - 4];
        client.read_exact(&mut body).await?;
        client
            .write_all(&[frame(b'V', &[&[0xff; 4]]), ready.clone()].concat())
            .await?;
    }
}

/// Who checks connections out.
struct Client {
    state: Arc<TenantState>,
    binding: Binding,
}

impl Client {
    fn of(config: &Config, tenant: &str) -> Self {
        let tenant = &config.tenants[tenant];
        Self {
            state: Arc::new(TenantState::new(tenant.id.clone())),
            binding: Binding {
                tenant: tenant.id.clone(),
                route: tenant.route.clone(),
                settings: Arc::new(Settings::new()),
                stale: false,
            },
        }
    }

    fn pool(&self, instance: &Arc<Instance>) -> Arc<Pool> {
        let route = &self.binding.route;
        instance.pool(&route.pool, route.placement.pool)
    }
}

/// The instance of the config, whose server is [`serve`].
fn instance(runtime: &Runtime, config: &Config, dir: &Dir) -> Arc<Instance> {
    let socket = dir.path().join("server");
    let mut server = (*config.servers["shared"]).clone();
    server.address = ServerAddress::Unix {
        path: socket.clone(),
    };
    runtime.block_on(async {
        let listener = UnixListener::bind(socket).expect("a socket");
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(serve(client));
            }
        });
    });
    Instance::new(
        Arc::new(server),
        config.timeouts.clone(),
        Workers::new(vec![runtime.handle().clone()]),
        WorkerId::default(),
        Resolver::default(),
    )
}

/// A connection that is idle and carries the tenant's context already, which is what nearly every
/// transaction finds; and one that another client waits for.
fn pool(criterion: &mut Criterion) {
    let dir = Dir::create().expect("a temporary directory");
    let runtime = runtime();
    let config = config();
    let instance = instance(&runtime, &config, &dir);
    let mut group = criterion.benchmark_group("pool");

    let client = Client::of(&config, "t0");
    let wide = client.pool(&instance);
    let turns = async |times: u64| -> Duration {
        let started = Instant::now();
        for _ in 0..times {
            let grant = wide
                .checkout(&client.state, WorkerId::default(), Instant::now())
                .await
                .expect("an idle connection, or room for one");
            let lease = grant.lease(&client.binding).await.expect("a connection");
            lease.expect("a connection that lives").checkin();
        }
        started.elapsed()
    };
    // Connects.
    runtime.block_on(turns(1));
    group.bench_function("check out and in", |bencher| {
        bencher.iter_custom(|times| runtime.block_on(turns(times)));
    });

    let clients = [Client::of(&config, "n0"), Client::of(&config, "n1")];
    let narrow = clients[0].pool(&instance);
    for (name, next) in [
        ("hand over to a waiter of the same tenant", [0, 0]),
        (
            "hand over to a waiter of another tenant, whose context is set",
            [0, 1],
        ),
    ] {
        let clients = next.map(|number| &clients[number]);
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| runtime.block_on(hand_over(&narrow, clients, times)));
        });
    }
    group.finish();
}

/// The only connection of the pool goes from one client to the next, who stands in line for it
/// before it is given back.
async fn hand_over(pool: &Arc<Pool>, clients: [&Client; 2], times: u64) -> Duration {
    let grant = pool
        .checkout(&clients[0].state, WorkerId::default(), Instant::now())
        .await
        .expect("its turn");
    let lease = grant.lease(&clients[0].binding).await;
    let mut lease = lease.expect("a connection").expect("one that lives");
    let started = Instant::now();
    for turn in 1..=times {
        let next = clients[usize::from(turn % 2 == 1)];
        let mut waiting = pin!(pool.checkout(&next.state, WorkerId::default(), Instant::now()));
        let waits =
            poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context).is_pending())).await;
        assert!(waits, "the connection is not free");
        lease.checkin();
        let grant = waiting.await.expect("its turn");
        let leased = grant.lease(&next.binding).await;
        lease = leased.expect("a connection").expect("one that lives");
    }
    let took = started.elapsed();
    lease.checkin();
    took
}

criterion_group!(
    mechanisms, frames, buffer, login, ledger, statements, effects, guard, injection, pool
);
criterion_main!(mechanisms);
