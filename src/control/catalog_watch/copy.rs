//! The last good state of the catalog on disk, for a proxy that starts while the catalog is down.
//!
//! The file is a log. It begins with the catalog as it was read in full, and goes on with what has
//! changed; a mark says that all up to a revision is there. Each record is its length in four bytes
//! (little-endian), JSON, and the HMAC-SHA-256, by the key of the config, of the record before and
//! this one. So a process that was killed while it wrote leaves a file that is good up to the mark
//! before, and a record that somebody else has changed, moved or put in is not believed. What can
//! be done without the key is to cut the end off, or to put an older copy in its place: that is
//! what `max_age` is for.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::rows::{PLACEMENT, Place, SERVER, time};
use crate::config::{CatalogCopy, CopyKey, Entry, Lifecycle, State};

const VERSION: u32 = 1;

/// Entries of one record.
const BATCH: usize = 500;

/// Longest record read, in bytes: more than [`BATCH`] tenants with a hundred users each.
const LONGEST: u32 = 64 << 20;

/// A copy that has grown by so much over twice its first size is written anew.
const GROWTH: u64 = 16 << 20;

#[derive(Debug, Serialize, Deserialize)]
enum Record {
    Begin {
        version: u32,
    },
    Tenants(Vec<CopiedTenant>),
    Places(Vec<CopiedPlace>),
    /// All up to this revision is there. In seconds of Unix time.
    Mark {
        revision: u64,
        at: f64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
struct CopiedTenant {
    name: String,
    state: State,
    reason: Option<Box<str>>,
    until: Option<f64>,
    expires: Option<f64>,
    generation: u64,
    revision: u64,
    version: Option<String>,
    spec: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct CopiedPlace {
    is_server: bool,
    name: String,
    spec: Option<String>,
    revision: u64,
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

impl From<&Entry> for CopiedTenant {
    fn from(entry: &Entry) -> Self {
        let life = &entry.lifecycle;
        Self {
            name: entry.name.clone(),
            state: life.state,
            reason: life.reason.clone(),
            until: life.until.map(seconds),
            expires: life.expires.map(seconds),
            generation: entry.generation,
            revision: entry.revision,
            version: entry.version.clone(),
            // What a deleted tenant was is nobody's business.
            spec: match life.state {
                State::Deleted => String::new(),
                _ => entry.spec.clone(),
            },
        }
    }
}

impl From<CopiedTenant> for Entry {
    fn from(copied: CopiedTenant) -> Self {
        Self {
            name: copied.name,
            spec: copied.spec,
            lifecycle: Lifecycle {
                state: copied.state,
                reason: copied.reason,
                until: time(copied.until),
                expires: time(copied.expires),
            },
            generation: copied.generation,
            revision: copied.revision,
            version: copied.version,
        }
    }
}

/// The MAC of a record behind another.
fn mac(key: &CopyKey, before: &[u8], record: &[u8]) -> [u8; 32] {
    // HMAC takes keys of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.expose()) else {
        unreachable!("HMAC takes keys of any length")
    };
    mac.update(before);
    mac.update(record);
    mac.finalize().into_bytes().into()
}

/// A copy that is being written.
pub struct Copy {
    settings: CatalogCopy,
    /// Where it is written until it is whole.
    beside: PathBuf,
    file: File,
    /// In its place.
    is_whole: bool,
    last: [u8; 32],
    /// What is to be written with the next mark.
    pending: Vec<u8>,
    length: u64,
    /// When it became whole.
    first_length: u64,
    revision: u64,
    marked: Instant,
    /// It could not be written, and is of no use any more.
    is_broken: bool,
}

impl Copy {
    /// Begins a new copy beside the one that there is, which it takes the place of with its first
    /// mark.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn begin(settings: &CatalogCopy) -> io::Result<Self> {
        let mut beside = settings.file.clone().into_os_string();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        // One that somebody else has made, with other rights, is not written to.
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)?;
        let mut copy = Self {
            settings: settings.clone(),
            beside,
            file,
            is_whole: false,
            last: [0; 32],
            pending: Vec::new(),
            length: 0,
            first_length: 0,
            revision: 0,
            marked: Instant::now(),
            is_broken: false,
        };
        copy.add(&Record::Begin { version: VERSION });
        Ok(copy)
    }

    /// When it was last said to be current.
    pub fn marked(&self) -> Instant {
        self.marked
    }

    /// Whether it does not have all up to this revision yet.
    pub fn has_news(&self, revision: u64) -> bool {
        !self.is_whole || self.revision != revision
    }

    /// Whether it should be written anew.
    pub fn is_long(&self) -> bool {
        self.is_broken || self.is_whole && self.length > 2 * self.first_length + GROWTH
    }

    pub fn add_tenants(&mut self, entries: &[Entry]) {
        for batch in entries.chunks(BATCH) {
            let batch = batch.iter().map(CopiedTenant::from).collect();
            self.add(&Record::Tenants(batch));
        }
    }

    pub fn add_places(&mut self, places: &[Place]) {
        let places = places.iter().map(|place| CopiedPlace {
            is_server: place.kind == SERVER,
            name: place.name.clone(),
            spec: place.spec.clone(),
            revision: place.revision,
        });
        self.add(&Record::Places(places.collect()));
    }

    fn add(&mut self, record: &Record) {
        let Ok(json) = serde_json::to_vec(record) else {
            self.is_broken = true;
            return;
        };
        let Ok(length) = u32::try_from(json.len()) else {
            self.is_broken = true;
            return;
        };
        self.last = mac(&self.settings.key, &self.last, &json);
        self.pending.extend(length.to_le_bytes());
        self.pending.extend(json);
        self.pending.extend(self.last);
        // The first copy is not held in memory until it is whole.
        if !self.is_whole && self.pending.len() > 1 << 20 && self.write().is_err() {
            self.is_broken = true;
        }
    }

    fn write(&mut self) -> io::Result<()> {
        self.file.write_all(&self.pending)?;
        self.length += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Writes what was added, and that all up to this revision is there. The first time it takes
    /// the place of the copy before.
    ///
    /// # Errors
    /// It cannot be written: then nothing more is, until a new one is begun.
    pub fn mark(&mut self, revision: u64, at: SystemTime) -> io::Result<()> {
        if self.is_broken {
            return Err(io::Error::other(
                "an earlier part of it could not be written",
            ));
        }
        let written = self.try_mark(revision, at);
        self.is_broken = written.is_err();
        written
    }

    fn try_mark(&mut self, revision: u64, at: SystemTime) -> io::Result<()> {
        let at = seconds(at);
        self.add(&Record::Mark { revision, at });
        self.write()?;
        self.file.sync_data()?;
        if !self.is_whole {
            std::fs::rename(&self.beside, &self.settings.file)?;
            if let Some(directory) = self.settings.file.parent() {
                let directory = match directory.as_os_str().is_empty() {
                    true => std::path::Path::new("."),
                    false => directory,
                };
                File::open(directory)?.sync_all()?;
            }
            self.is_whole = true;
            self.first_length = self.length;
        }
        self.revision = revision;
        self.marked = Instant::now();
        Ok(())
    }
}

/// What a copy says.
#[derive(Debug)]
pub struct Copied {
    pub tenants: Vec<Entry>,
    pub places: Vec<Place>,
    pub revision: u64,
    /// When it was current.
    pub at: SystemTime,
}

/// Reads a copy up to its last mark.
///
/// # Errors
/// There is none, it is too old, or not one of this key.
pub fn read(settings: &CatalogCopy, now: SystemTime) -> Result<Copied, String> {
    let file = File::open(&settings.file).map_err(|error| error.to_string())?;
    let mut file = BufReader::with_capacity(1 << 20, file);
    let mut last = [0; 32];
    let mut begun = false;
    let (mut tenants, mut places, mut marked) = (Vec::new(), Vec::new(), None);
    let mut whole = (0, 0);
    while let Some((json, mac)) = next(&mut file, &settings.key, &last) {
        last = mac;
        let record = serde_json::from_slice(&json);
        match record.map_err(|error| format!("a record of it cannot be read: {error}"))? {
            Record::Begin { version: VERSION } => begun = true,
            Record::Begin { version } => {
                return Err(format!("it has version {version}, and {VERSION} is read"));
            }
            Record::Tenants(batch) => tenants.extend(batch.into_iter().map(Entry::from)),
            Record::Places(batch) => places.extend(batch.into_iter().map(|place| Place {
                kind: if place.is_server { SERVER } else { PLACEMENT },
                name: place.name,
                spec: place.spec,
                revision: place.revision,
            })),
            Record::Mark { revision, at } => {
                marked = Some((revision, at));
                whole = (tenants.len(), places.len());
            }
        }
    }
    let Some((revision, at)) = marked.filter(|_| begun) else {
        return Err("it is no copy that was written with this key".to_owned());
    };
    tenants.truncate(whole.0);
    places.truncate(whole.1);
    let at = UNIX_EPOCH + Duration::try_from_secs_f64(at).unwrap_or_default();
    let age = now.duration_since(at).unwrap_or_default();
    if age > settings.max_age {
        let hours = age.as_secs() / 3600;
        return Err(format!(
            "it was current {hours} hours ago, which is more than catalog.copy.max_age"
        ));
    }
    Ok(Copied {
        tenants,
        places,
        revision,
        at,
    })
}

/// The next record, if there is one that is whole and was written with this key.
fn next(file: &mut impl io::Read, key: &CopyKey, before: &[u8; 32]) -> Option<(Vec<u8>, [u8; 32])> {
    let mut length = [0; 4];
    file.read_exact(&mut length).ok()?;
    let length = u32::from_le_bytes(length);
    if length > LONGEST {
        return None;
    }
    let mut json = vec![0; usize::try_from(length).ok()?];
    file.read_exact(&mut json).ok()?;
    let mut told = [0; 32];
    file.read_exact(&mut told).ok()?;
    let wanted = mac(key, before, &json);
    // Nobody can ask how much of it was right.
    (wanted == told).then_some((json, wanted))
}

#[cfg(test)]
mod tests;
