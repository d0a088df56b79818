//! `pgtenant tenant …`: tenants of the catalog, made, changed, looked at and removed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args as ClapArgs, Subcommand};
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::check::EX_CONFIG;
use crate::config::{Secret, State};
use crate::control::tenancy::{
    Access, Changes, Created, Data, Failure, Filter, Kind, Listing, NewTenant, Tenancy, User,
    verifiers,
};

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a tenant and its place, or go on with what was interrupted.
    ///
    /// It is active only when its place is made and the doctor finds nothing critical there. Else
    /// it stays provisioning, the exit code is 1, and the same command goes on.
    Create(New),
    /// Make a place that is there already a tenant's. Nothing in it is changed.
    Adopt(New),
    /// List tenants, those of the config file first.
    List {
        #[command(flatten)]
        common: Common,
        /// Those in this state alone.
        #[arg(long)]
        state: Option<String>,
        /// Those of this placement alone.
        #[arg(long, value_name = "NAME")]
        placement: Option<String>,
        /// At most so many.
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
    /// Show one tenant: its state, place and users, and what is under way.
    Show(One),
    /// Change settings of a tenant: `limits.clients=50`, `attributes.region=eu`.
    Set(Set),
    /// Let a tenant's clients wait.
    Pause(Into),
    /// Let a tenant that is paused go on.
    Resume(One),
    /// Refuse a tenant's logins, and end its clients.
    Suspend(Into),
    /// Let a tenant read and not write.
    ReadOnly(Into),
    /// Refuse a tenant's logins, and let its clients end by themselves.
    Drain(Into),
    /// Put a tenant back into service, whatever it is.
    Activate(One),
    /// Refuse a tenant for good. Its data stays until it is purged.
    Delete {
        #[command(flatten)]
        one: One,
        /// Why, for the record.
        #[arg(long)]
        reason: Option<String>,
    },
    /// Forget a tenant that is deleted, with its data or without.
    Purge {
        #[command(flatten)]
        one: One,
        /// Drop its schema or database and its role, or run provision.delete.
        #[arg(
            long,
            conflicts_with = "keep_data",
            required_unless_present = "keep_data"
        )]
        data: bool,
        /// Leave its data where it is.
        #[arg(long)]
        keep_data: bool,
        /// Do not wait for the end of its retention.
        #[arg(long)]
        now: bool,
    },
}

#[derive(Debug, ClapArgs)]
pub struct Common {
    /// The config file.
    #[arg(short, long, value_name = "FILE", env = "PGTENANT_CONFIG")]
    config: PathBuf,
    /// Write JSON.
    #[arg(long)]
    json: bool,
    /// On whose behalf, for the catalog's record of changes.
    #[arg(long, value_name = "NAME")]
    actor: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub struct One {
    /// The tenant.
    name: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, ClapArgs)]
pub struct Into {
    #[command(flatten)]
    one: One,
    /// Why, for whoever is refused or waits.
    #[arg(long)]
    reason: Option<String>,
    /// When it is active again by itself, such as 2030-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub struct New {
    #[command(flatten)]
    one: One,
    /// Where it lives. Default: the first placement whose provision.when the attributes fit.
    #[arg(long, value_name = "NAME", conflicts_with = "service")]
    placement: Option<String>,
    /// The placement of one of its services.
    #[arg(long, value_name = "SERVICE=PLACEMENT", value_parser = pair)]
    service: Vec<(String, String)>,
    /// One of the placement's servers. Default: the one with the fewest tenants.
    #[arg(long, value_name = "NAME")]
    server: Option<String>,
    /// For the templates of the placement.
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    attribute: Vec<(String, String)>,
    /// Who may log in. Default: app. Passwords that are not given are made up, and printed once.
    #[arg(long, value_name = "NAME")]
    user: Vec<String>,
    /// The password of the one user; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// When it is suspended by itself, such as 2030-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    /// How long its data stays once it is deleted, such as "30 days". Default: 7 days.
    #[arg(long, value_name = "PERIOD")]
    retention: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub struct Set {
    #[command(flatten)]
    one: One,
    /// Settings of `tenants.*` and their values.
    #[arg(value_name = "SETTING=VALUE", value_parser = pair)]
    settings: Vec<(String, String)>,
    /// Settings that are taken away.
    #[arg(long, value_name = "SETTING")]
    unset: Vec<String>,
    /// Users who get a password: that of --password-file, or one that is printed once.
    #[arg(long, value_name = "NAME")]
    user: Vec<String>,
    /// The password of the one user; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Users who may not log in any more.
    #[arg(long, value_name = "NAME")]
    remove_user: Vec<String>,
    /// When it is suspended by itself, or `never`.
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    /// How long its data stays once it is deleted, or `default`.
    #[arg(long, value_name = "PERIOD")]
    retention: Option<String>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("must be NAME=VALUE".to_owned()),
    }
}

/// Why a command ends with 1.
enum Trouble {
    Failure(Failure),
    Usage(String),
    Io(io::Error),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Runs a verb. 0: it is done; 1: it is not, and standard error says why; 78: mistakes in the
/// config.
pub async fn run(verb: &Verb, out: &mut impl Write, err: &mut impl Write) -> ExitCode {
    let mut code = ExitCode::FAILURE;
    let why = match execute(verb, out, err).await {
        Ok(true) => return ExitCode::SUCCESS,
        Ok(false) => return code,
        Err(Trouble::Failure(failure)) => {
            if failure.kind == Kind::Config {
                code = ExitCode::from(EX_CONFIG);
            }
            failure.message
        }
        Err(Trouble::Usage(message)) => message,
        Err(Trouble::Io(error)) => error.to_string(),
    };
    // Nowhere to report that standard error is gone.
    let _ = writeln!(err, "pgtenant: {why}");
    code
}

/// False: it is not done, which was said.
async fn execute(verb: &Verb, out: &mut impl Write, err: &mut impl Write) -> Result<bool, Trouble> {
    match verb {
        Verb::Create(new) => {
            let mut tenancy = writer(&new.one.common).await?;
            let created = tenancy.create(&wanted(new)?).await?;
            told(&new.one, &created, out, err)
        }
        Verb::Adopt(new) => {
            let mut tenancy = writer(&new.one.common).await?;
            let created = tenancy.adopt(&wanted(new)?).await?;
            told(&new.one, &created, out, err)
        }
        Verb::List {
            common,
            state,
            placement,
            limit,
        } => {
            let filter = Filter {
                state: state.clone(),
                placement: placement.clone(),
            };
            list(common, &filter, limit.unwrap_or(usize::MAX), out).await
        }
        Verb::Show(one) => show(one, out).await,
        Verb::Set(set) => change(set, out).await,
        Verb::Pause(into) => state(into, State::Paused, out).await,
        Verb::Suspend(into) => state(into, State::Suspended, out).await,
        Verb::ReadOnly(into) => state(into, State::ReadOnly, out).await,
        Verb::Drain(into) => state(into, State::Draining, out).await,
        Verb::Resume(one) => activate(one, Some(State::Paused), out).await,
        Verb::Activate(one) => activate(one, None, out).await,
        Verb::Delete { one, reason } => {
            let tenancy = writer(&one.common).await?;
            let revision = tenancy.delete(&one.name, reason.as_deref()).await?;
            done(one, "deleted", revision, out)
        }
        Verb::Purge { one, data, now, .. } => {
            let data = if *data { Data::Dropped } else { Data::Kept };
            let mut tenancy = writer(&one.common).await?;
            let revision = tenancy.purge(&one.name, data, *now).await?;
            done(one, "purged", revision, out)
        }
    }
}

async fn writer(common: &Common) -> Result<Tenancy, Failure> {
    Tenancy::open(&common.config, Access::Write, common.actor.clone()).await
}

async fn reader(common: &Common) -> Result<Tenancy, Failure> {
    Tenancy::open(&common.config, Access::Read, common.actor.clone()).await
}

async fn state(into: &Into, state: State, out: &mut impl Write) -> Result<bool, Trouble> {
    let one = &into.one;
    let tenancy = writer(&one.common).await?;
    let (reason, until) = (into.reason.as_deref(), into.until.as_deref());
    let revision = tenancy
        .set_state(&one.name, state, reason, until, None)
        .await?;
    done(one, state.word(), revision, out)
}

async fn activate(
    one: &One,
    only_from: Option<State>,
    out: &mut impl Write,
) -> Result<bool, Trouble> {
    let tenancy = writer(&one.common).await?;
    let revision = tenancy
        .set_state(&one.name, State::Active, None, None, only_from)
        .await?;
    done(one, State::Active.word(), revision, out)
}

fn done(one: &One, state: &str, revision: i64, out: &mut impl Write) -> Result<bool, Trouble> {
    if one.common.json {
        let answer = json!({ "tenant": one.name, "state": state, "revision": revision });
        writeln!(out, "{answer}")?;
    } else {
        writeln!(out, "{}: {state}, revision {revision}", one.name)?;
    }
    Ok(true)
}

fn users(names: &[String], password_file: Option<&Path>) -> Result<Vec<User>, Trouble> {
    let password = match (password_file, names) {
        (None, _) => None,
        (Some(file), [_]) => Some(read_password(file)?),
        (Some(_), _) => {
            let message = "--password-file is the password of one --user";
            return Err(Trouble::Usage(message.to_owned()));
        }
    };
    let users = names.iter().map(|name| User {
        name: name.clone(),
        password: password.clone(),
    });
    Ok(users.collect())
}

/// The first line.
fn read_password(file: &Path) -> Result<Secret, Trouble> {
    let text = match file == Path::new("-") {
        true => io::read_to_string(io::stdin()),
        false => fs::read_to_string(file),
    };
    let text = text.map_err(|error| Trouble::Usage(format!("{}: {error}", file.display())))?;
    let password = text.lines().next().unwrap_or_default();
    if password.is_empty() || password.contains('\0') {
        let message = format!("{}: holds no password", file.display());
        return Err(Trouble::Usage(message));
    }
    Ok(Secret::new(password.to_owned()))
}

fn wanted(new: &New) -> Result<NewTenant, Trouble> {
    let default = ["app".to_owned()];
    let names = match new.user.is_empty() {
        true => &default[..],
        false => &new.user,
    };
    Ok(NewTenant {
        name: new.one.name.clone(),
        placement: new.placement.clone(),
        placements: new.service.iter().cloned().collect(),
        server: new.server.clone(),
        attributes: new.attribute.iter().cloned().collect(),
        users: users(names, new.password_file.as_deref())?,
        expires: new.expires.clone(),
        retention: new.retention.clone(),
    })
}

fn exposed(passwords: &BTreeMap<String, Secret>) -> BTreeMap<&str, &str> {
    let passwords = passwords.iter();
    passwords
        .map(|(user, password)| (&**user, password.expose()))
        .collect()
}

/// What came of a creation. Passwords are told whatever came of it: they are in force.
fn told(
    one: &One,
    created: &Created,
    out: &mut impl Write,
    err: &mut impl Write,
) -> Result<bool, Trouble> {
    let state = match &created.pending {
        None => State::Active,
        Some(_) => State::Provisioning,
    };
    let why = created.pending.as_ref().map(|failure| &failure.message);
    let passwords = exposed(&created.passwords);
    if one.common.json {
        let answer = json!({
            "tenant": one.name,
            "state": state.word(),
            "revision": created.revision,
            "passwords": passwords,
            "pending": why,
        });
        writeln!(out, "{answer}")?;
    } else {
        let revision = created.revision;
        writeln!(out, "{}: {state}, revision {revision}", one.name)?;
        for (user, password) in &passwords {
            writeln!(out, "password of {user}: {password}")?;
        }
    }
    if let Some(why) = why {
        let name = &one.name;
        writeln!(err, "pgtenant: {why}")?;
        writeln!(
            err,
            "pgtenant: tenant {name} is not active yet: the same command goes on"
        )?;
    }
    Ok(created.pending.is_none())
}

async fn list(
    common: &Common,
    filter: &Filter,
    limit: usize,
    out: &mut impl Write,
) -> Result<bool, Trouble> {
    let tenancy = reader(common).await?;
    let mut left = limit;
    let mut written = Ok(());
    let each = |listing: Listing| {
        if left == 0 {
            return false;
        }
        left -= 1;
        written = match common.json {
            true => json_line(&listing, out),
            false => text_line(&listing, out),
        };
        written.is_ok() && left > 0
    };
    tenancy.list(filter, each).await?;
    written?;
    Ok(true)
}

fn json_line(value: &impl Serialize, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}

fn text_line(listing: &Listing, out: &mut impl Write) -> io::Result<()> {
    let row = listing.row.as_ref();
    let columns = [
        listing.tenant.clone(),
        listing.state.clone(),
        listing.placements.join(","),
        listing.server.clone().unwrap_or_else(|| "-".to_owned()),
        row.map_or_else(|| "file".to_owned(), |row| row.revision.to_string()),
        row.and_then(|row| row.version.clone())
            .unwrap_or_else(|| "-".to_owned()),
    ];
    writeln!(out, "{}", columns.join("\t"))
}

async fn show(one: &One, out: &mut impl Write) -> Result<bool, Trouble> {
    let mut tenancy = reader(&one.common).await?;
    let listing = tenancy.show(&one.name).await?;
    if one.common.json {
        json_line(&listing, out)?;
        return Ok(true);
    }
    let mut lines = vec![
        ("tenant", listing.tenant.clone()),
        ("state", listing.state.clone()),
    ];
    match &listing.row {
        None => lines.push(("source", "the config file".to_owned())),
        Some(row) => {
            let optional = [
                ("reason", &row.reason),
                ("until", &row.until),
                ("expires", &row.expires),
                ("retention", &row.retention),
                ("deleted", &row.deleted_at),
                ("version", &row.version),
            ];
            for (name, value) in optional {
                lines.extend(value.iter().map(|value| (name, value.clone())));
            }
            lines.push(("generation", row.generation.to_string()));
            lines.push(("revision", row.revision.to_string()));
            lines.push(("created", row.created_at.clone()));
            lines.push((
                "changed",
                format!("{} by {}", row.changed_at, row.changed_by),
            ));
        }
    }
    lines.push(("users", listing.users.join(", ")));
    for place in &listing.places {
        let service = place.service.as_ref().map(|service| format!("{service}: "));
        let schema = place
            .schema
            .as_ref()
            .map(|schema| format!(", schema {schema}"));
        let text = format!(
            "{}placement {} ({}), server {}, database {}{}, login {}, posture {}",
            service.unwrap_or_default(),
            place.placement,
            place.tier,
            place.server,
            place.database,
            schema.unwrap_or_default(),
            place.login,
            place.posture
        );
        lines.push(("place", text));
    }
    lines.extend(listing.mistake.iter().map(|why| ("mistake", why.clone())));
    for step in &listing.steps {
        let end = match (&step.done_at, &step.error) {
            (Some(at), _) => format!("done {at}"),
            (None, Some(why)) => format!("failed: {why}"),
            (None, None) => format!("begun {}", step.begun_at),
        };
        lines.push(("step", format!("{}, {}: {end}", step.operation, step.step)));
    }
    for (name, value) in lines {
        writeln!(out, "{name:<11} {value}")?;
    }
    Ok(true)
}

/// A setting and its value as a JSON merge patch.
fn put(patch: &mut Value, path: &str, value: Value) -> Result<(), Trouble> {
    if path == "users" || path.starts_with("users.") {
        let message = "users are changed by --user and --remove-user";
        return Err(Trouble::Usage(message.to_owned()));
    }
    let mut at = patch;
    for key in path.split('.') {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[key];
    }
    *at = value;
    Ok(())
}

fn changes(set: &Set) -> Result<(Changes, BTreeMap<String, Secret>), Trouble> {
    let mut patch = json!({});
    for (path, text) in &set.settings {
        // Attributes are texts, whatever they look like.
        let value = match path.starts_with("attributes.") {
            true => json!(text),
            false => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        };
        put(&mut patch, path, value)?;
    }
    for path in &set.unset {
        put(&mut patch, path, Value::Null)?;
    }
    let (mut by_name, passwords) = verifiers(&users(&set.user, set.password_file.as_deref())?);
    for name in &set.remove_user {
        by_name[name] = Value::Null;
    }
    if by_name.as_object().is_some_and(|users| !users.is_empty()) {
        patch["users"] = by_name;
    }
    let or_none = |text: &Option<String>, none: &str| {
        let text = text.as_ref()?;
        Some((text != none).then(|| text.clone()))
    };
    let changes = Changes {
        patch,
        expires: or_none(&set.expires, "never"),
        retention: or_none(&set.retention, "default"),
    };
    Ok((changes, passwords))
}

async fn change(set: &Set, out: &mut impl Write) -> Result<bool, Trouble> {
    let (changes, passwords) = changes(set)?;
    let one = &set.one;
    let mut tenancy = writer(&one.common).await?;
    let revision = tenancy.set(&one.name, &changes).await?;
    let passwords = exposed(&passwords);
    if one.common.json {
        let answer = json!({ "tenant": one.name, "revision": revision, "passwords": passwords });
        writeln!(out, "{answer}")?;
        return Ok(true);
    }
    writeln!(out, "{}: revision {revision}", one.name)?;
    for (user, password) in passwords {
        writeln!(out, "password of {user}: {password}")?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(settings: &[&str], unset: &[&str]) -> Result<Value, ()> {
        let set = Set {
            one: One {
                name: "acme".to_owned(),
                common: Common {
                    config: PathBuf::new(),
                    json: false,
                    actor: None,
                },
            },
            settings: settings.iter().map(|text| pair(text).unwrap()).collect(),
            unset: unset.iter().map(|text| (*text).to_owned()).collect(),
            user: Vec::new(),
            password_file: None,
            remove_user: vec!["old".to_owned()],
            expires: Some("never".to_owned()),
            retention: Some("1 day".to_owned()),
        };
        let (changes, passwords) = changes(&set).map_err(|_| ())?;
        assert!(passwords.is_empty());
        assert_eq!(changes.expires, Some(None));
        assert_eq!(changes.retention, Some(Some("1 day".to_owned())));
        Ok(changes.patch)
    }

    #[test]
    fn settings_become_a_patch_and_nothing_changes_users_by_the_way() {
        let patch = set(
            &[
                "limits.clients=5",
                "limits.active=2",
                "timeouts.login=3s",
                "attributes.n=5",
            ],
            &["weight"],
        );
        let expected = json!({
            "limits": { "clients": 5, "active": 2 },
            "timeouts": { "login": "3s" },
            "attributes": { "n": "5" },
            "weight": null,
            "users": { "old": null },
        });
        assert_eq!(patch, Ok(expected));
        assert!(set(&["users.app.scram=x"], &[]).is_err());
        assert!(set(&[], &["users"]).is_err());
    }
}
