//! What is compared: one PostgreSQL cluster, reached directly and through each proxy.

use std::fmt;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pgtenant::cluster::{
    Binaries, Cluster, Dir, Ending, Error, Options, Process, Result, describe, dying_with_us,
    free_port,
};
use rustls_pki_types::CertificateDer;
use tokio_rustls::TlsConnector;

use crate::client::{Door, Keys};
use crate::pgbench::{self, Protocol};
use crate::workload::Ground;

pub const DATABASE: &str = "app";
pub const USER: &str = "app";
const TENANT: &str = "bench";
/// Server connections that a pooler may use.
pub const POOL_SIZE: u32 = 20;
/// Clients that a pooler lets in, where a workload does not have more.
const CLIENTS: u32 = 1000;
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

    pub const fn title(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Haproxy => "haproxy",
            Self::PgBouncer => "PgBouncer",
            Self::Pgtenant => "pgtenant",
        }
    }

    /// Whether it holds clients without a server connection for each.
    pub fn pools(self) -> bool {
        matches!(self, Self::PgBouncer | Self::Pgtenant)
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

/// What a workload wants of the targets.
#[derive(Debug, Clone, Copy)]
pub struct Setup {
    /// The clients speak TLS.
    pub tls: bool,
    /// Tenants of pgtenant beside the one, by [`tenant`].
    pub tenants: u32,
    /// Clients that a pooler lets in.
    pub clients: u32,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            tls: false,
            tenants: 0,
            clients: CLIENTS,
        }
    }
}

/// The name of one of many tenants.
pub fn tenant(number: u32) -> String {
    format!("t{number}")
}

/// A certificate that only itself has signed, for the proxies.
struct Certificate {
    cert: String,
    key: String,
    connector: TlsConnector,
}

impl Certificate {
    fn make() -> Result<Self> {
        let failed = |error: &dyn fmt::Display| Error::new(format!("no certificate: {error}"));
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()])
            .map_err(|error| failed(&error))?;
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from(pair.cert.der().to_vec()))
            .map_err(|error| failed(&error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(&error))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            cert: pair.cert.pem(),
            key: pair.signing_key.serialize_pem(),
            connector: TlsConnector::from(Arc::new(config)),
        })
    }
}

/// The cluster with its tables. Dropped, it ends.
pub struct Bed {
    pub cluster: Cluster,
    pub pgbench: PathBuf,
    pub password: String,
    keys: Arc<Keys>,
    certificate: Certificate,
}

impl Bed {
    /// `scale`: of pgbench's tables.
    pub async fn make(programs: &Programs, scale: u32) -> Result<Self> {
        let certificate = Certificate::make()?;
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
            keys: Arc::new(Keys::new(&password)),
            password,
            certificate,
        };
        pgbench::fill(&bed, scale).await?;
        bed.settle().await?;
        Ok(bed)
    }

    /// What was filled is ready to be read.
    pub async fn settle(&self) -> Result<()> {
        self.cluster
            .run(DATABASE, "VACUUM (FREEZE, ANALYZE)")
            .await?;
        self.cluster.run(DATABASE, "CHECKPOINT").await
    }

    pub fn door(&self, port: u16, tls: bool) -> Door {
        Door {
            port,
            database: DATABASE,
            keys: self.keys.clone(),
            tls: tls.then(|| self.certificate.connector.clone()),
        }
    }

    /// What PostgreSQL knows of the role's password: all targets are given that, as `pg_authid` has
    /// it.
    pub async fn secret(&self, user: &str) -> Result<String> {
        let failed = |error| Error::new(describe(&error));
        let client = self.cluster.connect(DATABASE).await.map_err(failed)?;
        let sql = "SELECT rolpassword FROM pg_authid WHERE rolname = $1";
        let row = client.query_one(sql, &[&user]).await.map_err(failed)?;
        row.try_get(0).map_err(failed)
    }

    fn direct(&self) -> Target {
        Target {
            kind: Kind::Direct,
            user: USER.to_owned(),
            prepares: true,
            door: self.door(self.cluster.port(), false),
            proxy: None,
        }
    }

    fn haproxy(&self, program: Option<&Path>) -> Result<Target> {
        let place = Place::make()?;
        let config = place.file(
            "haproxy.cfg",
            &self.filled(include_str!("haproxy.cfg.tmpl"), &place),
        )?;
        place.start(self, Kind::Haproxy, program, |command| {
            // In the foreground, one process.
            command.arg("-db").arg("-f").arg(config);
        })
    }

    /// For `users`, who are the server's.
    pub async fn pgbouncer(
        &self,
        ground: &Ground<'_>,
        users: &[&str],
        setup: &Setup,
    ) -> Result<Target> {
        let databases = format!("* = host=127.0.0.1 port={}\n", self.cluster.port());
        self.pgbouncer_of(ground, &databases, users, setup).await
    }

    /// The same, for `databases` as its file has them.
    pub async fn pgbouncer_of(
        &self,
        ground: &Ground<'_>,
        databases: &str,
        users: &[&str],
        setup: &Setup,
    ) -> Result<Target> {
        let place = Place::make()?;
        let mut list = String::new();
        for user in users {
            list.push_str(&format!("\"{user}\" \"{}\"\n", self.secret(user).await?));
        }
        let userlist = place.file("userlist.txt", &list)?;
        let mut text = self
            .filled(include_str!("pgbouncer.ini.tmpl"), &place)
            .replace("@databases@", databases)
            .replace("@clients@", &setup.clients.to_string())
            .replace("@userlist@", &userlist.to_string_lossy());
        if setup.tls {
            let (cert, key) = self.certificate_files(&place)?;
            text.push_str(&format!(
                "client_tls_sslmode = require\nclient_tls_cert_file = {}\nclient_tls_key_file = {}\n",
                cert.display(),
                key.display()
            ));
        }
        let prepares = ground.machine.pgbouncer_prepares();
        if prepares {
            text.push_str("max_prepared_statements = 200\n");
        }
        let config = place.file("pgbouncer.ini", &text)?;
        let program = ground.programs.pgbouncer.as_deref();
        let target = place.start(self, Kind::PgBouncer, program, |command| {
            command.arg(config);
        })?;
        Ok(Target {
            prepares,
            door: self.door(target.door.port, setup.tls),
            ..target
        })
    }

    async fn pgtenant(&self, setup: &Setup) -> Result<Target> {
        let place = Place::make()?;
        let tls = match setup.tls {
            true => {
                let (cert, key) = self.certificate_files(&place)?;
                format!(
                    ", tls: {{ cert: \"{}\", key: \"{}\" }}",
                    cert.display(),
                    key.display()
                )
            }
            false => String::new(),
        };
        let limits = match setup.clients > CLIENTS {
            true => format!("limits: {{ clients: {} }}", setup.clients),
            false => String::new(),
        };
        let text = self
            .filled(include_str!("pgtenant.yaml.tmpl"), &place)
            .replace("@tls@", &tls)
            .replace("@limits@", &limits);
        let tenants = (0..setup.tenants).map(tenant);
        let config = self
            .config(&place, text, tenants.chain([TENANT.to_owned()]))
            .await?;
        let target = self.serve(place, &config)?;
        Ok(Target {
            door: self.door(target.door.port, setup.tls),
            ..target
        })
    }

    /// Writes pgtenant's config, with the tenants of the placement `shared` behind `text`.
    pub async fn config(
        &self,
        place: &Place,
        mut text: String,
        tenants: impl Iterator<Item = String>,
    ) -> Result<PathBuf> {
        let secret = self.secret(USER).await?;
        for tenant in tenants {
            text.push_str(&format!(
                "  {tenant}: {{ placement: shared, users: {{ {USER}: {{ scram: \"{secret}\" }} }} }}\n"
            ));
        }
        place.file("pgtenant.yaml", &text)
    }

    /// Starts pgtenant.
    pub fn serve(&self, place: Place, config: &Path) -> Result<Target> {
        let program = Path::new(env!("CARGO_BIN_EXE_pgtenant"));
        place.start(self, Kind::Pgtenant, Some(program), |command| {
            command.arg("serve").arg("--config").arg(config);
        })
    }

    fn certificate_files(&self, place: &Place) -> Result<(PathBuf, PathBuf)> {
        Ok((
            place.file("server.crt", &self.certificate.cert)?,
            place.file("server.key", &self.certificate.key)?,
        ))
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
    }
}

/// Starts the proxies and waits until each serves queries.
pub async fn start(ground: &Ground<'_>, kinds: &[Kind], setup: &Setup) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for &kind in kinds {
        targets.push(start_one(ground, kind, setup).await?);
    }
    Ok(targets)
}

pub async fn start_one(ground: &Ground<'_>, kind: Kind, setup: &Setup) -> Result<Target> {
    let bed = ground.bed;
    let target = match kind {
        Kind::Direct => bed.direct(),
        Kind::Haproxy => bed.haproxy(ground.programs.haproxy.as_deref())?,
        Kind::PgBouncer => bed.pgbouncer(ground, &[USER], setup).await?,
        Kind::Pgtenant => bed.pgtenant(setup).await?,
    };
    target.ready(TENANT).await?;
    Ok(target)
}

/// Where a proxy has its files and its port.
pub struct Place {
    dir: Dir,
    files: PathBuf,
    pub port: u16,
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

    /// Runs it as the servers' account: PgBouncer refuses to be root, and all are treated alike.
    /// But pgtenant's binary is somewhere below our own directory, where that account may not get
    /// to.
    pub fn start(
        self,
        bed: &Bed,
        kind: Kind,
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
        let user = match kind {
            Kind::Pgtenant => format!("{USER}.{TENANT}"),
            _ => USER.to_owned(),
        };
        Ok(Target {
            kind,
            user,
            prepares: true,
            door: bed.door(self.port, false),
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

/// Where clients connect.
pub struct Target {
    pub kind: Kind,
    pub user: String,
    /// Whether it knows prepared statements.
    prepares: bool,
    pub door: Door,
    proxy: Option<Proxy>,
}

/// As in the tables.
pub fn titles(targets: &[Target]) -> Vec<&'static str> {
    targets.iter().map(|target| target.kind.title()).collect()
}

impl Target {
    /// The proxy's process; none: there is no proxy.
    pub fn pid(&self) -> Option<i32> {
        self.proxy.as_ref().map(|proxy| proxy.process.pid())
    }

    /// PgBouncer before 1.21 knows no prepared statements in transaction pooling, and in session
    /// pooling it would need a server connection for each client, which is another comparison.
    pub fn serves(&self, protocol: Protocol) -> bool {
        self.prepares || protocol != Protocol::Prepared
    }

    /// Whom a client of a tenant logs in as; only pgtenant knows tenants.
    pub fn user_of(&self, tenant: &str) -> String {
        match self.kind {
            Kind::Pgtenant => format!("{USER}.{tenant}"),
            _ => USER.to_owned(),
        }
    }

    /// Waits until a query is answered; through pgtenant, as that of `tenant`.
    pub async fn ready(&self, tenant: &str) -> Result<()> {
        let (user, expected) = match self.kind {
            Kind::Pgtenant => (self.user_of(tenant), tenant),
            _ => (self.user.clone(), ""),
        };
        let found = self.patiently(|| self.ask(&user)).await?;
        match found == expected {
            true => Ok(()),
            false => Err(self.failed(&format!("serves the tenant \"{found}\""))),
        }
    }

    /// Tries until it works: the proxy has just been started.
    pub async fn patiently<T>(&self, attempt: impl AsyncFn() -> Result<T>) -> Result<T> {
        let deadline = Instant::now() + READY;
        loop {
            let done = tokio::time::timeout(READY, attempt()).await;
            match done.unwrap_or_else(|_| Err(Error::new("it says nothing"))) {
                Ok(done) => return Ok(done),
                Err(error) if self.ended() || Instant::now() >= deadline => {
                    return Err(self.failed(&format!("does not answer: {error}")));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// The tenant that a query finds in its session.
    async fn ask(&self, user: &str) -> Result<String> {
        let mut client = self.door.log_in(user).await?;
        let sql = "SELECT coalesce(current_setting('app.tenant_id', true), '')";
        let tenant = client.value(sql).await?;
        client.close().await?;
        Ok(tenant)
    }

    /// Version and cipher that OpenSSL, which pgbench has, agrees upon. None: there is no openssl
    /// here to ask.
    pub async fn cipher(&self) -> Option<String> {
        let mut command = tokio::process::Command::new(program("openssl").ok()?);
        let address = format!("127.0.0.1:{}", self.door.port);
        command
            .args(["s_client", "-starttls", "postgres", "-brief", "-connect"])
            .arg(address)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(READY, command.output()).await.ok()?;
        let text = String::from_utf8(output.ok()?.stderr).ok()?;
        let of = |name: &str| {
            Some(
                text.lines()
                    .find_map(|line| line.strip_prefix(name))?
                    .trim(),
            )
        };
        Some(format!(
            "{} {}",
            of("Protocol version:")?,
            of("Ciphersuite:")?
        ))
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

    /// The same, of a row of the tables.
    pub fn failed_under(&self, row: &[String], error: &Error) -> Error {
        self.failed(&format!("under {}: {error}", row.join(", ")))
    }
}
