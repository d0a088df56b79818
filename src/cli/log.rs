//! The log of `serve`. Lines go to standard error by a thread of their own, so that a disk that is
//! full, a pipe that nobody reads or one that is closed stops no client: what cannot be written is
//! counted, and told when it can be again.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::fmt::{FormatFields, MakeWriter};

use crate::config::{self, LogFormat};
use crate::metrics::LogCounts;

/// Most lines that wait to be written. At a few hundred bytes each they take a few megabytes.
const MAX_LINES: usize = 10_000;

/// How long the end of the process waits for lines that were not written yet.
const AT_END: Duration = Duration::from_secs(1);

enum Entry {
    Line(Vec<u8>),
    /// What came before it is to be written now; the sender is dropped when it is.
    Flush(#[expect(dead_code, reason = "its end is what is waited for")] SyncSender<()>),
}

/// A log that runs. Dropped, it waits for its last lines for at most [`AT_END`].
pub struct Log {
    lines: Lines,
}

impl Log {
    pub fn counts(&self) -> Arc<LogCounts> {
        self.lines.counts.clone()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let (sender, written) = sync_channel(0);
        if self.lines.queue.try_send(Entry::Flush(sender)).is_ok() {
            let _: Result<(), RecvTimeoutError> = written.recv_timeout(AT_END);
        }
    }
}

/// Starts the log of this process, and has panics go to it. A second one in a process changes
/// nothing.
pub fn start(config: &config::Log) -> Log {
    let (lines, written) = Lines::new(MAX_LINES);
    let counts = lines.counts.clone();
    let thread = std::thread::Builder::new().name("log".to_owned());
    let started = thread.spawn(move || write(&written, &mut io::stderr(), &counts));
    let filter = EnvFilter::try_new(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // It would say so on standard error, and panic where that is what fails.
        .log_internal_errors(false)
        .with_writer(lines.clone());
    let log = match config.format {
        LogFormat::Text => builder
            .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
            .fmt_fields(OneLine::default())
            .try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    let errors = [
        started.err().map(|error| error.to_string()),
        log.err().map(|error| error.to_string()),
    ];
    for error in errors.into_iter().flatten() {
        let _ = writeln!(io::stderr(), "pgtenant: cannot start the log: {error}");
    }
    note_panics(lines.counts.clone());
    Log { lines }
}

/// A task that panics ends alone. That it did is counted, and an error in the log.
fn note_panics(counts: Arc<LogCounts>) {
    std::panic::set_hook(Box::new(move |panic| {
        counts.panics.add(1);
        let thread = std::thread::current();
        tracing::error!(
            thread = thread.name().unwrap_or_default(),
            %panic,
            "a task panicked; this is a mistake in pgtenant: please report it"
        );
    }));
}

/// Where the lines of the log go.
#[derive(Clone)]
struct Lines {
    queue: SyncSender<Entry>,
    counts: Arc<LogCounts>,
}

impl Lines {
    fn new(most: usize) -> (Self, Receiver<Entry>) {
        let (queue, written) = sync_channel(most);
        let counts = Arc::default();
        (Self { queue, counts }, written)
    }
}

impl Write for &Lines {
    /// Takes a whole line, as the subscriber gives it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Entry::Line(line.to_vec())).is_err() {
            self.counts.lost.add(1);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'l> MakeWriter<'l> for Lines {
    type Writer = &'l Self;

    fn make_writer(&'l self) -> Self::Writer {
        self
    }
}

/// Writes what comes until nobody can send any more.
fn write(lines: &Receiver<Entry>, out: &mut impl Write, counts: &LogCounts) {
    let mut told = 0;
    let mut is_broken = false;
    while let Ok(entry) = lines.recv() {
        let Entry::Line(mut line) = entry else {
            continue;
        };
        if is_broken {
            // Half of the line before may have been written.
            line.insert(0, b'\n');
        }
        is_broken = out.write_all(&line).and_then(|()| out.flush()).is_err();
        if is_broken {
            counts.lost.add(1);
            continue;
        }
        let lost = counts.lost.get();
        if lost > told {
            tracing::warn!(lines = lost - told, "lines of the log could not be written");
            told = lost;
        }
    }
}

/// Fields of an event in a log of text, with control characters escaped: names that come from the
/// network must not make lines of their own, nor move the operator's cursor.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for so many bytes, until it has refused two writes.
    struct Disk {
        written: Vec<u8>,
        room: usize,
        refused: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = match self.refused {
                0 | 1 => self.room - self.written.len(),
                _ => bytes.len(),
            };
            let n = room.min(bytes.len());
            self.written.extend_from_slice(&bytes[..n]);
            if n == 0 {
                self.refused += 1;
                return Err(io::ErrorKind::StorageFull.into());
            }
            Ok(n)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_counted_and_the_next_line_is_whole() {
        let (lines, written) = Lines::new(10);
        for line in ["first\n", "second\n", "third\n", "fourth\n", "fifth\n"] {
            (&lines).write_all(line.as_bytes()).unwrap();
        }
        let counts = lines.counts.clone();
        drop(lines);
        let mut disk = Disk {
            written: Vec::new(),
            room: 7,
            refused: 0,
        };
        write(&written, &mut disk, &counts);
        assert_eq!(disk.written, b"first\ns\nfourth\nfifth\n");
        assert_eq!(counts.lost.get(), 2);
    }

    #[test]
    fn lines_that_nobody_takes_are_counted_and_hold_up_nobody() {
        let (lines, written) = Lines::new(2);
        for _ in 0..5 {
            (&lines).write_all(b"line\n").unwrap();
        }
        assert_eq!(lines.counts.lost.get(), 3);
        drop(lines);
        let mut out = Vec::new();
        write(&written, &mut out, &LogCounts::default());
        assert_eq!(out, b"line\nline\n");
    }

    #[test]
    fn no_name_from_the_network_makes_a_line_or_moves_the_cursor() {
        let (lines, written) = Lines::new(10);
        let log = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(lines)
            .fmt_fields(OneLine::default())
            .finish();
        let name = "a\n2026 ERROR forged\r\x1b[2J\u{9b}1m\u{2028}b";
        tracing::subscriber::with_default(log, || {
            tracing::info!(user = %name, "refused: {name}");
            tracing::info!(user = name, tenant = ?name, "plain");
        });
        let mut text = Vec::new();
        write(&written, &mut text, &LogCounts::default());
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        let mut shown = text.chars().filter(|&c| c != '\n');
        assert!(
            !shown.any(|c| c.is_control() || c == '\u{2028}'),
            "{text:?}"
        );
        assert_eq!(text.matches("forged").count(), 4);
    }
}
