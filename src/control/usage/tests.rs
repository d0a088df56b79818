use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;

use super::*;
use crate::admin::testing::{CONFIG, app};

const FIELDS: [&str; 6] = [
    "server_time_us",
    "received_bytes",
    "sent_bytes",
    "statements",
    "rows",
    "transactions",
];

fn recording(file: &Path) -> Arc<App> {
    let usage = format!("usage: {{ file: \"{}\" }}\n{CONFIG}", file.display());
    app(&usage, None)
}

fn lines(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What a reader makes of the lines, however often it reads them: for each process, hour and tenant
/// the last counts.
fn read(lines: &[Value]) -> HashMap<(u64, String, String), Value> {
    let mut known: HashMap<_, Value> = HashMap::new();
    for line in lines.iter().chain(lines) {
        let text = |field: &str| line[field].as_str().unwrap().to_owned();
        let key = (
            line["process"].as_u64().unwrap(),
            text("hour"),
            text("tenant"),
        );
        let sequence = |line: &Value| line["sequence"].as_u64();
        if known
            .get(&key)
            .is_none_or(|other| sequence(other) < sequence(line))
        {
            known.insert(key, line.clone());
        }
    }
    known
}

fn work(tenant: &TenantState, amount: u64) {
    let metrics = &tenant.metrics;
    metrics.statements.record(Duration::from_micros(amount));
    metrics.transactions.record(Duration::from_micros(amount));
    metrics.received.add(2 * amount);
    metrics.sent.add(3 * amount);
    metrics.executed.add(1);
    metrics.rows.add(amount % 7);
}

fn tenant(app: &App, name: &str) -> Arc<TenantState> {
    app.tenant(&TenantId::new(name).unwrap())
}

/// Processes that come and go at any time, killed or stopped: all lines together have what was done
/// by each one's last look, hour by hour, and lines that are read twice change nothing.
#[tokio::test]
async fn whatever_ends_when_the_lines_add_up_to_what_was_done() {
    let names = ["globex", "acme", "gone"];
    for seed in 0..20 {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("usage.jsonl");
        let mut random = StdRng::seed_from_u64(seed);
        let mut now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let mut truth: HashMap<(String, String), [u64; 6]> = HashMap::new();
        for _ in 0..4 {
            // No two processes are of the same millisecond.
            std::thread::sleep(Duration::from_millis(2));
            let app = recording(&file);
            let mut recorder = Recorder::default();
            recorder.look(&app, now, End::None);
            for _ in 0..random.random_range(0..30) {
                // What comes now is of the hour of the look before.
                let hour = recorder.hour.unwrap();
                let hour = rfc3339(UNIX_EPOCH + Duration::from_secs(hour * HOUR));
                for _ in 0..random.random_range(0..5) {
                    let name = names[random.random_range(0..3) as usize];
                    let amount = 1 + random.random_range(0..10_000);
                    work(&tenant(&app, name), amount);
                    let sums = truth.entry((name.to_owned(), hour.clone())).or_default();
                    for (sum, more) in
                        sums.iter_mut()
                            .zip([amount, 2 * amount, 3 * amount, 1, amount % 7, 1])
                    {
                        *sum += more;
                    }
                }
                now += Duration::from_secs(random.random_range(0..1500));
                recorder.look(&app, now, End::None);
            }
            if random.random_range(0..2) == 0 {
                recorder.look(&app, now, End::Process);
            }
        }
        let mut sums: HashMap<(String, String), [u64; 6]> = HashMap::new();
        for ((_, hour, tenant), line) in read(&lines(&file)) {
            let sums = sums.entry((tenant, hour)).or_default();
            for (sum, field) in sums.iter_mut().zip(FIELDS) {
                *sum += line[field].as_u64().unwrap();
            }
        }
        assert_eq!(sums, truth, "seed {seed}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_written_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let gone = directory.path().join("gone");
    let file = gone.join("usage.jsonl");
    let app = recording(&file);
    let globex = tenant(&app, "globex");
    let mut recorder = Recorder::default();
    let mut now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    for _ in 0..6 {
        work(&globex, 10);
        recorder.look(&app, now, End::None);
        now += Duration::from_secs(1200);
    }
    assert!(app.metrics.usage_failures.get() > 1);
    std::fs::create_dir(&gone).unwrap();
    recorder.look(&app, now, End::Process);
    let known = read(&lines(&file));
    let statements = known
        .values()
        .map(|line| line["statements"].as_u64().unwrap());
    assert_eq!(statements.sum::<u64>(), 6);
    assert_eq!(app.metrics.usage_lost.get(), 0);
    // And what cannot be written at the end is counted.
    let other = recording(&directory.path().join("nowhere/usage.jsonl"));
    work(&tenant(&other, "globex"), 1);
    let mut recorder = Recorder::default();
    recorder.look(&other, now, End::Process);
    assert_eq!(other.metrics.usage_lost.get(), 1);
}

#[tokio::test]
async fn clients_are_the_most_at_once_in_each_hour() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("usage.jsonl");
    let app = recording(&file);
    let globex = tenant(&app, "globex");
    let mut recorder = Recorder::default();
    let start = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let one = globex.admit().unwrap();
    let others = [globex.admit().unwrap(), globex.admit().unwrap()];
    assert!(globex.admit().is_none(), "a client that is refused is none");
    recorder.look(&app, start, End::None);
    drop(others);
    for hour in 1..=2 {
        recorder.look(&app, start + Duration::from_secs(hour * HOUR), End::None);
    }
    drop(one);
    for hour in 3..=4 {
        recorder.look(&app, start + Duration::from_secs(hour * HOUR), End::None);
    }
    let lines = lines(&file);
    let whole = lines.iter().filter(|line| line["whole"] == true);
    let clients: Vec<_> = whole
        .map(|line| line["clients"].as_u64().unwrap())
        .collect();
    assert_eq!(clients, [3, 1, 1], "a tenant without clients has no line");
    let last = &lines[lines.len() - 1];
    assert_eq!(last["hour"], "2027-01-15T10:00:00.000000Z");
}

#[tokio::test]
async fn a_reload_that_names_a_file_counts_from_then_on() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("usage.jsonl");
    let app = app(CONFIG, None);
    let globex = tenant(&app, "globex");
    let mut recorder = Recorder::default();
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    recorder.look(&app, now, End::None);
    work(&globex, 100);
    let on = recording(&file).config();
    let off = app.config();
    app.reload((*on).clone()).unwrap();
    recorder.look(&app, now, End::None);
    work(&globex, 5);
    app.reload((*off).clone()).unwrap();
    recorder.look(&app, now, End::None);
    work(&globex, 100);
    recorder.look(&app, now, End::None);
    let lines = lines(&file);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(lines[0]["server_time_us"], 5);
    assert_eq!(lines[0]["whole"], true);
}
