//! The thread that writes events: to the log, and to the file if there is one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::event::Entry;
use super::file::LogFile;
use super::{Message, Shared};

/// How often a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Without events, how often it is looked for what was dropped.
const SWEEP: Duration = Duration::from_secs(10);

pub struct Writer {
    shared: Arc<Shared>,
    queue: Receiver<Message>,
    file: Option<LogFile>,
    /// Of the settings that `file` is made of.
    generation: Option<u64>,
    /// The last attempt to write failed.
    failing: bool,
}

impl Writer {
    pub fn new(shared: Arc<Shared>, queue: Receiver<Message>) -> Self {
        Self {
            shared,
            queue,
            file: None,
            generation: None,
            failing: false,
        }
    }

    /// Until the end of the audit.
    pub fn run(mut self) {
        loop {
            self.look_at_settings();
            match self.queue.recv_timeout(SWEEP) {
                Ok(Message::Entry(entry)) => self.write(&entry),
                Ok(Message::Wake) => {}
                Err(RecvTimeoutError::Timeout) => self.tell_dropped(false),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.is_closing() {
                break;
            }
        }
        while let Ok(message) = self.queue.try_recv() {
            if let Message::Entry(entry) = message {
                self.write(&entry);
            }
        }
        self.tell_dropped(true);
    }

    fn is_closing(&self) -> bool {
        self.shared.closing.load(Ordering::Acquire)
    }

    /// After a reload the file is another, or the same under its name anew. It is opened at once,
    /// so that a path that is none shows in the log before the first event.
    fn look_at_settings(&mut self) {
        let generation = self.shared.generation.load(Ordering::Acquire);
        if self.generation == Some(generation) {
            return;
        }
        self.generation = Some(generation);
        let settings = self.shared.settings.load();
        let file = settings.file.as_deref();
        self.file = file.map(|path| LogFile::new(path, settings.max_size, settings.keep));
        let opened = self.file.as_mut().map_or(Ok(()), LogFile::ensure_open);
        self.note(&opened);
    }

    /// Writes until it is written; at the end of the audit, tries once.
    fn write(&mut self, entry: &Entry) {
        entry.log();
        let line = entry.line();
        loop {
            self.look_at_settings();
            let written = self.file.as_mut().map_or(Ok(()), |file| file.append(&line));
            self.note(&written);
            if written.is_ok() {
                return;
            }
            if self.is_closing() {
                self.shared.metrics.unwritten.add(1);
                return;
            }
            std::thread::park_timeout(RETRY);
        }
    }

    /// Counts a failure; the first of several and their end are logged.
    fn note(&mut self, written: &io::Result<()>) {
        let failed = written.is_err();
        let before = std::mem::replace(&mut self.failing, failed);
        match written {
            Err(error) => {
                self.shared.metrics.write_failures.add(1);
                if !before {
                    tracing::warn!(%error, "cannot write the audit file; it is tried again");
                }
            }
            Ok(()) if before => tracing::info!("the audit file is written again"),
            Ok(()) => {}
        }
    }

    fn tell_dropped(&mut self, all: bool) {
        let settings = self.shared.settings.load();
        let dropped = self
            .shared
            .buckets
            .take_dropped(&settings, Instant::now(), all);
        for (key, dropped) in dropped {
            self.write(&Entry::of_dropped(key.tenant, dropped));
        }
    }
}
