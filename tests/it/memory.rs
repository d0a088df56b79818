//! Memory is bounded by what passes at once, not by how long a message or a pipeline is.

use std::process::Stdio;

use crate::harness::{PATIENCE, Process, Setup, tenant, world};
use crate::wire::{
    Wire, bind_formats, copy_data, copy_done, errors, execute, message, parse, parse_typed, query,
    sync,
};

async fn process(pooling: &'static str) -> Process {
    let setup = Setup {
        pooling,
        ..Setup::default()
    };
    let yaml = setup.yaml_for(world().await, &[tenant("acme"), tenant("t00")]);
    Process::serve(&yaml, Stdio::null()).await
}

impl Process {
    /// The most memory it has had so far, in MiB.
    fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("a process");
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1));
        kib.and_then(|kib| kib.parse::<u64>().ok()).expect("VmHWM") / 1024
    }
}

const MIB: usize = 1 << 20;

/// Reads to ReadyForQuery without keeping anything; returns how many bytes of rows and COPY data
/// came.
async fn drain(wire: &mut Wire) -> usize {
    let read = wire.discard_until_ready();
    tokio::time::timeout(PATIENCE, read).await.expect("in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_any_length_pass_in_little_memory() {
    for pooling in ["transaction", "session"] {
        let proxy = process(pooling).await;
        let mut wire = proxy.client("acme").await;
        let before = proxy.peak();
        // A row of 100 MiB, and as many in COPY, from the server.
        wire.send(&query("SELECT repeat('x', 100 << 20)")).await;
        assert!(drain(&mut wire).await > 100 * MIB);
        wire.send(&query("COPY (SELECT repeat('x', 100 << 20)) TO STDOUT"))
            .await;
        assert!(drain(&mut wire).await > 100 * MIB);
        // Many rows that the client is slow to read.
        wire.send(&query(
            "SELECT repeat('x', 1000) FROM generate_series(1, 100000)",
        ))
        .await;
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        assert!(drain(&mut wire).await > 100_000_000);
        // A Query, a value, an unnamed and a named statement, COPY data of 32 MiB, to the server.
        let long = "x".repeat(32 * MIB);
        wire.send(&query(&format!("SELECT length('{long}')"))).await;
        assert!(errors(&wire.until_ready().await).is_empty());
        let batch = [
            parse_typed("", "SELECT length($1)", &[25]),
            bind_formats("", "", &[], &[Some(long.as_bytes())], &[]),
            execute("", 0),
            sync(),
        ]
        .concat();
        wire.send(&batch).await;
        assert!(errors(&wire.until_ready().await).is_empty());
        for name in ["", "named"] {
            let text = format!("SELECT length('{long}')");
            wire.send(&[parse(name, &text), sync()].concat()).await;
            assert!(errors(&wire.until_ready().await).is_empty(), "{name}");
            let run = [
                bind_formats("", name, &[], &[], &[]),
                execute("", 0),
                sync(),
            ]
            .concat();
            wire.send(&run).await;
            let frames = wire.until_ready().await;
            assert_eq!(
                crate::wire::rows(&frames),
                [(32 * MIB).to_string()],
                "{pooling}, {name:?}"
            );
        }
        wire.send(&query("CREATE TEMP TABLE t (a text); COPY t FROM STDIN"))
            .await;
        wire.until(b'G').await;
        wire.send(&copy_data(long.as_bytes())).await;
        wire.send(&copy_done()).await;
        assert!(errors(&wire.until_ready().await).is_empty());
        let grown = proxy.peak() - before;
        assert!(grown < 24, "{pooling} pooling: {grown} MiB more");
        assert!(proxy.dir.path().exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelines_larger_than_every_buffer_do_not_deadlock() {
    for pooling in ["transaction", "session"] {
        let proxy = process(pooling).await;
        let mut wire = proxy.client("t00").await;
        let before = proxy.peak();
        // 40 000 statements whose answers are not read before all are sent: the client itself must
        // read meanwhile, as direct, and so does `send`.
        let one = [
            parse("", "SELECT repeat('y', 500)"),
            message(b'B', &[b"\0\0\0\0\0\0\0\0"]),
            execute("", 0),
        ]
        .concat();
        let pipeline = [one.repeat(40_000), sync()].concat();
        wire.send(&pipeline).await;
        assert!(drain(&mut wire).await > 40_000 * 500);
        let grown = proxy.peak() - before;
        assert!(grown < 24, "{pooling} pooling: {grown} MiB more");
    }
}
