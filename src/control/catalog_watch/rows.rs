//! What the catalog's tables say, as the proxy reads them.

use std::pin::Pin;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt as _;
use tokio_postgres::{Client, Row, RowStream};

use super::{Failure, PATIENCE};
use crate::config::{Entry, Extras, Lifecycle, State};
use crate::timer;

/// The version of the tables that is read.
const VERSION: i32 = 1;

pub const SERVER: &str = "server";
pub const PLACEMENT: &str = "placement";

/// The catalog as a whole.
#[derive(Debug, Clone, Copy)]
pub struct About {
    pub revision: u64,
}

/// A server or a placement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub kind: &'static str,
    pub name: String,
    /// None: there is none any more.
    pub spec: Option<String>,
    pub revision: u64,
}

impl Place {
    pub fn put_in(&self, extras: &mut Extras) {
        let all = match self.kind {
            SERVER => &mut extras.servers,
            _ => &mut extras.placements,
        };
        match &self.spec {
            Some(spec) => _ = all.insert(self.name.clone(), spec.clone()),
            None => _ = all.remove(&self.name),
        }
    }
}

async fn ask(client: &Client, question: &str, since: Option<u64>) -> Result<Vec<Row>, Failure> {
    let since = since.map(|since| i64::try_from(since).unwrap_or(i64::MAX));
    let answer = async {
        match &since {
            Some(since) => client.query(question, &[since]).await,
            None => client.query(question, &[]).await,
        }
    };
    let answer = timer::timeout(PATIENCE, answer).await;
    Ok(answer.map_err(|_| Failure::Silence)??)
}

fn revision(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// # Errors
/// Also if the tables are of another version.
pub async fn about(client: &Client) -> Result<About, Failure> {
    let rows = ask(
        client,
        "SELECT version, revision FROM pgtenant_catalog.about",
        None,
    )
    .await?;
    let row = rows
        .first()
        .ok_or_else(|| Failure::Unfit("it is empty: pgtenant sql catalog makes it".to_owned()))?;
    let version: i32 = row.try_get(0)?;
    if version != VERSION {
        return Err(Failure::Unfit(format!(
            "its tables have version {version}, and this program reads version {VERSION} (pgtenant sql catalog upgrades them)"
        )));
    }
    Ok(About {
        revision: revision(row.try_get(1)?),
    })
}

/// Servers and then placements that have changed.
pub async fn places(client: &Client, since: u64) -> Result<Vec<Place>, Failure> {
    let mut places = Vec::new();
    for (kind, question) in [
        (
            SERVER,
            "SELECT server, spec::text, revision FROM pgtenant_catalog.servers \
             WHERE revision OPERATOR(pg_catalog.>) $1 ORDER BY revision",
        ),
        (
            PLACEMENT,
            "SELECT placement, spec::text, revision FROM pgtenant_catalog.placements \
             WHERE revision OPERATOR(pg_catalog.>) $1 ORDER BY revision",
        ),
    ] {
        for row in ask(client, question, Some(since)).await? {
            places.push(Place {
                kind,
                name: row.try_get(0)?,
                spec: row.try_get(1)?,
                revision: revision(row.try_get(2)?),
            });
        }
    }
    Ok(places)
}

/// Tenants that have changed, in the order of their changes.
pub async fn tenants(client: &Client, since: u64) -> Result<RowStream, Failure> {
    let since = i64::try_from(since).unwrap_or(i64::MAX);
    let question = client.query_raw(
        "SELECT tenant, state, reason, extract(epoch FROM until)::pg_catalog.float8, \
         extract(epoch FROM expires)::pg_catalog.float8, generation, version, spec::text, revision \
         FROM pgtenant_catalog.tenants WHERE revision OPERATOR(pg_catalog.>) $1 ORDER BY revision",
        [since],
    );
    let rows = timer::timeout(PATIENCE, question).await;
    Ok(rows.map_err(|_| Failure::Silence)??)
}

/// The next tenants: so many, or fewer if they are the last.
pub async fn next_chunk(mut rows: Pin<&mut RowStream>, most: usize) -> Result<Vec<Entry>, Failure> {
    let mut entries = Vec::new();
    while entries.len() < most {
        let next = timer::timeout(PATIENCE * 5, rows.next()).await;
        let Some(row) = next.map_err(|_| Failure::Silence)? else {
            break;
        };
        entries.push(entry(&row?)?);
    }
    Ok(entries)
}

/// Seconds of Unix time. Infinity is never.
pub fn time(seconds: Option<f64>) -> Option<SystemTime> {
    let since = Duration::try_from_secs_f64(seconds?.max(0.0)).ok()?;
    UNIX_EPOCH.checked_add(since)
}

fn entry(row: &Row) -> Result<Entry, Failure> {
    let state: &str = row.try_get(1)?;
    let reason: Option<&str> = row.try_get(2)?;
    Ok(Entry {
        name: row.try_get(0)?,
        lifecycle: Lifecycle {
            // A state that is not known here lets nobody in.
            state: State::read(state).unwrap_or(State::Suspended),
            reason: reason.map(Into::into),
            until: time(row.try_get(3)?),
            expires: time(row.try_get(4)?),
        },
        generation: revision(row.try_get(5)?),
        version: row.try_get(6)?,
        spec: row.try_get(7)?,
        revision: revision(row.try_get(8)?),
    })
}
