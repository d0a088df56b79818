//! The way of the control plane to a server: tokio-postgres over the same sockets and TLS as the
//! pools'.

use std::error::Error as _;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use deadpool_postgres::Connect;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};

use crate::backend::dial;
use crate::config::{Login, Server};
use crate::control::gate::Gate;

/// Names mean those of the server from the first statement on: a tenant that may create in a schema
/// on the path of an administrator could have its operators and functions run by that
/// administrator.
pub const SEARCH_PATH: &str = "-c search_path=pg_catalog,pg_temp";

/// Who else than its owner may create in the server's own schema. Each operator has the exact types
/// of the server's own, which nothing else in that schema can have.
macro_rules! foreign_create {
    () => {
        "FROM pg_catalog.pg_namespace n, LATERAL pg_catalog.aclexplode(n.nspacl) a
        WHERE n.nspname OPERATOR(pg_catalog.=) 'pg_catalog'::pg_catalog.name
            AND a.privilege_type OPERATOR(pg_catalog.=) 'CREATE'::pg_catalog.text
            AND a.grantee OPERATOR(pg_catalog.<>) n.nspowner"
    };
}

/// Why such a server is refused.
macro_rules! foreign_create_problem {
    () => {
        "others than its owner can create objects in schema \"pg_catalog\""
    };
}

/// For a script that is printed and run by somebody else: it begins with the same path, and refuses
/// a server on which that would not help.
pub const SCRIPT_HEAD: &str = concat!(
    "SET search_path = pg_catalog, pg_temp;
DO $pgtenant$ BEGIN
    PERFORM ",
    foreign_create!(),
    ";
    IF FOUND THEN
        RAISE '",
    foreign_create_problem!(),
    "' USING ERRCODE = 'insufficient_privilege';
    END IF;
END $pgtenant$;
"
);

/// The same question for a session that may not run DO: a row for each right that others have.
pub const FOREIGN_CREATE: &str = concat!("SELECT ", foreign_create!());
/// What it means if there are some.
pub const FOREIGN_CREATE_PROBLEM: &str = foreign_create_problem!();

/// The session of a login that is described so.
pub fn config(login: &Login, database: &str, application_name: &str) -> Config {
    let mut config = Config::new();
    config
        .user(&login.user)
        .dbname(database)
        .application_name(application_name)
        .options(SEARCH_PATH);
    if let Some(password) = &login.password {
        config.password(password.expose());
    }
    config
}

/// What went wrong: the server's own words, or the innermost reason.
pub fn words(error: &tokio_postgres::Error) -> String {
    if let Some(refusal) = error.as_db_error() {
        return format!("{}: {}", refusal.code().code(), refusal.message());
    }
    error
        .source()
        .map_or_else(|| error.to_string(), ToString::to_string)
}

/// Connects as the pools do: same sockets, same TLS.
pub struct Door(pub Arc<Server>);

impl Connect for Door {
    fn connect(&self, config: &Config) -> Pin<Box<dyn Future<Output = Connected> + Send + '_>> {
        let config = config.clone();
        Box::pin(async move { open(&self.0, &config, None).await })
    }
}

/// Connects the same way to hear notifications, whatever they say: each is a wake of `heard`.
///
/// # Errors
/// As tokio-postgres says, and why the socket could not be had.
pub async fn connect_to_hear(server: &Server, config: &Config, heard: Arc<Notify>) -> Connected {
    open(server, config, Some(heard)).await
}

/// A client, and the task that moves its messages.
pub type Connected = Result<(Client, JoinHandle<()>), tokio_postgres::Error>;

async fn open(server: &Server, config: &Config, heard: Option<Arc<Notify>>) -> Connected {
    match dial::open(server, &[]).await {
        Ok(stream) => start(config, Gate::new(stream, server), heard).await,
        Err(error) => start(config, Broken(error.to_string()), heard).await,
    }
}

async fn start(
    config: &Config,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    heard: Option<Arc<Notify>>,
) -> Connected {
    // TLS, if any, is done.
    let (client, mut connection) = config.connect_raw(stream, NoTls).await?;
    // Its end is seen, and logged, by the next question.
    let task = tokio::spawn(async move {
        let Some(heard) = heard else {
            drop(connection.await);
            return;
        };
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            if matches!(message, AsyncMessage::Notification(_)) {
                heard.notify_one();
            }
        }
        // Whoever listens asks, and sees the end.
        heard.notify_one();
    });
    Ok((client, task))
}

/// A socket that could not be had: tokio-postgres makes its error of what this one says.
struct Broken(String);

impl Broken {
    fn error<T>(&self) -> Poll<io::Result<T>> {
        Poll::Ready(Err(io::Error::other(self.0.clone())))
    }
}

impl AsyncRead for Broken {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.error()
    }
}

impl AsyncWrite for Broken {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        self.error()
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.error()
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.error()
    }
}
