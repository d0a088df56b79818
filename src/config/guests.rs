//! The config with nobody in it but two guests: tenants that are made up to be played against each
//! other, in one placement as the file has it. Everybody else, every port and every login of the
//! console is left out, so that a proxy which runs it serves the guests alone.

use std::path::Path;

use indexmap::IndexMap;
use rand::Rng;
use rand::distr::Alphanumeric;
use sha2::{Digest, Sha256};

use super::file::{
    ActsForFile, ApplicationFile, By, ChooseFile, ConfigFile, CredentialFile, IdentifyFile,
    ListenFile, PlacementFile, TenantFile,
};
use super::units::{Count, Period};
use super::{Config, Mistake, Secret, Tier, resolve};
use crate::id::ServerName;

/// Two tenants that nobody has.
#[derive(Debug, Clone)]
pub struct Guests {
    pub placement: String,
    /// The server that both are on; none: the placement's first.
    pub server: Option<ServerName>,
    /// Most server connections of a pool. One is really one: without a reserve.
    pub pool_size: usize,
    /// For each, what its names are made of, in letters and digits.
    pub marks: [String; 2],
    /// What they log in with. The first is that of their roles, too, where the file has passwords
    /// of tenants in files.
    pub passwords: [Secret; 2],
}

/// The user of a guest.
pub const USER: &str = "app";
/// An application that may act for the first guest alone, and its user, who has that one's
/// password.
pub const APPLICATION: &str = "selftest_application";
/// By which it chooses, where the placement's context has no variable that is the tenant's id.
const CHOICE: &str = "selftest.tenant";
/// How long a guest waits for a server connection, in seconds.
const CHECKOUT: u64 = 2;

/// The config of the file at `path`, with these tenants and no others, and their names.
///
/// # Errors
/// Mistakes, of the file or of what the guests would be in it: a placement with room for one tenant
/// is one.
pub fn load_with_guests(
    path: &Path,
    guests: &Guests,
) -> Result<(Config, [String; 2]), Vec<Mistake>> {
    let mut names = [String::new(), String::new()];
    let config = resolve::load_changed(path, &mut |file, _| names = invite(file, guests))?;
    Ok((config, names))
}

fn invite(file: &mut ConfigFile, guests: &Guests) -> [String; 2] {
    file.listen = Some(vec![Some(ListenFile {
        address: Some("127.0.0.1:0".to_owned()),
        tls: None,
    })]);
    file.http = None;
    file.admin = None;
    // What guests do is no attempt that anybody should hear of, and what the doctor finds is told
    // elsewhere.
    file.audit = Default::default();
    file.usage = Default::default();
    file.doctor.enabled = false;
    file.limits.active = None;
    file.workers = Some(Count(1));
    file.identify = IdentifyFile {
        by: vec![By::User],
        ..IdentifyFile::default()
    };
    file.timeouts.checkout = Period(std::time::Duration::from_secs(CHECKOUT));
    let placement = guests.placement.as_str();
    let others = file.tenants.take().unwrap_or_default();
    let others = others.into_iter().filter_map(|(name, tenant)| {
        let mut tenant = tenant?;
        let mut services = tenant.placements.values();
        if services.any(|own| own == placement) {
            tenant.placement = Some(placement.to_owned());
            tenant.placements = IndexMap::new();
        }
        (tenant.placement.as_deref() == Some(placement)).then_some((name, tenant))
    });
    let others: Vec<(String, TenantFile)> = others.collect();
    if let Some(placements) = &mut file.placements {
        placements.retain(|name, _| name == placement);
        if let Some(Some(placement)) = placements.get_mut(placement) {
            make_room(placement, guests);
        }
    }
    let context = file.placements.iter().flatten().next();
    let context = context.and_then(|(_, placement)| placement.as_ref());
    let application = application(context, guests);
    let ids: Vec<&str> = others.iter().map(|(name, _)| &**name).collect();
    let names = guests.marks.clone().map(|mark| like(&ids, &mark));
    let all = names.iter().zip(&guests.marks).zip(&guests.passwords);
    let tenants = all.map(|((name, mark), password)| {
        let tenant = guest(mark, password, guests, &others);
        (name.clone(), Some(tenant))
    });
    file.tenants = Some(tenants.collect());
    let acts_for = ActsForFile::List(vec![names[0].clone()]);
    let application = ApplicationFile {
        tenants: Some(acts_for),
        ..application
    };
    file.applications = Some(IndexMap::from([(
        APPLICATION.to_owned(),
        Some(application),
    )]));
    names
}

fn application(placement: Option<&PlacementFile>, guests: &Guests) -> ApplicationFile {
    let context = placement.into_iter().flat_map(|own| own.context.iter());
    let is_id = |(name, value): (&String, &String)| (value == "{tenant}").then(|| name.clone());
    let variable = context.into_iter().find_map(is_id);
    let credential = CredentialFile {
        password: Some(guests.passwords[0].clone()),
        scram: None,
    };
    ApplicationFile {
        users: IndexMap::from([(APPLICATION.to_owned(), credential)]),
        choose: Some(ChooseFile {
            variables: vec![variable.unwrap_or_else(|| CHOICE.to_owned())],
            key: None,
            ..ChooseFile::default()
        }),
        ..ApplicationFile::default()
    }
}

fn make_room(placement: &mut PlacementFile, guests: &Guests) {
    placement.shard_map = IndexMap::new();
    placement.pool.size = Count(guests.pool_size as u64);
    placement.pool.min = Count(0);
    if guests.pool_size == 1 {
        placement.pool.reserve = Some(Count(0));
    }
    placement.limits = Default::default();
    // A file for each tenant: there is none for these.
    if let Some(login) = &mut placement.login
        && login
            .password_file
            .as_ref()
            .is_some_and(|file| file.contains('{'))
    {
        login.password_file = None;
        login.password = Some(guests.passwords[0].clone());
    }
}

fn guest(
    mark: &str,
    password: &Secret,
    guests: &Guests,
    others: &[(String, TenantFile)],
) -> TenantFile {
    let mut attributes = IndexMap::new();
    for name in others
        .iter()
        .flat_map(|(_, tenant)| tenant.attributes.keys())
    {
        let values = others
            .iter()
            .filter_map(|(_, tenant)| tenant.attributes.get(name));
        let values: Vec<&str> = values.map(|value| &**value).collect();
        attributes.insert(name.clone(), attribute(&values, mark));
    }
    let credential = CredentialFile {
        password: Some(password.clone()),
        scram: None,
    };
    TenantFile {
        placement: Some(guests.placement.clone()),
        server: guests.server.as_ref().map(ToString::to_string),
        attributes,
        users: IndexMap::from([(USER.to_owned(), credential)]),
        ..TenantFile::default()
    }
}

/// An attribute that tenants have in common (a region) stays as it is; one that tells them apart is
/// made up.
fn attribute(values: &[&str], mark: &str) -> String {
    let common = values
        .iter()
        .enumerate()
        .find(|(n, value)| values[..*n].contains(value));
    match common {
        Some((_, value)) => (*value).to_owned(),
        None => like(values, mark),
    }
}

/// A value of the kind of the others, so that what expects a uuid or a number takes it. It is the
/// same for the same mark.
fn like(others: &[&str], mark: &str) -> String {
    let all = |is: fn(&str) -> bool| !others.is_empty() && others.iter().all(|other| is(other));
    let digest: [u8; 32] = Sha256::digest(mark).into();
    let [a, b, c, d, ..] = digest;
    if all(|other| other.parse::<i64>().is_ok()) {
        // Ten digits, and within what an integer holds.
        let number = u32::from_be_bytes([a, b, c, d]) % 1_000_000_000;
        return (1_000_000_000 + number).to_string();
    }
    if all(is_uuid) {
        let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]);
        return parts.join("-");
    }
    format!("selftest_{mark}")
}

fn is_uuid(text: &str) -> bool {
    let lengths = text.split('-').map(str::len);
    lengths.eq([8, 4, 4, 4, 12]) && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

/// Placements whose tenants live beside each other, so that one could reach another.
///
/// # Errors
/// Mistakes of the file.
pub fn shared_placements(path: &Path) -> Result<Vec<(String, bool)>, Vec<Mistake>> {
    let mut found = Vec::new();
    resolve::load_changed(path, &mut |file, _| {
        for (name, placement) in file.placements.iter().flatten() {
            if let Some(placement) = placement {
                found.push((name.clone(), is_shared(placement)));
            }
        }
    })?;
    Ok(found)
}

fn is_shared(placement: &PlacementFile) -> bool {
    let of_each = |text: &Option<String>| text.as_ref().is_some_and(|text| text.contains('{'));
    match placement.tier {
        Some(Tier::Instance) => !placement.context.is_empty() || of_each(&placement.database),
        _ => true,
    }
}

/// Letters and digits that nobody can guess.
pub fn random_word(length: usize) -> String {
    let word = rand::rng().sample_iter(Alphanumeric).take(length);
    word.map(|byte| char::from(byte.to_ascii_lowercase()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_of_the_kind_of_the_others() {
        assert_eq!(like(&[], "x"), "selftest_x");
        assert_eq!(like(&["globex", "12"], "x"), "selftest_x");
        assert!(like(&["1", "12"], "x").parse::<i32>().is_ok());
        let uuid = "550e8400-e29b-41d4-a716-446655440000";
        assert!(is_uuid(&like(&[uuid], "x")));
        assert_ne!(like(&[uuid], "x"), like(&[uuid], "y"));
    }

    #[test]
    fn what_tenants_have_in_common_guests_have_too() {
        assert_eq!(attribute(&["eu", "us", "eu"], "x"), "eu");
        assert_eq!(attribute(&["a", "b"], "x"), "selftest_x");
    }

    const FILE: &str = "listen: [{ address: \"0.0.0.0:6432\" }]
http: { address: \"0.0.0.0:9187\" }
servers:
  one: { host: 10.0.0.1, max_connections: 10 }
  two: { host: 10.0.0.2, max_connections: 10 }
placements:
  free: { tier: pool, servers: [one, two], database: app, login: { user: \"t_{tenant}\", password_file: \"/nowhere/{tenant}\" },
          context: { app.tenant: \"{key}\", app.region: \"{region}\" }, shard_map: { a: two }, pool: { size: 9 } }
  alone: { tier: instance, server: one, database: own, login: { user: own } }
tenants:
  a: { placement: free, attributes: { key: 550e8400-e29b-41d4-a716-446655440000, region: eu }, users: { u: { password: u } } }
  b: { placement: free, attributes: { key: 550e8400-e29b-41d4-a716-446655440001, region: eu }, users: { u: { password: u } } }
  c: { placement: alone, users: { u: { password: u } } }
";

    fn guests() -> Guests {
        Guests {
            placement: "free".to_owned(),
            server: ServerName::new("two").ok(),
            pool_size: 1,
            marks: ["x", "y"].map(str::to_owned),
            passwords: ["x", "y"].map(|secret| Secret::new(secret.to_owned())),
        }
    }

    #[test]
    fn guests_are_alone_in_a_placement_that_is_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pgtenant.yaml");
        std::fs::write(&path, FILE).unwrap();
        let (config, names) = load_with_guests(&path, &guests()).unwrap();
        assert_eq!(names, ["selftest_x", "selftest_y"]);
        assert_eq!(config.tenants.len(), 2);
        assert!(config.listen[0].address.ip().is_loopback() && config.http.is_none());
        let routes: Vec<_> = names
            .iter()
            .map(|name| &config.tenants[&**name].route)
            .collect();
        for (route, name) in routes.iter().zip(&names) {
            assert_eq!(route.pool.server.as_str(), "two");
            assert_eq!(route.pool.login.user, format!("t_{name}"));
            assert_eq!(route.placement.pool.size, 1);
            assert!(is_uuid(&route.context[0].1), "{:?}", route.context);
            assert_eq!(route.context[1].1, "eu");
        }
        assert_ne!(routes[0].context, routes[1].context);
    }

    #[test]
    fn a_server_of_its_own_is_not_shared() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pgtenant.yaml");
        // The file of a tenant's password is there for tenants, and not for this test.
        let file = FILE.replace("password_file: \"/nowhere/{tenant}\"", "password: x");
        std::fs::write(&path, file).unwrap();
        let found = shared_placements(&path).unwrap();
        assert_eq!(
            found,
            [("free".to_owned(), true), ("alone".to_owned(), false)]
        );
    }
}
