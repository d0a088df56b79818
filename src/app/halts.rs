//! What an operator has paused or disabled, and what of it is settled. It stays so across reloads,
//! also for tenants that come later, until the operator says otherwise.
//!
//! A pause costs nothing on the way of a query: a paused tenant has no share of the server
//! connections ([`TenantState::may_activate`](crate::tenant::state::TenantState::may_activate)), so
//! its clients wait in line.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::App;
use crate::backend::instance::{Instance, Pool};
use crate::client::ClientHandle;
use crate::config::{Config, PoolKey, Route, State, Tenant};
use crate::error::{Error, Kind};
use crate::id::{PlacementName, ServerName, TenantId};
use crate::tenant::state::{Paused, TenantState};
use crate::timestamp::utc;

/// Whom a command of the console is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    All,
    Tenant(TenantId),
    /// The tenants of a placement.
    Placement(PlacementName),
    /// The tenants that live on a server.
    Server(ServerName),
    /// The tenants that live in databases of this name.
    Database(String),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Tenant(name) => write!(f, "tenant {name}"),
            Self::Placement(name) => write!(f, "placement {name}"),
            Self::Server(name) => write!(f, "server {name}"),
            Self::Database(name) => write!(f, "database {name}"),
        }
    }
}

impl Scope {
    /// `route`: where the tenant lives, if the config has it.
    pub fn covers(&self, tenant: &TenantId, route: Option<&Route>) -> bool {
        match self {
            Self::All => true,
            Self::Tenant(id) => id == tenant,
            Self::Placement(name) => route.is_some_and(|route| route.placement.name == *name),
            Self::Server(name) => route.is_some_and(|route| route.pool.server == *name),
            Self::Database(name) => route.is_some_and(|route| route.pool.database == *name),
        }
    }

    fn covers_in(&self, config: &Config, tenant: &TenantId) -> bool {
        let route = config.login(tenant.as_str()).map(|tenant| &*tenant.route);
        self.covers(tenant, route)
    }
}

/// See the module.
#[derive(Default)]
pub struct Halts {
    paused: Mutex<BTreeSet<Scope>>,
    disabled: Mutex<BTreeSet<Scope>>,
    any_disabled: AtomicBool,
}

fn lock(scopes: &Mutex<BTreeSet<Scope>>) -> MutexGuard<'_, BTreeSet<Scope>> {
    scopes.lock().unwrap_or_else(PoisonError::into_inner)
}

fn covering(scopes: &BTreeSet<Scope>, config: &Config, tenant: &TenantId) -> Option<Scope> {
    let mut scopes = scopes.iter();
    let found = scopes.find(|scope| scope.covers_in(config, tenant));
    found.cloned()
}

/// Whether a tenant's state lets in new clients.
///
/// # Errors
/// 57P03 while it is provisioned or drained, 28000 while it is suspended.
pub fn state_lets_in(tenant: &Tenant) -> Result<(), Error> {
    let life = &tenant.lifecycle;
    let name = tenant.name();
    let (kind, message) = match life.now() {
        State::Active | State::ReadOnly | State::Paused => return Ok(()),
        State::Provisioning => (
            Kind::CannotConnectNow,
            format!("tenant \"{name}\" is being provisioned"),
        ),
        State::Draining => (
            Kind::CannotConnectNow,
            format!("tenant \"{name}\" is being drained"),
        ),
        State::Suspended | State::Deleted => (
            Kind::InvalidAuthorization,
            format!("tenant \"{name}\" is suspended"),
        ),
    };
    let now = SystemTime::now();
    let mut detail = Vec::new();
    if life.has_expired(now) {
        detail.extend(
            life.expires
                .map(|time| format!("It expired at {}.", utc(time))),
        );
    } else {
        detail.extend(
            life.reason
                .as_ref()
                .map(|reason| format!("The reason is: {reason}.")),
        );
        detail.extend(
            life.until
                .map(|time| format!("That ends at {}.", utc(time))),
        );
    }
    let error = Error::new(kind, message);
    Err(match detail.is_empty() {
        true => error,
        false => error.with_detail(detail.join(" ")),
    })
}

/// How a tenant is paused, if it is: on the console, or by its state.
fn pause_of(scopes: &BTreeSet<Scope>, config: &Config, tenant: &TenantId) -> Option<Paused> {
    if covering(scopes, config, tenant).is_some() {
        return Some(Paused::OnConsole);
    }
    let known = config.tenants.get(tenant.as_str())?;
    (known.lifecycle.now() == State::Paused).then_some(Paused::ByState {
        patience: config.timeouts.paused,
    })
}

/// The place of a pool: its key without what is a client's own.
type Place<'a> = (&'a ServerName, &'a str, &'a str);

pub(super) fn place(key: &PoolKey) -> Place<'_> {
    (&key.server, &key.database, &key.login.user)
}

impl App {
    /// Takes no new statements of whom `scope` covers. What runs goes on to the end of its
    /// transaction. False: that was so already.
    pub fn pause(&self, scope: Scope) -> bool {
        let is_new = lock(&self.halts.paused).insert(scope);
        self.apply_pauses(None);
        let config = self.config();
        let paused = self.wholly_paused(&config);
        self.renew_pools(|key| paused.contains(&place(key)));
        is_new
    }

    /// Ends a pause. False: there was none of exactly this scope. Of all: every pause that there
    /// is.
    pub fn resume(&self, scope: &Scope) -> bool {
        let was_paused = {
            let mut paused = lock(&self.halts.paused);
            match scope {
                Scope::All => !std::mem::take(&mut *paused).is_empty(),
                scope => paused.remove(scope),
            }
        };
        self.apply_pauses(None);
        was_paused
    }

    /// By what a tenant is paused.
    pub fn paused_by(&self, tenant: &TenantId) -> Option<Scope> {
        covering(&lock(&self.halts.paused), &self.config(), tenant)
    }

    /// What is paused.
    pub fn all_paused(&self) -> Vec<Scope> {
        lock(&self.halts.paused).iter().cloned().collect()
    }

    /// What is disabled.
    pub fn all_disabled(&self) -> Vec<Scope> {
        lock(&self.halts.disabled).iter().cloned().collect()
    }

    /// Whether anything is paused, and whether all is.
    pub fn pauses(&self) -> (bool, bool) {
        let paused = lock(&self.halts.paused);
        (!paused.is_empty(), paused.contains(&Scope::All))
    }

    /// Refuses new clients of whom `scope` covers.
    pub fn disable(&self, scope: Scope) {
        let mut disabled = lock(&self.halts.disabled);
        disabled.insert(scope);
        self.halts.any_disabled.store(true, Relaxed);
    }

    /// Ends that. False: there was nothing of exactly this scope. Of all: all that there is.
    pub fn enable(&self, scope: &Scope) -> bool {
        let mut disabled = lock(&self.halts.disabled);
        let was_disabled = match scope {
            Scope::All => !std::mem::take(&mut *disabled).is_empty(),
            scope => disabled.remove(scope),
        };
        self.halts.any_disabled.store(!disabled.is_empty(), Relaxed);
        was_disabled
    }

    /// By what new clients of a tenant are refused.
    pub fn disabled_by(&self, tenant: &TenantId) -> Option<Scope> {
        if !self.halts.any_disabled.load(Relaxed) {
            return None;
        }
        covering(&lock(&self.halts.disabled), &self.config(), tenant)
    }

    /// Whether a tenant takes new clients.
    ///
    /// # Errors
    /// 57P03, in PgBouncer's words, if it was disabled, and while the proxy waits for its last
    /// clients.
    pub fn takes_clients(&self, tenant: &TenantId) -> Result<(), Error> {
        if self.is_closing() {
            let message = "the proxy is shutting down";
            return Err(Error::new(Kind::CannotConnectNow, message));
        }
        if let Some(known) = self.config.load().tenants.get(tenant.as_str()) {
            state_lets_in(known)?;
        }
        match self.disabled_by(tenant) {
            None => Ok(()),
            Some(_) => Err(Error::new(
                Kind::CannotConnectNow,
                format!("database \"{tenant}\" is disabled"),
            )),
        }
    }

    /// Tells tenants that were seen whether they are paused: those of `which`, or all. To be called
    /// when the pauses, the states of tenants or where they live changed.
    pub(super) fn apply_pauses(&self, which: Option<&HashSet<TenantId>>) {
        let config = self.config();
        let mut resumed = false;
        {
            let paused = lock(&self.halts.paused);
            let mut apply = |tenant: &TenantState| {
                let pause = pause_of(&paused, &config, &tenant.id);
                resumed |= tenant.set_paused(pause) && pause.is_none();
            };
            match which {
                None => self.tenants.iter().for_each(|tenant| apply(&tenant)),
                Some(ids) => {
                    let tenants = ids.iter().filter_map(|id| self.tenants.get(id));
                    tenants.for_each(|tenant| apply(&tenant));
                }
            }
        }
        if resumed {
            for instance in self.instances().values() {
                instance.wake();
            }
        }
    }

    /// The same for one that has just come.
    pub(super) fn apply_pauses_to(&self, tenant: &TenantState) {
        let paused = lock(&self.halts.paused);
        tenant.set_paused(pause_of(&paused, &self.config(), &tenant.id));
    }

    /// Places all of whose tenants are paused.
    pub(super) fn wholly_paused<'a>(&self, config: &'a Config) -> HashSet<Place<'a>> {
        let paused = lock(&self.halts.paused);
        let mut places: HashMap<Place, bool> = HashMap::new();
        for tenant in config.tenants.values() {
            let mut scopes = paused.iter();
            let is_paused = scopes.any(|scope| scope.covers(&tenant.id, Some(&tenant.route)));
            *places.entry(place(&tenant.route.pool)).or_insert(true) &= is_paused;
        }
        let whole = places.into_iter().filter(|(_, is_paused)| *is_paused);
        whole.map(|(place, _)| place).collect()
    }

    /// Whether a pause has come to rest: nobody whom `scope` covers holds a server connection, and
    /// pools all of whose tenants are paused have none. Takes a while with many tenants: not for a
    /// worker's thread.
    pub fn is_paused_out(&self, scope: &Scope) -> bool {
        let config = self.config();
        let paused = self.wholly_paused(&config);
        let covered = self.places_of(scope, &config);
        // First the pools, under the lock of their instance: whoever was given a connection before
        // the pause is counted then.
        let instances = self.instances();
        let pools = instances.values().flat_map(|instance| instance.pools());
        let mut pools = pools.filter(|(pool, _)| {
            let place = place(&pool.key);
            paused.contains(&place) && covered.contains(&place)
        });
        let is_empty = pools.all(|(_, counts)| counts.total == 0);
        let mut tenants = self.tenants.iter();
        is_empty
            && tenants.all(|tenant| tenant.active() == 0 || !scope.covers_in(&config, tenant.key()))
    }

    /// Where those live whom `scope` covers.
    fn places_of<'a>(&self, scope: &Scope, config: &'a Config) -> HashSet<Place<'a>> {
        let tenants = config.tenants.values();
        let covered = tenants.filter(|tenant| scope.covers(&tenant.id, Some(&tenant.route)));
        covered.map(|tenant| place(&tenant.route.pool)).collect()
    }

    fn renew_pools(&self, which: impl Fn(&PoolKey) -> bool) {
        for instance in self.instances().values() {
            instance.renew_pools(&which);
        }
    }

    /// Has the server connections of the pools of whom `scope` covers made anew: idle ones are
    /// closed now, those in use when they are given back.
    pub fn reconnect(&self, scope: &Scope) {
        let config = self.config();
        let places = self.places_of(scope, &config);
        self.renew_pools(|key| *scope == Scope::All || places.contains(&place(key)));
    }

    /// Server connections of these pools that are still to be closed.
    pub fn closing(&self, scope: &Scope) -> usize {
        let config = self.config();
        let places = self.places_of(scope, &config);
        let wanted = |pool: &Pool| *scope == Scope::All || places.contains(&place(&pool.key));
        let count = |instance: &Arc<Instance>| -> usize {
            let pools = instance.pools().into_iter();
            pools
                .filter(|(pool, _)| wanted(pool))
                .map(|(pool, _)| pool.closing().len())
                .sum()
        };
        self.instances().values().map(count).sum()
    }

    /// Ends the clients of whom `scope` covers with their server connections, wherever they are,
    /// and pauses the tenants: new clients wait. Returns how many clients.
    pub fn kill(&self, scope: &Scope) -> usize {
        self.pause(scope.clone());
        let config = self.config();
        let mut killed = 0;
        self.each_client(|client| {
            if scope.covers_in(&config, &client.tenant) {
                client.kill();
                killed += 1;
            }
        });
        killed
    }

    /// The client with this number.
    pub fn client_by_id(&self, id: u64) -> Option<Arc<ClientHandle>> {
        let mut clients = self.clients.iter();
        let found = clients.find(|client| client.0.id == id);
        found.map(|client| client.0.clone())
    }
}
