//! The process ids that clients are told: in transaction pooling of none that an operating system
//! gives, so that what a client does by it meets no other's process.

use std::collections::BTreeSet;

use pgtenant::client::FIRST_PID;

use crate::harness::{Setup, tenant};

#[tokio::test(flavor = "multi_thread")]
async fn process_ids_of_the_proxys_own_are_none_of_an_operating_systems() {
    let proxy = Setup::default().start().await;
    let app = proxy.proxy.app();
    let mut seen = BTreeSet::new();
    for n in 0..200_000 {
        let length = if n % 2 == 0 { 4 } else { 32 };
        seen.insert(app.new_key(length).pid);
    }
    let one = tenant("t00");
    for _ in 0..50 {
        let wire = proxy.raw(&one).await;
        assert!(wire.key.0 >= FIRST_PID, "{}", wire.key.0);
        let client = app.clients().pop().unwrap();
        assert_eq!(client.key().pid, wire.key.0);
    }
    let (least, most) = (*seen.first().unwrap(), *seen.last().unwrap());
    assert!(least >= FIRST_PID, "{least}");
    // They are of the whole range, and hardly any comes twice.
    let range = i32::MAX - FIRST_PID;
    assert!(least < FIRST_PID + range / 1000 && most > i32::MAX - range / 1000);
    assert!(seen.len() > 199_000, "{}", seen.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn in_session_pooling_the_process_id_is_the_servers() {
    let proxy = Setup {
        pooling: "session",
        ..Setup::default()
    }
    .start()
    .await;
    for _ in 0..10 {
        let mut wire = proxy.raw(&tenant("t00")).await;
        let pid = wire.column("SELECT pg_backend_pid()").await;
        assert_eq!(pid, [wire.key.0.to_string()]);
        assert!(wire.key.0 < FIRST_PID);
    }
}
