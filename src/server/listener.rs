//! A main port: every worker accepts from it, so that logins spread over the cores.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

use crate::admin::console;
use crate::app::App;
use crate::frontend::login::{Admitted, admit};
use crate::frontend::session;

/// Connections the kernel holds until they are accepted.
const BACKLOG: i32 = 1024;

/// After accept fails (no descriptors left), the next try waits, or it would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds `address` and accepts on every worker. Returns what was bound.
///
/// # Errors
/// The operating system's.
pub fn start(app: &Arc<App>, position: usize, address: SocketAddr) -> std::io::Result<SocketAddr> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let socket = std::net::TcpListener::from(socket);
    let bound = socket.local_addr()?;
    for worker in app.workers().ids() {
        let worker = app.workers().handle(worker);
        let _reactor = worker.enter();
        let listener = TcpListener::from_std(socket.try_clone()?)?;
        worker.spawn(accept(app.clone(), position, listener));
    }
    Ok(bound)
}

async fn accept(app: Arc<App>, position: usize, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = app.draining() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => {
                app.metrics.accepted.add(1);
                let app = app.clone();
                let Some(counted) = app.count_connection() else {
                    continue;
                };
                tokio::spawn(async move {
                    let Some(door) = app.door(position) else {
                        return;
                    };
                    match admit(&app, &door, tcp, peer, counted).await {
                        Admitted::Tenant(login) => session::start(login).await,
                        Admitted::Admin(admin) => console::serve(app, admin, peer).await,
                        Admitted::Done => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
