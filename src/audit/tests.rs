use std::path::{Path, PathBuf};

use serde_json::Value;

use super::event::Dropped;
use super::*;
use crate::id::TenantId;
use crate::metrics::TenantMetrics;

fn settings(file: Option<&Path>, burst: u32) -> config::Audit {
    config::Audit {
        file: file.map(Path::to_owned),
        max_size: 1 << 20,
        keep: 3,
        rate: 1,
        burst,
        access: config::Access::Nothing,
    }
}

fn record(audit: &Audit, kind: Kind, tenant: Option<&str>, sql: &str) -> u64 {
    let tenant = tenant.map(|tenant| TenantId::new(tenant).unwrap());
    let metrics = TenantMetrics::default();
    audit.record(&Event {
        kind,
        who: Who {
            tenant: tenant.as_ref().map(|tenant| (tenant, &metrics)),
            application: None,
            user: Some("app"),
            peer: Some(([127, 0, 0, 1], 5).into()),
            client: Some(7),
        },
        sqlstate: Some("42501"),
        detail: None,
        statement: (!sql.is_empty()).then_some(sql.as_bytes()),
    });
    metrics.audited.get()
}

/// Whole lines of a file that may still be written.
fn written(path: &Path) -> usize {
    let bytes = std::fs::read(path).unwrap_or_default();
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn file() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.jsonl");
    (dir, path)
}

#[test]
fn kinds_have_names_and_places_of_their_own() {
    for (number, kind) in Kind::ALL.into_iter().enumerate() {
        assert_eq!(kind as usize, number);
        let same = Kind::ALL.iter().filter(|other| other.name() == kind.name());
        assert_eq!(same.count(), 1);
    }
}

#[test]
fn an_event_is_a_line_with_all_that_is_known_and_no_literal() {
    let (_dir, path) = file();
    let audit = Audit::start(settings(Some(&path), 10)).unwrap();
    let sql = "SELECT 's3cr3t' FROM t -- s3cr3t";
    assert_eq!(record(&audit, Kind::Rls, Some("a"), sql), 1);
    record(&audit, Kind::CancelKey, None, "");
    audit.close();
    let lines = lines(&path);
    assert_eq!(lines.len(), 2);
    let time = lines[0]["time"].as_str().unwrap();
    assert!(time.ends_with('Z') && time.len() == 27, "{time}");
    let mut rest = lines[0].clone();
    rest["time"] = Value::Null;
    assert_eq!(
        rest,
        serde_json::json!({
            "time": null, "kind": "rls", "tenant": "a", "application": null, "user": "app", "peer": "127.0.0.1:5", "client": 7,
            "sqlstate": "42501", "detail": null, "statement": "select ? from t", "fingerprint": "ed97449ab5339f2e",
            "length": 32, "dropped": {},
        })
    );
    assert_eq!(lines[1]["kind"], "cancel_key");
    assert_eq!(lines[1]["tenant"], Value::Null);
    assert_eq!(audit.metrics().events(Kind::Rls), 1);
    assert_eq!(audit.metrics().events(Kind::Guard), 0);
}

#[test]
fn what_a_client_says_is_cut() {
    let event = Event {
        kind: Kind::Password,
        who: Who {
            user: Some(&"ä\n\"".repeat(1000)),
            ..Who::default()
        },
        sqlstate: None,
        detail: Some(&"x".repeat(129)),
        statement: None,
    };
    let line = Entry::new(&event, Dropped::default()).line();
    assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
    let read: Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(read["user"].as_str().unwrap(), "ä\n\"".repeat(32));
    assert_eq!(read["detail"].as_str().unwrap().len(), 128);
}

#[test]
fn a_flood_of_one_tenant_is_counted_and_hides_nothing_of_another() {
    let (_dir, path) = file();
    let audit = Audit::start(settings(Some(&path), 2)).unwrap();
    for _ in 0..100 {
        record(&audit, Kind::Privilege, Some("a"), "");
    }
    record(&audit, Kind::Guard, Some("b"), "");
    audit.close();
    let lines = lines(&path);
    let of = |tenant: &str| lines.iter().filter(|line| line["tenant"] == tenant).count();
    assert_eq!((of("a"), of("b")), (3, 1));
    let last = lines.last().unwrap();
    assert_eq!(last["kind"], "dropped");
    assert_eq!(last["dropped"], serde_json::json!({ "privilege": 98 }));
    let metrics = audit.metrics();
    assert_eq!(metrics.events(Kind::Privilege), 100);
    assert_eq!(metrics.over_rate.get(), 98);
}

#[test]
fn a_full_disk_stops_nobody_and_what_is_not_written_is_counted() {
    let audit = Audit::start(settings(Some(Path::new("/dev/full")), 1_000_000)).unwrap();
    let many = QUEUE as u64 * 3;
    for _ in 0..many {
        record(&audit, Kind::Privilege, Some("a"), "");
    }
    let metrics = audit.metrics();
    assert_eq!(metrics.events(Kind::Privilege), many);
    assert!(metrics.queue_full.get() >= many - QUEUE as u64 - 1);
    audit.close();
    assert!(metrics.write_failures.get() > 0);
    // And one line to say how many were dropped.
    assert_eq!(metrics.queue_full.get() + metrics.unwritten.get(), many + 1);
    record(&audit, Kind::Privilege, Some("a"), "");
    assert_eq!(metrics.events(Kind::Privilege), many + 1);
}

#[test]
fn what_waits_is_written_when_the_directory_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let path = missing.join("audit.jsonl");
    let audit = Audit::start(settings(Some(&path), 1000)).unwrap();
    for _ in 0..100 {
        record(&audit, Kind::Guard, Some("a"), "");
    }
    while audit.metrics().write_failures.get() < 2 {
        std::thread::yield_now();
    }
    std::fs::create_dir(&missing).unwrap();
    audit.reconfigure(settings(Some(&path), 1000));
    while written(&path) < 100 {
        std::thread::yield_now();
    }
    audit.close();
    assert_eq!(lines(&path).len(), 100);
    assert_eq!(audit.metrics().queue_full.get(), 0);
}

#[test]
fn other_settings_hold_from_the_next_event_on() {
    let (dir, path) = file();
    let other = dir.path().join("other.jsonl");
    let audit = Audit::start(settings(None, 1000)).unwrap();
    audit.reconfigure(settings(Some(&path), 1000));
    while !path.exists() {
        std::thread::yield_now();
    }
    record(&audit, Kind::Rls, Some("a"), "");
    while written(&path) == 0 {
        std::thread::yield_now();
    }
    audit.reconfigure(settings(Some(&other), 1000));
    record(&audit, Kind::Seal, Some("a"), "");
    audit.close();
    assert_eq!(lines(&path)[0]["kind"], "rls");
    assert_eq!(lines(&other)[0]["kind"], "seal");
}

#[test]
fn lines_of_the_log_are_limited_for_each_tenant_and_those_left_out_are_counted() {
    let audit = Audit::start(settings(None, 3)).unwrap();
    let [acme, globex] = ["acme", "globex"].map(|name| TenantId::new(name).unwrap());
    for _ in 0..3 {
        assert_eq!(audit.may_log(Some(&acme)), Some(0));
    }
    for _ in 0..5 {
        assert_eq!(audit.may_log(Some(&acme)), None);
    }
    assert_eq!(audit.may_log(Some(&globex)), Some(0));
    assert_eq!(audit.may_log(None), Some(0));
    // It is not the events that are limited by it.
    assert_eq!(audit.metrics().over_rate.get(), 0);
    let more = config::Audit {
        rate: 1_000_000,
        ..settings(None, 3)
    };
    audit.reconfigure(more);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(audit.may_log(Some(&acme)), Some(5));
}
