//! What of servers and databases is taken, and by whom: the proof that no two tenants share a place
//! by mistake. Tenants may come and go: what one takes it gives back.

use std::collections::hash_map::{Entry, RandomState};
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher as _, Hash};
use std::sync::Arc;

use indexmap::IndexMap;

use crate::config::file::TenantFile;
use crate::config::{
    Lifecycle, Login, PoolKey, Route, SealKey, Secret, Server, ServerSeal, Tenant, Terms, Tier,
};
use crate::id::{PlacementName, ServerName, TenantId};

/// Whether the context tells the tenant from others in its database.
pub(super) fn is_by_context(route: &Route) -> bool {
    let tier = route.placement.tier;
    tier == Tier::Pool || tier == Tier::Instance && !route.context.is_empty()
}

/// Whether the tenant must have its database alone.
pub(super) fn has_database(route: &Route) -> bool {
    !is_by_context(route) && route.placement.tier != Tier::Schema
}

/// What only one tenant may have. Kept as a hash of what it is, with keys that nobody knows: with
/// many tenants the names themselves would take a lot of memory.
#[derive(Hash)]
enum Taken<'t> {
    /// Server, database, schema.
    Schema(&'t ServerName, &'t str, &'t str),
    /// Server, database, and the name in the seal.
    Seal(&'t ServerName, &'t str, &'t str),
    /// The pool, and values in the order of the variables' names.
    Context(&'t PoolKey, Vec<&'t str>),
}

/// The tenants of a database.
struct DatabaseUse {
    tenants: usize,
    /// One that is or was there.
    some: TenantId,
    /// Whether one of them must have it alone.
    is_alone: bool,
}

/// The tenants of a pool.
pub(super) struct PoolUse {
    /// The placement that it has its size from.
    pub placement: PlacementName,
    pub size: usize,
    tenants: usize,
    /// Those of them that have a minimum of their own.
    with_minimum: usize,
}

/// See the module.
#[derive(Default)]
pub(super) struct Places {
    logins: HashSet<Arc<Login>>,
    /// Read once each; `None`: reported.
    pub password_files: HashMap<String, Option<Secret>>,
    /// What each server's contexts are sealed with.
    pub seals: HashMap<ServerName, ServerSeal>,
    seal_keys: HashMap<(ServerName, String), SealKey>,
    /// Names of attributes.
    names: HashSet<Arc<str>>,
    /// What the tenants before had, of which many have the same.
    terms: Recent<Terms>,
    lifecycles: Recent<Lifecycle>,
    settings: Recent<TenantFile>,
    databases: HashMap<(ServerName, String), DatabaseUse>,
    pools: HashMap<Arc<PoolKey>, PoolUse>,
    pub sizes_differ: HashSet<(PlacementName, PlacementName)>,
    hashers: [RandomState; 2],
    taken: HashMap<u128, TenantId>,
    /// Of tenants that are in state `read_only`, the pool that they have else: their context is
    /// taken there.
    usual: HashMap<TenantId, Arc<PoolKey>>,
}

impl Places {
    pub fn new(servers: &IndexMap<ServerName, Arc<Server>>) -> Self {
        let sealed = servers.iter();
        let sealed = sealed.filter_map(|(name, server)| Some((name.clone(), server.seal.clone()?)));
        Self {
            seals: sealed.collect(),
            ..Self::default()
        }
    }

    /// The one `Arc` of equal logins.
    pub fn login(&mut self, login: Login) -> Arc<Login> {
        if let Some(known) = self.logins.get(&login) {
            return Arc::clone(known);
        }
        let login = Arc::new(login);
        self.logins.insert(Arc::clone(&login));
        login
    }

    /// The one `Arc` of equal keys of pools.
    pub fn pool(&self, key: PoolKey) -> Arc<PoolKey> {
        match self.pools.get_key_value(&key) {
            Some((known, _)) => known.clone(),
            None => Arc::new(key),
        }
    }

    /// The key of a server's database, which takes a while to be made.
    pub fn seal_key(&mut self, server: &ServerName, seal: &ServerSeal, database: &str) -> SealKey {
        let place = (server.clone(), database.to_owned());
        let key = self.seal_keys.entry(place);
        key.or_insert_with(|| SealKey::derive(&seal.key, database))
            .clone()
    }

    pub fn attributes(&mut self, file: &TenantFile) -> Box<[(Arc<str>, Box<str>)]> {
        let attributes = file.attributes.iter();
        attributes
            .map(|(name, value)| (self.name(name), value.as_str().into()))
            .collect()
    }

    fn name(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        let name: Arc<str> = name.into();
        self.names.insert(name.clone());
        name
    }

    /// One `Arc` of equal terms, if they are not too many.
    pub fn terms(&mut self, terms: Terms) -> Arc<Terms> {
        self.terms.one_of(terms)
    }

    /// The same of states.
    pub fn lifecycle(&mut self, lifecycle: Lifecycle) -> Arc<Lifecycle> {
        self.lifecycles.one_of(lifecycle)
    }

    /// The settings of a tenant of the catalog without what is its own alone.
    pub fn settings(&mut self, mut file: TenantFile) -> Arc<TenantFile> {
        file.users.clear();
        file.attributes.clear();
        self.settings.one_of(file)
    }

    /// Whether nobody uses this pool.
    pub fn is_unused(&self, pool: &PoolKey) -> bool {
        !self.pools.contains_key(pool)
    }

    /// Whether a tenant has a minimum of its own in a pool that is also others'.
    pub fn shares_minimum(&self, pool: &PoolKey) -> bool {
        let usage = self.pools.get(pool);
        usage.is_some_and(|usage| usage.tenants > 1 && usage.with_minimum > 0)
    }

    fn hash(&self, what: &Taken<'_>) -> u128 {
        let [high, low] = self.hashers.each_ref().map(|hasher| hasher.hash_one(what));
        u128::from(high) << 64 | u128::from(low)
    }

    fn context<'t>(route: &'t Route, usual: &'t PoolKey) -> Taken<'t> {
        let mut variables: Vec<_> = route.context.iter().collect();
        variables.sort();
        let values = variables.into_iter().map(|(_, value)| value.as_str());
        Taken::Context(usual, values.collect())
    }

    /// What only one tenant may have, and this one does.
    fn all_of<'t>(route: &'t Route, usual: &'t PoolKey) -> Vec<Taken<'t>> {
        let PoolKey {
            server, database, ..
        } = &*route.pool;
        let schema = route.schema.iter();
        let schema = schema.map(|schema| Taken::Schema(server, database, schema));
        let seal = route.seal.iter();
        let seal = seal.map(|seal| Taken::Seal(server, database, &seal.tenant));
        let context = is_by_context(route).then(|| Self::context(route, usual));
        schema.chain(seal).chain(context).collect()
    }

    /// Notes what a tenant has, and returns who else has it although only one may. `usual`: its
    /// pool when it is not in state `read_only`.
    pub fn claim(&mut self, id: &TenantId, route: &Route, usual: &Arc<PoolKey>) -> Vec<Conflict> {
        let mut conflicts = Vec::new();
        if let Some(other) = self.claim_database(id, route) {
            conflicts.push(Conflict::Database(other));
        }
        for what in Self::all_of(route, usual) {
            let conflict: fn(TenantId) -> Conflict = match what {
                Taken::Schema(..) => Conflict::Schema,
                Taken::Seal(..) => Conflict::Seal,
                Taken::Context(..) => Conflict::Context,
            };
            let hash = self.hash(&what);
            match self.taken.entry(hash) {
                Entry::Occupied(entry) => conflicts.push(conflict(entry.get().clone())),
                Entry::Vacant(entry) => _ = entry.insert(id.clone()),
            }
        }
        if *usual != route.pool {
            self.usual.insert(id.clone(), usual.clone());
        }
        let placement = &route.placement;
        let usage = self.pools.entry(route.pool.clone());
        let usage = usage.or_insert_with(|| PoolUse {
            placement: placement.name.clone(),
            size: placement.pool.size,
            tenants: 0,
            with_minimum: 0,
        });
        usage.tenants += 1;
        usage.with_minimum += usize::from(route.pool_min.is_some());
        if usage.size != placement.pool.size {
            conflicts.push(Conflict::PoolSize {
                first: usage.placement.clone(),
                size: usage.size,
            });
        }
        conflicts
    }

    fn claim_database(&mut self, id: &TenantId, route: &Route) -> Option<TenantId> {
        let place = (route.pool.server.clone(), route.pool.database.clone());
        let alone = has_database(route);
        match self.databases.entry(place) {
            Entry::Vacant(entry) => {
                entry.insert(DatabaseUse {
                    tenants: 1,
                    some: id.clone(),
                    is_alone: alone,
                });
                None
            }
            Entry::Occupied(mut entry) => {
                let usage = entry.get_mut();
                usage.tenants += 1;
                let conflict = alone || usage.is_alone;
                let other = conflict.then(|| usage.some.clone());
                if alone && !usage.is_alone {
                    usage.some = id.clone();
                    usage.is_alone = true;
                }
                other
            }
        }
    }

    /// Forgets what a tenant had, whether it was its alone or not.
    /// Returns its usual pool.
    pub fn release(&mut self, tenant: &Tenant) -> Arc<PoolKey> {
        let Tenant { id, route, .. } = tenant;
        let usual = self.usual.remove(id);
        let usual = usual.unwrap_or_else(|| route.pool.clone());
        for what in Self::all_of(route, &usual) {
            let hash = self.hash(&what);
            if self.taken.get(&hash) == Some(id) {
                self.taken.remove(&hash);
            }
        }
        let place = (route.pool.server.clone(), route.pool.database.clone());
        if let Entry::Occupied(mut entry) = self.databases.entry(place) {
            let usage = entry.get_mut();
            usage.tenants -= 1;
            if usage.tenants == 0 {
                entry.remove();
            } else if has_database(route) && usage.some == *id {
                usage.is_alone = false;
            }
        }
        if let Some(usage) = self.pools.get_mut(&route.pool) {
            usage.tenants -= 1;
            usage.with_minimum -= usize::from(route.pool_min.is_some());
            if usage.tenants == 0 {
                self.pools.remove(&route.pool);
            }
        }
        usual
    }
}

/// The last values of a kind that were asked for, each once.
#[derive(Debug)]
struct Recent<T>(VecDeque<Arc<T>>);

/// So many of a kind are looked through.
const RECENT: usize = 32;

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T: PartialEq> Recent<T> {
    fn one_of(&mut self, value: T) -> Arc<T> {
        if let Some(known) = self.0.iter().find(|known| ***known == value) {
            return known.clone();
        }
        let value = Arc::new(value);
        self.0.push_front(value.clone());
        self.0.truncate(RECENT);
        value
    }
}

/// What a tenant may not have in common with another, and has.
pub(super) enum Conflict {
    Database(TenantId),
    Schema(TenantId),
    Seal(TenantId),
    Context(TenantId),
    /// Placement `first` gives the pool this size.
    PoolSize {
        first: PlacementName,
        size: usize,
    },
}
