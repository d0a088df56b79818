//! `/metrics`, `/healthz` and `/readyz`. One request a connection, few connections at a time:
//! whoever finds the port can slow down a scrape, and nothing else. Who says nothing makes way for
//! who does.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::admin::metrics;
use crate::app::App;
use crate::backend::health::State;
use crate::backend::instance::Instance;
use crate::error::Kind;
use crate::timer;

/// Connections at a time; with one more, the oldest that has asked nothing is closed.
const MAX_CONNECTIONS: usize = 64;

/// From accept to the end of the request's head.
const HEADER_DEADLINE: Duration = Duration::from_secs(5);

/// From accept to the end of the answer.
const DEADLINE: Duration = Duration::from_secs(30);

/// After accept fails (no descriptors left), the next try waits, or it would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";

/// Serves `listener` on `control` until the process ends: also while it drains, when `/readyz`
/// says so.
///
/// # Errors
/// The operating system's.
pub fn start(
    app: &Arc<App>,
    listener: std::net::TcpListener,
    control: &Handle,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let _reactor = control.enter();
    let listener = TcpListener::from_std(listener)?;
    control.spawn(accept(app.clone(), listener));
    Ok(())
}

async fn accept(app: Arc<App>, listener: TcpListener) {
    let mut seats: VecDeque<Seat> = VecDeque::new();
    loop {
        match listener.accept().await {
            Ok((tcp, peer)) => {
                make_room(&mut seats);
                let (app, has_asked) = (app.clone(), Arc::<AtomicBool>::default());
                let asked = has_asked.clone();
                let task = tokio::spawn(async move {
                    match timer::timeout(DEADLINE, serve(app, tcp, asked)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!(%peer, %error, "http connection failed"),
                        Err(_) => tracing::debug!(%peer, "http connection took too long"),
                    }
                });
                let task = task.abort_handle();
                seats.push_back(Seat { task, has_asked });
                // What it asks is read before many more are accepted.
                tokio::task::yield_now().await;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an http connection");
                timer::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A connection, the oldest first.
struct Seat {
    task: AbortHandle,
    /// The head of its request is there.
    has_asked: Arc<AtomicBool>,
}

/// Closes a connection if there are as many as there may be: one that has asked nothing, or else
/// the oldest.
fn make_room(seats: &mut VecDeque<Seat>) {
    seats.retain(|seat| !seat.task.is_finished());
    if seats.len() < MAX_CONNECTIONS {
        return;
    }
    let is_silent = |seat: &Seat| !seat.has_asked.load(Ordering::Relaxed);
    let at = seats.iter().position(is_silent).unwrap_or(0);
    if let Some(seat) = seats.remove(at) {
        seat.task.abort();
    }
}

async fn serve(app: Arc<App>, tcp: TcpStream, asked: Arc<AtomicBool>) -> hyper::Result<()> {
    let service = service_fn(move |request| {
        let app = app.clone();
        asked.store(true, Ordering::Relaxed);
        async move { Ok::<_, Infallible>(answer(&app, &request).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(tcp), service)
        .await
}

async fn answer(app: &Arc<App>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = reply(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        let allowed = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allowed);
        return response;
    }
    match request.uri().path() {
        "/healthz" => reply(StatusCode::OK, "ok\n"),
        "/readyz" => match unready(app) {
            None => reply(StatusCode::OK, format!("ready\n{}", troubles(app))),
            Some(reason) => reply(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
        },
        "/metrics" => scrape(app.clone()).await,
        _ => reply(StatusCode::NOT_FOUND, "not found\n"),
    }
}

/// Why no client should be sent here.
fn unready(app: &App) -> Option<&'static str> {
    if app.is_draining() || app.is_closing() {
        return Some("shutting down");
    }
    let instances = app.instances();
    let mut known = instances
        .values()
        .map(|instance| match instance.health.report().state {
            State::Unknown if is_away(instance) => State::Down,
            state => state,
        })
        .filter(|state| *state != State::Unknown)
        .peekable();
    let all_down = known.peek().is_some() && known.all(|state| state == State::Down);
    all_down.then_some("no server is up")
}

/// Whether clients found lately that it cannot be reached; a server that is full serves those that
/// are in.
fn is_away(instance: &Instance) -> bool {
    let trouble = instance.trouble();
    trouble.is_some_and(|error| error.kind() != Kind::TooManyConnections)
}

/// What is wrong with servers whose clients wait, while others are served: a line each.
fn troubles(app: &App) -> String {
    let mut lines = String::new();
    for (name, instance) in app.instances().iter() {
        if let Some(error) = instance.trouble() {
            lines += &format!("server {name}: {}\n", error.message());
        }
    }
    lines
}

/// With many tenants this takes a while, which the health check must not wait for.
async fn scrape(app: Arc<App>) -> Response<Full<Bytes>> {
    match tokio::task::spawn_blocking(move || metrics::encode(app)).await {
        Ok(Ok(text)) => {
            let mut response = reply(StatusCode::OK, text);
            let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
            response.headers_mut().insert(CONTENT_TYPE, kind);
            response
        }
        _ => {
            tracing::error!("could not encode the metrics");
            reply(
                StatusCode::INTERNAL_SERVER_ERROR,
                "could not encode the metrics\n",
            )
        }
    }
}

fn reply(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(TEXT));
    response
}

#[cfg(test)]
mod tests;
