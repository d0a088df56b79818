//! A tenant that is made from nothing, asked, and suspended, while the proxy runs.

use std::time::{Duration, Instant};

use tokio_postgres::Config;

use super::table::Table;
use super::{Proxy, READY, Result, checks};
use crate::cluster::Error;
use crate::config::State;
use crate::control::tenancy::{Access, Failure, NewTenant, Tenancy, User};
use crate::timer;

/// Whom the sample does not have.
const NAME: &str = "vandelay";
const PLACEMENT: &str = "new";
/// Between two logins while it is waited for the proxy to hear of a change.
const PAUSE: Duration = Duration::from_millis(5);

fn failed(failure: &Failure) -> Error {
    Error::new(format!("tenant {NAME}: {}", failure.message))
}

/// Makes the tenant, asks for its rows through the proxy, suspends it, and says what is not as
/// promised.
pub async fn show(proxy: &Proxy) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut table = Table::new(["what was done", "state", "what a login gets", "after"]);
    let path = proxy.dir.path().join(super::CONFIG_FILE);
    let open = Tenancy::open(&path, Access::Write, Some("demo".to_owned()));
    let mut tenancy = open.await.map_err(|failure| failed(&failure))?;
    let begun = Instant::now();
    let created = tenancy
        .create(&new())
        .await
        .map_err(|failure| failed(&failure))?;
    if let Some(pending) = created.pending {
        return Err(failed(&pending));
    }
    let Some(password) = created.passwords.get("app") else {
        return Err(Error::new("the new tenant's user has no password"));
    };
    let mut config = Config::new();
    config
        .host(proxy.address.ip().to_string())
        .port(proxy.address.port())
        .user("app")
        .password(password.expose())
        .dbname(NAME)
        .connect_timeout(READY);
    let answer = until(&config, Result::is_ok).await;
    match &answer {
        Ok(items) if items == "a welcome present" => {}
        other => wrong.push(format!("{NAME}, who is new, gets {other:?}")),
    }
    table.row(row("created", "active", answer, begun));
    let begun = Instant::now();
    let reason = Some("the demo is over");
    let suspended = tenancy.set_state(NAME, State::Suspended, reason, None, None);
    suspended.await.map_err(|failure| failed(&failure))?;
    let answer = until(&config, Result::is_err).await;
    if let Ok(items) = &answer {
        wrong.push(format!("{NAME}, who is suspended, gets {items:?}"));
    }
    table.row(row("suspended", "suspended", answer, begun));
    println!("A tenant is made from nothing, with a role and a schema, and suspended:\n\n{table}");
    Ok(wrong)
}

fn new() -> NewTenant {
    NewTenant {
        name: NAME.to_owned(),
        placement: Some(PLACEMENT.to_owned()),
        users: vec![User {
            name: "app".to_owned(),
            password: None,
        }],
        ..NewTenant::default()
    }
}

fn row(done: &str, state: &str, answer: Result<String>, begun: Instant) -> [String; 4] {
    let answer = answer.unwrap_or_else(|error| error.to_string());
    let after = format!("{} ms", begun.elapsed().as_millis());
    [done.to_owned(), state.to_owned(), answer, after]
}

/// What a login gets: its items, or why it gets none. It is tried until that is as expected, or for
/// too long.
async fn until(config: &Config, expected: impl Fn(&Result<String>) -> bool) -> Result<String> {
    let deadline = Instant::now() + READY;
    loop {
        let answer = items(config).await;
        if expected(&answer) || Instant::now() > deadline {
            return answer;
        }
        timer::sleep(PAUSE).await;
    }
}

async fn items(config: &Config) -> Result<String> {
    let refused = |error| Error::new(crate::cluster::describe(&error));
    let client = checks::connect(config).await.map_err(refused)?;
    let rows = client.query("SELECT item FROM orders", &[]).await;
    let rows = rows.map_err(refused)?;
    let items: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    Ok(items.join(", "))
}
