//! What is inspected: every server, database, login and schema of the config once, or some of them
//! where there are many.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::{Config, Login, Posture, Server, Tenant, Tier};
use crate::findings::Place;

/// A place, and what the config says of it.
#[derive(Debug, Clone)]
pub struct Target {
    pub place: Place,
    pub placements: Vec<String>,
    pub tier: Tier,
    pub posture: Posture,
    pub tenants: usize,
    pub server: Arc<Server>,
    pub login: Arc<Login>,
    /// Variables whose value tells tenants apart.
    pub tenant_variables: Vec<String>,
    /// Other variables that the proxy sets.
    pub other_variables: Vec<String>,
    /// Most locks that the limits of the config let one tenant hold at once. None: they let it hold
    /// any number.
    pub tenant_locks: Option<u64>,
    /// How many schemas or databases the same login is for.
    pub login_places: usize,
    /// Server connections go from one tenant to another.
    pub shares_connections: bool,
    /// Libraries with which they do so whatever they keep.
    pub tolerated: BTreeSet<String>,
    /// The config has applications, which may be served there.
    pub serves_applications: bool,
    /// The database of the catalog of tenants, if that is on the same server.
    pub catalog: Option<String>,
    neighbourhood: Arc<Neighbourhood>,
}

/// All places on one server.
#[derive(Debug, Default)]
struct Neighbourhood {
    /// By database.
    schemas: BTreeMap<String, BTreeSet<String>>,
    /// Logins, each with the databases and schemas it is for.
    logins: BTreeMap<String, BTreeSet<(String, Option<String>)>>,
}

/// What to inspect, and what was left out.
#[derive(Debug, Default)]
pub struct Plan {
    pub targets: Vec<Target>,
    pub notes: Vec<String>,
}

impl Target {
    /// Whether tenants share tables, so that row level security is what keeps them apart.
    pub fn by_policies(&self) -> bool {
        !self.tenant_variables.is_empty()
    }

    /// Whether tenants of others than this place are on the server.
    pub fn has_company(&self) -> bool {
        self.tier != Tier::Instance || self.by_policies()
    }

    pub fn other_schemas(&self) -> Vec<String> {
        let own = self.place.schema.as_ref();
        let schemas = self.neighbourhood.schemas.get(&self.place.database);
        let schemas = schemas.into_iter().flatten();
        schemas.filter(|s| Some(*s) != own).cloned().collect()
    }

    pub fn other_logins(&self) -> Vec<String> {
        let logins = self.neighbourhood.logins.keys();
        let own = &self.place.login;
        logins.filter(|login| *login != own).cloned().collect()
    }
}

impl Plan {
    /// The places of `config`, or of one placement; at most `sample` of each.
    pub fn of(config: &Config, placement: Option<&str>, sample: usize) -> Self {
        let mut tenants: Vec<_> = config.tenants.values().collect();
        tenants.sort_by(|a, b| a.id.cmp(&b.id));
        let neighbourhoods = neighbourhoods(&tenants);
        let mut plan = Self::default();
        let mut found: BTreeMap<(Place, String), Target> = BTreeMap::new();
        for tenant in &tenants {
            let name = tenant.route.placement.name.as_str();
            if placement.is_some_and(|only| only != name) {
                continue;
            }
            let place = Place::of(&tenant.route);
            if let Some(target) = found.get_mut(&(place.clone(), name.to_owned())) {
                target.tenants += 1;
                continue;
            }
            let Some(server) = config.servers.get(&tenant.route.pool.server) else {
                continue;
            };
            let neighbourhood = neighbourhoods
                .get(place.server.as_str())
                .cloned()
                .unwrap_or_default();
            let mut target = target(tenant, place.clone(), server.clone(), neighbourhood);
            target.serves_applications = !config.applications.is_empty();
            let catalog = config.catalog.as_ref();
            let here = catalog.filter(|catalog| catalog.server == tenant.route.pool.server);
            target.catalog = here.map(|catalog| catalog.database.clone());
            found.insert((place, name.to_owned()), target);
        }
        for name in config.placements.keys() {
            if placement.is_some_and(|only| only != name.as_str()) {
                continue;
            }
            let of_it: Vec<_> = found
                .iter()
                .filter(|((_, of), _)| of == name.as_str())
                .map(|(_, target)| target)
                .collect();
            if of_it.is_empty() {
                plan.notes.push(format!(
                    "placement \"{name}\" has no tenants: there is nothing to inspect"
                ));
            }
            let chosen = spread(&of_it, sample);
            if chosen.len() < of_it.len() {
                plan.notes.push(format!(
                    "placement \"{name}\": {} of {} places were inspected, spread evenly over their names",
                    chosen.len(),
                    of_it.len()
                ));
            }
            for target in chosen {
                plan.add(target);
            }
        }
        plan
    }

    /// Places that two placements share, and use alike, are inspected once.
    fn add(&mut self, target: &Target) {
        let same = self.targets.iter_mut().find(|known| {
            known.place == target.place
                && known.tier == target.tier
                && known.posture == target.posture
                && known.tenant_variables == target.tenant_variables
                && known.other_variables == target.other_variables
                && known.shares_connections == target.shares_connections
                && known.tolerated == target.tolerated
        });
        match same {
            Some(known) => {
                known.placements.extend(target.placements.iter().cloned());
                known.tenants += target.tenants;
            }
            None => self.targets.push(target.clone()),
        }
    }
}

fn neighbourhoods<'c>(tenants: &[&'c Arc<Tenant>]) -> BTreeMap<&'c str, Arc<Neighbourhood>> {
    let mut all: BTreeMap<&str, Neighbourhood> = BTreeMap::new();
    for tenant in tenants {
        let route = &tenant.route;
        let pool = &route.pool;
        let here = all.entry(pool.server.as_str()).or_default();
        if let Some(schema) = &route.schema {
            let schemas = here.schemas.entry(pool.database.clone()).or_default();
            schemas.insert(schema.clone());
        }
        let places = here.logins.entry(pool.login.user.clone()).or_default();
        places.insert((pool.database.clone(), route.schema.clone()));
    }
    all.into_iter()
        .map(|(server, here)| (server, Arc::new(here)))
        .collect()
}

fn target(
    tenant: &Tenant,
    place: Place,
    server: Arc<Server>,
    neighbourhood: Arc<Neighbourhood>,
) -> Target {
    let route = &tenant.route;
    let names = |of_tenant: bool| -> Vec<String> {
        let variables = route.context.iter();
        variables
            .filter(|(_, value)| value.contains(tenant.id.as_str()) == of_tenant)
            .map(|(name, _)| name.clone())
            .collect()
    };
    let (mut tenant_variables, mut other_variables) = (names(true), names(false));
    if tenant_variables.is_empty() {
        // By an attribute, then.
        std::mem::swap(&mut tenant_variables, &mut other_variables);
    }
    Target {
        placements: vec![route.placement.name.to_string()],
        tier: route.placement.tier,
        posture: route.posture(),
        tenants: 1,
        server,
        login: route.pool.login.clone(),
        tenant_variables,
        other_variables,
        tenant_locks: tenant_locks(tenant),
        login_places: neighbourhood
            .logins
            .get(&place.login)
            .map_or(1, BTreeSet::len),
        shares_connections: route.placement.shares_role && !route.has_connections_of_their_own(),
        tolerated: route.placement.tolerate.clone(),
        serves_applications: false,
        catalog: None,
        neighbourhood,
        place,
    }
}

/// A tenant alone may have all connections of its pool in use.
fn tenant_locks(tenant: &Tenant) -> Option<u64> {
    let placement = &tenant.route.placement;
    let limits = placement.transaction;
    let connections = placement
        .pool
        .size
        .min(tenant.terms.limits.active.unwrap_or(usize::MAX));
    let each = u64::from(limits.savepoints?) + u64::from(limits.objects?);
    Some(each.saturating_mul(connections as u64))
}

/// At most `most` of them, evenly spread.
fn spread<'t>(all: &[&'t Target], most: usize) -> Vec<&'t Target> {
    if all.len() <= most {
        return all.to_vec();
    }
    (0..most)
        .filter_map(|i| all.get(i * all.len() / most).copied())
        .collect()
}
