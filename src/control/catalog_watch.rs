//! Reads the catalog of tenants, and keeps what the proxy knows of it current.
//!
//! The catalog is read in full once, and then what has changed since the last revision: as soon as
//! a notification comes, and every `catalog.poll` without one. So a notification that is lost costs
//! a poll, and a connection that has died without a word costs a poll and the time that an answer
//! may take. While the catalog cannot be reached, its tenants stay as they were read last; a proxy
//! that starts meanwhile has them from the [`copy`] on disk.

mod copy;
mod rows;

use std::collections::HashSet;
use std::pin::pin;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use crate::app::App;
use crate::config::{self, Entry, Extras, State};
use crate::control::door::{self, words};
use crate::timer;
use copy::Copy;
use rows::{About, Place};

/// How long an answer to a question may take, and the next row of one.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long the first connection may take while nobody is served yet.
const FIRST_PATIENCE: Duration = Duration::from_secs(3);

/// From one attempt to connect to the next, at first and at most.
const SOONEST: Duration = Duration::from_millis(100);
const LATEST: Duration = Duration::from_secs(1);

/// Tenants that are put in force at once.
const CHUNK: usize = 50_000;

/// Without a change the copy is told so often that it is current.
const MARK: Duration = Duration::from_secs(60);

/// Why the catalog cannot be read.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{}", words(.0))]
    Server(#[from] tokio_postgres::Error),
    #[error("it does not answer")]
    Silence,
    #[error("{0}")]
    Unfit(String),
}

/// Watches until the proxy is gone or stops. `ready` is told once the tenants are known, by the
/// catalog or its copy, or cannot be.
pub async fn watch(app: Weak<App>, ready: SyncSender<()>) {
    let mut reader = Reader::default();
    if let Some(app) = app.upgrade() {
        reader.begin(&app).await;
    }
    let _ = ready.send(());
    drop(ready);
    let mut pause = SOONEST;
    loop {
        let Some(app) = app.upgrade().filter(|app| !app.is_draining()) else {
            return;
        };
        let poll = app.config().catalog.as_ref().map(|catalog| catalog.poll);
        let Some(poll) = poll else {
            // A catalog comes and goes with a restart.
            return;
        };
        let followed = reader.follow(&app).await;
        let wait = match followed {
            Ok(()) => {
                pause = SOONEST;
                poll
            }
            Err(failure) => {
                reader.lose(&app, &failure);
                pause = (pause * 2).min(LATEST);
                pause
            }
        };
        drop(app);
        reader.wait(wait).await;
    }
}

/// A connection to the catalog.
struct Link {
    client: Client,
    task: JoinHandle<()>,
    /// As whom and where; another config needs another connection.
    made_for: Arc<config::Catalog>,
    server: Arc<config::Server>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What is known of the catalog, and the way to it.
#[derive(Default)]
struct Reader {
    link: Option<Link>,
    heard: Arc<Notify>,
    /// All changes up to this one are in force, unless they were refused.
    revision: u64,
    /// Whether all of it was read once.
    is_whole: bool,
    copy: Option<Copy>,
}

impl Reader {
    /// Makes the tenants known for the first time.
    async fn begin(&mut self, app: &Arc<App>) {
        if let Err(mistakes) = app.expect_tenants() {
            tracing::error!(?mistakes, "the catalog cannot be used");
            return;
        }
        let first = timer::timeout(FIRST_PATIENCE, self.connect(app)).await;
        let read = match first {
            Ok(Ok(())) => self.follow(app).await,
            Ok(Err(failure)) => Err(failure),
            Err(_) => Err(Failure::Silence),
        };
        if let Err(failure) = read {
            self.lose(app, &failure);
            tracing::error!(%failure, "the catalog of tenants cannot be read");
            self.read_copy(app).await;
        }
    }

    /// Waits for a notification, at most so long.
    async fn wait(&self, longest: Duration) {
        let _ = timer::timeout(longest, self.heard.notified()).await;
    }

    fn lose(&mut self, app: &App, failure: &Failure) {
        self.link = None;
        if app.catalog.is_lost(&failure.to_string()) {
            tracing::error!(%failure, "lost the connection to the catalog of tenants");
        }
    }

    async fn connect(&mut self, app: &Arc<App>) -> Result<(), Failure> {
        let config = app.config();
        let unfit = || Failure::Unfit("the config has no catalog".to_owned());
        let catalog = config.catalog.clone().ok_or_else(unfit)?;
        let server = config
            .servers
            .get(&catalog.server)
            .ok_or_else(unfit)?
            .clone();
        if let Some(link) = &self.link
            && link.made_for == catalog
            && link.server.address == server.address
        {
            return Ok(());
        }
        self.link = None;
        let session = door::config(&catalog.login, &catalog.database, "pgtenant catalog");
        let connecting = door::connect_to_hear(&server, &session, self.heard.clone());
        let connected = timer::timeout(PATIENCE, connecting).await;
        let (client, task) = connected.map_err(|_| Failure::Silence)??;
        let link = Link {
            client,
            task,
            made_for: catalog,
            server,
        };
        let listen = link.client.batch_execute("LISTEN pgtenant_catalog");
        let listening = timer::timeout(PATIENCE, listen).await;
        listening.map_err(|_| Failure::Silence)??;
        self.link = Some(link);
        if self.is_whole {
            tracing::info!("connected to the catalog of tenants again");
        }
        Ok(())
    }

    /// Puts in force what has changed.
    async fn follow(&mut self, app: &Arc<App>) -> Result<(), Failure> {
        self.connect(app).await?;
        let Some(link) = self.link.take() else {
            return Err(Failure::Silence);
        };
        let done = self.follow_by(app, &link.client).await;
        self.link = Some(link);
        done
    }

    async fn follow_by(&mut self, app: &Arc<App>, client: &Client) -> Result<(), Failure> {
        let about = rows::about(client).await?;
        if self.is_whole && about.revision == self.revision {
            app.catalog.is_current(self.revision);
            return self.mark(app).await;
        }
        client
            .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await?;
        let read = self.read_since(app, client).await;
        let _ = timer::timeout(PATIENCE, client.batch_execute("ROLLBACK")).await;
        let about = read?;
        self.revision = about.revision;
        self.is_whole = true;
        app.catalog.is_current(self.revision);
        self.mark(app).await
    }

    /// Reads what is new in one snapshot: all, if it was never read, or if it is an older catalog
    /// than the one that was read, as after a restore from a backup.
    async fn read_since(&mut self, app: &Arc<App>, client: &Client) -> Result<About, Failure> {
        let about = rows::about(client).await?;
        let all = !self.is_whole || about.revision < self.revision;
        let since = if all { 0 } else { self.revision };
        if all && self.is_whole {
            tracing::warn!(
                was = self.revision,
                is = about.revision,
                "the catalog is older than it was: it is read anew"
            );
        }
        let mut copy = match all {
            true => self.new_copy(app),
            false => self.copy.take(),
        };
        let places = rows::places(client, since).await?;
        if all || !places.is_empty() {
            self.put_places(app, &places, all);
            if let Some(copy) = &mut copy {
                copy.add_places(&places);
            }
        }
        let known = || -> HashSet<String> {
            let config = app.config();
            let tenants = config.tenants.values();
            let listed = tenants.filter(|tenant| tenant.listed.is_some());
            listed.map(|tenant| tenant.name().to_string()).collect()
        };
        let mut missing = if all { known() } else { HashSet::new() };
        let mut tenants = pin!(rows::tenants(client, since).await?);
        loop {
            let entries = rows::next_chunk(tenants.as_mut(), CHUNK).await?;
            let is_last = entries.len() < CHUNK;
            for entry in &entries {
                missing.remove(&entry.name);
            }
            if let Some(copy) = &mut copy {
                copy.add_tenants(&entries);
            }
            app.put_tenants(&entries);
            if is_last {
                break;
            }
        }
        let gone: Vec<_> = missing.into_iter().map(no_more).collect();
        if !gone.is_empty() {
            app.put_tenants(&gone);
        }
        self.copy = copy;
        Ok(about)
    }

    /// Has other servers and placements in force. One with mistakes stays as it was, or away.
    fn put_places(&self, app: &App, places: &[Place], all: bool) {
        let before = if all { Extras::default() } else { app.extras() };
        let mut now = before.clone();
        places.iter().for_each(|place| place.put_in(&mut now));
        if now == app.extras() {
            return;
        }
        if all {
            for kind in [rows::SERVER, rows::PLACEMENT] {
                app.catalog.forget(kind);
            }
        }
        if app.reload_with(&now).is_ok() {
            for place in places {
                app.catalog.accept(place.kind, &place.name);
            }
            return;
        }
        // One by one, servers first: who is wrong is left out.
        let mut good = before;
        for place in places {
            let mut tried = good.clone();
            place.put_in(&mut tried);
            match app.reload_with(&tried) {
                Ok(_) => {
                    app.catalog.accept(place.kind, &place.name);
                    good = tried;
                }
                Err(mistakes) => {
                    (app.catalog).refuse(place.kind, &place.name, place.revision, &mistakes);
                }
            }
        }
    }

    // ---- the copy ----

    fn new_copy(&self, app: &App) -> Option<Copy> {
        let config = app.config();
        let settings = config.catalog.as_ref()?.copy.as_ref()?;
        match Copy::begin(settings) {
            Ok(copy) => Some(copy),
            Err(error) => {
                note_copy(app, Some(error.to_string()));
                None
            }
        }
    }

    /// Writes what was added to the copy, and that it is current.
    async fn mark(&mut self, app: &App) -> Result<(), Failure> {
        let Some(mut copy) = self.copy.take() else {
            return Ok(());
        };
        if !copy.has_news(self.revision) && copy.marked().elapsed() < MARK {
            self.copy = Some(copy);
            return Ok(());
        }
        let revision = self.revision;
        let written = tokio::task::spawn_blocking(move || {
            let written = copy.mark(revision, SystemTime::now());
            (copy, written)
        });
        if let Ok((copy, written)) = written.await {
            note_copy(app, written.as_ref().err().map(ToString::to_string));
            if copy.is_long() {
                // The next look reads all, and writes a new one.
                self.is_whole = false;
            }
            self.copy = Some(copy);
        }
        Ok(())
    }

    /// Has the tenants of the copy in force.
    async fn read_copy(&mut self, app: &Arc<App>) {
        let config = app.config();
        let copy = config.catalog.as_ref();
        let Some(settings) = copy.and_then(|catalog| catalog.copy.clone()) else {
            return;
        };
        let file = settings.file.clone();
        let read = tokio::task::spawn_blocking(move || copy::read(&settings, SystemTime::now()));
        match read.await {
            Ok(Ok(copied)) => {
                let places: Vec<Place> = copied.places;
                self.put_places(app, &places, true);
                for entries in copied.tenants.chunks(CHUNK) {
                    app.put_tenants(entries);
                }
                app.catalog.is_copied(copied.revision, copied.at);
                tracing::warn!(
                    file = %file.display(),
                    revision = copied.revision,
                    tenants = copied.tenants.len(),
                    "serving tenants as the copy of the catalog has them"
                );
            }
            Ok(Err(error)) => {
                tracing::error!(file = %file.display(), error, "the copy of the catalog cannot be used");
            }
            Err(_) => {}
        }
    }
}

fn note_copy(app: &App, error: Option<String>) {
    let message = error.clone();
    if app.catalog.note_copy(error) {
        match message {
            Some(error) => tracing::error!(error, "the copy of the catalog cannot be written"),
            None => tracing::info!("the copy of the catalog is written again"),
        }
    }
}

/// What a tenant is that the catalog has no more.
fn no_more(name: String) -> Entry {
    Entry {
        name,
        spec: String::new(),
        lifecycle: config::Lifecycle {
            state: State::Deleted,
            ..config::Lifecycle::default()
        },
        generation: 0,
        revision: 0,
        version: None,
    }
}
