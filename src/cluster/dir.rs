//! The temporary directory of a cluster: removed when dropped, and by the next run if its owner was
//! killed before it could.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::unistd::{Gid, Uid, User, chown};

use super::{Error, Result};

const PREFIX: &str = "pgtenant-";
const LOCK: &str = "lock";

/// Whom the servers run as: they refuse to run as root.
#[derive(Debug, Clone)]
pub struct Account {
    pub uid: Uid,
    pub gid: Gid,
}

impl Account {
    /// Another account than our own, if we are root.
    pub fn for_servers() -> Result<Option<Self>> {
        if !Uid::effective().is_root() {
            return Ok(None);
        }
        ["postgres", "nobody"]
            .iter()
            .find_map(|name| User::from_name(name).ok().flatten())
            .map(|user| Some(Self { uid: user.uid, gid: user.gid }))
            .ok_or_else(|| Error::new("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as"))
    }
}

/// A directory of ours, with parts of it given to the servers' account.
#[derive(Debug)]
pub struct Dir {
    path: PathBuf,
    account: Option<Account>,
    /// Locked as long as we live.
    _lock: File,
}

impl Dir {
    pub fn create() -> Result<Self> {
        let account = Account::for_servers()?;
        let base = base(account.is_some());
        sweep(&base);
        let failed = |error: io::Error| {
            Error::new(format!(
                "cannot make a directory in {}: {error}",
                base.display()
            ))
        };
        // The servers' account has to pass through, and sees only what it is given.
        let mode = if account.is_some() { 0o711 } else { 0o700 };
        let path = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(Permissions::from_mode(mode))
            .tempdir_in(&base)
            .map_err(failed)?
            .keep();
        let lock = claim(&path).map_err(|error| {
            let _ = fs::remove_dir_all(&path);
            failed(error)
        })?;
        Ok(Self {
            path,
            account,
            _lock: lock,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn account(&self) -> Option<&Account> {
        self.account.as_ref()
    }

    /// A new directory below, readable by the servers' account alone.
    pub fn subdir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| Error::new(format!("cannot make {}: {error}", path.display())))?;
        self.give(&path)?;
        Ok(path)
    }

    /// Writes a file that only the servers' account may read.
    pub fn write(&self, path: &Path, content: &[u8]) -> Result<()> {
        let failed =
            |error: io::Error| Error::new(format!("cannot write {}: {error}", path.display()));
        // Made empty first: it must not be readable by others for a moment either.
        File::create(path).map_err(failed)?;
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
        fs::write(path, content).map_err(failed)?;
        self.give(path)
    }

    fn give(&self, path: &Path) -> Result<()> {
        let Some(account) = &self.account else {
            return Ok(());
        };
        chown(path, Some(account.uid), Some(account.gid)).map_err(|error| {
            Error::new(format!(
                "cannot change the owner of {}: {error}",
                path.display()
            ))
        })
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        // A process that was killed may still be writing.
        for _ in 0..20 {
            match remove(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    thread::sleep(Duration::from_millis(50));
                }
                _ => return,
            }
        }
    }
}

/// Where to put directories. A Unix socket's path has at most 107 bytes, and the servers' account
/// must be able to get there.
fn base(other_account: bool) -> PathBuf {
    let base = std::env::temp_dir();
    if other_account || base.as_os_str().len() > 50 {
        PathBuf::from("/tmp")
    } else {
        base
    }
}

/// Locks the directory, so that there is no moment in which another process sees an unlocked lock.
fn claim(path: &Path) -> io::Result<File> {
    let unlocked = path.join("lock.new");
    let lock = File::create(&unlocked)?;
    lock.lock()?;
    fs::rename(unlocked, path.join(LOCK))?;
    Ok(lock)
}

/// Removes directories of ours whose owner is dead. What cannot be removed is left alone.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX)
            && fs::symlink_metadata(&path)
                .is_ok_and(|meta| meta.is_dir() && meta.uid() == Uid::effective().as_raw());
        if ours && is_abandoned(&path) {
            let _ = remove(&path);
        }
    }
}

/// Removes what is below first: were we killed in between, the lock still tells the next sweep.
fn remove(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    fs::remove_dir_all(path)
}

fn is_abandoned(path: &Path) -> bool {
    File::open(path.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok())
        && !has_live_postmaster(path)
}

/// Whether the process that `postmaster.pid` names is still one that was started with this
/// directory.
fn has_live_postmaster(path: &Path) -> bool {
    let data = path.join(super::DATA);
    let cmdline = fs::read_to_string(data.join("postmaster.pid"))
        .ok()
        .and_then(|text| {
            Some(
                Path::new("/proc")
                    .join(text.lines().next()?)
                    .join("cmdline"),
            )
        });
    cmdline
        .and_then(|file| fs::read_to_string(file).ok())
        .is_some_and(|arguments| arguments.contains(data.to_string_lossy().as_ref()))
}
