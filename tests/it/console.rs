//! The admin console as operators of PgBouncer use it: its columns, its verbs, its exporter.

mod incidents;
mod stats;
mod tenant;
mod verbs;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Running, Setup, eventually, tenant};
use crate::wire::{Frame, Wire, column, errors, query};

/// Who may log in to it.
const ADMIN: &str =
    "admin: { users: { root: { password: root } }, stats_users: { viewer: { password: viewer } } }";

fn setup() -> Setup {
    Setup {
        sections: ADMIN.into(),
        ..Setup::default()
    }
}

/// A session of the console.
struct Console(Wire);

/// A row of a table, by its columns.
type Row = BTreeMap<String, Option<String>>;

impl Console {
    async fn open(proxy: &Running) -> Self {
        Self::open_as(proxy.address, "root", "pgbouncer").await
    }

    async fn open_as(address: SocketAddr, user: &str, database: &str) -> Self {
        let mut wire = Wire::tcp(address).await;
        let pairs = [("user", user), ("database", database)];
        wire.log_in(&pairs, user).await.expect("logs in");
        Self(wire)
    }

    /// The rows of the answer.
    async fn rows(&mut self, command: &str) -> Vec<Row> {
        let frames = self.0.query(command).await;
        assert_eq!(errors(&frames), [""; 0], "{command}: {frames:?}");
        table(&frames)
    }

    /// The first row in which `column` is `value`.
    async fn row(&mut self, command: &str, column: &str, value: &str) -> Row {
        let rows = self.rows(command).await;
        let found = rows
            .iter()
            .find(|row| row[column].as_deref() == Some(value));
        let found = found.cloned();
        found.unwrap_or_else(|| panic!("{command} has no {column} {value}: {rows:?}"))
    }

    /// What the command answers: its tag.
    async fn say(&mut self, command: &str) -> String {
        let frames = self.0.query(command).await;
        assert_eq!(errors(&frames), [""; 0], "{command}: {frames:?}");
        tag(&frames)
    }

    /// The SQLSTATE and the message that the command is refused with.
    async fn refusal(&mut self, command: &str) -> (String, String) {
        let frames = self.0.query(command).await;
        let error = frames.iter().find(|frame| frame.tag == b'E');
        let error = error.unwrap_or_else(|| panic!("{command} is not refused: {frames:?}"));
        (error.sqlstate(), error.field(b'M').unwrap_or_default())
    }

    /// Says it, without waiting for the answer.
    async fn begin(&mut self, command: &str) {
        self.0.send(&query(command)).await;
    }

    /// Waits for the answer to what was begun.
    async fn end(&mut self) -> Vec<Frame> {
        self.0.until_ready().await
    }
}

fn tag(frames: &[Frame]) -> String {
    let complete = frames.iter().find(|frame| frame.tag == b'C');
    let tag = complete.map(|frame| frame.body.strip_suffix(b"\0").unwrap_or(&frame.body));
    String::from_utf8_lossy(tag.unwrap_or_default()).into_owned()
}

/// The names in a RowDescription.
fn names(frames: &[Frame]) -> Vec<String> {
    let Some(description) = frames.iter().find(|frame| frame.tag == b'T') else {
        return Vec::new();
    };
    let mut rest = &description.body[2..];
    let mut names = Vec::new();
    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
        names.push(String::from_utf8_lossy(&rest[..end]).into_owned());
        // Table, column, type, size, modifier and format.
        rest = &rest[end + 1 + 18..];
    }
    names
}

fn table(frames: &[Frame]) -> Vec<Row> {
    let names = names(frames);
    let rows = frames.iter().filter(|frame| frame.tag == b'D');
    rows.map(|row| names.iter().cloned().zip(row.values()).collect())
        .collect()
}

fn text<'a>(row: &'a Row, column: &str) -> &'a str {
    row[column].as_deref().unwrap_or_default()
}

fn number(row: &Row, column: &str) -> i64 {
    text(row, column)
        .parse()
        .unwrap_or_else(|_| panic!("{column} of {row:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_begin_with_the_columns_of_pgbouncer_in_its_order() {
    let proxy = setup().start().await;
    let mut console = Console::open(&proxy).await;
    let sockets = "type user database replication state addr port local_addr local_port connect_time \
        request_time wait wait_us close_needed ptr link remote_pid tls application_name \
        prepared_statements id";
    for (show, columns) in [
        ("CLIENTS", sockets),
        ("SERVERS", sockets),
        ("SOCKETS", sockets),
        ("ACTIVE_SOCKETS", sockets),
        (
            "DATABASES",
            "name host port database force_user pool_size min_pool_size reserve_pool_size \
             server_lifetime pool_mode load_balance_hosts max_connections current_connections \
             max_client_connections current_client_connections paused disabled",
        ),
        (
            "POOLS",
            "database user cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req \
             sv_active sv_active_cancel sv_being_canceled sv_idle sv_used sv_tested sv_login \
             maxwait maxwait_us pool_mode load_balance_hosts",
        ),
        (
            "STATS",
            "database total_server_assignment_count total_xact_count total_query_count \
             total_received total_sent total_xact_time total_query_time total_wait_time \
             total_client_parse_count total_server_parse_count total_bind_count \
             total_client_login_count avg_server_assignment_count avg_xact_count avg_query_count \
             avg_recv avg_sent avg_xact_time avg_query_time avg_wait_time avg_client_parse_count \
             avg_server_parse_count avg_bind_count avg_client_login_count",
        ),
        (
            "STATS_TOTALS",
            "database server_assignment_count xact_count query_count bytes_received bytes_sent \
             xact_time query_time wait_time client_parse_count server_parse_count bind_count \
             client_login_count",
        ),
        (
            "STATS_AVERAGES",
            "database server_assignment_count xact_count query_count bytes_received bytes_sent \
             xact_time query_time wait_time avg_client_parse_count avg_server_parse_count \
             avg_bind_count avg_client_login_count",
        ),
        ("TOTALS", "name value"),
        ("LISTS", "list items"),
        (
            "USERS",
            "name pool_size reserve_pool_size pool_mode max_user_connections current_connections \
             max_user_client_connections current_client_connections",
        ),
        ("MEM", "name size used free memtotal"),
        ("FDS", "fd task user database addr port cancel link"),
        ("DNS_HOSTS", "hostname ttl addrs"),
        ("DNS_ZONES", "zonename serial count"),
        ("PEERS", "peer_id host port pool_size"),
        ("CONFIG", "key value default changeable"),
        ("VERSION", "version"),
        ("STATE", "key value"),
    ] {
        let frames = console.0.query(&format!("SHOW {show};")).await;
        let names = names(&frames);
        let expected: Vec<_> = columns.split_whitespace().collect();
        assert_eq!(names[..expected.len()], expected, "SHOW {show}");
        assert!(tag(&frames).starts_with("SHOW"), "{}", tag(&frames));
    }
    let totals = console.rows("SHOW TOTALS").await;
    assert_eq!(text(&totals[1], "name"), "total_xact_count");
    assert_eq!(text(&totals[3], "name"), "total_client_bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_databases_and_stats_are_tenants_and_lists_count_everything() {
    let proxy = setup().start().await;
    let one = tenant("t00");
    let mut client = proxy.raw(&one).await;
    client.query("SELECT 1").await;
    let mut console = Console::open(&proxy).await;
    let row = console.row("SHOW DATABASES", "name", "t00").await;
    for (name, value) in [
        ("database", "app"),
        ("force_user", "app"),
        ("pool_size", "8"),
        ("pool_mode", "transaction"),
        ("current_client_connections", "1"),
        ("paused", "0"),
        ("disabled", "0"),
    ] {
        assert_eq!(text(&row, name), value, "{name}");
    }
    let stats = console.row("SHOW STATS", "database", "t00").await;
    assert_eq!(number(&stats, "total_client_login_count"), 1);
    assert!(number(&stats, "total_query_count") >= 1);
    assert_eq!(stats["total_requests"], stats["total_query_count"]);
    let lists = console.rows("SHOW LISTS").await;
    let item = |name: &str| {
        let row = lists.iter().find(|row| text(row, "list") == name).unwrap();
        number(row, "items")
    };
    let tenants = proxy.proxy.app().config().tenants.len();
    assert_eq!(item("databases"), i64::try_from(tenants).unwrap());
    assert_eq!((item("used_clients"), item("login_clients")), (1, 0));
    assert!(item("pools") >= 1 && item("used_servers") >= 1);
    let user = console.rows("SHOW USERS").await;
    let user = user
        .iter()
        .find(|row| text(row, "tenant") == "t00")
        .unwrap();
    assert_eq!(number(user, "current_client_connections"), 1);
    let fds = console.rows("SHOW FDS").await;
    let client_fds = fds.iter().filter(|row| text(row, "task") == "client");
    assert!(client_fds.count() >= 1, "{fds:?}");
    assert!(fds.iter().all(|row| row["cancel"].is_none()));
}

/// Exporters tell pools by database and user.
#[tokio::test(flavor = "multi_thread")]
async fn no_two_pools_have_the_same_database_and_user() {
    let proxy = setup().start().await;
    let mut clients = Vec::new();
    for name in ["s0", "s1", "b0", "b1", "t00", "d0"] {
        let mut client = proxy.raw(&tenant(name)).await;
        client.query("SELECT 1").await;
        clients.push(client);
    }
    let mut console = Console::open(&proxy).await;
    let pools = console.rows("SHOW POOLS").await;
    let mut keys: Vec<_> = pools
        .iter()
        .map(|row| (text(row, "database"), text(row, "user")))
        .collect();
    assert!(keys.contains(&("spread@shared", "app_spread")), "{keys:?}");
    assert!(keys.contains(&("app", "app")), "{keys:?}");
    keys.sort_unstable();
    let count = keys.len();
    keys.dedup();
    assert_eq!(keys.len(), count, "{pools:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_who_may_only_look_see_tables_and_change_nothing() {
    let proxy = setup().start().await;
    for database in ["pgbouncer", "pgtenant"] {
        let mut viewer = Console::open_as(proxy.address, "viewer", database).await;
        for show in ["CLIENTS", "STATS", "DATABASES", "CONFIG"] {
            viewer.rows(&format!("SHOW {show}")).await;
        }
        for command in [
            "PAUSE",
            "PAUSE t00",
            "RESUME",
            "DISABLE t00",
            "ENABLE t00",
            "KILL t00",
            "KILL_CLIENT 1",
            "RECONNECT",
            "WAIT_CLOSE",
            "RELOAD",
            "SHUTDOWN",
            "SET query_wait_timeout = 1",
            "SHOW FDS",
        ] {
            let refusal = viewer.refusal(command).await;
            assert_eq!(
                refusal,
                ("42501".into(), "admin access needed".into()),
                "{command}"
            );
        }
        assert!(viewer.rows("SHOW PAUSED").await.is_empty());
    }
    let mut wire = Wire::tcp(proxy.address).await;
    let pairs = [("user", "viewer"), ("database", "pgbouncer")];
    let error = wire.log_in(&pairs, "root").await.expect_err("is refused");
    assert_eq!(error.sqlstate(), "28P01");
}

/// Debian's exporter, as it is.
struct Exporter {
    child: Child,
    port: u16,
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const EXPORTER: &str = "/usr/bin/prometheus-pgbouncer-exporter";

impl Exporter {
    fn start(proxy: &Running, user: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a port")
            .port();
        let child = Command::new(EXPORTER)
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["--pgbouncer-host", "127.0.0.1", "--pgbouncer-user", user])
            .args(["--pgbouncer-port", &proxy.address.port().to_string()])
            .env("PGPASSWORD", user)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{EXPORTER}: {error}; scripts/install test installs it")
            });
        Self { child, port }
    }

    /// None: it does not answer yet.
    async fn scrape(&self) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.ok()?;
        let request = "GET /metrics HTTP/1.0\r\nHost: exporter\r\n\r\n";
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exporter_of_debian_exports_what_there_is() {
    let proxy = setup().start().await;
    let one = tenant("t00");
    let mut client = proxy.raw(&one).await;
    assert_eq!(column(&client.query("SELECT 42").await), ["42"]);
    let exporter = Exporter::start(&proxy, "viewer");
    eventually("the exporter answers", async || {
        exporter.scrape().await.is_some()
    })
    .await;
    let metrics = exporter.scrape().await.unwrap();
    assert!(metrics.starts_with("HTTP/1.0 200"), "{metrics}");
    let value = |series: &str| -> f64 {
        let mut lines = metrics.lines();
        let line =
            lines.find(|line| line.starts_with(series) && line[series.len()..].starts_with(' '));
        let line = line.unwrap_or_else(|| panic!("no {series} in {metrics}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    for (series, least) in [
        ("pgbouncer_requests_total{database=\"t00\"}", 1.0),
        ("pgbouncer_received_bytes_total{database=\"t00\"}", 10.0),
        ("pgbouncer_sent_bytes_total{database=\"t00\"}", 10.0),
        ("pgbouncer_query_microseconds_total{database=\"t00\"}", 1.0),
        (
            "pgbouncer_active_clients{database=\"app\",user=\"app\"}",
            1.0,
        ),
        ("pgbouncer_pools", 1.0),
        ("pgbouncer_used_servers", 1.0),
        ("pgbouncer_users", 50.0),
    ] {
        assert!(value(series) >= least, "{series}: {}", value(series));
    }
    for (series, expected) in [
        (
            "pgbouncer_waiting_clients{database=\"app\",user=\"app\"}",
            0.0,
        ),
        ("pgbouncer_pool_size{database=\"db_d0\"}", 8.0),
        ("pgbouncer_reserve_pool{database=\"db_d0\"}", 0.0),
        ("pgbouncer_used_clients", 1.0),
        ("pgbouncer_free_clients", 0.0),
        ("pgbouncer_dns_names", 0.0),
    ] {
        assert_eq!(value(series), expected, "{series}");
    }
}
