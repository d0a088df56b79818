use std::io::Write;
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};

use super::*;
use crate::timer;

/// A runtime whose thread sends in batches; false: this is not to be had here. The rest of the
/// proxy goes without, too.
fn with_batches(test: impl Future<Output = ()> + Send + 'static) -> bool {
    std::thread::spawn(|| {
        let mut builder = Builder::new_current_thread();
        let runtime = builder.on_thread_park(batch::turn).enable_all();
        let runtime = runtime.build().unwrap();
        match batch::install() {
            Ok(flusher) => drop(runtime.spawn(flusher)),
            Err(error) => {
                eprintln!("no io_uring: {error}");
                return false;
            }
        }
        runtime.block_on(test);
        true
    })
    .join()
    .unwrap()
}

fn pair() -> (Socket, StdStream) {
    let (near, far) = StdStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    (UnixStream::from_std(near).unwrap().into(), far)
}

fn far(far: StdStream) -> UnixStream {
    UnixStream::from_std(far).unwrap()
}

/// Makes what follows in this turn worth a batch.
async fn make_busy() {
    tokio::task::yield_now().await;
    let (mut a, _a) = pair();
    let (mut b, _b) = pair();
    a.write_all(b"x").await.unwrap();
    b.write_all(b"x").await.unwrap();
    assert_eq!((a.0.state(), b.0.state()), (FREE, QUEUED));
    drop((a, b));
}

/// Sends until nothing more is taken, and returns how much that was.
fn fill(near: &Socket) -> usize {
    let mut total = 0;
    for size in [4096, 1] {
        while let Ok(n) = SockRef::from(near).send(&vec![b'.'; size]) {
            total += n;
        }
    }
    total
}

/// One that holds `text`, behind so many bytes that its other end has not read.
async fn stuck(text: &[u8]) -> (Socket, StdStream, usize) {
    let (mut near, peer) = pair();
    let before = fill(&near);
    make_busy().await;
    near.write_all(text).await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!(near.0.state(), STUCK);
    (near, peer, before)
}

fn peek(far: &StdStream) -> Option<usize> {
    (&mut &*far).read(&mut [0; 64]).ok()
}

#[test]
fn a_turn_with_much_to_send_sends_it_together_at_its_end() {
    with_batches(async {
        let (mut lone, lone_far) = pair();
        lone.write_all(b"at once").await.unwrap();
        assert_eq!(peek(&lone_far), Some(7));
        let mut pairs: Vec<_> = (0..150).map(|_| pair()).collect();
        for (near, _) in &mut pairs {
            near.write_all(b"together").await.unwrap();
        }
        // What did not fit into a batch with the next, or waited for too long, has left.
        let left = |pairs: &[(Socket, StdStream)]| {
            let states = pairs.iter().map(|(near, _)| near.0.state());
            states.filter(|&state| state == FREE).count()
        };
        assert!((150 - 64..150).contains(&left(&pairs)), "{}", left(&pairs));
        tokio::task::yield_now().await;
        assert_eq!(left(&pairs), 150);
        for (_, far) in &pairs {
            assert_eq!(peek(far), Some(8));
        }
    });
}

#[test]
fn what_is_large_goes_at_once_behind_what_is_queued() {
    with_batches(async {
        let (mut near, peer) = pair();
        let mut far = far(peer);
        make_busy().await;
        near.write_all(b"small").await.unwrap();
        assert_eq!(near.0.state(), QUEUED);
        near.write_all(&[b'l'; 10_000]).await.unwrap();
        assert_eq!(near.0.state(), FREE);
        let mut got = vec![0; 10_005];
        far.read_exact(&mut got).await.unwrap();
        assert!(got.starts_with(b"smalll"));
    });
}

#[test]
fn what_is_written_in_parts_comes_in_order() {
    with_batches(async {
        let (mut near, peer) = pair();
        make_busy().await;
        let parts = [&b"one "[..], b"two ", b"three"].map(IoSlice::new);
        assert_eq!(near.write_vectored(&parts).await.unwrap(), 13);
        assert_eq!(near.0.state(), QUEUED);
        near.write_all(b" four").await.unwrap();
        assert_eq!(near.0.state(), QUEUED);
        drop(near);
        let mut got = String::new();
        far(peer).read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "one two three four");
    });
}

#[test]
fn what_a_full_socket_does_not_take_follows_when_it_does() {
    with_batches(async {
        let (mut near, peer, before) = stuck(b"held").await;
        assert!(!near.is_settled());
        // Nothing more is taken, and who waits is told.
        let more = tokio::spawn(async move {
            near.write_all(b" back").await.unwrap();
            near.shutdown().await.unwrap();
        });
        timer::sleep(Duration::from_millis(10)).await;
        assert!(!more.is_finished());
        let mut got = Vec::new();
        far(peer).read_to_end(&mut got).await.unwrap();
        assert_eq!(&got[before..], b"held back");
        more.await.unwrap();
    });
}

#[test]
fn a_socket_that_is_dropped_leaves_nobody_behind_who_waits_for_the_other_end() {
    with_batches(async {
        let tasks = || {
            tokio::runtime::Handle::current()
                .metrics()
                .num_alive_tasks()
        };
        let alone = tasks();
        // Dropped while it is stuck, and before it turns out to be.
        for waits in [true, false] {
            let (mut near, peer) = pair();
            let before = fill(&near);
            make_busy().await;
            near.write_all(b"lost").await.unwrap();
            if waits {
                tokio::task::yield_now().await;
                assert_eq!((near.0.state(), tasks()), (STUCK, alone + 1));
            }
            drop(near);
            timer::sleep(Duration::from_millis(1)).await;
            assert_eq!(tasks(), alone);
            let mut got = Vec::new();
            far(peer).read_to_end(&mut got).await.unwrap();
            assert_eq!(got.len(), before);
        }
    });
}

#[test]
fn a_socket_whose_other_end_is_gone_fails() {
    with_batches(async {
        let (mut near, peer) = pair();
        drop(peer);
        make_busy().await;
        near.write_all(b"nobody").await.unwrap();
        tokio::task::yield_now().await;
        assert_eq!(near.0.state(), FAILED);
        let error = near.write_all(b"nobody").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(near.read(&mut [0]).await.unwrap(), 0);
        near.adopt().await.unwrap();
        assert!(near.write_all(b"nobody").await.is_err());
    });
}

/// Of another worker, on a thread of its own.
fn elsewhere() -> Runtime {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn one_that_is_queued_goes_to_another_worker_when_that_has_left() {
    with_batches(async {
        let (mut near, mut peer) = pair();
        make_busy().await;
        near.write_all(b"here, ").await.unwrap();
        assert_eq!(near.0.state(), QUEUED);
        let other = elsewhere();
        let (tell, told) = std::sync::mpsc::channel();
        let there = other.spawn(async move {
            let _ = tell.send(());
            near.adopt().await.unwrap();
            near.write_all(b"there").await.unwrap();
            let mut answer = [0; 6];
            near.read_exact(&mut answer).await.unwrap();
            answer
        });
        told.recv().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert!(!there.is_finished());
        peer.write_all(b"answer").unwrap();
        assert_eq!(&there.await.unwrap(), b"answer");
        let mut got = String::new();
        far(peer).read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "here, there");
        other.shutdown_background();
    });
}

#[test]
fn one_that_is_stuck_takes_what_it_holds_to_another_worker() {
    with_batches(async {
        let (mut near, peer, before) = stuck(b"here, ").await;
        let other = elsewhere();
        let (tell, told) = std::sync::mpsc::channel();
        let there = other.spawn(async move {
            near.adopt().await.unwrap();
            let _ = tell.send(near.0.state());
            near.write_all(b"there").await.unwrap();
        });
        assert_eq!(told.recv().unwrap(), STUCK);
        let mut got = Vec::new();
        far(peer).read_to_end(&mut got).await.unwrap();
        there.await.unwrap();
        assert_eq!(&got[before..], b"here, there");
        other.shutdown_background();
    });
}

#[test]
fn a_read_that_leaves_room_is_not_tried_again_until_more_has_come() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut near, mut peer) = pair();
        peer.write_all(b"abc").unwrap();
        let mut got = [0; 8];
        assert_eq!(near.read(&mut got).await.unwrap(), 3);
        assert!(near.is_silent());
        peer.write_all(b"defghijkl").unwrap();
        assert_eq!(near.read(&mut got).await.unwrap(), 8);
        assert!(!near.is_silent());
        assert_eq!(near.read(&mut got).await.unwrap(), 1);
        drop(peer);
        assert_eq!(near.read(&mut got).await.unwrap(), 0);
    });
}

#[test]
fn what_is_queued_when_the_ring_fails_leaves_without_it() {
    with_batches(async {
        let mut pairs: Vec<_> = (0..5).map(|_| pair()).collect();
        make_busy().await;
        tokio::task::yield_now().await;
        for (near, _) in &mut pairs {
            near.write_all(b"first, ").await.unwrap();
            assert_eq!(near.0.state(), QUEUED);
        }
        batch::let_the_ring_fail();
        for (near, peer) in pairs {
            let mut near = near;
            near.write_all(b"second").await.unwrap();
            assert_eq!(near.0.state(), FREE);
            drop(near);
            let mut got = String::new();
            far(peer).read_to_string(&mut got).await.unwrap();
            assert_eq!(got, "first, second");
        }
    });
}
