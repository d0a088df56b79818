//! `pgtenant serve`: the proxy until a signal ends it.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::app::{App, Stop};
use crate::cli::check;
use crate::cli::log;
use crate::server::Proxy;
use crate::timer;

/// Runs the proxy. 0 after SIGTERM or SIGINT, 78 for a config with mistakes, 1 for what the machine
/// refuses.
pub fn run(path: &Path) -> ExitCode {
    let config = match check::load_to_serve(path) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let log = log::start(&config.log);
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = runtime.and_then(|runtime| {
        let proxy = Proxy::start(config, Some(path.to_owned()))?;
        proxy.app().metrics.watch_log(log.counts());
        runtime.block_on(until_signalled(proxy))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "cannot run");
            ExitCode::FAILURE
        }
    }
}

async fn until_signalled(proxy: Proxy) -> std::io::Result<()> {
    let mut reload = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let app = proxy.app().clone();
    let mut asked = None;
    let patience = loop {
        tokio::select! {
            _ = reload.recv() => {
                let app = app.clone();
                // A long config takes a while to read; its mistakes are logged there.
                let _ = tokio::task::spawn_blocking(move || app.reload_file()).await;
            }
            _ = terminate.recv() => break Some(app.config().timeouts.shutdown),
            _ = interrupt.recv() => break Some(app.config().timeouts.shutdown),
            how = app.asked_to_stop(asked) => match how {
                Stop::WaitForClients => asked = Some(how),
                Stop::WaitForServers => break None,
                Stop::AtOnce => break Some(Duration::ZERO),
            },
            () = last_client(&app), if asked.is_some() => break Some(Duration::ZERO),
        }
    };
    let at_once = async {
        match app.asked_to_stop(Some(Stop::WaitForServers)).await {
            // It was this that has it stop.
            _ if patience == Some(Duration::ZERO) => std::future::pending().await,
            _ => (),
        }
    };
    tokio::select! {
        _ = proxy.stop_within(patience) => tracing::info!("stopped"),
        _ = terminate.recv() => tracing::warn!("stopped at once"),
        _ = interrupt.recv() => tracing::warn!("stopped at once"),
        () = at_once => tracing::warn!("stopped at once"),
    }
    Ok(())
}

/// How often it is looked whether a client is there.
const LOOK: Duration = Duration::from_millis(50);

/// Waits until no client is logged in.
async fn last_client(app: &App) {
    while app.has_clients() {
        timer::sleep(LOOK).await;
    }
}

/// Every client and server connection is a descriptor; the soft limit is often 1024.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open descriptors");
    }
}
