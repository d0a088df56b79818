//! The admin console: a session of the PostgreSQL protocol, simple and extended, in which the proxy
//! itself answers, with PgBouncer's words. Users of `admin.stats_users` may only look.
//!
//! The session is pgwire's; what comes from the user passes `inbox` first.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::sink::{Sink, SinkExt};
use pgwire::api::portal::{Format, Portal};
use pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler};
use pgwire::api::results::{DataRowEncoder, FieldInfo, QueryResponse, Response, Tag};
use pgwire::api::stmt::QueryParser;
use pgwire::api::store::PortalStore;
use pgwire::api::{
    ClientInfo, ClientPortalStore, DefaultClient, NoopHandler, PgWireConnectionState, Type,
};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::{PgWireBackendMessage, PgWireFrontendMessage};
use pgwire::tokio::server::{PgWireMessageServerCodec, process_error, process_message};
use tokio::io::AsyncWriteExt;
use tokio_util::codec::Framed;

use crate::admin::command::Command;
use crate::admin::command::set;
use crate::admin::inbox::Inbox;
use crate::admin::show::{self, Cell, Column, ColumnKind, Row};
use crate::admin::{effective, explain, reloaded, verbs};
use crate::app::{App, OpenConsole};
use crate::client::{Activity, Phase};
use crate::config::Mistake;
use crate::error::{Blame, Error, Kind, Result};
use crate::frontend::login::AdminLogin;
use crate::net::stream::Stream;
use crate::protocol::reply::Replies;
use crate::protocol::startup::CancelKey;
use crate::timer;

/// After its session has ended, or the proxy began to stop, an answer that the user does not read
/// is waited for this long.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Longest detail of an error, in bytes. A file can hold any number of mistakes.
const MAX_DETAIL: usize = 8 * 1024;

type Socket = Framed<Stream, PgWireMessageServerCodec<Command>>;

/// Serves a user of the console until it leaves, breaks the protocol, is no user of the console any
/// more, or the proxy stops.
pub async fn serve(app: Arc<App>, admin: AdminLogin, peer: SocketAddr) {
    let AdminLogin {
        mut stream,
        inbox,
        user,
        greeting,
        places: _places,
    } = admin;
    tracing::info!(%peer, user, "admin console opened");
    let key = app.new_key(4);
    let console = Arc::new(app.open_console(&key));
    let welcome = welcome(greeting, &user, &key);
    let mut client = DefaultClient::new(peer, stream.is_tls());
    client.state = PgWireConnectionState::ReadyForQuery;
    let work = async {
        stream.write_all(welcome.bytes()).await.map_err(gone)?;
        stream.flush().await.map_err(gone)?;
        let mut socket = Framed::new(stream, PgWireMessageServerCodec::new(client));
        let answers = Arc::new(Answers {
            app: app.clone(),
            console,
            user: user.clone(),
        });
        let end = converse(&answers, inbox.bytes(), &mut socket).await;
        let stream = socket.get_mut();
        let goodbye = async {
            if let Err(error) = &end {
                let _ = stream.write_all(Replies::new().fatal(error).bytes()).await;
            }
            let _ = stream.shutdown().await;
        };
        let _ = timer::timeout(LAST_WORDS, goodbye).await;
        end
    };
    let ended = tokio::select! {
        ended = work => ended,
        () = async {
            app.draining().await;
            timer::sleep(LAST_WORDS).await;
        } => Ok(()),
    };
    match ended {
        Err(error) if error.kind().blame() != Blame::Operator => {
            tracing::info!(%peer, user, sqlstate = error.sqlstate(), %error, "admin console closed");
        }
        _ => tracing::info!(%peer, user, "admin console closed"),
    }
}

fn gone(error: std::io::Error) -> Error {
    Error::new(Kind::ConnectionFailure, "the user of the console left").caused_by(error)
}

/// What psql and drivers want to hear before the first query.
fn welcome(mut greeting: Replies, user: &str, key: &CancelKey) -> Replies {
    // Drivers compare the number; the words tell people what they are connected to.
    let server_version = format!("15.0 ({})", show::version());
    for (name, value) in [
        ("server_version", server_version.as_str()),
        ("server_encoding", "UTF8"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, MDY"),
        ("TimeZone", "UTC"),
        ("integer_datetimes", "on"),
        ("standard_conforming_strings", "on"),
        ("is_superuser", "off"),
        ("session_authorization", user),
        ("application_name", ""),
    ] {
        greeting.parameter_status(name, value);
    }
    greeting.backend_key_data(key);
    greeting.ready();
    greeting
}

/// Question and answer.
///
/// # Errors
/// What ends the session, for the user to be told.
async fn converse(answers: &Arc<Answers>, begun: &[u8], socket: &mut Socket) -> Result<()> {
    let app = &answers.app;
    let nothing = Arc::new(NoopHandler);
    let mut inbox = Inbox::new(begun);
    let mut draining = pin!(app.draining());
    loop {
        let message = tokio::select! {
            biased;
            () = &mut draining => return Err(terminated()),
            message = inbox.next(socket.get_mut()) => message?,
        };
        let Some(message) = message else {
            return Ok(());
        };
        if let PgWireFrontendMessage::Terminate(_) = message {
            return Ok(());
        }
        if begins_command(&message) && app.config().console_user(&answers.user).is_none() {
            return Err(terminated());
        }
        let extended = message.is_extended_query();
        let answered = process_message(
            message,
            socket,
            nothing.clone(),
            answers.clone(),
            answers.clone(),
            nothing.clone(),
            nothing.clone(),
        )
        .await;
        if let Err(error) = answered {
            if let PgWireError::IoError(error) = error {
                return Err(gone(error));
            }
            let fatal = error.is_fatal();
            process_error(socket, error, extended).await.map_err(gone)?;
            if fatal {
                return Ok(());
            }
        }
        socket.flush().await.map_err(gone)?;
    }
}

/// Not in the middle of an answer: it may be the one that tells of the reload.
fn begins_command(message: &PgWireFrontendMessage) -> bool {
    matches!(
        message,
        PgWireFrontendMessage::Query(_) | PgWireFrontendMessage::Execute(_)
    )
}

fn terminated() -> Error {
    Error::new(
        Kind::AdminShutdown,
        "terminating connection due to administrator command",
    )
}

/// Answers commands of a session, in both protocols.
struct Answers {
    app: Arc<App>,
    console: Arc<OpenConsole>,
    user: String,
}

impl Answers {
    /// What is to be told of the tenant of this name.
    async fn of_tenant(
        &self,
        name: String,
        rows: fn(&App, &str) -> Option<Vec<Row>>,
    ) -> PgWireResult<Vec<Row>> {
        let (app, asked) = (self.app.clone(), name.clone());
        let rows = off_thread(move || rows(&app, &asked)).await?;
        rows.ok_or_else(|| refusal(&verbs::unknown("tenant", &name, "SHOW TENANTS")))
    }

    async fn answer(&self, command: Command, formats: &Format) -> PgWireResult<Response> {
        let app = self.app.clone();
        let is_admin = app.config().admin_users.contains_key(&self.user);
        if !is_admin && !command.is_for_watchers() {
            return Err(refusal(&admin_needed()));
        }
        let done = |tag: &str| Ok(Response::Execution(Tag::new(tag)));
        match command {
            Command::Show(show) => {
                if show.name == CLIENTS {
                    ask_clients(&app).await;
                }
                let rows = off_thread(move || show.rows(&app)).await?;
                table(show.columns, rows, formats, "SHOW")
            }
            Command::Tenant(name) => {
                let rows = self.of_tenant(name, show::tenant::rows).await?;
                table(show::tenant::COLUMNS, rows, formats, "SHOW")
            }
            Command::Parameter((name, value)) => {
                let column = [show::text(name)];
                table(&column, vec![show::row![*value]], formats, "SHOW")
            }
            Command::Reload => {
                tracing::info!("reload asked for on the admin console");
                match off_thread(move || reload(&app)).await? {
                    Ok(rows) => table(reloaded::COLUMNS, rows, formats, "RELOAD"),
                    Err(mistakes) => Err(not_reloaded(&mistakes)),
                }
            }
            Command::Effective(name) => {
                let rows = self.of_tenant(name, effective::rows).await?;
                table(effective::COLUMNS, rows, formats, "EXPLAIN")
            }
            Command::Explain(question) => {
                let rows = off_thread(move || explain::rows(&app, &question)).await?;
                table(explain::COLUMNS, rows, formats, "EXPLAIN")
            }
            Command::Set { key, value } => {
                let set = off_thread(move || set::apply(&app, &key, &value)).await?;
                set.map_err(|e| refusal(&e))?;
                done("SET")
            }
            Command::SetNothing => done("SET"),
            Command::Verb(verb, target) => {
                let carried_out = verbs::carry_out(&app, &self.console, verb, &target).await;
                carried_out.map_err(|e| refusal(&e))?;
                done(verb.word())
            }
            Command::KillClient { id, generation } => {
                verbs::kill_client(&app, id, generation).map_err(|e| refusal(&e))?;
                done("KILL_CLIENT")
            }
            Command::Shutdown(how) => {
                tracing::warn!(
                    user = self.user,
                    ?how,
                    "shutdown asked for on the admin console"
                );
                app.ask_to_stop(how);
                done("SHUTDOWN")
            }
        }
    }
}

/// The table for which clients are asked what they run.
const CLIENTS: &str = "CLIENTS";

/// Most clients that are asked, and how long their answers are waited for at most.
const MAX_ASKED: usize = 1000;
const ANSWER_WITHIN: Duration = Duration::from_millis(50);

/// Asks those that hold a server connection what they run: there are no more of them than server
/// connections.
async fn ask_clients(app: &App) {
    let mut asked = app.clients();
    asked.retain(|client| {
        let is_streaming = client.progress().phase == Phase::Streaming;
        client.activity() == Activity::Active && !is_streaming
    });
    asked.truncate(MAX_ASKED);
    asked.iter().for_each(|client| client.ask());
    let answers = async {
        while asked.iter().any(|client| client.is_asked()) {
            timer::sleep(Duration::from_millis(1)).await;
        }
    };
    // Who does not answer, since its task has much to do or it has just let go, is shown without.
    let _ = timer::timeout(ANSWER_WITHIN, answers).await;
}

fn admin_needed() -> Error {
    Error::new(Kind::InsufficientPrivilege, "admin access needed")
        .with_detail("Users of admin.stats_users may only look.")
}

fn reload(app: &App) -> Result<Vec<Row>, Vec<Mistake>> {
    let old = app.config();
    let diff = app.reload_file()?;
    Ok(reloaded::rows(&diff, &old, &app.config()))
}

/// Runs what takes a while where no client waits for it.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> PgWireResult<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| {
        tracing::error!(error = %e, "a command of the admin console failed");
        refusal(&Error::new(Kind::Internal, "the command failed"))
    })
}

fn not_reloaded(mistakes: &[Mistake]) -> PgWireError {
    let mut detail = String::new();
    for (number, mistake) in mistakes.iter().enumerate() {
        let line = mistake.to_string();
        if detail.len() + line.len() > MAX_DETAIL {
            detail.push_str(&format!("\nand {} more", mistakes.len() - number));
            break;
        }
        if number > 0 {
            detail.push('\n');
        }
        detail.push_str(&line);
    }
    // config_file_error
    let error = Error::new(Kind::Internal, "the configuration was not reloaded")
        .with_sqlstate("F0000")
        .with_detail(detail)
        .with_hint("Nothing has changed. Correct the file and try again.");
    refusal(&error)
}

/// As an ErrorResponse of severity ERROR.
fn refusal(error: &Error) -> PgWireError {
    let clean = |text: &str| text.replace('\0', "");
    let mut info = ErrorInfo::new(
        "ERROR".to_owned(),
        error.sqlstate().to_owned(),
        clean(error.message()),
    );
    info.severity_nonlocalized = Some("ERROR".to_owned());
    info.detail = error.detail().map(clean);
    info.hint = error.hint().map(clean);
    PgWireError::UserError(Box::new(info))
}

/// The columns of a table in the formats that were asked for.
fn fields(table: &[Column], formats: &Format) -> PgWireResult<Vec<FieldInfo>> {
    let columns = table.len();
    if let Format::Individual(formats) = formats
        && formats.len() != columns
    {
        let message = format!(
            "bind message has {} result formats but query has {columns} columns",
            formats.len()
        );
        return Err(refusal(&Error::new(Kind::ProtocolViolation, message)));
    }
    let fields = table.iter().enumerate().map(|(position, column)| {
        let (datatype, size) = match column.kind {
            ColumnKind::Int => (Type::INT8, 8),
            ColumnKind::Text => (Type::TEXT, -1),
        };
        let format = formats.format_for(position);
        FieldInfo::new(column.name.to_owned(), None, None, datatype, format).with_type_size(size)
    });
    Ok(fields.collect())
}

fn table(
    columns: &[Column],
    rows: Vec<Row>,
    formats: &Format,
    tag: &str,
) -> PgWireResult<Response> {
    let fields = Arc::new(fields(columns, formats)?);
    let mut encoder = DataRowEncoder::new(fields.clone());
    let rows: Vec<_> = rows
        .into_iter()
        .map(|row| {
            for (cell, field) in row.iter().zip(fields.iter()) {
                encode(&mut encoder, cell, field)?;
            }
            Ok(encoder.take_row())
        })
        .collect();
    let mut response = QueryResponse::new(fields, futures_util::stream::iter(rows));
    response.set_command_tag(tag);
    Ok(Response::Query(response))
}

/// A cell that has not its column's type would reach the client as bytes of another.
fn encode(encoder: &mut DataRowEncoder, cell: &Cell, field: &FieldInfo) -> PgWireResult<()> {
    let is_int = *field.datatype() == Type::INT8;
    match cell {
        Cell::Int(number) if is_int => encoder.encode_field(number),
        Cell::Text(text) if !is_int => encoder.encode_field(&text.replace('\0', "")),
        _ if is_int => encoder.encode_field(&None::<i64>),
        _ => encoder.encode_field(&None::<String>),
    }
}

#[async_trait]
impl SimpleQueryHandler for Answers {
    async fn do_query<C>(&self, _client: &mut C, query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let command = Command::parse(query).map_err(|e| refusal(&e))?;
        Ok(vec![self.answer(command, &Format::UnifiedText).await?])
    }
}

#[async_trait]
impl ExtendedQueryHandler for Answers {
    type Statement = Command;
    type QueryParser = Parser;

    fn query_parser(&self) -> Arc<Parser> {
        Arc::new(Parser)
    }

    async fn do_query<C>(
        &self,
        _client: &mut C,
        portal: &Portal<Command>,
        _max_rows: usize,
    ) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Command>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let parameters = portal.parameter_len();
        if parameters > 0 {
            let message = format!(
                "bind message supplies {parameters} parameters, but commands of the console take none"
            );
            return Err(refusal(&Error::new(Kind::ProtocolViolation, message)));
        }
        let command = portal.statement.statement.clone();
        self.answer(command, &portal.result_column_format).await
    }
}

/// Makes statements of Parse messages.
struct Parser;

#[async_trait]
impl QueryParser for Parser {
    type Statement = Command;

    async fn parse_sql<C>(
        &self,
        _client: &C,
        sql: &str,
        _types: &[Option<Type>],
    ) -> PgWireResult<Option<Command>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        Command::parse(sql).map(Some).map_err(|e| refusal(&e))
    }

    fn get_parameter_types(&self, _command: &Command) -> PgWireResult<Vec<Type>> {
        Ok(Vec::new())
    }

    fn get_result_schema(
        &self,
        command: &Command,
        formats: Option<&Format>,
    ) -> PgWireResult<Vec<FieldInfo>> {
        let formats = formats.unwrap_or(&Format::UnifiedText);
        match command {
            Command::Show(show) => fields(show.columns, formats),
            Command::Tenant(_) => fields(show::tenant::COLUMNS, formats),
            Command::Parameter((name, _)) => fields(&[show::text(name)], formats),
            Command::Reload => fields(reloaded::COLUMNS, formats),
            Command::Effective(_) => fields(effective::COLUMNS, formats),
            Command::Explain(_) => fields(explain::COLUMNS, formats),
            _ => Ok(Vec::new()),
        }
    }
}

#[cfg(test)]
mod tests;
