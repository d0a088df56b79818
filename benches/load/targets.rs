//! What is compared: one PostgreSQL cluster, reached directly and through each proxy.

use std::fmt;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pgtenant::cluster::{
    Binaries, Cluster, Dir, Ending, Error, Options, Process, Result, describe, dying_with_us,
    free_port,
};

use crate::Workload;
use crate::machine::Machine;
use crate::pgbench::{self, Protocol};

pub const DATABASE: &str = "app";
pub const USER: &str = "app";
const TENANT: &str = "bench";
/// Server connections that a pooler may use.
pub const POOL_SIZE: u32 = 20;
/// Direct and behind haproxy, every client has one of its own.
const MAX_CONNECTIONS: u32 = 600;
const READY: Duration = Duration::from_secs(10);
pub const ENDING: Ending = &[(Signal::SIGTERM, Duration::from_secs(3))];

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Direct,
    Haproxy,
    #[value(name = "pgbouncer")]
    PgBouncer,
    Pgtenant,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Direct, Self::Haproxy, Self::PgBouncer, Self::Pgtenant];

    pub fn title(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Haproxy => "haproxy",
            Self::PgBouncer => "PgBouncer",
            Self::Pgtenant => "pgtenant",
        }
    }
}

/// As on the command line.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.title().to_ascii_lowercase())
    }
}

/// The programs of others that are needed.
pub struct Programs {
    pub binaries: Binaries,
    pub pgbench: PathBuf,
    pub haproxy: Option<PathBuf>,
    pub pgbouncer: Option<PathBuf>,
}

impl Programs {
    /// # Errors
    /// One that is needed for `kinds` is not here.
    pub fn find(kinds: &[Kind]) -> Result<Self> {
        let binaries = Binaries::find()?;
        let pgbench = Some(binaries.dir().join("pgbench"))
            .filter(|path| path.is_file())
            .map_or_else(|| program("pgbench"), Ok)?;
        let needed = |kind, name| kinds.contains(&kind).then(|| program(name)).transpose();
        Ok(Self {
            haproxy: needed(Kind::Haproxy, "haproxy")?,
            pgbouncer: needed(Kind::PgBouncer, "pgbouncer")?,
            pgbench,
            binaries,
        })
    }

    pub fn postgres(&self) -> PathBuf {
        self.binaries.dir().join("postgres")
    }
}

/// In `PATH`, or where Debian puts what only root has in its own.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            Error::new(format!(
                "there is no {name} here: install what the comparison needs with scripts/install bench"
            ))
        })
}

/// The cluster with its tables. Dropped, it ends.
pub struct Bed {
    pub cluster: Cluster,
    pub pgbench: PathBuf,
    pub password: String,
}

impl Bed {
    /// `scale`: of pgbench's tables, if they are needed.
    pub async fn make(programs: &Programs, scale: Option<u32>) -> Result<Self> {
        let options = Options {
            max_connections: MAX_CONNECTIONS,
            // The tables fit, and nothing happens in the background that one target would see and
            // another would not.
            settings: [
                ("shared_buffers", "512MB"),
                ("autovacuum", "off"),
                ("max_wal_size", "4GB"),
                ("checkpoint_timeout", "1h"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
            ..Options::named("bench")
        };
        let cluster = Cluster::start(&programs.binaries, options).await?;
        // Letters and digits: it goes into the files of three programs as it is.
        let password = cluster.superuser_password().to_owned();
        cluster
            .run(
                "postgres",
                &format!("CREATE ROLE {USER} LOGIN PASSWORD '{password}'"),
            )
            .await?;
        cluster
            .run(
                "postgres",
                &format!("CREATE DATABASE {DATABASE} OWNER {USER}"),
            )
            .await?;
        let bed = Self {
            cluster,
            pgbench: programs.pgbench.clone(),
            password,
        };
        if let Some(scale) = scale {
            pgbench::fill(&bed, scale).await?;
        }
        bed.cluster
            .run(DATABASE, "VACUUM (FREEZE, ANALYZE)")
            .await?;
        bed.cluster.run(DATABASE, "CHECKPOINT").await?;
        Ok(bed)
    }

    /// Starts the proxies and waits until each serves queries.
    pub async fn targets(
        &self,
        programs: &Programs,
        machine: &Machine,
        kinds: &[Kind],
    ) -> Result<Vec<Target>> {
        let mut targets = Vec::new();
        for &kind in kinds {
            let target = match kind {
                Kind::Direct => Target {
                    kind,
                    port: self.cluster.port(),
                    user: USER.to_owned(),
                    prepares: true,
                    proxy: None,
                },
                Kind::Haproxy => self.haproxy(programs.haproxy.as_deref())?,
                Kind::PgBouncer => {
                    self.pgbouncer(programs, machine.pgbouncer_prepares(), &[USER])?
                }
                Kind::Pgtenant => self.pgtenant()?,
            };
            let tenant = match kind {
                Kind::Pgtenant => TENANT,
                _ => "",
            };
            target.ready(&self.password, tenant).await?;
            targets.push(target);
        }
        Ok(targets)
    }

    fn haproxy(&self, program: Option<&Path>) -> Result<Target> {
        let place = Place::make()?;
        let config = place.file(
            "haproxy.cfg",
            &self.filled(include_str!("haproxy.cfg.tmpl"), &place),
        )?;
        place.start(Kind::Haproxy, USER, program, |command| {
            // In the foreground, one process.
            command.arg("-db").arg("-f").arg(config);
        })
    }

    pub fn pgbouncer(&self, programs: &Programs, prepares: bool, users: &[&str]) -> Result<Target> {
        let place = Place::make()?;
        let users = users
            .iter()
            .map(|user| format!("\"{user}\" \"{}\"\n", self.password));
        let userlist = place.file("userlist.txt", &users.collect::<String>())?;
        let mut text = self
            .filled(include_str!("pgbouncer.ini.tmpl"), &place)
            .replace("@userlist@", &userlist.to_string_lossy());
        if prepares {
            text.push_str("max_prepared_statements = 200\n");
        }
        let config = place.file("pgbouncer.ini", &text)?;
        let program = programs.pgbouncer.as_deref();
        let target = place.start(Kind::PgBouncer, USER, program, |command| {
            command.arg(config);
        })?;
        Ok(Target { prepares, ..target })
    }

    fn pgtenant(&self) -> Result<Target> {
        let place = Place::make()?;
        let config = place.file(
            "pgtenant.yaml",
            &self.filled(include_str!("pgtenant.yaml.tmpl"), &place),
        )?;
        let program = Path::new(env!("CARGO_BIN_EXE_pgtenant"));
        let user = format!("{USER}.{TENANT}");
        place.start(Kind::Pgtenant, &user, Some(program), |command| {
            command.arg("serve").arg("--config").arg(config);
        })
    }

    pub fn filled(&self, template: &str, place: &Place) -> String {
        template
            .replace("@port@", &place.port.to_string())
            .replace("@server_port@", &self.cluster.port().to_string())
            .replace("@pool_size@", &POOL_SIZE.to_string())
            // One is for looking whether the server is well.
            .replace("@budget@", &(POOL_SIZE + 1).to_string())
            .replace("@database@", DATABASE)
            .replace("@user@", USER)
            .replace("@password@", &self.password)
            .replace("@tenant@", TENANT)
    }
}

/// Where a proxy has its files and its port.
pub struct Place {
    dir: Dir,
    files: PathBuf,
    port: u16,
}

impl Place {
    pub fn make() -> Result<Self> {
        let dir = Dir::create()?;
        let files = dir.subdir("proxy")?;
        Ok(Self {
            files,
            port: free_port()?,
            dir,
        })
    }

    pub fn file(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.files.join(name);
        self.dir.write(&path, text.as_bytes())?;
        Ok(path)
    }

    /// Runs it as the servers' account: PgBouncer refuses to be root, and all are treated alike. But
    /// pgtenant's binary is somewhere below our own directory, where that account may not get to.
    pub fn start(
        self,
        kind: Kind,
        user: &str,
        program: Option<&Path>,
        arguments: impl FnOnce(&mut Command),
    ) -> Result<Target> {
        let program = program.ok_or_else(|| Error::new(format!("{kind} was not looked for")))?;
        let log = self.files.join("log");
        let output = File::create(&log)
            .and_then(|file| Ok((file.try_clone()?, file)))
            .map_err(|error| Error::new(format!("cannot write {}: {error}", log.display())))?;
        let mut command = dying_with_us(program, Signal::SIGTERM);
        arguments(&mut command);
        command.stdout(output.0).stderr(output.1);
        if let Some(account) = self.dir.account()
            && kind != Kind::Pgtenant
        {
            command.uid(account.uid.as_raw()).gid(account.gid.as_raw());
        }
        Ok(Target {
            kind,
            port: self.port,
            user: user.to_owned(),
            prepares: true,
            proxy: Some(Proxy {
                process: Process::start(kind.title(), command, ENDING)?,
                log,
                _dir: self.dir,
            }),
        })
    }
}

/// A running proxy. Its process is dropped before its directory.
struct Proxy {
    process: Process,
    log: PathBuf,
    _dir: Dir,
}

/// Where pgbench connects.
pub struct Target {
    pub kind: Kind,
    pub port: u16,
    pub user: String,
    /// Whether it knows prepared statements.
    prepares: bool,
    proxy: Option<Proxy>,
}

impl Target {
    /// The proxy's process; none: there is no proxy.
    pub fn pid(&self) -> Option<i32> {
        self.proxy.as_ref().map(|proxy| proxy.process.pid())
    }

    /// PgBouncer before 1.21 knows no prepared statements in transaction pooling, and in session pooling it
    /// would need a server connection for each client, which is another comparison.
    pub fn serves(&self, workload: Workload) -> bool {
        self.prepares || workload.protocol != Protocol::Prepared
    }

    /// Waits until a query is answered, and answered as `expected`, the tenant.
    pub async fn ready(&self, password: &str, expected: &str) -> Result<()> {
        let deadline = Instant::now() + READY;
        loop {
            let answer = self.ask(password).await;
            match answer {
                Ok(tenant) if tenant == expected => return Ok(()),
                Ok(tenant) => {
                    return Err(self.failed(&format!("serves the tenant \"{tenant}\"")));
                }
                Err(error) if self.ended() || Instant::now() >= deadline => {
                    return Err(self.failed(&format!("does not answer: {}", describe(&error))));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// The tenant that a query finds in its session.
    async fn ask(&self, password: &str) -> Result<String, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::Config::new()
            .host("127.0.0.1")
            .port(self.port)
            .user(&self.user)
            .password(password)
            .dbname(DATABASE)
            .ssl_mode(tokio_postgres::config::SslMode::Disable)
            .connect_timeout(READY)
            .connect(tokio_postgres::NoTls)
            .await?;
        // Its errors reach the client's calls.
        tokio::spawn(connection);
        let rows = client
            .simple_query("SELECT coalesce(current_setting('app.tenant_id', true), '')")
            .await?;
        let tenant = rows.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        Ok(tenant.unwrap_or_default().to_owned())
    }

    fn ended(&self) -> bool {
        self.proxy
            .as_ref()
            .is_some_and(|proxy| proxy.process.status().is_some())
    }

    /// An error of this target, with the end of its log.
    pub fn failed(&self, how: &str) -> Error {
        let log = self
            .proxy
            .as_ref()
            .and_then(|proxy| std::fs::read_to_string(&proxy.log).ok())
            .unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(10)..].join("\n");
        Error::new(format!("{} {how}\n{tail}", self.kind.title()))
    }
}
