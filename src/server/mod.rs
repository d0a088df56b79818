//! The process: worker threads, main ports, the admin console and metrics behind them, reload and
//! the end. Wiring only.

mod balance;
mod listener;
mod threads;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::app::App;
use crate::backend::dns::Resolver;
use crate::config::Config;
use crate::control::usage::{self, Usage};
use crate::frontend::session::parking;
use crate::timer;
use threads::Threads;

/// A running proxy. Dropped without [`stop`](Self::stop), it ends at once.
pub struct Proxy {
    app: Arc<App>,
    addresses: Vec<SocketAddr>,
    http: Option<SocketAddr>,
    usage: Arc<Usage>,
    /// None once it was stopped.
    threads: Option<Threads>,
}

/// How often the end of the last client is looked for while draining.
const DRAIN_POLL: Duration = Duration::from_millis(20);

impl Proxy {
    /// Binds every port and starts to serve. `config_path`: what a reload reads again.
    ///
    /// # Errors
    /// A port that cannot be bound, a thread that cannot be started.
    pub fn start(config: Config, config_path: Option<PathBuf>) -> std::io::Result<Self> {
        Self::start_with(config, config_path, Resolver::default())
    }

    /// The same, with addresses of servers by `resolver`.
    ///
    /// # Errors
    /// As there.
    pub fn start_with(
        config: Config,
        config_path: Option<PathBuf>,
        resolver: Resolver,
    ) -> std::io::Result<Self> {
        let threads = Threads::start(config.workers, config.io_uring)?;
        let workers = threads.workers().to_vec();
        let handles = workers.iter().map(|worker| worker.handle.clone()).collect();
        let http = config.http;
        let app = App::new(config, config_path, handles, resolver)
            .map_err(|e| std::io::Error::other(e.to_string()))?;
        let control = threads.control();
        if app.config().catalog.is_some() {
            // Nobody is told that there is no such tenant before the tenants are known.
            let (ready, known) = std::sync::mpsc::sync_channel(1);
            let watch = crate::control::catalog_watch::watch(Arc::downgrade(&app), ready);
            control.spawn(watch);
            let _ = known.recv();
        }
        let addresses = serve(&app)?;
        let http = match http {
            Some(address) => {
                let bound =
                    std::net::TcpListener::bind(address).map_err(|e| named("http", address, &e))?;
                let address = bound.local_addr()?;
                crate::admin::http::start(&app, bound, &control)?;
                tracing::info!(%address, "serving metrics");
                Some(address)
            }
            None => None,
        };
        control.spawn(balance::watch(Arc::downgrade(&app), workers));
        control.spawn(crate::control::health::watch(Arc::downgrade(&app)));
        control.spawn(crate::control::doctor::watch(Arc::downgrade(&app)));
        control.spawn(crate::control::timeouts::watch(Arc::downgrade(&app)));
        control.spawn(crate::control::periods::watch(Arc::downgrade(&app)));
        control.spawn(crate::control::warm::watch(Arc::downgrade(&app)));
        let usage = Arc::<Usage>::default();
        control.spawn(usage::watch(Arc::downgrade(&app), usage.clone()));
        Ok(Self {
            app,
            addresses,
            http,
            usage,
            threads: Some(threads),
        })
    }

    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Addresses of the main ports, in the order of the config, with the ports that were bound.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http
    }

    /// Takes no new clients, lets transactions end, and after the deadline ends what is left.
    /// Returns whether all clients had ended by then.
    pub async fn stop(self) -> bool {
        let patience = self.app.config().timeouts.shutdown;
        self.stop_within(Some(patience)).await
    }

    /// The same with another deadline; none: whatever it takes.
    pub async fn stop_within(mut self, patience: Option<Duration>) -> bool {
        let deadline = patience.map(|patience| Instant::now() + patience);
        let is_late = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
        tracing::info!(clients = self.app.connections(), "shutting down");
        self.app.drain();
        while self.app.connections() > 0 && !is_late() {
            timer::sleep(DRAIN_POLL).await;
        }
        let left = self.app.connections();
        if left > 0 {
            tracing::warn!(
                clients = left,
                "ending clients that did not come to a clean point"
            );
            self.app.kill_clients();
            let grace = Instant::now() + Duration::from_secs(1);
            while self.app.connections() > 0 && Instant::now() < grace {
                timer::sleep(DRAIN_POLL).await;
            }
        }
        self.app.close_servers().await;
        drop(self.threads.take());
        self.usage.close(&self.app);
        self.app.audit.close();
        left == 0
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.threads.take());
        self.app.abandon();
        self.usage.close(&self.app);
        self.app.audit.close();
    }
}

/// Binds the main ports and serves clients on the workers of `app`. Returns what was bound, in the
/// order of the config.
///
/// # Errors
/// A port that cannot be bound.
pub fn serve(app: &Arc<App>) -> std::io::Result<Vec<SocketAddr>> {
    for worker in app.workers().ids() {
        app.workers().spawn(worker, parking::keep());
    }
    let config = app.config();
    let mut addresses = Vec::new();
    for (position, listen) in config.listen.iter().enumerate() {
        let address = listener::start(app, position, listen.address)
            .map_err(|e| named("listen", listen.address, &e))?;
        tracing::info!(%address, tls = listen.tls.is_some(), "listening");
        addresses.push(address);
    }
    Ok(addresses)
}

fn named(setting: &str, address: SocketAddr, error: &std::io::Error) -> std::io::Error {
    std::io::Error::new(
        error.kind(),
        format!("{setting}: cannot bind {address}: {error}"),
    )
}
