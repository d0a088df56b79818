//! A main port. The first worker accepts from it; when that has too much to do, every worker does,
//! so that logins spread over the cores. Not always all: a connection wakes every thread that waits
//! for one, and the one that has nothing to do is the first to take it, though it is hardly ever
//! the one where the client is to be served.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::admin::console;
use crate::app::App;
use crate::frontend::login::{Admitted, admit};
use crate::frontend::session::{self, Session};
use crate::frontend::welcome;
use crate::net::keep_alive;
use crate::places::Place;
use crate::timer;
use crate::workers::WorkerId;

/// Connections the kernel holds until they are accepted.
const BACKLOG: i32 = 1024;

/// After accept fails (no descriptors left), the next try waits, or it would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds `address` and accepts. Returns what was bound.
///
/// # Errors
/// The operating system's.
pub fn start(app: &Arc<App>, position: usize, address: SocketAddr) -> std::io::Result<SocketAddr> {
    let socket = listen(address)?;
    let bound = socket.local_addr()?;
    for worker in app.workers().ids() {
        let first = worker == WorkerId::default();
        let accept = accept(app.clone(), position, socket.try_clone()?, first);
        app.workers().spawn(worker, accept);
    }
    Ok(bound)
}

fn listen(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // What it accepts inherits these.
    socket.set_tcp_nodelay(true)?;
    socket.set_keepalive(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts on the worker it runs on: the first one always, the others [while all
/// do](crate::workers::Workers::until_all_accept).
async fn accept(app: Arc<App>, position: usize, socket: std::net::TcpListener, first: bool) {
    let mut draining = pin!(app.draining());
    loop {
        if !first {
            tokio::select! {
                biased;
                () = &mut draining => return,
                () = app.workers().until_all_accept(true) => {}
            }
        }
        let listener = match socket.try_clone().and_then(TcpListener::from_std) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!(%error, "a worker cannot accept connections");
                timer::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let mut alone = pin!(app.workers().until_all_accept(false));
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut draining => return,
                () = &mut alone, if !first => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((tcp, peer)) => {
                    app.metrics.accepted.add(1);
                    if let Some(counted) = app.count_connection() {
                        let login = log_in(app.clone(), position, tcp, peer, counted);
                        tokio::spawn(session::live(Box::pin(login)));
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    timer::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Some: a tenant's client is to be served here.
async fn log_in(
    app: Arc<App>,
    position: usize,
    tcp: TcpStream,
    peer: SocketAddr,
    counted: Place,
) -> Option<Box<Session>> {
    let door = app.door(position)?;
    let keepalives = app.config().tcp_keepalives;
    if let Err(error) = keep_alive(&tcp, &keepalives) {
        tracing::warn!(%peer, %error, "cannot set the TCP keepalives of a connection");
    }
    match admit(&app, &door, tcp, peer, counted).await {
        Admitted::Tenant(login) => welcome::start(login).await,
        Admitted::Admin(admin) => {
            Box::pin(console::serve(app, admin, peer)).await;
            None
        }
        Admitted::Done => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::path::Path;

    use socket2::SockRef;

    use super::*;
    use crate::admin::testing::CONFIG;
    use crate::backend::dns::Resolver;
    use crate::config;
    use crate::server::threads::Threads;

    const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    #[test]
    fn what_is_accepted_sends_at_once_and_finds_out_when_its_peer_is_gone() {
        let listener = listen(ANY).unwrap();
        listener.set_nonblocking(false).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert!(accepted.nodelay().unwrap());
        assert!(SockRef::from(&accepted).keepalive().unwrap());
    }

    #[test]
    fn the_first_worker_accepts_and_the_others_only_while_all_are_to() {
        let threads = Threads::start(2, true).unwrap();
        let [first, second] = [0, 1].map(|number| threads.workers()[number].handle.clone());
        let config = config::load_text(CONFIG, Path::new(""), &|_| None).unwrap();
        let app = App::new(
            config,
            None,
            vec![first.clone(), second.clone()],
            Resolver::default(),
        )
        .unwrap();
        let address = start(&app, 0, ANY).unwrap();
        let tasks = || [&first, &second].map(|worker| worker.metrics().num_alive_tasks());
        let idle = tasks();
        let eventually = |expected: [usize; 2]| {
            let expected = [idle[0] + expected[0], idle[1] + expected[1]];
            for _ in 0..200 {
                if tasks() == expected {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            assert_eq!(tasks(), expected);
        };
        // Clients that say nothing: a task for each.
        let connect = || TcpStream::connect(address).unwrap();
        let a = [connect(), connect(), connect()];
        eventually([3, 0]);
        let stop_first_for_a_while = || {
            let (tell, told) = std::sync::mpsc::channel();
            first.spawn(async move {
                let _ = tell.send(());
                std::thread::sleep(Duration::from_millis(300));
            });
            told.recv().unwrap();
        };
        app.workers().set_all_accept(true);
        std::thread::sleep(Duration::from_millis(50));
        stop_first_for_a_while();
        let b = [connect(), connect()];
        eventually([3, 2]);
        app.workers().set_all_accept(false);
        std::thread::sleep(Duration::from_millis(50));
        stop_first_for_a_while();
        let c = connect();
        eventually([4, 2]);
        drop((a, b, c));
        eventually([0, 0]);
        app.drain();
    }
}
