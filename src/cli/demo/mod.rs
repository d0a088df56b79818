//! `pgtenant demo`: PostgreSQL servers of its own, sample tenants in every tier, the proxy in
//! front, and the proof that each tenant finds its own rows and nobody else's.
//!
//! Everything that is claimed is checked; what is false is said, and the exit status tells.
//! Everything that is started is gone afterwards, also after an error or Ctrl-C.

mod checks;
mod made;
mod sample;
pub(super) mod table;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::IsTerminal;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rand::Rng;
use rand::distr::Alphanumeric;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::{Client, Config};

use self::checks::Attempt;
use self::sample::{Order, Servers, TAKING_TURNS, TENANTS, Tenant};
use self::table::Table;
use crate::cluster::{
    Binaries, Dir, Ending, Error, Process, Result, describe, dying_with_us, free_port, interrupted,
};
use crate::timer;

/// Start PostgreSQL servers and the proxy, with sample tenants in every tier, and show that each
/// tenant sees its own rows only.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// End after the checks. The default when the output is not a terminal.
    #[arg(long)]
    pub once: bool,
    /// Stay up until Ctrl-C or SIGTERM, also when the output is not a terminal.
    #[arg(long, conflicts_with = "once")]
    pub stay: bool,
    /// Port of the proxy on 127.0.0.1. Default: a free one.
    #[arg(long)]
    pub port: Option<u16>,
}

/// A tenant of each tier.
const CHOSEN: [&str; 4] = ["globex", "stark", "soylent", "acme"];
const READY: Duration = Duration::from_secs(20);
const PROXY_ENDING: Ending = &[(Signal::SIGTERM, Duration::from_secs(10))];
/// What a shell says of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Runs the demo to its end.
pub async fn run(args: &Args) -> ExitCode {
    // Dropped half-way, the steps end what they have started.
    let shown = tokio::select! {
        biased;
        () = interrupted() => return ExitCode::from(INTERRUPTED),
        shown = show(args) => shown,
    };
    let result = match shown {
        Ok(stage) => {
            let stay = args.stay || (!args.once && std::io::stdout().is_terminal());
            let stayed = if stay { stage.stay().await } else { Ok(()) };
            stayed.and(stage.end().await)
        }
        Err(error) => Err(error),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pgtenant demo: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The demo on one page.
async fn show(args: &Args) -> Result<Stage> {
    let stage = Stage::set(args).await?;
    let mut wrong = Vec::new();
    stage.fill_by_hash().await?;
    wrong.extend(stage.show_tenants().await?);
    wrong.extend(stage.show_attempts().await?);
    wrong.extend(stage.show_turns().await?);
    wrong.extend(stage.show_application().await?);
    wrong.extend(made::show(&stage.proxy).await?);
    if !wrong.is_empty() {
        let log = stage.proxy.log_tail();
        return Err(Error::new(format!(
            "not what was promised:\n  {}\nthe proxy's log:\n{log}",
            wrong.join("\n  ")
        )));
    }
    println!("Every answer above is as promised: own rows only, and every attempt repelled.");
    Ok(stage)
}

/// All that runs. The proxy is dropped before the servers.
struct Stage {
    proxy: Proxy,
    servers: Servers,
    secret: String,
}

impl Stage {
    async fn set(args: &Args) -> Result<Self> {
        let binaries = Binaries::find()?;
        let started = Instant::now();
        println!(
            "Starting PostgreSQL servers ({}) with sample tenants in every tier …",
            binaries.dir().display()
        );
        let secret: String = rand::rng()
            .sample_iter(Alphanumeric)
            .take(16)
            .map(char::from)
            .collect();
        let servers = Servers::start(&binaries).await?;
        servers.fill(&secret).await?;
        println!("Starting the proxy …");
        let proxy = Proxy::start(args.port, &servers, &secret).await?;
        println!("Ready after {:.1} s.", started.elapsed().as_secs_f32());
        Ok(Self {
            proxy,
            servers,
            secret,
        })
    }

    /// Tenants that the proxy places by hash get their rows through the proxy, and are then where
    /// it decided.
    async fn fill_by_hash(&self) -> Result<()> {
        for tenant in TENANTS.iter().filter(|tenant| tenant.server.is_none()) {
            let client = self.proxy.connect(tenant).await?;
            client
                .batch_execute(&tenant.insert(None))
                .await
                .map_err(|error| failed(tenant, &error))?;
        }
        Ok(())
    }

    /// The same query through each tenant's login.
    async fn show_tenants(&self) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        let mut table = Table::new([
            "tenant",
            "tier",
            "instance",
            "database",
            "schema",
            "server pid",
            "rows it sees",
        ]);
        for tenant in TENANTS {
            let client = self.proxy.connect(tenant).await?;
            let place = checks::place(&client).await?;
            let orders = checks::orders(&client).await?;
            if orders != tenant.orders() {
                wrong.push(format!(
                    "{} sees {orders:?}, and not {:?}",
                    tenant.name,
                    tenant.orders()
                ));
            }
            let expected = match tenant.server {
                Some(server) => server.to_owned(),
                None => self.only_home(tenant).await?,
            };
            let found = [&place.server, &place.database, &place.schema];
            if found != [&expected, &tenant.database(), &tenant.schema()] {
                wrong.push(format!("{} is served from {found:?}", tenant.name));
            }
            table.row([
                tenant.name.to_owned(),
                tenant.place.tier.to_owned(),
                place.server,
                place.database,
                place.schema,
                place.pid,
                items(&orders),
            ]);
        }
        println!("\nThe same query, SELECT … FROM orders, for each tenant:\n\n{table}");
        Ok(wrong)
    }

    /// The one instance that has rows of the tenant.
    async fn only_home(&self, tenant: &Tenant) -> Result<String> {
        let sql = "SELECT FROM orders WHERE tenant_id = $1";
        let mut homes = Vec::new();
        for name in tenant.place.servers {
            let client = self.servers.named(name)?.connect(&tenant.database()).await;
            let client = client.map_err(|error| failed(tenant, &error))?;
            let rows = client
                .query(sql, &[&tenant.name])
                .await
                .map_err(|error| failed(tenant, &error))?;
            if !rows.is_empty() {
                homes.push((*name).to_owned());
            }
        }
        Ok(homes.join(" and "))
    }

    /// Each tenant reaches for another's data.
    async fn show_attempts(&self) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        let mut table = Table::new([
            "tenant",
            "against",
            "reads its rows",
            "writes its rows",
            "logs in as it with own password",
        ]);
        for tenant in TENANTS {
            let other = Tenant::named(tenant.other)
                .ok_or_else(|| Error::new(format!("the demo has no tenant {}", tenant.other)))?;
            let client = self.proxy.connect(tenant).await?;
            let mut as_other = self.proxy.config(other);
            as_other.password(tenant.password());
            let attempts = [
                checks::read_other(&client, tenant, other).await,
                checks::write_other(&client, tenant, other).await,
                checks::log_in_as_other(&as_other).await,
            ];
            for (what, attempt) in ["reads rows of", "writes rows of", "logs in as"]
                .iter()
                .zip(&attempts)
            {
                if !attempt.repelled {
                    wrong.push(format!(
                        "{} {what} {}: {}",
                        tenant.name, other.name, attempt.outcome
                    ));
                }
            }
            let [read, write, login] = attempts.map(|Attempt { outcome, .. }| outcome);
            table.row([
                tenant.name.to_owned(),
                other.name.to_owned(),
                read,
                write,
                login,
            ]);
        }
        for tenant in TENANTS {
            let client = self.proxy.connect(tenant).await?;
            if checks::orders(&client).await? != tenant.orders() {
                wrong.push(format!(
                    "the rows of {} were changed by an attempt",
                    tenant.name
                ));
            }
        }
        println!("Each tenant tries to get at another's data:\n\n{table}");
        Ok(wrong)
    }

    /// Two tenants, both connected all the time, alternate on one server connection.
    async fn show_turns(&self) -> Result<Vec<String>> {
        let mut clients = Vec::new();
        for name in TAKING_TURNS {
            let tenant = Tenant::named(name)
                .ok_or_else(|| Error::new(format!("the demo has no tenant {name}")))?;
            clients.push((tenant, self.proxy.connect(tenant).await?));
        }
        let mut wrong = Vec::new();
        let mut pids = Vec::new();
        let mut table = Table::new(["turn", "tenant", "server pid", "rows it sees"]);
        for turn in 1..=3 {
            for (tenant, client) in &clients {
                let pid = checks::place(client).await?.pid;
                let orders = checks::orders(client).await?;
                if orders != tenant.orders() {
                    wrong.push(format!("{} sees {orders:?} in turn {turn}", tenant.name));
                }
                table.row([
                    turn.to_string(),
                    tenant.name.to_owned(),
                    pid.clone(),
                    items(&orders),
                ]);
                pids.push(pid);
            }
        }
        pids.dedup();
        if pids.len() != 1 {
            wrong.push(format!(
                "one server connection was to serve both tenants, and these did: {pids:?}"
            ));
        }
        println!("Two tenants, both connected, take turns on one server connection:\n\n{table}");
        Ok(wrong)
    }

    /// One connection of an application, which chooses a tenant of another tier for each
    /// transaction.
    async fn show_application(&self) -> Result<Vec<String>> {
        let tiers: Vec<_> = CHOSEN
            .iter()
            .filter_map(|name| Tenant::named(name))
            .collect();
        let client = checks::connect(&self.proxy.application(&self.secret)).await;
        let client = client.map_err(|error| Error::new(format!("web: {}", describe(&error))))?;
        let mut wrong = Vec::new();
        let mut table = Table::new([
            "set by the application",
            "tier",
            "instance",
            "database",
            "rows it sees",
        ]);
        for tenant in tiers {
            let choose = format!(
                "SELECT set_config('app.tenant_id', '{}', false)",
                tenant.name
            );
            let chosen = client.batch_execute(&choose).await;
            chosen.map_err(|error| failed(tenant, &error))?;
            let place = checks::place(&client).await?;
            let orders = checks::orders(&client).await?;
            if orders != tenant.orders() || place.database != tenant.database() {
                wrong.push(format!(
                    "for {} the application sees {orders:?}",
                    tenant.name
                ));
            }
            table.row([
                format!("app.tenant_id = {}", tenant.name),
                tenant.place.tier.to_owned(),
                place.server,
                place.database,
                items(&orders),
            ]);
        }
        println!(
            "An application with one connection chooses its tenants by set_config:\n\n{table}"
        );
        Ok(wrong)
    }

    /// Until Ctrl-C, SIGTERM or the death of the proxy.
    async fn stay(&self) -> Result<()> {
        println!("\nTry it:\n");
        for tenant in TENANTS {
            println!("  psql \"{}\"", self.proxy.dsn(tenant));
        }
        println!("\nThe admin console (then: SHOW HELP):\n");
        println!(
            "  psql \"postgresql://admin:{}@{}/pgtenant\"",
            self.secret, self.proxy.address
        );
        println!("\nMetrics:  http://{}/metrics", self.proxy.http);
        println!(
            "Config:   {}",
            self.proxy.dir.path().join(CONFIG_FILE).display()
        );
        println!(
            "Log:      {}",
            self.proxy.dir.path().join(LOG_FILE).display()
        );
        println!("\nCtrl-C ends the demo and removes all of it.");
        tokio::select! {
            () = interrupted() => {
                println!("\nStopping …");
                Ok(())
            }
            () = self.proxy.died() => Err(self.proxy.failed("ended")),
        }
    }

    /// Ends and removes everything, and looks whether that is so.
    async fn end(self) -> Result<()> {
        let mut dirs = vec![self.proxy.dir.path().to_owned()];
        dirs.extend(
            self.servers
                .all()
                .iter()
                .filter_map(|cluster| Some(cluster.data_dir().parent()?.to_owned())),
        );
        self.proxy.process.end().await?;
        drop(self.proxy);
        self.servers.stop().await?;
        match dirs.iter().find(|dir| dir.exists()) {
            Some(dir) => Err(Error::new(format!("cannot remove {}", dir.display()))),
            None => {
                println!("Everything that was started has ended, and its files are removed.");
                Ok(())
            }
        }
    }
}

const CONFIG_FILE: &str = "pgtenant.yaml";
const LOG_FILE: &str = "pgtenant.log";
/// As the config has it.
const NEW_TENANT_FILE: &str = "new_tenant.sql";

/// `pgtenant serve` as a child process.
struct Proxy {
    process: Process,
    address: SocketAddr,
    http: SocketAddr,
    dir: Dir,
}

impl Proxy {
    async fn start(port: Option<u16>, servers: &Servers, secret: &str) -> Result<Self> {
        let dir = Dir::create()?;
        let port = port.map_or_else(free_port, Ok)?;
        let http_port = free_port()?;
        let config = dir.path().join(CONFIG_FILE);
        let text = sample::config(servers, port, http_port, secret);
        write(&config, &text)?;
        write(&dir.path().join(NEW_TENANT_FILE), sample::NEW_TENANT)?;
        let log =
            private_file(&dir.path().join(LOG_FILE)).and_then(|file| Ok((file.try_clone()?, file)));
        let log =
            log.map_err(|error| Error::new(format!("cannot write the proxy's log: {error}")))?;
        let program = std::env::current_exe()
            .map_err(|error| Error::new(format!("cannot find this program: {error}")))?;

        let mut command: Command = dying_with_us(&program, Signal::SIGTERM);
        command
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .stdout(log.0)
            .stderr(log.1);
        let process = Process::start("the proxy", command, PROXY_ENDING)?;
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let proxy = Self {
            process,
            address: at(port),
            http: at(http_port),
            dir,
        };
        proxy.ready().await?;
        Ok(proxy)
    }

    /// Waits until `/readyz` says yes.
    async fn ready(&self) -> Result<()> {
        let deadline = Instant::now() + READY;
        while self.process.status().is_none() && Instant::now() < deadline {
            if http_status(self.http, "/readyz")
                .await
                .is_ok_and(|status| status == "200")
            {
                return Ok(());
            }
            timer::sleep(Duration::from_millis(20)).await;
        }
        Err(self.failed("does not get ready"))
    }

    async fn died(&self) {
        while self
            .process
            .ended(Duration::from_secs(3600))
            .await
            .is_none()
        {}
    }

    fn failed(&self, how: &str) -> Error {
        let status = self
            .process
            .status()
            .map(|status| format!(" ({status})"))
            .unwrap_or_default();
        Error::new(format!("the proxy {how}{status}:\n{}", self.log_tail()))
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.dir.path().join(LOG_FILE)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// How the tenant's application connects.
    fn config(&self, tenant: &Tenant) -> Config {
        let (user, database) = tenant.login();
        let mut config = Config::new();
        config
            .host(self.address.ip().to_string())
            .port(self.address.port())
            .user(user)
            .password(tenant.password())
            .dbname(database)
            .connect_timeout(READY);
        config
    }

    fn application(&self, secret: &str) -> Config {
        let mut config = Config::new();
        config
            .host(self.address.ip().to_string())
            .port(self.address.port())
            .user("web")
            .password(secret)
            .dbname("web")
            .connect_timeout(READY);
        config
    }

    fn dsn(&self, tenant: &Tenant) -> String {
        let (user, database) = tenant.login();
        format!(
            "postgresql://{user}:{}@{}/{database}",
            tenant.password(),
            self.address
        )
    }

    async fn connect(&self, tenant: &Tenant) -> Result<Client> {
        checks::connect(&self.config(tenant))
            .await
            .map_err(|error| {
                Error::new(format!(
                    "{}\nthe proxy's log:\n{}",
                    failed(tenant, &error),
                    self.log_tail()
                ))
            })
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    let written = private_file(path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
    written.map_err(|error| Error::new(format!("cannot write {}: {error}", path.display())))
}

/// A new file that only we may read: the config has passwords.
fn private_file(path: &Path) -> std::io::Result<File> {
    File::options()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// The status code of a GET.
async fn http_status(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream
        .write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer).await?;
    Ok(answer.split(' ').nth(1).unwrap_or_default().to_owned())
}

fn items(orders: &[Order]) -> String {
    orders
        .iter()
        .map(|order| order.item.as_str())
        .collect::<Vec<_>>()
        .join(", ")
}

fn failed(tenant: &Tenant, error: &tokio_postgres::Error) -> Error {
    Error::new(format!("tenant {}: {}", tenant.name, describe(error)))
}
