//! The slow log: what took too long has a line that says whose it was and what it was like, and
//! never what it was about.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Process, Setup, eventually, tenant, world};
use crate::wire::{bind, copy_data, copy_done, describe, execute, flush, parse, query, sync};

/// In every statement; it must not be in the log.
const SECRET: &str = "S3CR3T";

/// Takes longer than [`Logged::serve`]'s limit.
const SLOW: &str = "SELECT pg_sleep(0.4), 'S3CR3T'::text AS slow";
const SLOW_PRINT: &str = "select pg_sleep(?), ? :: text as slow";
const QUICK: &str = "SELECT 'S3CR3T'::text AS quick";
const QUICK_PRINT: &str = "select ? :: text as quick";

/// A proxy with a slow log.
struct Logged {
    proxy: Process,
    log: PathBuf,
    _dir: tempfile::TempDir,
}

impl Logged {
    async fn serve(
        pooling: &'static str,
        pool_size: usize,
        about: fn(&str) -> &'static str,
    ) -> Self {
        let setup = Setup {
            pooling,
            pool_size,
            about,
            ..Setup::default()
        };
        let yaml = setup.yaml_for(world().await, &[tenant("t00"), tenant("t01")]);
        let log = "log: { filter: info, format: json, slow: 300ms }";
        let yaml = yaml.replace("log: { filter: info }", log);
        let dir = tempfile::tempdir().expect("a directory");
        let log = dir.path().join("log");
        let file = File::create(&log).expect("a file");
        Self {
            proxy: Process::serve(&yaml, file.into()).await,
            log,
            _dir: dir,
        }
    }

    /// What the slow log says; the proxy writes it a moment later.
    fn lines(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.log).expect("a log");
        assert!(!text.contains(SECRET), "{text}");
        // The last one may be half written.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let lines = text[..whole].lines();
        let lines = lines.map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        lines
            .filter(|line| line["target"] == "pgtenant::slow")
            .collect()
    }

    /// Waits for so many lines, and for more that must not come.
    async fn wait_for(&self, count: usize, what: &str) -> Vec<Value> {
        eventually(what, async || self.lines().len() >= count).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let lines = self.lines();
        assert_eq!(lines.len(), count, "{what}: {lines:#?}");
        lines
    }
}

fn nothing(_: &str) -> &'static str {
    ""
}

fn bound(portal: &str, statement: &str) -> Vec<u8> {
    [bind(portal, statement, &[]), execute(portal, 0)].concat()
}

/// What a client sends, batch by batch, each answered before the next; and what the lines say of
/// it.
type Case = (&'static str, Vec<Vec<u8>>, Vec<(Option<&'static str>, u64)>);

fn cases() -> Vec<Case> {
    let one = |text: &str| [parse("", text), bound("", ""), sync()].concat();
    let slow = Some(SLOW_PRINT);
    let fails = "SELECT pg_sleep(0.4), 1 / (random() * 0)::int, 'S3CR3T'";
    vec![
        ("a Query", vec![query(SLOW)], vec![(slow, 1)]),
        ("a quick Query", vec![query(QUICK)], vec![]),
        (
            "the statement without a name",
            vec![one(SLOW)],
            vec![(slow, 1)],
        ),
        (
            "a statement with a name, prepared long before",
            vec![
                [parse("slow", SLOW), describe(b'S', "slow"), sync()].concat(),
                one(QUICK),
                [bound("", "slow"), sync()].concat(),
            ],
            vec![(slow, 1)],
        ),
        (
            "the same again, by another portal",
            vec![[bound("p", "slow"), sync()].concat()],
            vec![(slow, 1)],
        ),
        (
            "two portals in a transaction",
            vec![
                query("BEGIN"),
                [
                    parse("quick", QUICK),
                    bind("q", "quick", &[]),
                    bind("s", "slow", &[]),
                    sync(),
                ]
                .concat(),
                [execute("q", 0), sync()].concat(),
                [execute("s", 0), sync()].concat(),
                query("ROLLBACK"),
            ],
            // And that of the transaction, which has no statement.
            vec![(slow, 1), (None, 5)],
        ),
        (
            "a batch that is answered as one",
            vec![[parse("", QUICK), bound("", ""), bound("", "slow"), sync()].concat()],
            vec![(Some(QUICK_PRINT), 2)],
        ),
        (
            "a batch whose first part was asked for",
            vec![
                [parse("", QUICK), bound("", ""), flush()].concat(),
                [bound("", "slow"), sync()].concat(),
            ],
            vec![(slow, 1)],
        ),
        (
            "a pipeline",
            vec![[one(QUICK), one(SLOW), one(QUICK)].concat()],
            vec![(slow, 1)],
        ),
        (
            "what fails",
            vec![one(fails)],
            vec![(Some("select pg_sleep(?), ? /(random()* ?):: int, ?"), 1)],
        ),
        (
            "a Query of several",
            vec![query("BEGIN; SELECT pg_sleep(0.4); COMMIT")],
            vec![(Some("begin; select pg_sleep(?); commit"), 1)],
        ),
    ]
}

/// Answers up to the last that a message of a client asks for.
fn ends(sent: &[u8]) -> usize {
    let mut rest = sent;
    let mut ends = 0;
    while let [tag, a, b, c, d, ..] = rest {
        ends += usize::from(b"QS".contains(tag));
        let length = u32::from_be_bytes([*a, *b, *c, *d]);
        rest = &rest[1 + usize::try_from(length).expect("a length")..];
    }
    ends
}

async fn every_case_has_its_line(pooling: &'static str) {
    let logged = Logged::serve(pooling, 1, nothing).await;
    let mut client = logged.proxy.client("t00").await;
    let mut seen = 0;
    for (what, sent, expected) in cases() {
        for batch in sent {
            client.send(&batch).await;
            match ends(&batch) {
                // Parse, Bind, Execute and a Flush: the client takes its time before it goes on.
                0 => {
                    client.until(b'C').await;
                    tokio::time::sleep(Duration::from_millis(400)).await;
                }
                ends => {
                    for _ in 0..ends {
                        client.until_ready().await;
                    }
                }
            }
        }
        let what = format!("{what}, {pooling} pooling");
        let lines = logged.wait_for(seen + expected.len(), &what).await;
        for (line, (statement, statements)) in lines[seen..].iter().zip(expected) {
            assert_eq!(line["statement"].as_str(), statement, "{what}: {line}");
            assert_eq!(line["statements"], statements, "{what}: {line}");
            assert!(line["server_ms"].as_u64() >= Some(390), "{what}: {line}");
            assert!(line["server_ms"].as_u64() < Some(2000), "{what}: {line}");
            for (field, value) in [
                ("tenant", "t00"),
                ("user", "app"),
                ("database", "app"),
                ("placement", "free"),
                ("server", "shared"),
            ] {
                assert_eq!(line[field], value, "{what}: {line}");
            }
        }
        seen = lines.len();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_slow_has_a_line_in_transaction_pooling() {
    every_case_has_its_line("transaction").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_slow_has_a_line_in_session_pooling() {
    every_case_has_its_line("session").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_has_the_text_that_began_it() {
    let logged = Logged::serve("transaction", 1, nothing).await;
    let mut client = logged.proxy.client("t00").await;
    client.query("CREATE TEMP TABLE copied (a text)").await;
    let copy = "COPY copied FROM STDIN WITH (NULL 'S3CR3T')";
    for batch in [
        query(copy),
        [parse("", copy), bound("", ""), sync()].concat(),
    ] {
        client.send(&batch).await;
        client.until(b'G').await;
        client.send(&copy_data(b"one\n")).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        client
            .send(&[copy_data(b"two\n"), copy_done()].concat())
            .await;
        if batch[0] == b'P' {
            // The server has swallowed the first.
            client.send(&sync()).await;
        }
        client.until_ready().await;
    }
    for line in logged.wait_for(2, "both").await {
        assert_eq!(
            line["statement"], "copy copied from stdin with(null ?)",
            "{line}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wait_for_a_server_connection_counts() {
    let logged = Logged::serve("transaction", 1, nothing).await;
    let mut holder = logged.proxy.client("t01").await;
    holder.query("BEGIN").await;
    let mut client = logged.proxy.client("t00").await;
    client.send(&query(QUICK)).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    holder.query("COMMIT").await;
    client.until_ready().await;
    client.query(QUICK).await;
    let lines = logged
        .wait_for(2, "the statement and the transaction")
        .await;
    // The transaction of the holder, which was idle, ended first.
    assert_eq!(lines[0]["message"], "slow transaction");
    assert_eq!(lines[0]["ended"], true);
    assert!(lines[0]["transaction_ms"].as_u64() >= Some(390));
    assert!(lines[0]["server_ms"].as_u64() < Some(300));
    assert_eq!(lines[1]["statement"], QUICK_PRINT);
    assert!(lines[1]["wait_ms"].as_u64() >= Some(390), "{lines:?}");
    assert!(lines[1]["server_ms"].as_u64() < Some(300), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_its_client_did_not_wait_for_has_a_line() {
    let logged = Logged::serve("transaction", 1, nothing).await;
    let mut client = logged.proxy.client("t00").await;
    client.send(&query("SELECT pg_sleep(60), 'S3CR3T'")).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    drop(client);
    let lines = logged.wait_for(1, "the client is gone").await;
    assert_eq!(lines[0]["statement"], "select pg_sleep(?), ?");
    assert_eq!(lines[0]["answered"], false);
}

/// Whether it began it and did nothing more, or did something in it: it has held its server
/// connection all that time.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_its_client_leaves_has_a_line() {
    for pooling in ["transaction", "session"] {
        let logged = Logged::serve(pooling, 2, nothing).await;
        let mut lines = 0;
        for (sqls, pause) in [
            (&["BEGIN"][..], 400),
            (&["BEGIN", QUICK], 400),
            (&["BEGIN", "SELECT 1/0"], 400),
            // Not so long, and not open any more.
            (&["BEGIN", QUICK], 10),
            (&[QUICK], 400),
        ] {
            let mut client = logged.proxy.client("t00").await;
            for sql in sqls {
                client.query(sql).await;
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
            drop(client);
            let is_slow = pause == 400 && sqls[0] == "BEGIN";
            lines += usize::from(is_slow);
            tokio::time::sleep(Duration::from_millis(100)).await;
            let told = logged.wait_for(lines, "it is told").await;
            if is_slow {
                let line = &told[lines - 1];
                assert_eq!(line["message"], "slow transaction", "{pooling} {sqls:?}");
                assert_eq!(line["ended"], false, "{pooling} {sqls:?}");
                assert_eq!(line["statements"], sqls.len());
                assert!(line["transaction_ms"].as_u64() >= Some(390));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_tenant_can_have_a_limit_of_its_own_and_a_reload_changes_it() {
    let about = |name: &str| match name {
        "t00" => "log: { slow: 0 }",
        _ => "",
    };
    let logged = Logged::serve("session", 2, about).await;
    let mut quiet = logged.proxy.client("t00").await;
    let mut told = logged.proxy.client("t01").await;
    quiet.send(&[parse("slow", SLOW), sync()].concat()).await;
    quiet.until_ready().await;
    quiet.query(SLOW).await;
    told.query(SLOW).await;
    let lines = logged.wait_for(1, "one of the two").await;
    assert_eq!(lines[0]["tenant"], "t01");

    let path = logged.proxy.dir.path().join("pgtenant.yaml");
    let yaml = std::fs::read_to_string(&path).expect("a config");
    std::fs::write(
        &path,
        yaml.replace("log: { slow: 0 }", "log: { slow: 200ms }"),
    )
    .expect("is written");
    let pid =
        nix::unistd::Pid::from_raw(i32::try_from(logged.proxy.child.id()).expect("a process"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).expect("is told");
    eventually("it reloads", async || {
        std::fs::read_to_string(&logged.log).is_ok_and(|log| log.contains("config reloaded"))
    })
    .await;
    // What was prepared while nothing was kept is not known.
    quiet.send(&[bound("", "slow"), sync()].concat()).await;
    quiet.until_ready().await;
    quiet.query(SLOW).await;
    let lines = logged.wait_for(3, "both statements after the reload").await;
    assert_eq!(lines[1]["statement"], Value::Null);
    assert_eq!(lines[2]["statement"], SLOW_PRINT);
}
