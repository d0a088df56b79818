//! Private PostgreSQL clusters in temporary directories, for the demo, the tests and the benches.
//!
//! A cluster is made by `initdb`, listens on a free port of the loopback interface and on a Unix
//! socket in its own directory, and is gone with its directory when it is stopped or dropped. The
//! data is disposable: nothing is flushed to disk. It never touches a cluster it did not make, and
//! uses neither `pg_ctl` nor `psql`.

mod dir;
mod process;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rand::Rng;
use rand::distr::Alphanumeric;

use crate::timer;

pub use process::{Ending, Process, dying_with_us, interrupted};

pub use dir::Dir;

/// The superuser of every cluster. Over the Unix socket it needs no password.
pub const SUPERUSER: &str = "postgres";

const DATA: &str = "data";
/// From the start of `postgres` to the first connection, and of `initdb` to its end.
const START: Duration = Duration::from_secs(60);
/// A fast shutdown first, then an immediate one.
const ENDING: Ending = &[
    (Signal::SIGINT, Duration::from_secs(5)),
    (Signal::SIGQUIT, Duration::from_secs(5)),
];

const INITDB_ENDING: Ending = &[(Signal::SIGTERM, Duration::from_secs(5))];

/// What went wrong, as one sentence for whoever runs the demo or the tests.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

impl Error {
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What tokio-postgres' own `Display` leaves out: the server's message and SQLSTATE, or the cause.
pub fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", db.message(), db.code().code());
    }
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// The directory of `initdb` and `postgres`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries(PathBuf);

impl Binaries {
    /// The first of: `PGTENANT_PG_BINDIR`, the newest `/usr/lib/postgresql/*/bin`, what `pg_config`
    /// says, the directory of `initdb` in `PATH`.
    ///
    /// # Errors
    /// There is none: says what to install.
    pub fn find() -> Result<Self> {
        if let Some(dir) = std::env::var_os("PGTENANT_PG_BINDIR") {
            let dir = PathBuf::from(dir);
            return Self::at(&dir).ok_or_else(|| {
                Error::new(format!(
                    "PGTENANT_PG_BINDIR is {}, where there is no initdb and postgres",
                    dir.display()
                ))
            });
        }
        newest_of_debian().or_else(of_pg_config).or_else(of_path).ok_or_else(|| {
            Error::new("there is no PostgreSQL server here: install one (apt-get install postgresql) or set PGTENANT_PG_BINDIR to the directory of its initdb")
        })
    }

    /// `dir`, if it has what is needed.
    pub fn at(dir: &Path) -> Option<Self> {
        let has = |name| dir.join(name).is_file();
        (has("initdb") && has("postgres")).then(|| Self(dir.to_owned()))
    }

    pub fn dir(&self) -> &Path {
        &self.0
    }
}

fn newest_of_debian() -> Option<Binaries> {
    let version = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let mut found: Vec<_> = fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .flatten()
        .filter_map(|entry| {
            Some((
                version(&entry.path())?,
                Binaries::at(&entry.path().join("bin"))?,
            ))
        })
        .collect();
    found.sort_by_key(|(version, _)| *version);
    found.pop().map(|(_, binaries)| binaries)
}

fn of_pg_config() -> Option<Binaries> {
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    Binaries::at(Path::new(std::str::from_utf8(&output.stdout).ok()?.trim()))
}

fn of_path() -> Option<Binaries> {
    std::env::split_paths(&std::env::var_os("PATH")?).find_map(|dir| Binaries::at(&dir))
}

/// What a cluster is to be like.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its `cluster_name`, which clients can read: `SHOW cluster_name`.
    pub name: String,
    pub max_connections: u32,
    /// More settings of `postgresql.conf`; these win.
    pub settings: Vec<(String, String)>,
    /// TLS on the TCP port; none: off.
    pub tls: Option<Tls>,
    /// Lines of `pg_hba.conf`, before those that let everybody in by SCRAM over TCP and by trust
    /// over the Unix socket.
    pub hba: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "test".to_owned(),
            max_connections: 100,
            settings: Vec::new(),
            tls: None,
            hba: Vec::new(),
        }
    }
}

impl Options {
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }
}

/// PEM texts for `ssl_cert_file`, `ssl_key_file` and, to check client certificates, `ssl_ca_file`.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    pub cert: Vec<u8>,
    pub key: Vec<u8>,
    pub client_ca: Option<Vec<u8>>,
}

/// How to shut a server down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// Ends the sessions with 57P01, writes a checkpoint.
    Fast,
    /// Ends the sessions with 57P02 (or nothing), recovers at the next start.
    Immediate,
    /// SIGKILL to the postmaster; its children notice and exit.
    Kill,
}

/// A running PostgreSQL cluster.
///
/// It is ended when dropped, which blocks the thread for a moment.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    binaries: Binaries,
    port: u16,
    password: String,
    /// Absent while the server is shut down. Dropped before `dir`.
    postmaster: Mutex<Option<Process>>,
    dir: Dir,
}

impl Cluster {
    /// Makes a cluster, starts it and waits until it answers.
    ///
    /// Not cancel safe in the sense of resuming; dropped half-way, it leaves nothing behind.
    ///
    /// # Errors
    /// `initdb` or `postgres` fails: with the end of its log.
    pub async fn start(binaries: &Binaries, options: Options) -> Result<Self> {
        let dir = Dir::create()?;
        dir.subdir(SOCKETS)?;
        dir.subdir(DATA)?;
        let password: String = rand::rng()
            .sample_iter(Alphanumeric)
            .take(20)
            .map(char::from)
            .collect();
        let mut cluster = Self {
            name: options.name.clone(),
            binaries: binaries.clone(),
            port: 0,
            password,
            postmaster: Mutex::new(None),
            dir,
        };
        cluster.initdb().await?;
        cluster.configure(&options)?;
        for _ in 0..10 {
            cluster.port = free_port()?;
            match cluster.start_again().await {
                Err(_) if cluster.log().contains("could not bind") => {
                    // Somebody else was faster.
                    let _ = fs::remove_file(cluster.log_path());
                }
                Err(error) => return Err(error),
                Ok(()) => return Ok(cluster),
            }
        }
        Err(Error::new(format!(
            "no free port for PostgreSQL {}",
            cluster.name
        )))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address of the TCP port.
    pub fn host(&self) -> &'static str {
        "127.0.0.1"
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of the Unix socket.
    pub fn socket_dir(&self) -> PathBuf {
        self.dir.path().join(SOCKETS)
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join(DATA)
    }

    pub fn superuser_password(&self) -> &str {
        &self.password
    }

    /// A URL for the superuser over TCP.
    pub fn superuser_dsn(&self, database: &str) -> String {
        format!(
            "postgresql://{SUPERUSER}:{}@{}:{}/{database}",
            self.password,
            self.host(),
            self.port
        )
    }

    /// The postmaster's process id; absent while it is shut down.
    pub fn pid(&self) -> Option<i32> {
        self.postmaster().as_ref().map(Process::pid)
    }

    /// Everything `initdb` and the server have written.
    pub fn log(&self) -> String {
        fs::read(self.log_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// How to connect as the superuser over the Unix socket.
    pub fn config(&self, database: &str) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(self.socket_dir())
            .port(self.port)
            .user(SUPERUSER)
            .dbname(database);
        config
    }

    /// A superuser's session over the Unix socket; it ends with the client.
    ///
    /// # Errors
    /// The server refuses or is not there.
    pub async fn connect(
        &self,
        database: &str,
    ) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let (client, connection) = self.config(database).connect(tokio_postgres::NoTls).await?;
        // Its errors reach the client's calls.
        tokio::spawn(connection);
        Ok(client)
    }

    /// Runs statements as the superuser.
    ///
    /// # Errors
    /// The server's message.
    pub async fn run(&self, database: &str, sql: &str) -> Result<()> {
        let failed = |error| Error::new(format!("PostgreSQL {}: {}", self.name, describe(&error)));
        let client = self.connect(database).await.map_err(failed)?;
        client.batch_execute(sql).await.map_err(failed)
    }

    /// Shuts the server down and keeps the data for [`Cluster::start_again`].
    ///
    /// # Errors
    /// It does not end.
    pub async fn shut_down(&self, how: Shutdown) -> Result<()> {
        let Some(postmaster) = self.postmaster().take() else {
            return Ok(());
        };
        postmaster.signal(match how {
            Shutdown::Fast => Signal::SIGINT,
            Shutdown::Immediate => Signal::SIGQUIT,
            Shutdown::Kill => Signal::SIGKILL,
        });
        if postmaster.ended(START).await.is_some() {
            Ok(())
        } else {
            postmaster.end().await
        }
    }

    /// Starts the server on the same port with the same data, and waits until it answers.
    ///
    /// # Errors
    /// It does not start: with the end of its log.
    pub async fn start_again(&self) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            let postmaster = self.spawn()?;
            if self.answers(&postmaster, deadline).await {
                *self.postmaster() = Some(postmaster);
                return Ok(());
            }
            // After a kill its children may hold the shared memory for a moment.
            let passing = self.log_tail().contains("still in use");
            if !passing || Instant::now() >= deadline {
                return Err(Error::new(format!(
                    "PostgreSQL {} does not start:\n{}",
                    self.name,
                    self.log_tail()
                )));
            }
            timer::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A fast shutdown and a start on the same port.
    ///
    /// # Errors
    /// It does not end or does not start.
    pub async fn restart(&self) -> Result<()> {
        self.shut_down(Shutdown::Fast).await?;
        self.start_again().await
    }

    /// An immediate shutdown and a start, with recovery, on the same port.
    ///
    /// # Errors
    /// It does not end or does not start.
    pub async fn crash(&self) -> Result<()> {
        self.shut_down(Shutdown::Immediate).await?;
        self.start_again().await
    }

    /// Ends the server and removes everything.
    ///
    /// # Errors
    /// It does not end.
    pub async fn stop(self) -> Result<()> {
        let postmaster = self.postmaster().take();
        match postmaster {
            Some(postmaster) => postmaster.end().await,
            None => Ok(()),
        }
    }

    fn postmaster(&self) -> MutexGuard<'_, Option<Process>> {
        self.postmaster
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// The last lines of the log, for an error message.
    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// A PostgreSQL program that runs as the right user, writes to the log and knows nothing of the
    /// environment that could change what it does.
    fn program(&self, name: &str) -> Result<Command> {
        let mut command = dying_with_us(&self.binaries.dir().join(name), Signal::SIGINT);
        for (variable, _) in std::env::vars_os() {
            let text = variable.to_string_lossy();
            if text.starts_with("PG") || text.starts_with("LC_") || text.starts_with("LANG") {
                command.env_remove(variable);
            }
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .and_then(|file| Ok((file.try_clone()?, file)))
            .map_err(|error| {
                Error::new(format!(
                    "cannot write {}: {error}",
                    self.log_path().display()
                ))
            })?;
        command
            .env("LC_ALL", "C")
            .current_dir(self.data_dir())
            .stdout(log.0)
            .stderr(log.1);
        if let Some(account) = self.dir.account() {
            command.uid(account.uid.as_raw()).gid(account.gid.as_raw());
        }
        Ok(command)
    }

    async fn initdb(&self) -> Result<()> {
        let password_file = self.socket_dir().join("password");
        self.dir.write(&password_file, self.password.as_bytes())?;
        let mut command = self.program("initdb")?;
        command
            .args([
                "--username",
                SUPERUSER,
                "--encoding=UTF8",
                "--locale=C",
                "--no-sync",
            ])
            .args([
                "--auth-host=scram-sha-256",
                "--auth-local=trust",
                "--pwfile",
            ])
            .arg(&password_file)
            .arg("--pgdata")
            .arg(self.data_dir());
        let initdb = Process::start("initdb", command, INITDB_ENDING)?;
        let status = initdb.ended(START).await;
        let _ = fs::remove_file(password_file);
        if status.is_some_and(|status| status.success()) {
            return Ok(());
        }
        Err(Error::new(format!(
            "{} failed, run as {}:\n{}",
            self.binaries.dir().join("initdb").display(),
            if self.dir.account().is_some() {
                "another user because root may not"
            } else {
                "you"
            },
            self.log_tail()
        )))
    }

    fn configure(&self, options: &Options) -> Result<()> {
        let data = self.data_dir();
        let mut settings: Vec<(String, String)> = [
            ("cluster_name", options.name.as_str()),
            ("listen_addresses", self.host()),
            (
                "unix_socket_directories",
                &self.socket_dir().to_string_lossy(),
            ),
            ("max_connections", &options.max_connections.to_string()),
            ("fsync", "off"),
            ("full_page_writes", "off"),
            ("log_line_prefix", "%m [%p] %q%u@%d "),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        if let Some(tls) = &options.tls {
            let ca = tls
                .client_ca
                .as_ref()
                .map(|pem| ("ssl_ca_file", "client-ca.crt", pem));
            let files = [
                ("ssl_cert_file", "server.crt", &tls.cert),
                ("ssl_key_file", "server.key", &tls.key),
            ];
            settings.push(("ssl".to_owned(), "on".to_owned()));
            for (setting, file, pem) in files.into_iter().chain(ca) {
                self.dir.write(&data.join(file), pem)?;
                settings.push((setting.to_owned(), file.to_owned()));
            }
        }
        settings.extend(options.settings.iter().cloned());

        let file = data.join("postgresql.conf");
        let mut conf = fs::read_to_string(&file)
            .map_err(|error| Error::new(format!("cannot read {}: {error}", file.display())))?;
        for (name, value) in settings {
            // Writing to a String cannot fail.
            let _ = writeln!(conf, "{name} = '{}'", value.replace('\'', "''"));
        }
        self.dir.write(&file, conf.as_bytes())?;

        let mut hba = options.hba.join("\n");
        hba.push_str("\nlocal all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n");
        hba.push_str(
            "local replication all trust\nhost replication all 127.0.0.1/32 scram-sha-256\n",
        );
        self.dir.write(&data.join("pg_hba.conf"), hba.as_bytes())
    }

    fn spawn(&self) -> Result<Process> {
        let mut command = self.program("postgres")?;
        command
            .arg("-D")
            .arg(self.data_dir())
            .args(["-p", &self.port.to_string()]);
        Process::start(&format!("PostgreSQL {}", self.name), command, ENDING)
    }

    /// Whether the server comes up before it ends and before the deadline.
    async fn answers(&self, postmaster: &Process, deadline: Instant) -> bool {
        while postmaster.status().is_none() && Instant::now() < deadline {
            if self.connect("postgres").await.is_ok() {
                return true;
            }
            timer::sleep(Duration::from_millis(10)).await;
        }
        false
    }
}

const SOCKETS: &str = "s";

/// A port of the loopback interface that nobody listens on, below those that the kernel gives to
/// outgoing connections, so that it is still free when a server comes back to it.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16> {
    (0..200)
        .map(|_| rand::rng().random_range(20_000..32_000))
        .find(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
        .ok_or_else(|| Error::new("there is no free port from 20000 to 32000 on 127.0.0.1"))
}

#[cfg(test)]
mod tests;
