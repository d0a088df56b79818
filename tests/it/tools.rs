//! Programs that people point at a database: through the proxy they say what they say direct, in
//! every tier and with both poolings.
//!
//! Each test has databases and roles of its own on the servers of the world, emptied before every
//! run. In transaction pooling a neighbour, another client of the same tenant, never rests: what a
//! program leaves on a server connection between two transactions is not there for long.

use std::ffi::OsStr;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use pgtenant::cluster::{Cluster, describe};
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::guard;
use crate::harness::{
    POOLINGS, Running, SECRET, Server, Setup, binaries, connect, eventually, in_time, world,
};

// ---- places ----

/// Where a program works: a tenant alone in its database, or in its schema.
struct Place {
    tier: &'static str,
    tenant: String,
    /// Whom the proxy logs in as; it may create tables here.
    role: String,
    database: String,
    schema: String,
    server: Server,
}

const TOOL_TIERS: [&str; 4] = ["pool", "schema", "database", "instance"];

/// How a program connects.
struct Target {
    host: &'static str,
    port: u16,
    user: String,
    password: String,
    database: String,
    options: String,
}

impl Place {
    fn of(tool: &str, tier: &'static str) -> Self {
        let name = format!("{tool}_{tier}");
        Self {
            tier,
            role: name.clone(),
            database: name.clone(),
            schema: match tier {
                "schema" => format!("t_{name}"),
                _ => "public".to_owned(),
            },
            server: match tier {
                "instance" => Server::Silo,
                _ => Server::Shared,
            },
            tenant: name,
        }
    }

    async fn create(&self, cluster: &Cluster) {
        let Self {
            role,
            database,
            tier,
            ..
        } = self;
        let superuser = match *tier {
            "instance" => "SUPERUSER",
            _ => "",
        };
        let owner = match *tier {
            "schema" => "postgres",
            _ => role,
        };
        for sql in [
            format!("CREATE ROLE {role} LOGIN PASSWORD '{SECRET}' {superuser}"),
            format!("CREATE DATABASE {database} OWNER {owner}"),
            format!("GRANT CREATE ON DATABASE {database} TO {role}"),
            // What waits for a lock that nobody gives back is told so.
            format!("ALTER DATABASE {database} SET lock_timeout = '10s'"),
        ] {
            cluster.run("postgres", &sql).await.expect(&sql);
        }
    }

    /// Leaves nothing of an earlier run, not even its server connections.
    async fn empty(&self, cluster: &Cluster) {
        let Self {
            role,
            database,
            schema,
            ..
        } = self;
        let client = cluster.connect("postgres").await.expect("a superuser");
        let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1";
        eventually("the server connections are gone", async || {
            let others = client.query(others, &[database]).await;
            others.expect("pg_stat_activity").is_empty()
        })
        .await;
        let mut sql = format!(
            "SELECT lo_unlink(oid) FROM pg_largeobject_metadata; DROP OWNED BY {role} CASCADE; \
             GRANT CREATE ON DATABASE {database} TO {role};"
        );
        if schema != "public" {
            sql += &format!("CREATE SCHEMA {schema} AUTHORIZATION {role};");
        }
        cluster.run(database, &sql).await.expect("an empty place");
    }

    fn placement(&self, pooling: &str) -> String {
        let Self {
            tier,
            tenant,
            role,
            database,
            ..
        } = self;
        let server = match self.server {
            Server::Shared => "shared",
            Server::Silo => "silo",
        };
        let more = match *tier {
            "pool" => ", posture: plain, context: { app.tenant_id: \"{tenant}\" }",
            "schema" => ", schema: \"t_{tenant}\"",
            _ => "",
        };
        format!(
            "{tenant}: {{ tier: {tier}, server: {server}, database: {database}, pooling: {pooling}, pool: {{ size: 8 }}, \
             login: {{ user: {role}, password: {SECRET} }}{more} }}\n"
        )
    }

    fn tenant_line(&self) -> String {
        let tenant = &self.tenant;
        format!("{tenant}: {{ placement: {tenant}, users: {{ app: {{ password: {SECRET} }} }} }}\n")
    }

    /// A direct connection that is given what the proxy gives a tenant's.
    fn direct(&self, cluster: &Cluster) -> Target {
        let mut options = "-c row_security=on -c standard_conforming_strings=on".to_owned();
        match self.tier {
            "pool" => options += &format!(" -c app.tenant_id={}", self.tenant),
            "schema" => options += &format!(" -c search_path={}", self.schema),
            _ => {}
        }
        Target {
            host: cluster.host(),
            port: cluster.port(),
            user: self.role.clone(),
            password: SECRET.to_owned(),
            database: self.database.clone(),
            options,
        }
    }

    fn proxied(&self, proxy: &Running) -> Target {
        Target {
            host: "127.0.0.1",
            port: proxy.address.port(),
            user: format!("app.{}", self.tenant),
            password: SECRET.to_owned(),
            database: self.database.clone(),
            options: String::new(),
        }
    }
}

impl Target {
    /// A program that takes from the environment where to connect.
    fn command(&self, program: impl AsRef<OsStr>, dir: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(dir)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .env("LC_ALL", "C.UTF-8")
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PGHOST", self.host)
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", &self.user)
            .env("PGPASSWORD", &self.password)
            .env("PGDATABASE", &self.database)
            .env("PGOPTIONS", &self.options);
        command
    }

    fn psql(&self, dir: &Path) -> Command {
        let mut command = self.command(client_tool("psql"), dir);
        command.args(["-X", "-q"]);
        command
    }
}

/// Another client of the same server connections, which uses them all the time.
struct Neighbour(JoinHandle<()>);

impl Neighbour {
    async fn of(place: &Place, proxy: &Running) -> Self {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(proxy.address.port())
            .user(format!("app.{}", place.tenant))
            .password(SECRET)
            .dbname(&place.database);
        let client = connect(&config).await.expect("the neighbour logs in");
        Self(tokio::spawn(async move {
            loop {
                client
                    .simple_query("SELECT 1")
                    .await
                    .expect("the neighbour is served");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }))
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs a program direct, then through the proxy with both poolings, in every tier; what it said
/// must be the same.
async fn compare(tool: &str, run: impl AsyncFn(&Target, &Path) -> String) {
    compare_in(&POOLINGS, tool, run).await;
}

async fn compare_in(
    poolings: &[&'static str],
    tool: &str,
    run: impl AsyncFn(&Target, &Path) -> String,
) {
    let world = world().await;
    let places = TOOL_TIERS.map(|tier| Place::of(tool, tier));
    for place in &places {
        place.create(world.server(place.server)).await;
    }
    let start = |&pooling: &&'static str| {
        let setup = Setup {
            pooling,
            placements: places
                .iter()
                .map(|place| place.placement(pooling))
                .collect(),
            tenants: places.iter().map(Place::tenant_line).collect(),
            ..Setup::default()
        };
        (pooling, Running::start(&setup.yaml(world)))
    };
    let proxies: Vec<_> = poolings.iter().map(start).collect();
    let mut differences = Vec::new();
    for place in &places {
        let cluster = world.server(place.server);
        let once = async |target: Target| {
            let dir = tempfile::tempdir().expect("a directory");
            run(&target, dir.path()).await
        };
        place.empty(cluster).await;
        let expected = once(place.direct(cluster)).await;
        assert!(
            expected.ends_with("exit status: 0\n"),
            "{tool} in {}, direct:\n{expected}",
            place.tier
        );
        for (pooling, proxy) in &proxies {
            place.empty(cluster).await;
            let neighbour = match *pooling {
                "transaction" => Some(Neighbour::of(place, proxy).await),
                _ => None,
            };
            let seen = once(place.proxied(proxy)).await;
            let label = format!("{tool} in {}, {pooling} pooling", place.tier);
            if neighbour.is_some_and(|neighbour| neighbour.0.is_finished()) {
                differences.push(format!("{label}: the neighbour was not served"));
            }
            if seen != expected {
                differences.push(format!("{label}:\n{}", difference(&expected, &seen)));
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// The first lines that differ, of `direct` and of `proxied`.
fn difference(direct: &str, proxied: &str) -> String {
    let (direct, proxied): (Vec<_>, Vec<_>) = (direct.lines().collect(), proxied.lines().collect());
    let same = direct
        .iter()
        .zip(&proxied)
        .take_while(|(a, b)| a == b)
        .count();
    let show = |lines: &[&str], sign: &str| -> String {
        lines
            .iter()
            .skip(same)
            .take(6)
            .map(|line| format!("  {sign} {line}\n"))
            .collect()
    };
    let before: String = direct[same.saturating_sub(3)..same]
        .iter()
        .map(|line| format!("    {line}\n"))
        .collect();
    before + &show(&direct, "direct") + &show(&proxied, "proxy ")
}

// ---- programs ----

/// A PostgreSQL client program: the servers' own, else Debian's newest, else what is in `PATH`.
fn client_tool(name: &str) -> PathBuf {
    let own = binaries().dir().join(name);
    if own.is_file() {
        return own;
    }
    let debian = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let newest = debian
        .flatten()
        .filter_map(|entry| {
            let version: u32 = entry.file_name().to_str()?.parse().ok()?;
            let path = entry.path().join("bin").join(name);
            path.is_file().then_some((version, path))
        })
        .max();
    newest.map_or_else(|| name.into(), |(_, path)| path)
}

/// Everything a program says, in its order, and how it ends.
async fn transcript(command: &mut Command) -> String {
    let what = format!("{:?}", command.as_std().get_program());
    let mut said = tempfile::tempfile().expect("a file");
    let output = || said.try_clone().expect("a file");
    let status = in_time(&what, command.stdout(output()).stderr(output()).status())
        .await
        .unwrap_or_else(|error| panic!("{what} does not run ({error}): run `make test`"));
    let mut bytes = Vec::new();
    said.rewind().expect("a file");
    said.read_to_end(&mut bytes).expect("a file");
    format!("{}{status}\n", String::from_utf8_lossy(&bytes))
}

/// Without the lines that `drop` says, and with `mask` done to the others.
fn masked(text: &str, drop: &[&str], mask: &[(&str, &str)]) -> String {
    text.lines()
        .filter(|line| !drop.iter().any(|word| line.contains(word)))
        .map(
            |line| match mask.iter().find(|(word, _)| line.contains(word)) {
                Some((_, instead)) => format!("{instead}\n"),
                None => format!("{line}\n"),
            },
        )
        .collect()
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/scripts")
        .join(name)
}

fn environment(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run `make test`"))
}

async fn psql_script(target: &Target, dir: &Path, name: &str) -> String {
    let said = transcript(target.psql(dir).arg("-f").arg(script(name))).await;
    masked(
        &said,
        &[],
        &[
            ("Time: ", "Time: …"),
            ("(every ", "(every …)"),
            ("Asynchronous notification", "a notification"),
        ],
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_says_the_same() {
    compare("psql", async |target, dir| {
        psql_script(target, dir, "psql.sql").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_psql_session_leaves_on_its_connection_stays_its_own() {
    compare("session", async |target, dir| {
        psql_script(target, dir, "session.sql").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_back_to_what_it_asked_for_at_startup() {
    compare_in(&["session"], "startup", async |target, dir| {
        let mut command = target.psql(dir);
        command
            .env("PGOPTIONS", format!("{} -c work_mem=8MB", target.options))
            .env("PGDATESTYLE", "German")
            .env("PGTZ", "Asia/Tokyo")
            .env("PGAPPNAME", "startup");
        transcript(command.arg("-f").arg(script("startup.sql"))).await
    })
    .await;
}

/// Tables with all that a dump has to tell; the last is under row level security, of which a dump
/// has to be told too.
const SHOP: &str = "
    CREATE TABLE customer (id int PRIMARY KEY, name text NOT NULL UNIQUE);
    CREATE TABLE purchase (
        id bigint GENERATED ALWAYS AS IDENTITY,
        customer int NOT NULL REFERENCES customer ON DELETE CASCADE,
        price numeric(8,2) CHECK (price > 0),
        about jsonb DEFAULT '{}'
    );
    CREATE INDEX purchase_price ON purchase (price DESC) WHERE price > 10;
    CREATE VIEW spent AS SELECT customer, sum(price) FROM purchase GROUP BY customer;
    CREATE FUNCTION double(n int) RETURNS int LANGUAGE sql AS 'SELECT 2 * n';
    COMMENT ON FUNCTION double(int) IS 'twice';
    INSERT INTO customer SELECT n, 'customer ' || n FROM generate_series(1, 200) n;
    INSERT INTO purchase (customer, price) SELECT 1 + n % 200, n FROM generate_series(1, 1000) n;
    SELECT lo_from_bytea(4711, 'a large object');
    CREATE TABLE diary (tenant text NOT NULL, line text);
    INSERT INTO diary VALUES (coalesce(current_setting('app.tenant_id', true), 'nobody'), 'mine'), ('another', 'not mine');
    ALTER TABLE diary ENABLE ROW LEVEL SECURITY;
    ALTER TABLE diary FORCE ROW LEVEL SECURITY;
    CREATE POLICY own ON diary USING (tenant = current_setting('app.tenant_id', true))";

/// pg_dump and pg_restore; none if there is none for the servers' version, which is said.
async fn dump_tools() -> Option<(PathBuf, PathBuf)> {
    let pg_dump = client_tool("pg_dump");
    let major = async |program: &Path| {
        let said = transcript(Command::new(program).arg("--version")).await;
        let version = said.split_whitespace().nth(2).expect("a version");
        let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().expect("a version")
    };
    let (tool, server) = (
        major(&pg_dump).await,
        major(&binaries().dir().join("postgres")).await,
    );
    if tool < server {
        // Not by a macro, which the test runner would keep to itself.
        let _ = writeln!(
            std::io::stderr(),
            "not tested: pg_dump of PostgreSQL {tool} refuses a server of {server}"
        );
        return None;
    }
    Some((pg_dump, client_tool("pg_restore")))
}

#[tokio::test(flavor = "multi_thread")]
async fn dumps_are_the_same_and_can_be_restored() {
    let Some((pg_dump, pg_restore)) = dump_tools().await else {
        return;
    };
    compare("dump", async |target, dir| {
        // Of the connection's own, and a key that is made anew each time.
        let same = |text: &str| masked(text, &["restrict "], &[]);
        let mut said = transcript(target.psql(dir).args(["-c", SHOP])).await;

        // All of it: under row level security only a superuser may.
        said += &same(&transcript(&mut target.command(&pg_dump, dir)).await);
        let own_rows = ["--enable-row-security"];
        said += &same(&transcript(target.command(&pg_dump, dir).args(own_rows)).await);
        let formats: [&[&str]; 2] = [
            &["--format=custom", "--file=custom"],
            &["--format=directory", "--jobs=2", "--file=directory"],
        ];
        for (arguments, file) in formats.into_iter().zip(["custom", "directory"]) {
            let mut command = target.command(&pg_dump, dir);
            command.args(["--exclude-table=diary"]).args(arguments);
            said += &transcript(&mut command).await;
            let mut command = target.command(&pg_restore, dir);
            said += &same(&transcript(command.args(["--file=-", file])).await);
        }
        // Over what is there, and after that there is what there was.
        for (file, jobs) in [("custom", "1"), ("directory", "2")] {
            let mut command = target.command(&pg_restore, dir);
            command
                .args(["--clean", "--if-exists", "--no-owner", "--jobs", jobs])
                .args(["--dbname", &target.database, file]);
            said += &transcript(&mut command).await;
            said += &same(&transcript(target.command(&pg_dump, dir).args(own_rows)).await);
        }
        said
    })
    .await;
}

/// It begins with the set_config of a name that it finds in pg_settings.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_can_be_made_in_posture_guarded() {
    let Some((pg_dump, _)) = dump_tools().await else {
        return;
    };
    for pooling in POOLINGS {
        let proxy = guard::proxy(pooling, guard::GUARDED).await;
        let dsn = format!("postgresql://app.g0:g0@{}/app", proxy.address);
        let said = transcript(Command::new(&pg_dump).args([
            "--enable-row-security",
            "--table=items",
            "--dbname",
            &dsn,
        ]))
        .await;
        assert!(said.contains("CREATE TABLE public.items"), "{said}");
        assert!(said.contains("database dump complete"), "{said}");
    }
}

const PIPELINE: &str = "\\set aid random(1, 100000)
\\startpipeline
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_branches SET bbalance = bbalance + 0 WHERE bid = 1;
SELECT 1;
\\endpipeline
";
const GSET: &str =
    "SELECT max(aid) AS last, count(*) AS many FROM pgbench_accounts WHERE aid < 100 \\gset
BEGIN;
SELECT abalance FROM pgbench_accounts WHERE aid = :last::int + :many::int \\gset found_
UPDATE pgbench_accounts SET abalance = :found_abalance WHERE aid = :last::int + :many::int;
END;
";

#[tokio::test(flavor = "multi_thread")]
async fn pgbench_runs_in_every_mode() {
    compare("bench", async |target, dir| {
        let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).expect("a file");
        write("pipeline", PIPELINE);
        write("gset", GSET);
        let pgbench = client_tool("pgbench");
        let counts = |said: &str| -> String {
            let told = [
                "query mode",
                "actually processed",
                "number of failed",
                "exit status",
            ];
            said.lines()
                .filter(|line| {
                    told.iter().any(|word| line.contains(word)) || line.contains("error")
                })
                .map(|line| format!("{line}\n"))
                .collect()
        };
        let mut said = String::new();
        let mut command = target.command(&pgbench, dir);
        command.args(["--initialize", "--quiet", "--foreign-keys"]);
        said += &masked(&transcript(&mut command).await, &["done in", "tuples"], &[]);
        let scripts: [&[&str]; 2] = [
            &["--builtin=tpcb-like"],
            &["--file=pipeline", "--file=gset"],
        ];
        for (mode, scripts) in [
            ("simple", &scripts[..1]),
            ("extended", &scripts[..]),
            ("prepared", &scripts[..]),
        ] {
            for files in scripts {
                let mut command = target.command(&pgbench, dir);
                command
                    .args(["--no-vacuum", "--client=4", "--jobs=2", "--transactions=20"])
                    .args(["--protocol", mode])
                    .args(*files);
                said += &counts(&transcript(&mut command).await);
            }
        }
        let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = sum(delta), count(*), \
                    (SELECT sum(bbalance) FROM pgbench_branches) = sum(delta) FROM pgbench_history";
        said + &transcript(target.psql(dir).args(["-c", sums])).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn alembic_migrates_and_reflects_the_same() {
    let python = environment("PGTENANT_TEST_PYTHON");
    compare("alembic", async |target, dir| {
        let mut command = target.command(&python, dir);
        transcript(command.arg(script("alembic_client.py"))).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn django_migrates_and_inspects_the_same() {
    let python = environment("PGTENANT_TEST_PYTHON");
    compare("django", async |target, dir| {
        let mut command = target.command(&python, dir);
        transcript(command.arg(script("django_client.py"))).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn node_pg_sessions_are_the_same() {
    let modules = environment("PGTENANT_TEST_NODE_PATH");
    compare("node", async |target, dir| {
        let mut command = target.command("node", dir);
        command.env("NODE_PATH", &modules);
        transcript(command.arg(script("node_session.js"))).await
    })
    .await;
}

/// What Prisma's schema engine asks a catalog about the tables of a schema, `$1`.
const PRISMA_DESCRIBES: [&str; 9] = [
    "SELECT c.relname, n.nspname, c.relkind::text, c.relhassubclass, c.relrowsecurity, c.reloptions, obj_description(c.oid, 'pg_class')
       FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE n.nspname = ANY ($1) AND (c.relkind IN ('p', 'f') OR c.relkind = 'r' AND NOT c.relispartition) ORDER BY 2, 1",
    "SELECT i.table_schema, i.table_name, i.column_name, format_type(a.atttypid, a.atttypmod), i.numeric_precision, i.numeric_scale,
            i.character_maximum_length, i.data_type, i.udt_schema, i.udt_name, i.is_nullable, i.is_identity,
            pg_get_expr(d.adbin, d.adrelid), col_description(a.attrelid, a.attnum)
       FROM information_schema.columns i
       JOIN pg_attribute a ON a.attname = i.column_name
        AND a.attrelid = (quote_ident(i.table_schema) || '.' || quote_ident(i.table_name))::regclass
       LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
      WHERE i.table_schema = ANY ($1) ORDER BY 1, 2, i.ordinal_position",
    "WITH part AS (
        SELECT indexrelid, indrelid, indisunique, indisprimary, unnest(indkey) AS attnum, unnest(indclass) AS class,
               unnest(indoption) AS option, generate_subscripts(indkey, 1) AS position
          FROM pg_index WHERE indpred IS NULL AND NOT indisexclusion)
     SELECT n.nspname, i.relname, t.relname AS of, a.attname, indisunique, indisprimary, position, o.opcname, o.opcdefault, m.amname,
            option & 1 = 1, option & 2 = 2, k.condeferrable, k.condeferred
       FROM part JOIN pg_class t ON t.oid = indrelid JOIN pg_class i ON i.oid = indexrelid
       JOIN pg_namespace n ON n.oid = t.relnamespace JOIN pg_am m ON m.oid = i.relam
       LEFT JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = part.attnum
       LEFT JOIN pg_opclass o ON o.oid = class
       LEFT JOIN pg_constraint k ON k.conindid = indexrelid AND k.contype <> 'f'
      WHERE n.nspname = ANY ($1) ORDER BY 1, 3, 2, 7",
    "SELECT k.conname, t.relname, f.relname AS target, k.confdeltype::text, k.confupdtype::text, k.condeferrable, k.condeferred,
            (SELECT array_agg(a.attname ORDER BY u.n) FROM unnest(k.conkey) WITH ORDINALITY u (attnum, n)
               JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.attnum)
       FROM pg_constraint k JOIN pg_class t ON t.oid = k.conrelid JOIN pg_class f ON f.oid = k.confrelid
       JOIN pg_namespace n ON n.oid = t.relnamespace WHERE k.contype = 'f' AND n.nspname = ANY ($1) ORDER BY 2, 1",
    "SELECT n.nspname, t.relname, k.conname, k.contype::text, pg_get_constraintdef(k.oid), k.condeferrable
       FROM pg_constraint k JOIN pg_class t ON t.oid = k.conrelid JOIN pg_namespace n ON n.oid = t.relnamespace
      WHERE n.nspname = ANY ($1) AND k.contype NOT IN ('p', 'u', 'f', 'n') ORDER BY 1, 2, 3",
    "SELECT n.nspname, t.typname, e.enumlabel FROM pg_type t JOIN pg_enum e ON e.enumtypid = t.oid
       JOIN pg_namespace n ON n.oid = t.typnamespace WHERE n.nspname = ANY ($1) ORDER BY 1, 2, e.enumsortorder",
    "SELECT sequence_schema, sequence_name, start_value, minimum_value, maximum_value, increment, cycle_option
       FROM information_schema.sequences WHERE sequence_schema = ANY ($1) ORDER BY 1, 2",
    "SELECT schemaname, viewname, definition FROM pg_catalog.pg_views WHERE schemaname = ANY ($1) ORDER BY 1, 2",
    "SELECT n.nspname, p.proname, pg_get_functiondef(p.oid) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
      WHERE n.nspname = ANY ($1) AND p.prokind = 'f' ORDER BY 1, 2",
];
const PRISMA_MIGRATION: &str = "-- CreateEnum
CREATE TYPE \"Role\" AS ENUM ('USER', 'ADMIN');
-- CreateTable
CREATE TABLE \"User\" (\"id\" SERIAL NOT NULL, \"email\" TEXT NOT NULL, \"role\" \"Role\" NOT NULL DEFAULT 'USER',
    CONSTRAINT \"User_pkey\" PRIMARY KEY (\"id\"));
CREATE TABLE \"Post\" (\"id\" SERIAL NOT NULL, \"title\" VARCHAR(255) NOT NULL, \"authorId\" INTEGER NOT NULL, \"meta\" JSONB,
    \"createdAt\" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP, CONSTRAINT \"Post_pkey\" PRIMARY KEY (\"id\"));
CREATE UNIQUE INDEX \"User_email_key\" ON \"User\"(\"email\" DESC NULLS LAST);
ALTER TABLE \"Post\" ADD CONSTRAINT \"Post_authorId_fkey\" FOREIGN KEY (\"authorId\") REFERENCES \"User\"(\"id\")
    ON DELETE RESTRICT ON UPDATE CASCADE;
CREATE VIEW \"Titles\" AS SELECT \"title\" FROM \"Post\";
CREATE FUNCTION \"double\"(n int) RETURNS int LANGUAGE sql AS 'SELECT 2 * n';";

/// As `prisma migrate deploy` and `prisma db pull`, whose driver is this one too: a search path and
/// a lock for the session, scripts as simple queries, questions as named statements that are closed
/// at once.
async fn migrate_like_prisma(target: &Target) -> Result<String, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config
        .host(target.host)
        .port(target.port)
        .user(&target.user)
        .password(&target.password)
        .dbname(&target.database)
        .options(&target.options);
    let client = connect(&config).await?;
    let pause = || tokio::time::sleep(Duration::from_millis(20));
    let schema: String = client
        .query_one("SELECT current_schema()", &[])
        .await?
        .get(0);
    client
        .simple_query(&format!(
            "SET search_path = \"{schema}\"; SET NAMES 'UTF8';"
        ))
        .await?;
    let mut said = String::new();
    client
        .simple_query("SELECT pg_advisory_lock(72707369)")
        .await?;
    pause().await;
    client
        .simple_query(
            "CREATE TABLE _prisma_migrations (id varchar(36) PRIMARY KEY, checksum varchar(64) NOT NULL,
                finished_at timestamptz, migration_name varchar(255) NOT NULL, logs text, rolled_back_at timestamptz,
                started_at timestamptz NOT NULL DEFAULT now(), applied_steps_count int NOT NULL DEFAULT 0)",
        )
        .await?;
    let insert =
        "INSERT INTO _prisma_migrations (id, checksum, migration_name) VALUES ($1, $2, $3)";
    for (name, text) in [
        ("init", PRISMA_MIGRATION),
        (
            "bad",
            "ALTER TABLE \"User\" ADD COLUMN x int; ALTER TABLE nothing ADD y int;",
        ),
    ] {
        client.execute(insert, &[&name, &"0123", &name]).await?;
        pause().await;
        match client.simple_query(text).await {
            Ok(_) => {
                let update = "UPDATE _prisma_migrations SET finished_at = now(), applied_steps_count = 1 WHERE id = $1";
                client.execute(update, &[&name]).await?;
            }
            Err(error) => said += &format!("{name}: {:?}\n", error.as_db_error()),
        }
    }
    for query in PRISMA_DESCRIBES {
        let query = format!("SELECT coalesce(json_agg(q), '[]')::text FROM ({query}) q");
        let rows: String = client.query_one(&query, &[&vec![&schema]]).await?.get(0);
        said += &format!("{}\n", rows.replace("}, ", "},\n"));
    }
    pause().await;
    let left = "SELECT current_setting('search_path') || (SELECT count(*) FROM pg_locks
        WHERE locktype = 'advisory' AND objid = 72707369 AND pid = pg_backend_pid())";
    let left: String = client.query_one(left, &[]).await?.get(0);
    Ok(format!("{said}{left}\nexit status: 0\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn prisma_migrates_and_describes_the_same() {
    compare("prisma", async |target, _| {
        let said = migrate_like_prisma(target).await;
        said.unwrap_or_else(|error| format!("{}\n", describe(&error)))
    })
    .await;
}
