//! Random programs of an application over tenants that live in one database, beside PostgreSQL:
//! what the variable is, what rows are seen, and every reply are the same.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::{BODIES, WEB, log_in, setup};
use crate::harness::{SECRET, World, world};
use crate::wire::{Frame, Wire, bind, close, describe, execute, flush, parse, query, sync};

/// What ends a program: in PostgreSQL a session may do this, here it may not.
const REFUSALS: [&str; 5] = [
    "a transaction that failed before it was served ends by a statement alone",
    "another tenant cannot be chosen in a transaction that is served",
    "pgtenant cannot tell which tenant this statement chooses",
    "another tenant cannot be chosen while the session keeps its server connection",
    "no tenant is chosen: the last choice was refused",
];

/// Statements of which programs are made; `{t}` is a tenant.
const STATEMENTS: [(u32, &str); 40] = [
    (6, "BEGIN"),
    (1, "START TRANSACTION READ ONLY"),
    (1, "BEGIN ISOLATION LEVEL REPEATABLE READ"),
    (1, "SET TRANSACTION READ ONLY"),
    (1, "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"),
    (1, "SHOW transaction_read_only"),
    (1, "SELECT current_setting('transaction_isolation')"),
    (5, "COMMIT"),
    (3, "ROLLBACK"),
    (2, "COMMIT AND CHAIN"),
    (1, "ROLLBACK AND CHAIN"),
    (1, "END"),
    (3, "SAVEPOINT s"),
    (2, "SAVEPOINT \"S\""),
    (3, "ROLLBACK TO s"),
    (2, "ROLLBACK TO SAVEPOINT \"S\""),
    (2, "RELEASE s"),
    (1, "RELEASE SAVEPOINT \"S\""),
    (4, "SET app.tenant_id = '{t}'"),
    (2, "set session app . \"tenant_id\" to {t}"),
    (1, "SET app.tenant_id TO E'\\x74{t2}'"),
    (6, "SET LOCAL app.tenant_id TO '{t}'"),
    (1, "SET LOCAL app.tenant_id = $${t}$$"),
    (2, "RESET app.tenant_id"),
    (1, "SET app.tenant_id TO DEFAULT"),
    (1, "SET LOCAL app.tenant_id TO DEFAULT"),
    (5, "SELECT set_config('app.tenant_id', '{t}', true)"),
    (3, "SELECT set_config('app.tenant_id', '{t}', false)"),
    (
        1,
        "select pg_catalog.set_config('App.Tenant_Id', '{t}', 'on') AS chosen;",
    ),
    (1, "SELECT set_config('app.tenant_id', '', false)"),
    (1, "SELECT set_config('app.tenant_id', NULL, true)"),
    (
        2,
        "SELECT set_config('work_mem', '8MB', true), set_config('app.tenant_id', '{t}', true)",
    ),
    (8, BODIES),
    (4, "SELECT current_setting('app.tenant_id', true)"),
    (2, "SELECT 1/0"),
    (1, "SET LOCAL work_mem = '5MB'"),
    (1, "SHOW work_mem"),
    (1, ALONE_IN_PIPELINES[1]),
    (1, ""),
    (1, ALONE),
];

/// PostgreSQL takes them otherwise in a pipeline, of which the server may have had nothing yet.
const ALONE: &str = "DISCARD ALL";
const ALONE_IN_PIPELINES: [&str; 3] = [
    ALONE,
    "SET TRANSACTION READ WRITE",
    "SET LOCAL work_mem = '5MB'",
];

/// Statements with parameters.
const WITH_PARAMETERS: [(&str, &str); 6] = [
    ("SELECT set_config('app.tenant_id', $1, true)", "{t}"),
    ("SELECT set_config('app.tenant_id', $1::text, false)", "{t}"),
    ("SELECT set_config($1, $2, $3)", "app.tenant_id|{t}|true"),
    (
        "select set_config(el->>0, el->>1, true) from json_array_elements($1::json) el",
        "[[\"app.tenant_id\",\"{t}\"],[\"work_mem\",\"6MB\"]]",
    ),
    ("SELECT body FROM items WHERE id = $1", "1"),
    ("SELECT set_config('work_mem', $1, true)", "7MB"),
];

fn statement(rng: &mut StdRng) -> String {
    let all: u32 = STATEMENTS.iter().map(|(weight, _)| weight).sum();
    let mut at = rng.random_range(0..all);
    let mut found = STATEMENTS[0].1;
    for (weight, text) in STATEMENTS {
        found = text;
        if at < weight {
            break;
        }
        at -= weight;
    }
    filled(found, rng)
}

fn filled(text: &str, rng: &mut StdRng) -> String {
    let tenant = ["t00", "t01", "t02"].choose(rng).expect("one");
    text.replace("{t}", tenant).replace("{t2}", &tenant[1..])
}

/// What is sent at once, and how many ReadyForQuery answer it.
struct Sent {
    said: String,
    bytes: Vec<u8>,
}

fn extended(rng: &mut StdRng, number: usize, known: &mut Vec<(String, usize)>) -> Sent {
    let mut said = Vec::new();
    let mut bytes = Vec::new();
    for _ in 0..rng.random_range(1..=3) {
        let portal = if rng.random_bool(0.2) { "p" } else { "" };
        let (text, values) = match rng.random_bool(0.5) {
            true => {
                let (text, values) = WITH_PARAMETERS.choose(rng).expect("one");
                let values = filled(values, rng);
                let is_list = !text.contains("json");
                let list = values.split('|').map(str::to_owned);
                let values = if is_list {
                    list.collect()
                } else {
                    vec![values]
                };
                ((*text).to_owned(), values)
            }
            false => (statement(rng), Vec::new()),
        };
        if ALONE_IN_PIPELINES.contains(&&*text) || text.starts_with("SET TRANSACTION") {
            continue;
        }
        let named: Vec<_> = known.iter().filter(|(own, _)| *own == text).collect();
        let name = match named.choose(rng) {
            Some((_, number)) => format!("n{number}"),
            None if rng.random_bool(0.3) => {
                let name = format!("n{number}{}", said.len());
                bytes.extend(parse(&name, &text));
                if rng.random_bool(0.5) {
                    bytes.extend(describe(b'S', &name));
                }
                if rng.random_bool(0.7) && !text.is_empty() {
                    known.push((
                        text.clone(),
                        format!("{number}{}", said.len()).parse().expect("a number"),
                    ));
                }
                name
            }
            None => {
                bytes.extend(parse("", &text));
                String::new()
            }
        };
        if !portal.is_empty() {
            bytes.extend(close(b'P', portal));
        }
        let list: Vec<_> = values.iter().map(|value| Some(&**value)).collect();
        bytes.extend(bind(portal, &name, &list));
        if rng.random_bool(0.6) {
            bytes.extend(describe(b'P', portal));
        }
        bytes.extend(execute(portal, *[0, 0, 0, 1].choose(rng).expect("one")));
        if rng.random_bool(0.1) {
            bytes.extend(flush());
        }
        said.push(format!("[{name}] {text} {values:?}"));
    }
    bytes.extend(sync());
    Sent {
        said: said.join(" ; "),
        bytes,
    }
}

fn step(rng: &mut StdRng, number: usize, known: &mut Vec<(String, usize)>) -> Sent {
    if rng.random_bool(0.35) {
        return extended(rng, number, known);
    }
    let text = match rng.random_bool(0.15) {
        true => {
            let count = rng.random_range(2..=4);
            let texts: Vec<_> = (0..count).map(|_| statement(rng)).collect();
            texts.join("; ")
        }
        false => statement(rng),
    };
    Sent {
        bytes: query(&text),
        said: text,
    }
}

/// A reply as it is compared: without where in PostgreSQL's source an error was raised, and a value
/// that was never set is as one that is empty.
fn seen(frame: &Frame) -> Option<String> {
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    Some(match frame.tag {
        b'S' | b'A' => return None,
        b'E' | b'N' => format!(
            "{} {} {}",
            frame.tag as char,
            frame.sqlstate(),
            frame.field(b'M').unwrap_or_default()
        ),
        b'D' => format!(
            "D {:?}",
            frame
                .values()
                .into_iter()
                .map(Option::unwrap_or_default)
                .collect::<Vec<_>>()
        ),
        tag => format!("{} {}", tag as char, text(&frame.body)),
    })
}

fn all_seen(frames: &[Frame]) -> Vec<String> {
    frames.iter().filter_map(seen).collect()
}

fn is_refused(seen: &[String]) -> bool {
    let refused = |line: &String| REFUSALS.iter().any(|text| line.contains(text));
    seen.iter().any(refused)
}

async fn direct(world: &World) -> Wire {
    let mut wire = Wire::unix(&world.shared).await;
    let pairs = [("user", "app"), ("database", "app")];
    let logged_in = wire.log_in(&pairs, SECRET).await;
    logged_in.unwrap_or_else(|error| panic!("direct: {error}"));
    wire
}

/// Returns how many steps were compared.
///
/// # Errors
/// What differs.
async fn play(seed: u64, here: &mut Wire, there: &mut Wire) -> Result<usize, String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut known = Vec::new();
    let mut log = Vec::new();
    for number in 0..rng.random_range(4..=14) {
        let sent = step(&mut rng, number, &mut known);
        log.push(sent.said.clone());
        here.send(&sent.bytes).await;
        there.send(&sent.bytes).await;
        let ours = all_seen(&here.until_ready().await);
        let direct = all_seen(&there.until_ready().await);
        if is_refused(&ours) {
            // What it said before that is right.
            let before = ours
                .iter()
                .position(|line| line.starts_with('E'))
                .unwrap_or(0);
            return match ours[..before] == direct[..before.min(direct.len())] {
                true => Ok(number),
                false => Err(format!("seed {seed}: {log:#?}\n{ours:#?}\n{direct:#?}")),
            };
        }
        if ours != direct {
            return Err(format!("seed {seed}: {log:#?}\n{ours:#?}\n{direct:#?}"));
        }
    }
    Ok(log.len())
}

/// `PGTENANT_APPLICATION_PROGRAMS` programs from `PGTENANT_APPLICATION_SEED` on.
#[tokio::test(flavor = "multi_thread")]
async fn random_programs_get_the_replies_of_postgresql() {
    let number = |name: &str, default: u64| {
        let value = std::env::var(format!("PGTENANT_APPLICATION_{name}")).ok();
        value.map_or(default, |value| value.parse().expect("a number"))
    };
    let world = world().await;
    let proxy = setup(WEB).start().await;
    let (mut steps, mut whole) = (0, 0);
    let mut differences = Vec::new();
    let mut here = log_in(&proxy, Some("web")).await;
    let mut there = direct(world).await;
    let first = number("SEED", 1);
    let programs = number("PROGRAMS", 1500);
    for seed in first..first + programs {
        if seed % 20 == 0 || steps == 0 {
            here = log_in(&proxy, Some("web")).await;
            there = direct(world).await;
        }
        for wire in [&mut here, &mut there] {
            for reset in ["ROLLBACK", "RESET app.tenant_id", "DISCARD ALL"] {
                wire.query(reset).await;
            }
        }
        match play(seed, &mut here, &mut there).await {
            Ok(compared) => {
                steps += compared;
                whole += usize::from(compared >= 4);
            }
            Err(difference) => differences.push(difference),
        }
        if differences.len() == 5 {
            break;
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    println!("{programs} programs, {steps} steps, {whole} of at least four");
    assert!(
        steps as u64 > programs * 3,
        "{steps} steps of {programs} programs"
    );
}
