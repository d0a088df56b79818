//! From an accepted socket to a client that is logged in, on whatever worker accepted it.

mod limit;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::runtime::Handle;

use crate::app::{App, PlacedClient, moved};
use crate::auth::MAX_MESSAGE;
use crate::backend::binding::Settings;
use crate::client::{ClientHandle, NewClient};
use crate::config::{Config, Credential, Tenant};
use crate::error::{Error, Kind, Result};
use crate::frontend::attempts::{self, Caller};
use crate::frontend::forbidden::forbidden_parameter;
use crate::frontend::handshake::{self, Opening};
use crate::frontend::logged_in::LoggedIn;
use crate::frontend::logged_in::Wanted;
use crate::frontend::replication;
use crate::frontend::standing::Guards;
use crate::id::TenantId;
use crate::net::stream::Stream;
use crate::places::{self, Place};
use crate::protocol::buffer::Buffer;
use crate::protocol::frame::{FrontendTag, HEADER, Header};
use crate::protocol::reply::Replies;
use crate::protocol::startup::{CancelKey, NEWEST, Replication, Startup, Version};
use crate::tenant::identify::{ADMIN_DATABASE, Claim, identify};
use crate::tls::Door;

use self::limit::Limit;

/// What came of a connection.
pub enum Admitted {
    Tenant(Box<LoggedIn>),
    Admin(AdminLogin),
    /// It is dealt with: a cancel, a refusal, a port check.
    Done,
}

/// A user of the admin console that is logged in.
pub struct AdminLogin {
    pub stream: Stream,
    /// What it has said since it proved who it is.
    pub inbox: Buffer,
    pub user: String,
    /// What it is to be told first: the end of authentication.
    pub greeting: Replies,
    /// Its connection, and its place among the console's clients.
    pub places: [Place; 2],
}

/// Startup, cancel or authentication, within the login deadline. What is refused is told so here.
pub async fn admit(
    app: &Arc<App>,
    door: &Door,
    tcp: TcpStream,
    peer: SocketAddr,
    counted: Place,
) -> Admitted {
    let config = app.config();
    let stranger = app.places.greet(config.limits.logins);
    let limit = Limit::new(config.timeouts.login);
    let begun = limit.keep(begin(app, door, tcp, peer, counted, &limit));
    let why = tokio::select! {
        biased;
        admitted = begun => match admitted {
            Some(admitted) => return admitted,
            None => "login took too long",
        },
        () = stranger.must_go() => "login took longest, and others come",
    };
    app.metrics.refused.add(1);
    if let Some(left_out) = may_log(app, None) {
        tracing::info!(%peer, left_out, "{why}");
    }
    Admitted::Done
}

async fn begin(
    app: &Arc<App>,
    door: &Door,
    tcp: TcpStream,
    peer: SocketAddr,
    counted: Place,
    limit: &Limit,
) -> Admitted {
    let accepted = Instant::now();
    let (mut stream, startup, sni) = match handshake::open(
        tcp,
        door.tls.as_ref(),
        door.tls_required,
    )
    .await
    {
        Ok(Opening::Login {
            stream,
            startup,
            sni,
        }) => (stream, startup, sni),
        Ok(Opening::Cancel(key, stream)) => {
            Box::pin(cancel(app, &key, peer)).await;
            drop(stream);
            return Admitted::Done;
        }
        Ok(Opening::Nothing(stream)) => {
            if let Some(stream) = stream {
                close(stream);
            }
            return Admitted::Done;
        }
        Err((stream, error)) => {
            app.metrics.refused.add(1);
            if let Some(left_out) = may_log(app, None) {
                tracing::info!(%peer, sqlstate = error.sqlstate(), %error, left_out, "connection refused");
            }
            if let Some(stream) = stream {
                part(stream, &error).await;
            }
            return Admitted::Done;
        }
    };
    if let Err(error) = app.may_log_in() {
        return refuse(app, stream, peer, (&startup.user, None), &error).await;
    }
    let user = startup.user.clone();
    let mut inbox = Buffer::new();
    let mut tenant = None;
    let client = (&mut stream, &mut inbox, &mut tenant, limit);
    match log_in(app, door, client, startup, sni.as_deref(), peer).await {
        Ok(Outcome::Admin {
            user,
            greeting,
            place,
        }) => Admitted::Admin(AdminLogin {
            stream,
            inbox,
            user,
            greeting,
            places: [counted, place],
        }),
        Ok(Outcome::Tenant(prepared)) => {
            match prepared.finish(app, stream, inbox, (counted, accepted)) {
                Ok(login) => Admitted::Tenant(login),
                Err((stream, error)) => refuse(app, stream, peer, (&user, tenant), &error).await,
            }
        }
        Err(error) => refuse(app, stream, peer, (&user, tenant), &error).await,
    }
}

/// `tenant`: which the login names, if there is one.
async fn refuse(
    app: &App,
    stream: Stream,
    peer: SocketAddr,
    (user, tenant): (&str, Option<TenantId>),
    error: &Error,
) -> Admitted {
    match error.is_untold() {
        true => tracing::debug!(%peer, user, %error, "login given up"),
        false => {
            app.metrics.refused.add(1);
            if let Some(left_out) = may_log(app, tenant.as_ref()) {
                tracing::info!(%peer, user, sqlstate = error.sqlstate(), %error, left_out, "login refused");
            }
        }
    }
    part(stream, error).await;
    Admitted::Done
}

/// Whether the log has room for a refusal. Within: how many were left out before it, if any were.
fn may_log(app: &App, tenant: Option<&TenantId>) -> Option<Option<u64>> {
    let left_out = app.audit.may_log(tenant)?;
    Some(Some(left_out).filter(|left_out| *left_out > 0))
}

/// Closes a client for `error`, and tells it so if it is to know.
async fn part(mut stream: Stream, error: &Error) {
    if !error.is_untold() {
        let _ = stream.write_all(Replies::new().fatal(error).bytes()).await;
        let _ = stream.flush().await;
    }
    let _ = stream.shutdown().await;
    close(stream);
}

fn close(mut stream: Stream) {
    stream.pass_over_unread();
}

/// Passes a cancel on if its key is known. Whether it was is not told: the connection just closes.
async fn cancel(app: &App, key: &CancelKey, peer: SocketAddr) {
    let Some(client) = app.client(key) else {
        if app.cancel_console(key) {
            return;
        }
        tracing::debug!(pid = key.pid, "cancel request with an unknown key");
        attempts::note_cancel(app, peer);
        return;
    };
    client.cancel_wait();
    let Some(fence) = client.fence() else { return };
    let tenant = app.tenant(&client.tenant);
    let deadline = tenant.connect_timeout(&app.config().timeouts);
    match fence.cancel(client.id, deadline).await {
        Ok(true) => tenant.metrics.cancels.add(1),
        Ok(false) => {}
        Err(error) => tracing::warn!(tenant = %client.tenant, %error, "cancel request failed"),
    }
}

enum Outcome {
    Tenant(Box<Prepared>),
    Admin {
        user: String,
        greeting: Replies,
        place: Place,
    },
}

/// A login that succeeded, but for its socket.
struct Prepared {
    tenant: Arc<Tenant>,
    user: String,
    credential: Arc<Credential>,
    settings: Settings,
    spelled: Vec<String>,
    greeting: Replies,
    replication: Option<Wanted>,
    database: String,
    key: CancelKey,
    peer: SocketAddr,
    place: Place,
    placement: PlacedClient,
    guard: crate::tenant::state::ClientGuard,
}

impl Prepared {
    /// Registers the client, and looks at the config once more: a reload from now on finds it, one
    /// during the login did not.
    fn finish(
        self,
        app: &Arc<App>,
        stream: Stream,
        inbox: Buffer,
        (connection, accepted): (Place, Instant),
    ) -> Result<Box<LoggedIn>, (Stream, Error)> {
        let Self {
            tenant,
            user,
            credential,
            settings,
            spelled,
            greeting,
            replication,
            database,
            key,
            peer,
            place,
            placement,
            guard,
        } = self;
        let handle = Arc::new(ClientHandle::new(NewClient {
            id: app.next_client_id(),
            key,
            tenant: tenant.id.clone(),
            user: guard.tenant().shared_name(&user),
            database: guard.tenant().shared_name(&database),
            peer: Some(peer),
            tls: stream.is_tls(),
        }));
        let registered = app.register(handle);
        let config = app.config();
        let now = config.login(tenant.id.as_str());
        let still = now.filter(|now| now.users.get(&registered.user) == Some(&credential));
        let Some(tenant) = still else {
            return Err((stream, moved()));
        };
        if let Err(error) = app.takes_clients(&tenant.id) {
            return Err((stream, error));
        }
        let tenant_state = guard.tenant().clone();
        Ok(Box::new(LoggedIn {
            app: app.clone(),
            stream,
            inbox,
            accepted,
            accepted_by: Handle::current().id(),
            registered,
            tenant: tenant_state,
            route: tenant.route.clone(),
            credential,
            settings,
            spelled,
            greeting,
            replication,
            guards: Guards {
                connection,
                client: place,
                placement,
                tenant: guard,
            },
        }))
    }
}

/// Identify, authenticate, then what only an authenticated client may learn.
#[expect(clippy::too_many_lines, reason = "the stages of a login, in order")]
async fn log_in(
    app: &Arc<App>,
    door: &Door,
    (stream, inbox, whose, limit): (&mut Stream, &mut Buffer, &mut Option<TenantId>, &Limit),
    mut startup: Startup,
    sni: Option<&str>,
    peer: SocketAddr,
) -> Result<Outcome> {
    let config = app.config();
    let claim = identify(&config, &mut startup, sni);
    if let Claim::Tenant { tenant, .. } = &claim {
        *whose = Some(tenant.id.clone());
        limit.set(tenant.terms.own_timeouts.login);
    }
    let (scope, user, credential) = credential_of(&config, &claim, &startup);
    let verifiers = &app.verifiers;
    let verifier = match verifiers.known(&scope, &user, credential.as_deref()) {
        Some(verifier) => verifier,
        None => {
            // A password's first use costs a millisecond that other clients of this worker should
            // not wait.
            let (app, user, credential) = (app.clone(), user.clone(), credential.clone());
            let derive = move || app.verifiers.verifier(&scope, &user, credential.as_deref());
            tokio::task::spawn_blocking(derive).await.map_err(|e| {
                Error::new(Kind::Internal, "could not check the password").caused_by(e)
            })?
        }
    };
    let mut greeting = Replies::new();
    negotiate(&startup, &mut greeting);
    let proved = authenticate(door, stream, inbox, &mut greeting, &verifier).await?;
    let caller = Caller {
        app,
        claim: &claim,
        startup: &startup,
        peer,
    };
    let (Some(last), Some(credential)) = (proved, &credential) else {
        if let Claim::Tenant { tenant, .. } = &claim {
            app.tenant(&tenant.id).metrics.refused.add(1);
        }
        let error = wrong_password(&startup);
        caller.note_wrong(credential.is_some(), &error);
        return Err(error);
    };
    greeting.sasl_final(&last).authentication_ok();
    match &claim {
        Claim::Nobody(_) => Err(wrong_password(&startup)),
        Claim::Admin { .. } if startup.replication.is_some() => {
            let _ = stream.write_all(greeting.bytes()).await;
            Err(Error::new(
                Kind::FeatureNotSupported,
                "the admin console has nothing to replicate",
            ))
        }
        Claim::Admin { user } => match app.place_for(places::Kind::Console) {
            Ok(place) => Ok(Outcome::Admin {
                user: user.clone(),
                greeting,
                place,
            }),
            Err(error) => {
                let _ = stream.write_all(greeting.bytes()).await;
                Err(error)
            }
        },
        Claim::Tenant {
            tenant,
            user,
            database_known,
        } => {
            let admitted = permit(app, &config, tenant, &startup, *database_known);
            let (place, placement, guard, replication) = match admitted {
                Ok(admitted) => admitted,
                Err(error) => {
                    app.tenant(&tenant.id).metrics.refused.add(1);
                    caller.note_refused(&error);
                    // As PostgreSQL does: the client is authenticated, then refused.
                    let _ = stream.write_all(greeting.bytes()).await;
                    return Err(error);
                }
            };
            let database = startup
                .database
                .clone()
                .unwrap_or_else(|| startup.user.clone());
            Ok(Outcome::Tenant(Box::new(Prepared {
                key: new_key(app, startup.version),
                tenant: tenant.clone(),
                user: user.clone(),
                credential: credential.clone(),
                settings: settings(&startup),
                spelled: spelled(&startup),
                greeting,
                replication,
                database,
                peer,
                place,
                placement,
                guard,
            })))
        }
    }
}

fn wrong_password(startup: &Startup) -> Error {
    Error::new(
        Kind::InvalidPassword,
        format!(
            "password authentication failed for user \"{}\"",
            startup.user
        ),
    )
}

/// Whose credential decides: the tenant's (or the console's) name, the user's, and what it must
/// prove.
fn credential_of(
    config: &Config,
    claim: &Claim,
    startup: &Startup,
) -> (String, String, Option<Arc<Credential>>) {
    match claim {
        Claim::Tenant { tenant, user, .. } => (
            tenant.id.as_str().to_owned(),
            user.clone(),
            tenant.users.get(user).cloned(),
        ),
        Claim::Admin { user } => (
            ADMIN_DATABASE.to_owned(),
            user.clone(),
            config.console_user(user).cloned(),
        ),
        Claim::Nobody(_) => (String::new(), startup.user.clone(), None),
    }
}

/// NegotiateProtocolVersion, if the client asked for more than is spoken.
fn negotiate(startup: &Startup, greeting: &mut Replies) {
    if startup.version > NEWEST || !startup.extensions.is_empty() {
        greeting.negotiate_protocol_version(startup.version.min(NEWEST), &startup.extensions);
    }
}

/// The SASL exchange. Some: the client proved that it knows the password, and this is to be said
/// last.
async fn authenticate(
    door: &Door,
    stream: &mut Stream,
    inbox: &mut Buffer,
    greeting: &mut Replies,
    verifier: &crate::config::ScramVerifier,
) -> Result<Option<String>> {
    let tls = stream.is_tls();
    greeting.sasl(door.offer.mechanisms(tls));
    send(stream, std::mem::take(greeting)).await?;
    let first = password_message(stream, inbox).await?;
    let (answer, exchange) = door.offer.begin(tls, &first, verifier)?;
    let mut replies = Replies::new();
    replies.sasl_continue(&answer);
    send(stream, replies).await?;
    let last = password_message(stream, inbox).await?;
    Ok(exchange.finish(&last))
}

async fn send(stream: &mut Stream, replies: Replies) -> Result<()> {
    let sent = async {
        stream.write_all(replies.bytes()).await?;
        stream.flush().await
    };
    sent.await.map_err(left)
}

fn left(error: std::io::Error) -> Error {
    Error::new(Kind::ConnectionFailure, "the client left during login")
        .caused_by(error)
        .untold()
}

/// The body of the next message, which must be a password message. Reads exactly that: what follows
/// belongs to the session.
async fn password_message(stream: &mut Stream, inbox: &mut Buffer) -> Result<Vec<u8>> {
    loop {
        if let Some(header) = Header::read(inbox.bytes()) {
            if FrontendTag(header.tag) != FrontendTag::PASSWORD {
                return Err(Error::new(
                    Kind::ProtocolViolation,
                    format!("expected SASL response, got message type {}", header.tag),
                ));
            }
            let size = header
                .size(MAX_MESSAGE)
                .ok_or_else(|| Error::new(Kind::ProtocolViolation, "invalid message length"))?;
            if let Some(body) = inbox.bytes().get(HEADER..size) {
                let body = body.to_vec();
                inbox.consume(size);
                inbox.trim();
                return Ok(body);
            }
        }
        let filled = poll_fn(|cx| inbox.poll_fill(cx, stream)).await;
        if filled.map_err(left)? == 0 {
            return Err(left(std::io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

/// What an authenticated client may still be refused for.
fn permit(
    app: &Arc<App>,
    config: &Config,
    tenant: &Arc<Tenant>,
    startup: &Startup,
    database_known: bool,
) -> Result<(
    Place,
    PlacedClient,
    crate::tenant::state::ClientGuard,
    Option<Wanted>,
)> {
    // A physical replication connection is to no database; clients name "replication" for want of
    // one.
    if !database_known && startup.replication != Some(Replication::Physical) {
        let name = startup.database.as_deref().unwrap_or(&startup.user);
        return Err(Error::new(
            Kind::UnknownDatabase,
            format!("database \"{name}\" does not exist"),
        ));
    }
    // A parameter (of `options`) that would be read as a part of the login on a connection made for
    // this client.
    let is_of_login = |name: &str| {
        matches!(
            name,
            "user" | "database" | "options" | "replication" | "" | "_pq_"
        ) || name.starts_with("_pq_.")
    };
    let mut strange = startup.parameters.iter();
    if let Some((name, _)) = strange.rfind(|(name, _)| is_of_login(name)) {
        return Err(Error::new(
            Kind::UndefinedObject,
            format!("unrecognized configuration parameter \"{name}\""),
        ));
    }
    if config.doctor.refuse && app.findings.leaks(&tenant.route) {
        return Err(Error::new(
            Kind::CannotConnectNow,
            "tenants of this database are not kept apart: it is closed until that is mended",
        )
        .with_hint("The operator finds the reason by SHOW DOCTOR or pgtenant doctor."));
    }
    let replication = Wanted::of(startup);
    if replication.is_some() {
        replication::permit(tenant)?;
        replication::warn_of_neighbours(config, tenant);
    }
    if let Some((_, error)) = forbidden_parameter(config, tenant, startup) {
        return Err(error);
    }
    app.takes_clients(&tenant.id)?;
    let place = app.place_for(places::Kind::Tenant)?;
    let state = app.tenant(&tenant.id);
    let placement = app.admit_to_place(&state, &tenant.route)?;
    let guard = state.admit().ok_or_else(|| {
        Error::new(
            Kind::TooManyConnections,
            format!("too many connections for tenant \"{}\"", tenant.id),
        )
    })?;
    Ok((place, placement, guard, replication))
}

/// The run-time parameters the client asks for; of one given twice the last counts, as in
/// PostgreSQL.
fn settings(startup: &Startup) -> Settings {
    startup
        .parameters
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value.clone()))
        .collect()
}

/// Their names as the client spells them, where that is not in lower case: PostgreSQL's errors have
/// them so.
fn spelled(startup: &Startup) -> Vec<String> {
    let names = startup.parameters.iter().map(|(name, _)| name);
    let spelled = names.filter(|name| name.bytes().any(|byte| byte.is_ascii_uppercase()));
    spelled.cloned().collect()
}

/// A cancel key nobody has: 4 random bytes, or 32 since protocol 3.2.
fn new_key(app: &App, version: Version) -> CancelKey {
    let length = if version >= NEWEST { 32 } else { 4 };
    app.new_key(length)
}
