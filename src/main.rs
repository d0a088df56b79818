//! The command line.

use std::io::{Write, stderr, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

use pgtenant::cli;

/// A tenant-routing PostgreSQL proxy.
///
/// Applications point their DSN at pgtenant. It works out which tenant is calling, proves it by the
/// password, and serves it from where that tenant lives: shared tables under row level security
/// with the tenant's variable injected, a schema, a database or an instance of its own.
#[derive(Parser)]
#[command(
    name = "pgtenant",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy.
    ///
    /// SIGHUP reads the config again: only what changed is touched, a broken file changes nothing.
    /// SIGTERM and SIGINT take no new clients, let transactions end, and exit with 0; a second one
    /// ends at once.
    Serve(ConfigArgument),
    /// Check a config file: every mistake with its line (exit 78), or a summary (exit 0).
    Check(ConfigArgument),
    /// Try it: private PostgreSQL servers with sample tenants in every tier.
    Demo(cli::demo::Args),
    /// Make a SCRAM verifier of a password read from standard input, for `users: { app: { scram: …
    /// } }`.
    HashPassword {
        /// Rounds of hashing: more make both guessing and logging in slower.
        #[arg(long, default_value_t = 4096)]
        iterations: u32,
    },
    /// Prepare databases for posture sealed, or put a new key in force.
    ///
    /// Run again after an upgrade, or after a new servers.*.seal.key: the new key is good at once,
    /// the old one for --retire-after more. Then SIGHUP the proxy, which seals with the new one
    /// from there on.
    Seal {
        #[command(flatten)]
        config: ConfigArgument,
        /// One of the config's servers, with `admin` and `seal`.
        #[arg(long, value_name = "NAME")]
        server: String,
        /// Default: the databases of all tenants in sealed placements there.
        #[arg(long, value_name = "NAME")]
        database: Vec<String>,
        /// How long keys that the config no longer has are good: until every proxy was reloaded,
        /// and servers.*.seal.lifetime more.
        #[arg(long, value_name = "PERIOD", default_value = "1h", value_parser = pgtenant::config::duration)]
        retire_after: Duration,
    },
    /// Play attacks between two throw-away tenants against the servers of a config, and say what
    /// held.
    ///
    /// Exit code 0: all was held. 1: something escaped. 2: something could not be played, which
    /// says nothing. It needs servers.*.admin, with the right to make a schema, a role or a
    /// database as tenants of the placement have them; all of it is gone afterwards.
    Selftest(cli::selftest::Args),
    /// Print the SQL that databases are prepared with.
    #[command(subcommand)]
    Sql(Sql),
    /// Make, change, look at and remove tenants of the catalog.
    #[command(subcommand)]
    Tenant(cli::tenant::Verb),
    /// Inspect the databases of a config: do they keep tenants apart?
    ///
    /// Every place is asked as the server's `admin` login, or else as the application, and nothing
    /// is changed. Exit codes: 0 no finding above the notices, 1 findings that are warnings or
    /// critical, 2 a place could not be inspected.
    Doctor(cli::doctor::Args),
    /// Ask a running proxy whether it is ready (exit 0): what a container's health check runs.
    Healthcheck(ConfigArgument),
}

#[derive(Subcommand)]
enum Sql {
    /// What `pgtenant seal` installs; with --config, the key as well.
    Seal {
        /// The config file.
        #[arg(
            short,
            long,
            value_name = "FILE",
            requires = "server",
            requires = "database"
        )]
        config: Option<PathBuf>,
        #[arg(long, value_name = "NAME", requires = "config")]
        server: Option<String>,
        /// Each database has a key of its own.
        #[arg(long, value_name = "NAME", requires = "config")]
        database: Option<String>,
        /// How long other keys are good from then on.
        #[arg(long, value_name = "PERIOD", default_value = "1h", value_parser = pgtenant::config::duration)]
        retire_after: Duration,
    },
    /// What makes a database the catalog of tenants, and brings it up to date.
    Catalog,
    /// What takes from the roles of a placement what lets them watch or hinder each other.
    Harden {
        #[command(flatten)]
        config: ConfigArgument,
        #[arg(long, value_name = "NAME")]
        placement: String,
        /// The role that is to own tables and run migrations. Default: the login's name and
        /// `_owner`.
        #[arg(long, value_name = "ROLE")]
        owner: Option<String>,
        /// Also take away what some applications need.
        #[arg(long, value_name = "GROUP")]
        also: Vec<pgtenant::control::harden::Group>,
    },
}

#[derive(clap::Args)]
struct ConfigArgument {
    /// The config file.
    #[arg(short, long, value_name = "FILE", env = "PGTENANT_CONFIG")]
    config: PathBuf,
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Serve(ConfigArgument { config }) => cli::serve::run(&config),
        Command::Check(ConfigArgument { config }) => code(check(&config)),
        Command::Doctor(args) => {
            with_runtime(async move { cli::doctor::run(&args, &mut stdout(), &mut stderr()).await })
        }
        Command::Demo(args) => with_runtime(async move { cli::demo::run(&args).await }),
        Command::HashPassword { iterations } => code(cli::hash_password::run(
            iterations,
            &mut stdout(),
            &mut stderr(),
        )),
        Command::Seal {
            config: ConfigArgument { config },
            server,
            database,
            retire_after,
        } => {
            with_runtime(
                async move { cli::seal::run(&config, &server, &database, retire_after).await },
            )
        }
        Command::Sql(Sql::Seal {
            config,
            server,
            database,
            retire_after,
        }) => {
            let key_of = config.zip(server).zip(database);
            let key_of = key_of.map(|((config, server), database)| cli::sql::KeyOf {
                config,
                server,
                database,
                retire_after,
            });
            cli::sql::print_seal(key_of.as_ref())
        }
        Command::Sql(Sql::Catalog) => cli::sql::print_catalog(),
        Command::Sql(Sql::Harden {
            config: ConfigArgument { config },
            placement,
            owner,
            also,
        }) => cli::sql::print_harden(&config, &placement, owner.as_deref(), &also),
        Command::Tenant(verb) => {
            with_runtime(async move { cli::tenant::run(&verb, &mut stdout(), &mut stderr()).await })
        }
        Command::Selftest(args) => with_runtime(async move { cli::selftest::run(&args).await }),
        Command::Healthcheck(ConfigArgument { config }) => cli::healthcheck::run(&config),
    }
}

fn check(config: &Path) -> std::io::Result<u8> {
    cli::check::run(config, &mut stdout(), &mut stderr())
}

fn code(result: std::io::Result<u8>) -> ExitCode {
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let _ = writeln!(stderr(), "pgtenant: {error}");
            ExitCode::FAILURE
        }
    }
}

fn with_runtime(task: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(task),
        Err(error) => code(Err(error)),
    }
}
