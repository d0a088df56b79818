//! What every test stands on: PostgreSQL servers with tenants in every tier, started once per run,
//! and proxies in this process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use pgtenant::backend::dns::Resolver;
use pgtenant::cluster::{Binaries, Cluster, Options};
use pgtenant::config::{self, Config};
use pgtenant::id::TenantId;
use pgtenant::server::Proxy;
use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls};

use crate::wire::Wire;

/// Password of every role on the servers.
pub const SECRET: &str = "secret";
/// How long anything may take before a test gives it up. No test passes because of it.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Tenants of the pool: `t00` and so on.
pub const POOL_TENANTS: usize = 50;
/// A tenant of each tier, and another in the same place.
pub const TIERS: [(&str, &str, &str); 7] = [
    ("pool", "t00", "t01"),
    ("schema", "b0", "b1"),
    ("schema over views", "v0", "v1"),
    ("database", "d0", "d1"),
    ("instance", "acme", "c0"),
    ("compliance silo", "c0", "c1"),
    ("sharded pool", "s0", "s1"),
];
/// Both ways to use server connections.
pub const POOLINGS: [&str; 2] = ["transaction", "session"];

/// A server of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    Shared,
    Silo,
}

/// The servers that most tests share. No test changes anything in them that another could see.
pub struct World {
    pub shared: Cluster,
    pub silo: Cluster,
    /// Remove the directories when this process has ended, however it does.
    _janitors: Vec<Child>,
}

impl World {
    pub fn server(&self, server: Server) -> &Cluster {
        match server {
            Server::Shared => &self.shared,
            Server::Silo => &self.silo,
        }
    }

    pub fn home(&self, tenant: &Tenant) -> &Cluster {
        self.server(tenant.server)
    }
}

pub async fn world() -> &'static World {
    static WORLD: OnceCell<Result<World, String>> = OnceCell::const_new();
    match WORLD.get_or_init(|| make_world("")).await {
        Ok(world) => world,
        Err(why) => panic!("{why}"),
    }
}

pub fn binaries() -> Binaries {
    Binaries::find().unwrap_or_else(|error| panic!("{error}"))
}

/// A server of the test's own, which it may stop.
pub async fn cluster(options: Options) -> Cluster {
    Cluster::start(&binaries(), options)
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

/// As the doctor has it for what the limits of a placement let one tenant lock by default.
pub const LOCKS: [&str; 2] = ["max_locks_per_transaction", "1024"];

/// As [`world`], for a test that stops its servers.
pub async fn world_of_its_own(name: &str) -> World {
    make_world(name).await.unwrap_or_else(|why| panic!("{why}"))
}

/// `name`: what its servers' names begin with.
async fn make_world(name: &str) -> Result<World, String> {
    let binaries = Binaries::find().map_err(|error| error.to_string())?;
    let options = |name: &str| Options {
        max_connections: 100,
        settings: vec![
            ("shared_buffers".into(), "32MB".into()),
            LOCKS.map(str::to_owned).into(),
        ],
        ..Options::named(name)
    };
    let (shared, silo) = tokio::try_join!(
        Cluster::start(&binaries, options(&format!("{name}shared"))),
        Cluster::start(&binaries, options(&format!("{name}silo"))),
    )
    .map_err(|error| error.to_string())?;
    let janitors = [&shared, &silo].into_iter().filter_map(janitor).collect();
    let filled = tokio::try_join!(fill(&shared, Server::Shared), fill(&silo, Server::Silo));
    filled.map_err(|error| error.to_string())?;
    Ok(World {
        shared,
        silo,
        _janitors: janitors,
    })
}

/// A shell that waits for the end of this process (its standard input closes), then for the
/// server's, which the kernel ends with us, and removes the server's directory. Statics are never
/// dropped.
fn janitor(cluster: &Cluster) -> Option<Child> {
    const SCRIPT: &str = "cat >/dev/null; n=0; \
        while [ -e \"$1/data/postmaster.pid\" ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n + 1)); done; \
        rm -rf -- \"$1\"";
    let dir = cluster.data_dir().parent()?.to_owned();
    let mut command = Command::new("sh");
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command
        .args(["-c", SCRIPT, "janitor"])
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .ok()
}

async fn fill(cluster: &Cluster, server: Server) -> pgtenant::cluster::Result<()> {
    let here: Vec<_> = all_tenants()
        .into_iter()
        .filter(|tenant| tenant.server == server || tenant.placement == "spread")
        .map(|tenant| Tenant { server, ..tenant })
        .collect();
    let mut databases: Vec<&str> = Vec::new();
    let mut roles: Vec<&str> = Vec::new();
    for tenant in &here {
        if !databases.contains(&&*tenant.database) {
            databases.push(&tenant.database);
            for statement in [
                format!("CREATE DATABASE {}", tenant.database),
                format!("REVOKE ALL ON DATABASE {} FROM PUBLIC", tenant.database),
            ] {
                cluster.run("postgres", &statement).await?;
            }
            if tenant.is_pooled() {
                cluster.run(&tenant.database, POOL_SQL).await?;
            }
        }
        if !roles.contains(&&*tenant.role) {
            roles.push(&tenant.role);
            let sql = format!(
                "CREATE ROLE {role} LOGIN PASSWORD '{SECRET}'; GRANT CONNECT, TEMPORARY ON DATABASE {} TO {role};",
                tenant.database,
                role = tenant.role,
            );
            cluster.run(&tenant.database, &sql).await?;
            cluster.run(&tenant.database, &tenant.tables()).await?;
        }
    }
    for database in &databases {
        let rows: Vec<_> = here
            .iter()
            .filter(|tenant| tenant.database == *database)
            .map(Tenant::insert)
            .collect();
        cluster.run(database, &rows.join(";")).await?;
    }
    Ok(())
}

/// The table `plain`, which every tier has, is one that COPY can write: it refuses those under row
/// level security, and views.
const POOL_SQL: &str = "
    CREATE TABLE items (
        tenant text NOT NULL DEFAULT current_setting('app.tenant_id', true),
        id int NOT NULL CHECK (id > 0),
        body text,
        PRIMARY KEY (tenant, id)
    );
    ALTER TABLE items ENABLE ROW LEVEL SECURITY;
    ALTER TABLE items FORCE ROW LEVEL SECURITY;
    CREATE POLICY tenant ON items
        USING (tenant = (SELECT current_setting('app.tenant_id', true)))
        WITH CHECK (tenant = (SELECT current_setting('app.tenant_id', true)));
    CREATE TABLE plain (id int PRIMARY KEY CHECK (id > 0), body text)";

/// A tenant of the test world.
#[derive(Debug, Clone)]
pub struct Tenant {
    pub name: String,
    pub placement: &'static str,
    pub server: Server,
    pub database: String,
    /// Whom the proxy logs in as.
    pub role: String,
    pub schema: String,
    number: usize,
}

/// The tenant of this name. Names tell the place: `t07` pool, `b0` schema, `v0` schema over views,
/// `d0` database, `acme` instance, `c0` compliance silo, `s0` sharded pool.
pub fn tenant(name: &str) -> Tenant {
    let (kind, number) = name.split_at(1);
    let number: usize = number.parse().unwrap_or_default();
    let public = || "public".to_owned();
    let (placement, server, database, role, schema) = match kind {
        "t" => (
            "free",
            Server::Shared,
            "app".to_owned(),
            "app".to_owned(),
            public(),
        ),
        "b" | "v" => (
            if kind == "b" { "pro" } else { "views" },
            Server::Shared,
            "bridge".to_owned(),
            format!("r_{name}"),
            format!("t_{name}"),
        ),
        "d" => (
            "business",
            Server::Shared,
            format!("db_{name}"),
            format!("db_{name}"),
            public(),
        ),
        "a" => (
            "acme",
            Server::Silo,
            "acme_app".to_owned(),
            "acme_app".to_owned(),
            public(),
        ),
        "c" => (
            "clinic",
            Server::Silo,
            "clinic".to_owned(),
            "app_clinic".to_owned(),
            public(),
        ),
        // Where the others are is decided by hash; the tests ask the config.
        "s" => (
            "spread",
            if name == "s0" {
                Server::Shared
            } else {
                Server::Silo
            },
            "spread".to_owned(),
            "app_spread".to_owned(),
            public(),
        ),
        _ => panic!("there is no tenant {name}"),
    };
    Tenant {
        name: name.to_owned(),
        placement,
        server,
        database,
        role,
        schema,
        number,
    }
}

pub fn all_tenants() -> Vec<Tenant> {
    let pool = (0..POOL_TENANTS).map(|n| format!("t{n:02}"));
    let others = [
        "b0", "b1", "b2", "b3", "b4", "b5", "v0", "v1", "d0", "d1", "d2", "d3", "d4", "d5", "acme",
        "c0", "c1", "s0", "s1", "s2", "s3", "s4", "s5",
    ];
    pool.chain(others.map(str::to_owned))
        .map(|name| tenant(&name))
        .collect()
}

impl Tenant {
    pub fn password(&self) -> String {
        format!("{}-secret", self.name)
    }

    pub fn user(&self) -> String {
        format!("app.{}", self.name)
    }

    /// Whether row level security keeps it apart.
    pub fn is_pooled(&self) -> bool {
        matches!(self.placement, "free" | "clinic" | "spread")
    }

    /// Exactly the bodies of the rows that it has and may see.
    pub fn bodies(&self) -> Vec<String> {
        let server = match (self.placement, self.server) {
            ("spread", Server::Shared) => " on shared",
            ("spread", Server::Silo) => " on silo",
            _ => "",
        };
        (1..=2 + self.number % 3)
            .map(|id| format!("{} item {id}{server}", self.name))
            .collect()
    }

    /// Startup options that do to a direct connection what the proxy does to its own.
    pub fn direct_options(&self) -> String {
        let mut options = "-c row_security=on -c standard_conforming_strings=on".to_owned();
        if self.is_pooled() {
            options += &format!(" -c app.tenant_id={}", self.name);
        }
        if self.schema != "public" {
            options += &format!(" -c search_path={}", self.schema);
        }
        options
    }

    fn tables(&self) -> String {
        let Self {
            name, role, schema, ..
        } = self;
        let table = |table: &str| {
            format!(
                "CREATE TABLE {table} (tenant text NOT NULL DEFAULT '{name}' CHECK (tenant = '{name}'),
                    id int NOT NULL CHECK (id > 0), body text, PRIMARY KEY (tenant, id));"
            )
        };
        let plain = match self.is_pooled() {
            true => String::new(),
            false => format!(
                "CREATE TABLE {schema}.plain (id int PRIMARY KEY CHECK (id > 0), body text);"
            ),
        };
        let grant = format!(
            "{plain} GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.items, {schema}.plain TO {role};"
        );
        match self.placement {
            "pro" => format!(
                "CREATE SCHEMA {schema}; GRANT USAGE ON SCHEMA {schema} TO {role}; {} {grant}",
                table(&format!("{schema}.items"))
            ),
            "views" => format!(
                "CREATE SCHEMA IF NOT EXISTS data; {}
                 CREATE SCHEMA {schema}; GRANT USAGE ON SCHEMA {schema} TO {role};
                 CREATE VIEW {schema}.items AS SELECT tenant, id, body FROM data.items_{name}; {grant}",
                table(&format!("data.items_{name}"))
            ),
            "business" | "acme" => format!("{} {grant}", table("items")),
            _ => grant,
        }
    }

    fn insert(&self) -> String {
        let rows: Vec<_> = (1..)
            .zip(self.bodies())
            .map(|(id, body)| format!("('{}', {id}, '{body}')", self.name))
            .collect();
        format!(
            "INSERT INTO {}.items (tenant, id, body) VALUES {}",
            self.schema,
            rows.join(", ")
        )
    }
}

/// What a config says; the rest is the world's.
pub struct Setup {
    /// More sections, e.g. `timeouts: { checkout: 1s }`.
    pub sections: String,
    pub pooling: &'static str,
    pub pool_size: usize,
    /// Beside it, for tenants that hold none.
    pub reserve: usize,
    /// Of each server.
    pub max_connections: usize,
    /// More entries of `placements` and `tenants`, one a line, without indentation.
    pub placements: String,
    pub tenants: String,
    /// What is said of a tenant beside its placement and user, e.g. `limits: { clients: 1 }`.
    pub about: fn(&str) -> &'static str,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            sections: String::new(),
            pooling: "transaction",
            pool_size: 8,
            reserve: 0,
            max_connections: 20,
            placements: String::new(),
            tenants: String::new(),
            about: |_| "",
        }
    }
}

impl Setup {
    /// The config of a proxy for all tenants of the world.
    pub fn yaml(&self, world: &World) -> String {
        self.yaml_for(world, &all_tenants())
    }

    /// The same for some of them.
    pub fn yaml_for(&self, world: &World, tenants: &[Tenant]) -> String {
        let login = |user: &str| format!("login: {{ user: \"{user}\", password: {SECRET} }}");
        let context = "posture: plain, context: { app.tenant_id: \"{tenant}\" }";
        let shard_map: Vec<_> = tenants
            .iter()
            .filter_map(|tenant| match &*tenant.name {
                "s0" => Some("s0: shared"),
                "s1" => Some("s1: silo"),
                _ => None,
            })
            .collect();
        let places = [
            (
                "free",
                "tier: pool, server: shared, database: app",
                login("app"),
                context,
            ),
            (
                "pro",
                "tier: schema, server: shared, database: bridge, schema: \"t_{tenant}\"",
                login("r_{tenant}"),
                "",
            ),
            (
                "views",
                "tier: schema, server: shared, database: bridge, schema: \"t_{tenant}\"",
                login("r_{tenant}"),
                "",
            ),
            (
                "business",
                "tier: database, server: shared, database: \"db_{tenant}\"",
                login("db_{tenant}"),
                "",
            ),
            (
                "acme",
                "tier: instance, server: silo, database: acme_app",
                login("acme_app"),
                "",
            ),
            (
                "clinic",
                "tier: instance, server: silo, database: clinic",
                login("app_clinic"),
                context,
            ),
            (
                "spread",
                &format!(
                    "tier: pool, servers: [shared, silo], database: spread, shard_map: {{ {} }}",
                    shard_map.join(", ")
                ),
                login("app_spread"),
                context,
            ),
        ];
        let mut yaml = format!(
            "listen: [{{ address: \"127.0.0.1:0\" }}]\nworkers: 2\nlog: {{ filter: info }}\n{}\nservers:\n{}{}placements:\n",
            self.sections,
            server_line("shared", &world.shared, self.max_connections),
            server_line("silo", &world.silo, self.max_connections),
        );
        for (name, what, login, context) in places {
            let comma = if context.is_empty() { "" } else { ", " };
            yaml += &format!(
                "  {name}: {{ {what}, {login}, pooling: {}, pool: {{ size: {}, reserve: {} }}{comma}{context} }}\n",
                self.pooling, self.pool_size, self.reserve
            );
        }
        for line in self.placements.lines() {
            yaml += &format!("  {line}\n");
        }
        yaml += "tenants:\n";
        for tenant in tenants {
            let about = (self.about)(&tenant.name);
            let comma = if about.is_empty() { "" } else { ", " };
            yaml += &format!(
                "  {}: {{ placement: {}, users: {{ app: {{ password: {} }} }}{comma}{about} }}\n",
                tenant.name,
                tenant.placement,
                tenant.password()
            );
        }
        for line in self.tenants.lines() {
            yaml += &format!("  {line}\n");
        }
        yaml
    }

    pub async fn start(&self) -> Running {
        Running::start(&self.yaml(world().await))
    }
}

/// An entry of `servers`.
pub fn server_line(name: &str, cluster: &Cluster, max_connections: usize) -> String {
    format!(
        "  {name}: {{ host: {}, port: {}, sslmode: disable, max_connections: {max_connections} }}\n",
        cluster.host(),
        cluster.port()
    )
}

pub fn parse(yaml: &str) -> Config {
    parse_in(yaml, Path::new("."))
}

/// `base`: what relative paths are relative to.
pub fn parse_in(yaml: &str, base: &Path) -> Config {
    let mut config = config::load_text(yaml, base, &|_| None).unwrap_or_else(|mistakes| {
        let list: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
        panic!("{}\nin:\n{yaml}", list.join("\n"))
    });
    // Tests count the connections to their servers: the doctor comes where it is asked for.
    config.doctor.enabled &= yaml.contains("doctor:");
    config
}

/// A proxy in this process. It ends when dropped.
pub struct Running {
    pub proxy: Proxy,
    pub address: SocketAddr,
}

impl Running {
    pub fn start(yaml: &str) -> Self {
        Self::with(parse(yaml), None)
    }

    pub fn with(config: Config, path: Option<PathBuf>) -> Self {
        Self::resolving(config, path, Resolver::default())
    }

    /// The same, with addresses of servers by `resolver`.
    pub fn resolving(config: Config, path: Option<PathBuf>, resolver: Resolver) -> Self {
        watch_for_panics();
        let proxy = Proxy::start_with(config, path, resolver).expect("the proxy starts");
        let address = proxy.addresses()[0];
        Self { proxy, address }
    }

    /// Puts another config in force; its main ports stay as they are.
    pub fn reload(&self, yaml: &str) {
        self.proxy
            .app()
            .reload(parse(yaml))
            .expect("the config can be reloaded");
    }

    /// A URL for libpq and drivers.
    pub fn dsn(&self, tenant: &Tenant) -> String {
        format!(
            "postgresql://{}:{}@{}/{}",
            tenant.user(),
            tenant.password(),
            self.address,
            tenant.database
        )
    }

    pub fn config(&self, tenant: &Tenant) -> tokio_postgres::Config {
        self.dsn(tenant).parse().expect("a DSN")
    }

    pub async fn connect(&self, tenant: &Tenant) -> Client {
        connect(&self.config(tenant))
            .await
            .unwrap_or_else(|e| panic!("{}: {}", tenant.name, pgtenant::cluster::describe(&e)))
    }

    /// A client of bytes that is logged in.
    pub async fn raw(&self, tenant: &Tenant) -> Wire {
        let mut wire = Wire::tcp(self.address).await;
        wire.log_in(
            &[("user", &tenant.user()), ("database", &tenant.database)],
            &tenant.password(),
        )
        .await
        .unwrap_or_else(|error| panic!("{}: {error}", tenant.name));
        wire
    }

    /// The server where the config places a tenant.
    pub fn home(&self, tenant: &Tenant) -> Tenant {
        let id = TenantId::new(&tenant.name).expect("a tenant id");
        let config = self.proxy.app().config();
        let server = match config.tenants[id.as_str()].route.pool.server.as_str() {
            "shared" => Server::Shared,
            _ => Server::Silo,
        };
        Tenant {
            server,
            ..tenant.clone()
        }
    }
}

/// Its clients and server connections end first: the servers are other tests' too.
impl Drop for Running {
    fn drop(&mut self) {
        let app = self.proxy.app();
        app.drain();
        app.kill_clients();
        let instances = app.instances();
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while instances
            .values()
            .any(|instance| instance.connections() > 0)
            && std::time::Instant::now() < deadline
        {
            for instance in instances.values() {
                instance.retire_pools(|_| true);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

pub async fn connect(config: &tokio_postgres::Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    // Its errors reach the client's calls.
    tokio::spawn(connection);
    Ok(client)
}

/// A direct connection that has what the proxy gives a tenant's.
pub async fn direct(world: &World, tenant: &Tenant) -> Wire {
    let cluster = world.home(tenant);
    let mut wire = Wire::unix(cluster).await;
    wire.log_in(
        &[
            ("user", &tenant.role),
            ("database", &tenant.database),
            ("options", &tenant.direct_options()),
        ],
        SECRET,
    )
    .await
    .unwrap_or_else(|error| panic!("{} direct: {error}", tenant.name));
    wire
}

/// Waits until `condition` holds; what it waits for is said when it never does.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !condition().await {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Gives up on what hangs.
pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("hangs: {what}"))
}

/// Server connections of a role, as the server counts them.
pub async fn backends(client: &Client, role: &str) -> i64 {
    client
        .query_one(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND backend_type = 'client backend'",
            &[&role],
        )
        .await
        .expect("pg_stat_activity")
        .get(0)
}

static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Notes panics in the threads of proxies, which tokio confines to their task.
pub fn watch_for_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or_default();
            if name.starts_with("worker-") || ["control", "timers"].contains(&name) {
                PANICS
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(info.to_string());
            }
            usual(info);
        }));
    });
}

/// No thread of any proxy of this run has panicked so far.
pub fn assert_no_panics() {
    let panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(panics.is_empty(), "a worker panicked: {panics:?}");
}

/// The program in a process of its own.
pub struct Process {
    pub child: Child,
    pub address: SocketAddr,
    pub dir: tempfile::TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// `yaml` listens on 127.0.0.1:0, which is replaced. `stderr`: where the log goes.
    pub async fn serve(yaml: &str, stderr: Stdio) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a port")
            .port();
        let yaml = yaml.replace("127.0.0.1:0", &format!("127.0.0.1:{port}"));
        let path = dir.path().join("pgtenant.yaml");
        std::fs::write(&path, yaml).expect("a file");
        let child = Command::new(env!("CARGO_BIN_EXE_pgtenant"))
            .args(["serve", "--config"])
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("pgtenant");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        eventually("it listens", async || {
            tokio::net::TcpStream::connect(address).await.is_ok()
        })
        .await;
        Self {
            child,
            address,
            dir,
        }
    }

    pub async fn client(&self, name: &str) -> Wire {
        let tenant = tenant(name);
        let mut wire = Wire::tcp(self.address).await;
        let (user, password) = (tenant.user(), tenant.password());
        let pairs = [("user", &*user), ("database", &*tenant.database)];
        wire.log_in(&pairs, &password).await.expect("logs in");
        wire
    }
}
