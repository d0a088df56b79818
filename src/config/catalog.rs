//! Where the catalog of tenants is, and how it is read and changed.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Login;
use crate::id::ServerName;

/// `catalog`: a database that holds tenants as data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalog {
    /// One of the file's servers.
    pub server: ServerName,
    pub database: String,
    /// Reads.
    pub login: Arc<Login>,
    /// Changes tenants. None: nobody does by this config.
    pub writer: Option<Arc<Login>>,
    /// Longest time between two looks for changes.
    pub poll: Duration,
    /// The last good state on disk. None: there is none.
    pub copy: Option<CatalogCopy>,
}

/// `catalog.copy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogCopy {
    pub file: PathBuf,
    /// What the copy's MAC is made with.
    pub key: CopyKey,
    /// An older copy is not used.
    pub max_age: Duration,
}

/// All bytes of `catalog.copy.key_file`. `Debug` prints `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct CopyKey(Arc<[u8]>);

impl CopyKey {
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for CopyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
