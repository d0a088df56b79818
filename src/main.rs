//! The command line.

use std::io::{stderr, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use pgtenant::cli;

/// A tenant-routing PostgreSQL proxy.
///
/// Applications point their DSN at pgtenant. It works out which tenant is calling, proves it by the
/// password, and serves it from where that tenant lives: shared tables under row level security with
/// the tenant's variable injected, a schema, a database or an instance of its own.
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
    /// SIGTERM and SIGINT take no new clients, let transactions end, and exit with 0; a second one ends at
    /// once.
    Serve(ConfigArgument),
    /// Check a config file: every mistake with its line (exit 78), or a summary (exit 0).
    Check(ConfigArgument),
    /// Try it: private PostgreSQL servers with sample tenants in every tier.
    Demo(cli::demo::Args),
    /// Make a SCRAM verifier of a password read from standard input, for `users: { app: { scram: … } }`.
    HashPassword {
        /// Rounds of hashing: more make both guessing and logging in slower.
        #[arg(long, default_value_t = 4096)]
        iterations: u32,
    },
    /// Inspect the databases of a config: do they keep tenants apart?
    ///
    /// Every place is asked as the server's `admin` login, or else as the application, and nothing is changed. Exit
    /// codes: 0 no finding above the notices, 1 findings that are warnings or critical, 2 a place could not be inspected.
    Doctor(cli::doctor::Args),
    /// Ask a running proxy whether it is ready (exit 0): what a container's health check runs.
    Healthcheck(ConfigArgument),
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
            eprintln!("pgtenant: {error}");
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
