//! `pgtenant serve`: the proxy until a signal ends it.

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};

use crate::cli::check;
use crate::config::{Log, LogFormat};
use crate::server::Proxy;

/// Runs the proxy. 0 after SIGTERM or SIGINT, 78 for a config with mistakes, 1 for what the machine
/// refuses.
pub fn run(path: &Path) -> ExitCode {
    let config = match check::load_or_report(path) {
        Ok(config) => config,
        Err(code) => return code,
    };
    start_log(&config.log);
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = runtime.and_then(|runtime| {
        let proxy = Proxy::start(config, Some(path.to_owned()))?;
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
    loop {
        tokio::select! {
            _ = reload.recv() => {
                let app = proxy.app().clone();
                // A long config takes a while to read; its mistakes are logged there.
                let _ = tokio::task::spawn_blocking(move || app.reload_file()).await;
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tokio::select! {
        _ = proxy.stop() => tracing::info!("stopped"),
        _ = terminate.recv() => tracing::warn!("stopped at once"),
        _ = interrupt.recv() => tracing::warn!("stopped at once"),
    }
    Ok(())
}

fn start_log(log: &Log) {
    let filter = EnvFilter::try_new(&log.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Text => builder
            .with_ansi(is_terminal())
            .fmt_fields(OneLine::default())
            .try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if let Err(error) = started {
        let _ = writeln!(std::io::stderr(), "pgtenant: cannot start the log: {error}");
    }
}

/// Fields of an event in a log of text, with control characters escaped: names that come from the network must not make
/// lines of their own, nor move the operator's cursor.
#[derive(Default)]
struct OneLine(DefaultFields);

impl<'w> FormatFields<'w> for OneLine {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut text = String::new();
        self.0.format_fields(Writer::new(&mut text), fields)?;
        for c in text.chars() {
            // The last two end lines, too.
            if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
                write!(writer, "{}", c.escape_debug())?;
            } else {
                writer.write_char(c)?;
            }
        }
        Ok(())
    }
}

fn is_terminal() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stderr())
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_name_from_the_network_makes_a_line_or_moves_the_cursor() {
        let lines = Lines::default();
        let writer = lines.clone();
        let log = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .fmt_fields(OneLine::default())
            .finish();
        let name = "a\n2026 ERROR forged\r\x1b[2J\u{9b}1m\u{2028}b";
        tracing::subscriber::with_default(log, || {
            tracing::info!(user = %name, "refused: {name}");
            tracing::info!(user = name, tenant = ?name, "plain");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        let mut shown = text.chars().filter(|&c| c != '\n');
        assert!(
            !shown.any(|c| c.is_control() || c == '\u{2028}'),
            "{text:?}"
        );
        assert_eq!(text.matches("forged").count(), 4);
    }
}
