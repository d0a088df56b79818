//! The portal without a name, which both Bind and Query make: what an Execute of it runs is the
//! client's own, or it fails as where there is none.

use crate::batches::Numbers;
use crate::harness::{POOLINGS, Setup, direct, tenant, world};
use crate::wire::{Frame, Wire, bind, close, describe, errors, execute, parse, query, sync};

/// A Query that fails when it is run: one that fails when it is planned (1/0) leaves no portal.
const FAILS: &str = "SELECT 1/(random() * 0)::int";

/// A random conversation, in pieces that each end with a ReadyForQuery.
///
/// What it says next depends on what the server said before: PostgreSQL must not be asked for the
/// portal that a failed Query has left in a transaction, for that may end it.
struct Conversation {
    numbers: Numbers,
    /// PostgreSQL's portal without a name may be that of a Query that failed.
    is_stale: bool,
    /// The last piece binds other portals, too.
    binds_named: bool,
}

impl Conversation {
    /// One piece; and whether it is a Query.
    fn piece(&mut self) -> (Vec<u8>, bool) {
        const QUERIES: [&str; 14] = [
            "BEGIN",
            "BEGIN",
            "COMMIT",
            "ROLLBACK",
            "SAVEPOINT s",
            "ROLLBACK TO s",
            "SELECT 1",
            "SELECT 1/0",
            FAILS,
            "SELECT 1; SELECT 1/(random() * 0)::int",
            "SELEC",
            "",
            "SELECT 1; SELECT 1/0",
            "BEGIN; SELECT 1; SELECT 1/0",
        ];
        match self.numbers.below(2) {
            0 => (query(self.numbers.one_of(&QUERIES)), true),
            _ => (self.batch(), false),
        }
    }

    fn batch(&mut self) -> Vec<u8> {
        const STATEMENTS: [&str; 6] = [
            "ROLLBACK",
            "ROLLBACK TO s",
            "SELECT generate_series(1, 5)",
            "SELECT generate_series(1, 5) / 0",
            "SAVEPOINT s",
            "BEGIN",
        ];
        let mut frames = Vec::new();
        let mut binds = false;
        self.binds_named = false;
        for _ in 0..self.numbers.below(6) {
            let may_use = binds || !self.is_stale;
            frames.push(match self.numbers.below(8) {
                0 | 1 => {
                    binds = true;
                    let sql = self.numbers.one_of(&STATEMENTS);
                    [parse("", sql), bind("", "", &[])].concat()
                }
                2 if may_use => describe(b'P', ""),
                3 | 4 if may_use => execute("", 2),
                5 => close(b'P', ""),
                6 => {
                    self.binds_named = true;
                    [bind("named", "", &[]), execute("named", 1)].concat()
                }
                _ => execute("named", 1),
            });
        }
        frames.push(sync());
        frames.concat()
    }

    fn note(&mut self, is_query: bool, answer: &[Frame]) {
        let failed = answer.last().is_some_and(|ready| ready.body == b"E");
        let bound = !self.binds_named && answer.iter().any(|frame| frame.tag == b'2');
        self.is_stale = failed && (is_query || (self.is_stale && !bound));
    }
}

fn shown(frames: &[Frame]) -> Vec<String> {
    frames.iter().map(ToString::to_string).collect()
}

/// The answers to so many pieces that were sent in one write.
async fn answers(wire: &mut Wire, pieces: &[Vec<u8>]) -> Vec<String> {
    wire.send(&pieces.concat()).await;
    let mut said = Vec::new();
    for _ in pieces {
        said.extend(shown(&wire.until_ready().await));
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_portal_without_a_name_is_executed_and_described_as_by_postgresql() {
    const CONVERSATIONS: usize = 150;
    const PIECES: usize = 12;
    let world = world().await;
    let a = tenant("t00");
    for pooling in POOLINGS {
        let proxy = Setup {
            pooling,
            ..Setup::default()
        }
        .start()
        .await;
        let mut talk = Conversation {
            numbers: Numbers(0x2545_f491_4f6c_dd1d),
            is_stale: false,
            binds_named: false,
        };
        let (mut plain, mut wire) = (direct(world, &a).await, proxy.raw(&a).await);
        for _ in 0..CONVERSATIONS {
            let mut pieces = vec![query("ROLLBACK")];
            let mut expected = shown(&plain.query("ROLLBACK").await);
            talk.is_stale = false;
            for _ in 0..PIECES {
                let (piece, is_query) = talk.piece();
                plain.send(&piece).await;
                let answer = plain.until_ready().await;
                talk.note(is_query, &answer);
                expected.extend(shown(&answer));
                pieces.push(piece);
            }
            let said = pieces.concat();
            let seen = answers(&mut wire, &pieces).await;
            assert_eq!(seen, expected, "{pooling}: {}", said.escape_ascii());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_portal_of_a_query_that_failed_is_no_clients_and_harms_no_server() {
    const TIMES: usize = 30;
    let failing: [&[&str]; 4] = [
        &["SELECT 1; BEGIN", FAILS],
        &["BEGIN; SELECT 1/(random() * 0)::int"],
        &["BEGIN", "SAVEPOINT s", FAILS],
        &["BEGIN", FAILS, "SELECT 1", "SELEC", ""],
    ];
    let a = tenant("t00");
    for pooling in POOLINGS {
        let proxy = Setup {
            pooling,
            ..Setup::default()
        }
        .start()
        .await;
        let mut neighbour = proxy.raw(&tenant("t01")).await;
        neighbour.query("BEGIN").await;
        for at in 0..TIMES {
            let queries = failing[at % failing.len()];
            let uses = match at / 4 % 2 {
                0 => execute("", 0),
                _ => describe(b'P', ""),
            };
            let mut pieces: Vec<_> = queries.iter().map(|sql| query(sql)).collect();
            pieces.push([uses.clone(), uses, sync()].concat());
            let mut wire = proxy.raw(&a).await;
            let mut answer = Vec::new();
            if at % 3 == 0 {
                for piece in &pieces {
                    wire.send(piece).await;
                    answer = wire.until_ready().await;
                }
            } else {
                wire.send(&pieces.concat()).await;
                for _ in &pieces {
                    answer = wire.until_ready().await;
                }
            }
            let told = errors(&answer);
            assert_eq!(told, ["34000"], "{pooling}: {queries:?}");
            wire.query("ROLLBACK").await;
            assert_eq!(wire.column("SELECT 1").await, ["1"]);
        }
        assert_eq!(neighbour.column("SELECT 1").await, ["1"], "{pooling}");
    }
}
