//! PAUSE and the other verbs.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use super::{ADMIN, Console, number, setup, tag, text};
use crate::harness::{
    Process, Running, Setup, Tenant, assert_no_panics, eventually, in_time, tenant, world,
};
use crate::wire::{Wire, cancel_request, column, copy_data, copy_done, errors, query};

/// Long enough to see that something waits.
const MOMENT: Duration = Duration::from_millis(300);

const PID: &str = "SELECT pg_backend_pid()";

/// Whether the server has a session with this process id.
async fn lives(pid: &str) -> bool {
    let watching = world().await.shared.connect("postgres").await;
    let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
    let row = watching.expect("connects").query_one(&sql, &[]).await;
    row.expect("pg_stat_activity").get::<_, i64>(0) > 0
}

async fn refused_login(proxy: &Running, tenant: &Tenant) -> Option<(String, String)> {
    let mut wire = Wire::tcp(proxy.address).await;
    let (user, password) = (tenant.user(), tenant.password());
    let pairs = [("user", &*user), ("database", &*tenant.database)];
    let error = wire.log_in(&pairs, &password).await.err()?;
    Some((error.sqlstate(), error.field(b'M').unwrap_or_default()))
}

/// What a client is answered that logs in first: it may have to wait for that, too, since a login
/// needs a server connection where none was made before.
async fn ask_anew(address: SocketAddr, name: &str, sql: &str) -> Vec<String> {
    let tenant = tenant(name);
    let mut wire = Wire::tcp(address).await;
    let (user, password) = (tenant.user(), tenant.password());
    let pairs = [("user", &*user), ("database", &*tenant.database)];
    wire.log_in(&pairs, &password).await.expect("logs in");
    column(&wire.query(sql).await)
}

/// The commands that name it, and those that end the pause.
const NAMES_OF_D2: [&str; 4] = ["d2", "TENANT d2", "db_d2", "\"d2\""];

#[tokio::test(flavor = "multi_thread")]
async fn pause_waits_for_transactions_of_what_it_names_and_touches_nothing_else() {
    let proxy = setup().start().await;
    let mut console = Console::open(&proxy).await;
    let mut other = Console::open(&proxy).await;
    let mut named = proxy.raw(&tenant("d2")).await;
    let mut neighbour = proxy.raw(&tenant("d3")).await;
    for name in NAMES_OF_D2 {
        named.query("BEGIN").await;
        let pid = column(&named.query(PID).await).remove(0);
        console.begin(&format!("PAUSE {name}")).await;
        assert!(
            console.0.is_silent(MOMENT).await,
            "{name}: a transaction is open"
        );
        // The transaction goes on to its end.
        assert_eq!(column(&named.query("SELECT 1").await), ["1"]);
        assert_eq!(column(&neighbour.query("SELECT 2").await), ["2"]);
        named.query("COMMIT").await;
        let done = in_time("PAUSE", console.end()).await;
        assert_eq!((tag(&done).as_str(), errors(&done).len()), ("PAUSE", 0));
        assert!(!lives(&pid).await, "its server connections are closed");
        named.send(&query("SELECT 3")).await;
        assert!(
            named.is_silent(MOMENT).await,
            "{name}: a new statement waits"
        );
        assert_eq!(column(&neighbour.query("SELECT 4").await), ["4"]);
        let row = other.row("SHOW DATABASES", "name", "d2").await;
        assert_eq!(number(&row, "paused"), 1);
        let row = other.row("SHOW DATABASES", "name", "d3").await;
        assert_eq!(number(&row, "paused"), 0);
        let row = other.row("SHOW CLIENTS", "tenant", "d2").await;
        assert_eq!(text(&row, "activity"), "waiting");
        assert_eq!(other.say(&format!("RESUME {name}")).await, "RESUME");
        let answer = in_time("the statement", named.until_ready()).await;
        assert_eq!(column(&answer), ["3"]);
    }
    assert_no_panics();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tenant_of_a_shared_pool_is_paused_and_the_others_keep_its_connections() {
    let proxy = setup().start().await;
    let mut console = Console::open(&proxy).await;
    let mut named = proxy.raw(&tenant("t40")).await;
    let mut others = proxy.raw(&tenant("t41")).await;
    others.query("BEGIN").await;
    named.query("SELECT 1").await;
    assert_eq!(in_time("PAUSE", console.say("PAUSE t40")).await, "PAUSE");
    named.send(&query("SELECT 2")).await;
    let pid = column(&others.query("SELECT pg_backend_pid()").await);
    others.query("COMMIT").await;
    others.query("BEGIN").await;
    assert_eq!(column(&others.query("SELECT pg_backend_pid()").await), pid);
    others.query("COMMIT").await;
    assert!(named.is_silent(MOMENT).await);
    console.say("RESUME t40").await;
    assert_eq!(column(&in_time("2", named.until_ready()).await), ["2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_of_all_a_placement_or_a_server_is_ended_by_the_same_words() {
    let proxy = setup().start().await;
    let mut console = Console::open(&proxy).await;
    for (pause, resume, waits, goes_on) in [
        ("PAUSE", "RESUME", vec!["d0", "t42", "acme"], vec![]),
        (
            "PAUSE PLACEMENT business",
            "RESUME PLACEMENT business",
            vec!["d0", "d1"],
            vec!["t42", "acme"],
        ),
        (
            "PAUSE SERVER silo",
            "RESUME SERVER silo",
            vec!["acme", "c0"],
            vec!["d0", "t42"],
        ),
        ("PAUSE SERVER silo", "RESUME", vec!["acme"], vec!["d0"]),
        ("PAUSE app", "RESUME app", vec!["t42", "t43"], vec!["d0"]),
    ] {
        assert_eq!(in_time(pause, console.say(pause)).await, "PAUSE");
        let mut waiting = Vec::new();
        for name in waits {
            waiting.push(tokio::spawn(ask_anew(proxy.address, name, "SELECT 5")));
        }
        for name in goes_on {
            let mut client = proxy.raw(&tenant(name)).await;
            assert_eq!(column(&client.query("SELECT 6").await), ["6"], "{pause}");
        }
        tokio::time::sleep(MOMENT).await;
        assert!(waiting.iter().all(|waits| !waits.is_finished()), "{pause}");
        assert_eq!(console.say(resume).await, "RESUME");
        for waits in waiting {
            assert_eq!(in_time(resume, waits).await.unwrap(), ["5"], "{pause}");
        }
    }
    let (code, message) = console.refusal("RESUME").await;
    assert_eq!(
        (&*code, &*message),
        ("55000", "pooler is not paused/suspended")
    );
    let (code, message) = console.refusal("RESUME d0").await;
    assert_eq!((&*code, &*message), ("55000", "database d0 is not paused"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_client_has_no_deadline_and_a_cancel_ends_its_wait() {
    let proxy = Setup {
        sections: format!("{ADMIN}\ntimeouts: {{ checkout: 200ms, login: 30s }}"),
        // Which a tenant that holds nothing would be given from after a while.
        reserve: 2,
        ..setup()
    };
    let proxy = proxy.start().await;
    let mut console = Console::open(&proxy).await;
    let mut patient = proxy.raw(&tenant("d4")).await;
    let mut hasty = proxy.raw(&tenant("d4")).await;
    console.say("PAUSE d4").await;
    patient.send(&query("SELECT 1")).await;
    hasty.send(&query("SELECT 2")).await;
    tokio::time::sleep(MOMENT * 3).await;
    assert!(patient.is_silent(MOMENT).await);
    let mut cancel = Wire::tcp(proxy.address).await;
    cancel.send(&cancel_request(&hasty.key)).await;
    assert_eq!(
        errors(&in_time("the cancel", hasty.until_ready()).await),
        ["57014"]
    );
    console.say("RESUME d4").await;
    assert_eq!(column(&in_time("1", patient.until_ready()).await), ["1"]);
    assert_eq!(column(&hasty.query("SELECT 3").await), ["3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_paused_or_disabled_stays_so_across_a_reload() {
    let world = world().await;
    let yaml = setup().yaml(world);
    let proxy = Running::start(&yaml);
    let mut console = Console::open(&proxy).await;
    console.say("PAUSE TENANT d5").await;
    console.say("DISABLE PLACEMENT acme").await;
    // The tenant goes, and comes back.
    let line = yaml
        .lines()
        .find(|line| line.trim_start().starts_with("d5:"));
    proxy.reload(&yaml.replace(line.unwrap(), ""));
    proxy.reload(&yaml);
    let row = console.row("SHOW DATABASES", "name", "d5").await;
    assert_eq!(number(&row, "paused"), 1);
    let row = console.row("SHOW DATABASES", "name", "acme").await;
    assert_eq!(number(&row, "disabled"), 1);
    let refused = refused_login(&proxy, &tenant("acme")).await;
    let words = "database \"acme\" is disabled".to_owned();
    assert_eq!(refused, Some(("57P03".into(), words)));
    let paused = console.rows("SHOW PAUSED").await;
    assert_eq!(text(&paused[0], "name"), "d5");
    console.say("RESUME").await;
    console.say("ENABLE").await;
    assert!(console.rows("SHOW PAUSED").await.is_empty());
    assert!(console.rows("SHOW DISABLED").await.is_empty());
    let mut client = proxy.raw(&tenant("d5")).await;
    assert_eq!(column(&client.query("SELECT 1").await), ["1"]);
    assert_eq!(refused_login(&proxy, &tenant("acme")).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_disabled_keeps_its_clients_and_takes_no_new_ones() {
    let proxy = setup().start().await;
    let mut console = Console::open(&proxy).await;
    let mut old = proxy.raw(&tenant("t44")).await;
    for (name, refused, taken) in [
        ("t44", vec!["t44"], vec!["t45", "d0"]),
        ("TENANT t44", vec!["t44"], vec!["t45"]),
        ("PLACEMENT free", vec!["t44", "t45"], vec!["d0"]),
        ("SERVER shared", vec!["t44", "d0"], vec!["acme"]),
    ] {
        assert_eq!(console.say(&format!("DISABLE {name}")).await, "DISABLE");
        for name in refused {
            let (code, message) = refused_login(&proxy, &tenant(name))
                .await
                .expect("is refused");
            assert_eq!(code, "57P03");
            assert_eq!(message, format!("database \"{name}\" is disabled"));
        }
        for name in taken {
            assert_eq!(refused_login(&proxy, &tenant(name)).await, None, "{name}");
        }
        assert_eq!(column(&old.query("SELECT 1").await), ["1"]);
        assert_eq!(console.say(&format!("ENABLE {name}")).await, "ENABLE");
    }
    assert_eq!(refused_login(&proxy, &tenant("t44")).await, None);
    let (_, message) = console.refusal("DISABLE").await;
    assert_eq!(message, "a database is required");
    let (code, message) = console.refusal("DISABLE nowhere").await;
    assert_eq!((&*code, &*message), ("3D000", "no such database: nowhere"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_ends_the_client_it_names_with_its_server_connection_and_no_other() {
    let proxy = setup().start().await;
    let mut console = Console::open(&proxy).await;
    let mut idle = proxy.raw(&tenant("d1")).await;
    let mut busy = proxy.raw(&tenant("d1")).await;
    let mut other = proxy.raw(&tenant("d1")).await;
    busy.query("BEGIN").await;
    let pid = column(&busy.query(PID).await).remove(0);
    busy.send(&query("SELECT pg_sleep(60)")).await;
    let clients = console.rows("SHOW CLIENTS").await;
    let (first, second) = (&clients[0], &clients[1]);
    let generation = number(first, "generation");
    for wrong in [
        format!("KILL CLIENT {} {}", number(first, "id"), generation - 1),
        "KILL_CLIENT 999999".to_owned(),
    ] {
        let (code, message) = console.refusal(&wrong).await;
        assert_eq!(
            (&*code, &*message),
            ("42704", "client not found"),
            "{wrong}"
        );
    }
    let kill = format!("KILL CLIENT {} {generation}", number(first, "id"));
    assert_eq!(console.say(&kill).await, "KILL_CLIENT");
    assert_eq!(errors(&in_time("it ends", idle.rest()).await), ["57P01"]);
    let kill = format!("KILL_CLIENT {}", number(second, "id"));
    assert_eq!(console.say(&kill).await, "KILL_CLIENT");
    let last = in_time("it ends", busy.rest()).await;
    assert_eq!(errors(&last), ["57P01"]);
    eventually("its server connection ends", async || !lives(&pid).await).await;
    assert_eq!(column(&other.query("SELECT 9").await), ["9"]);
    let (_, message) = console.refusal(&kill).await;
    assert_eq!(message, "client not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_killed_waits_for_a_resume() {
    let proxy = setup().start().await;
    let mut console = Console::open(&proxy).await;
    for name in ["d0", "TENANT d0", "PLACEMENT business"] {
        let mut client = proxy.raw(&tenant("d0")).await;
        client.query("BEGIN").await;
        let pid = column(&client.query(PID).await).remove(0);
        let mut other = proxy.raw(&tenant("t46")).await;
        other.query("BEGIN").await;
        assert_eq!(console.say(&format!("KILL {name}")).await, "KILL");
        assert_eq!(errors(&in_time("it ends", client.rest()).await), ["57P01"]);
        eventually("its server connection ends", async || !lives(&pid).await).await;
        let new = tokio::spawn(ask_anew(proxy.address, "d0", "SELECT 7"));
        tokio::time::sleep(MOMENT).await;
        assert!(!new.is_finished(), "{name}");
        assert_eq!(column(&other.query("SELECT 8").await), ["8"]);
        console.say(&format!("RESUME {name}")).await;
        assert_eq!(in_time("a new client", new).await.unwrap(), ["7"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reconnect_closes_connections_as_they_are_given_back_and_wait_close_waits_for_that() {
    let proxy = setup().start().await;
    let mut console = Console::open(&proxy).await;
    let mut other = Console::open(&proxy).await;
    let mut client = proxy.raw(&tenant("b3")).await;
    let mut neighbour = proxy.raw(&tenant("b2")).await;
    for name in ["b3", "TENANT b3", "PLACEMENT pro", "SERVER shared", ""] {
        client.query("BEGIN").await;
        let old = column(&client.query(PID).await);
        let of_neighbour = column(&neighbour.query(PID).await);
        assert_eq!(console.say(&format!("RECONNECT {name}")).await, "RECONNECT");
        assert_eq!(column(&client.query(PID).await), old, "{name}");
        let row = other.row("SHOW SERVERS", "tenant", "b3").await;
        assert_eq!(number(&row, "close_needed"), 1);
        console.begin(&format!("WAIT_CLOSE {name}")).await;
        assert!(console.0.is_silent(MOMENT).await, "{name}: it is in use");
        client.query("COMMIT").await;
        assert_eq!(
            tag(&in_time("WAIT_CLOSE", console.end()).await),
            "WAIT_CLOSE"
        );
        let new = column(&client.query(PID).await);
        assert_ne!(new, old, "{name}");
        assert_eq!(column(&client.query(PID).await), new, "the new one is kept");
        let is_same = column(&neighbour.query(PID).await) == of_neighbour;
        assert_eq!(is_same, name.ends_with("b3"), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_is_cancelled_is_taken_back() {
    let proxy = setup().start().await;
    let mut console = Console::open(&proxy).await;
    let mut client = proxy.raw(&tenant("d1")).await;
    for pause in ["PAUSE d1", "PAUSE"] {
        client.query("BEGIN").await;
        console.begin(pause).await;
        assert!(console.0.is_silent(MOMENT).await);
        let mut cancel = Wire::tcp(proxy.address).await;
        cancel.send(&cancel_request(&console.0.key)).await;
        assert_eq!(errors(&in_time(pause, console.end()).await), ["57014"]);
        assert!(console.rows("SHOW PAUSED").await.is_empty());
        client.query("COMMIT").await;
        assert_eq!(column(&client.query("SELECT 1").await), ["1"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_show_what_they_do_since_when_and_never_a_literal() {
    let proxy = Setup {
        pool_size: 4,
        ..setup()
    };
    let proxy = proxy.start().await;
    let mut console = Console::open(&proxy).await;
    let one = tenant("d5");
    let mut client = proxy.raw(&one).await;
    client.query("SET application_name = 'billing'").await;
    client.query("BEGIN").await;
    client
        .query("SELECT id FROM items WHERE body = 'a secret' AND id = 4711")
        .await;
    let mut copying = proxy.raw(&one).await;
    copying.send(&query("COPY plain FROM STDIN")).await;
    copying.until(b'G').await;
    let mut listening = proxy.raw(&one).await;
    listening.query("LISTEN news").await;
    let mut running = proxy.raw(&one).await;
    running
        .send(&query("SELECT pg_sleep(60), 'a secret'"))
        .await;
    let mut waiting = proxy.raw(&one).await;
    waiting.send(&query("SELECT 'a secret'")).await;
    let ids = async |console: &mut Console| {
        let rows = console.rows("SHOW CLIENTS").await;
        rows.iter()
            .map(|row| text(row, "activity").to_owned())
            .collect::<Vec<_>>()
    };
    let expected = [
        "idle in transaction",
        "COPY",
        "idle, pinned",
        "running",
        "waiting",
    ];
    eventually("all do what they do", async || {
        ids(&mut console).await == expected
    })
    .await;
    tokio::time::sleep(Duration::from_millis(2300)).await;
    let rows = console.rows("SHOW CLIENTS").await;
    for row in &rows {
        assert!((1..60).contains(&number(row, "seconds")), "{row:?}");
        assert!(!format!("{row:?}").contains("a secret"), "{row:?}");
    }
    assert_eq!(text(&rows[0], "application_name"), "billing");
    assert_eq!(text(&rows[0], "state"), "active");
    let fingerprint = "SELECT id FROM items WHERE body = ? AND id = ?";
    assert_eq!(
        text(&rows[0], "fingerprint").to_lowercase(),
        fingerprint.to_lowercase()
    );
    assert!(
        text(&rows[2], "pinned").contains("LISTEN") || text(&rows[2], "pinned").contains("listen"),
        "{rows:?}"
    );
    assert!(
        text(&rows[3], "fingerprint")
            .to_lowercase()
            .contains("pg_sleep"),
        "{rows:?}"
    );
    assert_eq!(text(&rows[4], "state"), "waiting");
    copying
        .send(&[copy_data(b"77\tx\n"), copy_done()].concat())
        .await;
    copying.until_ready().await;
    copying.query("DELETE FROM plain WHERE id = 77").await;
    let id = number(&rows[3], "id");
    console.say(&format!("KILL_CLIENT {id}")).await;
    assert_eq!(
        column(&in_time("it is served", waiting.until_ready()).await),
        ["a secret"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_the_process_as_it_says() {
    let world = world().await;
    let yaml = setup().yaml(world);
    for (command, idle_goes_on, transaction_ends) in [
        ("SHUTDOWN", false, false),
        ("SHUTDOWN WAIT_FOR_SERVERS", false, true),
        ("SHUTDOWN WAIT_FOR_CLIENTS", true, true),
    ] {
        let mut process = Process::serve(&yaml, Stdio::null()).await;
        let mut console = Console::open_as(process.address, "root", "pgbouncer").await;
        let mut idle = process.client("d0").await;
        let mut client = process.client("d0").await;
        client.query("BEGIN").await;
        assert_eq!(console.say(command).await, "SHUTDOWN");
        if transaction_ends {
            tokio::time::sleep(MOMENT).await;
            assert_eq!(column(&client.query("SELECT 1").await), ["1"], "{command}");
            if idle_goes_on {
                assert_eq!(column(&idle.query("SELECT 2").await), ["2"]);
                let mut late = Wire::tcp(process.address).await;
                let tenant = tenant("d0");
                let pairs = [("user", &*tenant.user()), ("database", "db_d0")];
                let error = late
                    .log_in(&pairs, &tenant.password())
                    .await
                    .expect_err("is refused");
                assert_eq!(error.sqlstate(), "57P03");
                idle.send(&crate::wire::terminate()).await;
            }
            client.query("COMMIT").await;
            if idle_goes_on {
                client.send(&crate::wire::terminate()).await;
            }
        }
        eventually("it ends", async || {
            process.child.try_wait().unwrap().is_some()
        })
        .await;
        let status = process.child.try_wait().unwrap().unwrap();
        assert!(status.success(), "{command}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_command_is_refused_in_the_words_of_pgbouncer() {
    let proxy = setup().start().await;
    let mut console = Console::open(&proxy).await;
    for (command, code, message) in [
        ("FOO;", "08P01", "invalid command 'FOO;', use SHOW HELP;"),
        (
            "PAUSE a b",
            "08P01",
            "invalid command 'PAUSE a b', use SHOW HELP;",
        ),
        (
            "SHOW NOTHING",
            "08P01",
            "invalid command 'SHOW NOTHING', use SHOW HELP;",
        ),
        ("KILL_CLIENT x", "22023", "invalid client pointer supplied"),
        ("PAUSE nowhere", "3D000", "no such database: nowhere"),
        (
            "RECONNECT TENANT nowhere",
            "42704",
            "no such tenant: nowhere",
        ),
        (
            "KILL PLACEMENT nowhere",
            "42704",
            "no such placement: nowhere",
        ),
        (
            "WAIT_CLOSE SERVER nowhere",
            "42704",
            "no such server: nowhere",
        ),
        ("SUSPEND", "0A000", "SUSPEND is not supported"),
        (
            "SET nonsense = 1",
            "42704",
            "unrecognized configuration parameter \"nonsense\"",
        ),
    ] {
        let refusal = console.refusal(command).await;
        assert_eq!(refusal, (code.to_owned(), message.to_owned()), "{command}");
    }
}

/// Each client has its server connection to itself there: who is there is waited for, and who comes
/// waits.
#[tokio::test(flavor = "multi_thread")]
async fn in_session_pooling_a_pause_waits_for_clients_to_leave_and_logins_wait_for_its_end() {
    let proxy = Setup {
        pooling: "session",
        sections: format!("{ADMIN}\ntimeouts: {{ checkout: 200ms, login: 400ms }}"),
        ..setup()
    };
    let proxy = proxy.start().await;
    let mut console = Console::open(&proxy).await;
    let mut other = Console::open(&proxy).await;
    let mut client = proxy.raw(&tenant("d3")).await;
    console.begin("PAUSE d3").await;
    assert!(console.0.is_silent(MOMENT).await);
    let pid = column(&client.query(PID).await).remove(0);
    let leaves = tokio::spawn(ask_anew(proxy.address, "d3", "SELECT 2"));
    let stays = tokio::spawn(ask_anew(proxy.address, "d3", "SELECT 2"));
    tokio::time::sleep(MOMENT * 3).await;
    assert!(!stays.is_finished() && !leaves.is_finished());
    leaves.abort();
    eventually("who leaves is not counted any more", async || {
        let clients = other.rows("SHOW CLIENTS").await;
        clients
            .iter()
            .filter(|row| text(row, "tenant") == "d3")
            .count()
            == 2
    })
    .await;
    client.send(&crate::wire::terminate()).await;
    assert_eq!(tag(&in_time("PAUSE", console.end()).await), "PAUSE");
    assert!(!lives(&pid).await);
    other.say("RESUME d3").await;
    assert_eq!(in_time("the login", stays).await.unwrap(), ["2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn psql_says_it_all_by_the_simple_protocol() {
    let proxy = setup().start().await;
    let conninfo = format!(
        "host=127.0.0.1 port={} user=root password=root dbname=pgbouncer",
        proxy.address.port()
    );
    let mut psql = tokio::process::Command::new("psql");
    psql.args(["-X", "-A", "-t", "-d", &conninfo]);
    for command in [
        "PAUSE t47;",
        "SHOW PAUSED;",
        "RESUME t47;",
        "DISABLE t47;",
        "ENABLE t47;",
        "RECONNECT t47;",
        "WAIT_CLOSE t47;",
        "KILL \"t47\";",
        "RESUME;",
        "SET query_wait_timeout = '11';",
        "SHOW VERSION;",
        "NONSENSE;",
    ] {
        psql.args(["-c", command]);
    }
    let said = in_time("psql", psql.output()).await.expect("psql runs");
    let version = concat!("pgtenant ", env!("CARGO_PKG_VERSION"));
    let expected = format!(
        "PAUSE\ntenant|t47\nRESUME\nDISABLE\nENABLE\nRECONNECT\nWAIT_CLOSE\nKILL\nRESUME\nSET\n{version}\n"
    );
    assert_eq!(String::from_utf8_lossy(&said.stdout), expected);
    let errors = String::from_utf8_lossy(&said.stderr);
    assert!(
        errors.contains("invalid command 'NONSENSE;', use SHOW HELP;"),
        "{errors}"
    );
}
