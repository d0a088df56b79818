//! Random batches of the extended protocol, in one write each: PostgreSQL and the proxy answer them
//! alike, and in time, and no server connection stays behind.

use std::cmp::Ordering;
use std::time::Duration;

use crate::harness::{POOLINGS, Setup, direct, eventually, tenant, world};
use crate::wire::{
    Frame, Wire, bind, copy_data, copy_done, copy_fail, execute, flush, parse, query, sync,
};

/// A generator of numbers that is the same in each run (xorshift64).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    pub fn one_of<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[usize::try_from(self.below(choices.len() as u64)).expect("small")]
    }
}

fn run(sql: &str) -> Vec<u8> {
    [parse("", sql), bind("", "", &[]), execute("", 0)].concat()
}

/// Settings, COPYs and Syncs in any order, the data of a COPY, and its end.
fn batch_with_copy(numbers: &mut Numbers, row: &[u8]) -> (String, Vec<Vec<u8>>) {
    let mut said = Vec::new();
    let mut frames = Vec::new();
    let mut say = |what: &str, frame: Vec<u8>| {
        said.push(what.to_owned());
        frames.push(frame);
    };
    let copies_at = numbers.below(4);
    for at in 0..=copies_at + numbers.below(3) {
        let any = [
            "SET work_mem = '5MB'",
            "SET LOCAL work_mem = '6MB'",
            "RESET work_mem",
            "DEALLOCATE ALL",
            "SELECT 1",
            "Sync",
            "Flush",
        ];
        // Of a client in a COPY PostgreSQL takes nothing else.
        let sql = match at.cmp(&copies_at) {
            Ordering::Less => numbers.one_of(&any),
            Ordering::Equal => "COPY plain FROM STDIN",
            Ordering::Greater => numbers.one_of(&["Sync", "Flush"]),
        };
        say(
            sql,
            match sql {
                "Sync" => sync(),
                "Flush" => flush(),
                sql => run(sql),
            },
        );
    }
    say("Sync", sync());
    say("CopyData", copy_data(row));
    match numbers.below(3) {
        0 => say("CopyFail", copy_fail("no")),
        _ => say("CopyDone", copy_done()),
    }
    say("Sync", sync());
    (said.join("; "), frames)
}

/// What is said to a batch and to the Query behind it, or so far when there was no more in time.
async fn answer(wire: &mut Wire, bytes: &[u8]) -> (Vec<String>, bool) {
    wire.send(&[bytes, &query("SELECT 'the end'")].concat())
        .await;
    let mut said = Vec::new();
    let mut shown = |frame: &Frame| {
        said.push(match frame.tag {
            b'E' => format!("E{} {:?}", frame.sqlstate(), frame.field(b'M')),
            _ => frame.to_string(),
        });
    };
    let all = async {
        let mut is_end = false;
        while let Some(frame) = wire.frame().await {
            is_end |= frame.to_string().contains("the end");
            shown(&frame);
            if is_end && frame.tag == b'Z' {
                return true;
            }
        }
        false
    };
    let done = tokio::time::timeout(Duration::from_secs(5), all).await;
    (said, done.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_among_settings_and_syncs_is_answered_as_by_postgresql_and_ends_with_its_client() {
    const BATCHES: usize = 60;
    const REMOVED: &str = "DELETE FROM plain WHERE id IN (3100, 3101)";
    let world = world().await;
    let a = tenant("t00");
    for pooling in POOLINGS {
        let proxy = Setup {
            pooling,
            ..Setup::default()
        }
        .start()
        .await;
        let a = proxy.home(&a);
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        for _ in 0..BATCHES {
            let (said, frames) = batch_with_copy(&mut numbers, b"3100\ta\n");
            let bytes = frames.concat();
            let mut plain = direct(world, &a).await;
            plain.query(REMOVED).await;
            let (expected, done) = answer(&mut direct(world, &a).await, &bytes).await;
            assert!(done, "direct: {said}: {expected:?}");
            plain.query(REMOVED).await;
            let mut wire = proxy.raw(&a).await;
            let (seen, done) = answer(&mut wire, &bytes).await;
            assert!(done, "{pooling}: {said}: {seen:?}");
            assert_eq!(seen, expected, "{pooling}: {said}");
            // And another leaves anywhere in one with a row of its own, which may be written later.
            let (_, frames) = batch_with_copy(&mut numbers, b"3101\ta\n");
            let mut leaver = proxy.raw(&a).await;
            let whole = numbers.below(frames.len() as u64 + 1);
            let part = frames[..usize::try_from(whole).expect("small")].concat();
            leaver.send(&part).await;
            drop(leaver);
        }
        let mut plain = direct(world, &a).await;
        eventually("nobody is left in a COPY", async || {
            let sql = "SELECT count(*) FROM pg_stat_activity \
                       WHERE query ILIKE 'COPY plain%' AND state <> 'idle' AND usename = current_user";
            plain.column(sql).await == ["0"]
        })
        .await;
        plain.query(REMOVED).await;
    }
}
