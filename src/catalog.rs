//! What is known of the catalog of tenants while the proxy runs: how current it is, and what of it
//! could not be taken.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::config::Mistake;

/// Where what is known of the catalog comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Source {
    /// Nothing is known of it yet.
    #[default]
    Nothing,
    /// It was read, and is looked at.
    Catalog,
    /// It cannot be reached: it is as it was read last.
    Memory,
    /// It could not be reached since the start: it is as the copy on disk has it.
    Copy,
}

impl Source {
    pub const fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Catalog => "catalog",
            Self::Memory => "memory",
            Self::Copy => "copy",
        }
    }
}

/// An entry of the catalog that is not in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub revision: u64,
    pub mistakes: String,
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct View {
    pub source: Source,
    /// The last change of the catalog that is in force.
    pub revision: u64,
    /// When it was last known that there is nothing newer.
    pub current_at: Option<Instant>,
    /// When what is in force was current, if it is of the copy.
    pub copied_at: Option<SystemTime>,
    /// Why it cannot be reached.
    pub error: Option<String>,
    /// By kind (`tenant`, `server`, `placement`) and name.
    pub refused: BTreeMap<(&'static str, String), Refused>,
    /// Connections to it that were lost.
    pub losses: u64,
    /// Why the copy on disk cannot be written.
    pub copy_error: Option<String>,
}

impl View {
    /// How long ago it was known that there is nothing newer. None: it never was.
    pub fn age(&self) -> Option<Duration> {
        match self.copied_at {
            Some(at) => at.elapsed().ok(),
            None => self.current_at.map(|at| at.elapsed()),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Status(Mutex<View>);

impl Status {
    fn lock(&self) -> MutexGuard<'_, View> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn view(&self) -> View {
        self.lock().clone()
    }

    pub fn revision(&self) -> u64 {
        self.lock().revision
    }

    /// It is in force up to this revision, and there is nothing newer.
    pub fn is_current(&self, revision: u64) {
        let mut view = self.lock();
        view.source = Source::Catalog;
        view.revision = revision;
        view.current_at = Some(Instant::now());
        view.copied_at = None;
        view.error = None;
    }

    /// It is as the copy on disk has it.
    pub fn is_copied(&self, revision: u64, at: SystemTime) {
        let mut view = self.lock();
        view.source = Source::Copy;
        view.revision = revision;
        view.copied_at = Some(at);
    }

    /// It cannot be reached. True: it could be before.
    pub fn is_lost(&self, error: &str) -> bool {
        let mut view = self.lock();
        let is_new = view.source == Source::Catalog;
        if is_new {
            view.source = Source::Memory;
            view.losses += 1;
        }
        view.error = Some(error.to_owned());
        is_new
    }

    /// Why the copy cannot be written. True: it could be before, or could not and can.
    pub fn note_copy(&self, error: Option<String>) -> bool {
        let mut view = self.lock();
        let is_new = view.copy_error.is_some() != error.is_some();
        view.copy_error = error;
        is_new
    }

    /// An entry is in force.
    pub fn accept(&self, kind: &'static str, name: &str) {
        let mut view = self.lock();
        if !view.refused.is_empty() {
            view.refused.remove(&(kind, name.to_owned()));
        }
    }

    /// An entry is not, for these mistakes.
    pub fn refuse(&self, kind: &'static str, name: &str, revision: u64, mistakes: &[Mistake]) {
        let mistakes: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
        let refused = Refused {
            revision,
            mistakes: mistakes.join("; "),
        };
        self.lock().refused.insert((kind, name.to_owned()), refused);
    }

    /// Nothing of a kind is refused any more: it is read anew.
    pub fn forget(&self, kind: &'static str) {
        self.lock().refused.retain(|(own, _), _| *own != kind);
    }
}
