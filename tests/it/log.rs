//! A log that cannot be written is nobody's problem but the operator's.

use std::fs::File;
use std::process::Stdio;
use std::time::Duration;

use crate::harness::{Process, Setup, tenant, world};
use crate::wire::Wire;

async fn serve(stderr: Stdio) -> Process {
    let yaml = Setup::default().yaml_for(world().await, &[tenant("t00"), tenant("t01")]);
    Process::serve(&yaml, stderr).await
}

/// Logins that are refused, each with a line in the log, and a client that is served meanwhile; and
/// a SIGTERM.
async fn serves_and_stops(mut proxy: Process) {
    let own = tenant("t00");
    let user = own.user();
    let pairs = [("user", &*user), ("database", &*own.database)];
    let mut wire = proxy.client("t00").await;
    for _ in 0..100 {
        let mut stranger = Wire::tcp(proxy.address).await;
        let refused = stranger.log_in(&pairs, "wrong").await;
        assert_eq!(refused.expect_err("refused").sqlstate(), "28P01");
        assert_eq!(wire.column("SELECT 1").await, ["1"]);
    }
    drop(wire);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(proxy.child.id()).expect("a process"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("is told");
    let mut left = 500;
    let status = loop {
        if let Some(status) = proxy.child.try_wait().expect("a child") {
            break status;
        }
        assert!(left > 0, "it does not end");
        left -= 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_behind_the_log_stops_no_client() {
    let full = File::options()
        .write(true)
        .open("/dev/full")
        .expect("opens");
    serves_and_stops(serve(full.into()).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_reader_is_gone_stops_no_client() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let proxy = serve(writer.into()).await;
    drop(reader);
    serves_and_stops(proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_whose_reader_does_not_read_stops_no_client() {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    // It is full from the start.
    let size = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_GETPIPE_SZ).expect("a size");
    let filled = vec![b'.'; usize::try_from(size).expect("a size")];
    std::io::Write::write_all(&mut writer, &filled).expect("fits");
    let proxy = serve(writer.into()).await;
    serves_and_stops(proxy).await;
    drop(reader);
}
