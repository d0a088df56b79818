//! From one configuration to the next: a reload of the file, and changes of the catalog's tenants.
//! What changed, and nothing else, is touched.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use super::{App, doors};
use crate::client::{Activity, ClientHandle};
use crate::config::diff::{self, Diff};
use crate::config::{self, Config, Entry, Extras, Mistake, Roster, State, descriptors};
use crate::error::Result;
use crate::id::TenantId;
use crate::timer;

/// Of a change, the tenants that are concerned. None: all.
type Concerned<'c> = Option<&'c HashSet<TenantId>>;

/// When tenants change their states by themselves.
#[derive(Default)]
pub(super) struct Due(Mutex<BTreeMap<SystemTime, HashSet<TenantId>>>);

fn whole_file(message: String) -> Vec<Mistake> {
    vec![Mistake {
        path: String::new(),
        line: None,
        message,
    }]
}

impl App {
    pub(super) fn roster(&self) -> MutexGuard<'_, Option<Roster>> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes it possible to put tenants of the catalog into the configuration that is in force. To
    /// be called once, before they come.
    ///
    /// # Errors
    /// Every mistake in the file, which has changed since the start then.
    pub fn expect_tenants(&self) -> Result<(), Vec<Mistake>> {
        let (config, roster) = config::load_with_roster(self.config_path()?, &Extras::default())?;
        let mut current = self.roster();
        if config != *self.config() {
            let changed = self.put_in_force(config);
            changed.map_err(|error| whole_file(error.to_string()))?;
        }
        *current = Some(roster);
        Ok(())
    }

    fn config_path(&self) -> Result<&Path, Vec<Mistake>> {
        let path = self.config_path.as_deref();
        path.ok_or_else(|| whole_file("the proxy was not started from a file".to_owned()))
    }

    /// Reads the config file again and puts it in force, with the tenants of the catalog that there
    /// are.
    ///
    /// # Errors
    /// Every mistake in it; then nothing has changed.
    pub fn reload_file(&self) -> Result<Diff, Vec<Mistake>> {
        let extras = self.extras();
        self.reload_with(&extras)
    }

    /// What the catalog has beside tenants.
    pub fn extras(&self) -> Extras {
        let extras = self.extras.lock();
        extras.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same with other servers and placements of the catalog, which are kept if there is no
    /// mistake in them.
    ///
    /// # Errors
    /// As there.
    pub fn reload_with(&self, extras: &Extras) -> Result<Diff, Vec<Mistake>> {
        let reloaded = self.try_reload(extras);
        if let Err(mistakes) = &reloaded {
            self.metrics.failed_reloads.add(1);
            for mistake in mistakes {
                tracing::error!(%mistake, "config not reloaded");
            }
        }
        reloaded
    }

    fn try_reload(&self, extras: &Extras) -> Result<Diff, Vec<Mistake>> {
        let (mut config, mut roster) = config::load_with_roster(self.config_path()?, extras)?;
        if let Some(mistake) = descriptors::too_few(&config) {
            return Err(vec![mistake]);
        }
        let mut current = self.roster();
        if config.catalog.is_some() {
            for tenant in self.config().tenants.values() {
                // All services of a tenant are put with the first.
                let known = config.tenants.get(tenant.id.as_str());
                if known.is_some_and(|known| known.listed.is_some()) {
                    continue;
                }
                if let Err(mistakes) = roster.put_again(&mut config, tenant) {
                    let name = tenant.name();
                    tracing::error!(tenant = %name, ?mistakes, "a tenant of the catalog is lost");
                    let revision = tenant.listed.as_ref().map_or(0, |listed| listed.revision);
                    (self.catalog).refuse("tenant", name.as_str(), revision, &mistakes);
                }
            }
        }
        let diff = self.put_in_force(config);
        let diff = diff.map_err(|error| whole_file(error.to_string()))?;
        *current = Some(roster);
        *self.extras.lock().unwrap_or_else(PoisonError::into_inner) = extras.clone();
        Ok(diff)
    }

    /// Puts a new config in force.
    ///
    /// # Errors
    /// TLS settings of a main port that cannot be used; then nothing has changed.
    pub fn reload(&self, new: Config) -> Result<Diff> {
        let _one = self.roster();
        self.put_in_force(new)
    }

    /// Puts in force what `change` makes of the configuration.
    ///
    /// # Errors
    /// Those of `change`, and of [`reload`](Self::reload).
    pub fn change(&self, change: impl FnOnce(&mut Config) -> Result<()>) -> Result<Diff> {
        let _one = self.roster();
        let mut config = (*self.config()).clone();
        change(&mut config)?;
        self.put_in_force(config)
    }

    /// Order of operations: all that can fail is built first. Then the instances, so that whoever
    /// sees the new tenants finds their servers; the config; the audit and the limits; the pools
    /// that nobody routes to any more are closed; last every client is asked whether it may go on.
    fn put_in_force(&self, new: Config) -> Result<Diff> {
        let old = self.config();
        let diff = diff::diff(&old, &new);
        let doors = doors(&new)?;
        self.arrange(&new);
        let new = Arc::new(new);
        self.config.store(new.clone());
        self.set_rates(&new);
        self.audit.reconfigure(new.audit.clone());
        if diff.listen_tls_changed {
            self.doors.store(Arc::new(doors));
        }
        self.note_times(&new);
        self.settle(&old, &new, &diff, None);
        self.metrics.reloads.add(1);
        for setting in &diff.needs_restart {
            tracing::warn!(setting, "this change needs a restart");
        }
        tracing::info!(
            tenants_added = diff.tenants_added.len(),
            tenants_removed = diff.tenants_removed.len(),
            tenants_moved = diff.tenants_moved.len(),
            servers_added = diff.servers_added.len(),
            servers_removed = diff.servers_removed.len(),
            servers_changed = diff.servers_changed.len(),
            pools_removed = diff.pools_removed.len(),
            "config reloaded"
        );
        Ok(diff)
    }

    /// Puts tenants of the catalog in force as they are now. One with mistakes stays as it was, and
    /// is noted in [`App::catalog`].
    pub fn put_tenants(&self, entries: &[Entry]) {
        let mut roster = self.roster();
        let Some(roster) = roster.as_mut() else {
            return;
        };
        let old = self.config();
        let mut new = (*old).clone();
        let mut changes = Vec::new();
        for entry in entries {
            match roster.put(&mut new, entry) {
                Ok(change) => {
                    self.catalog.accept("tenant", &entry.name);
                    changes.push(change);
                }
                Err(mistakes) => {
                    tracing::error!(tenant = %entry.name, ?mistakes, "not taken from the catalog");
                    (self.catalog).refuse("tenant", &entry.name, entry.revision, &mistakes);
                }
            }
        }
        let tenants = |change: &config::Change| -> Vec<_> {
            let tenants = change.old.iter().chain(&change.new);
            tenants.map(|tenant| tenant.id.clone()).collect()
        };
        let concerned: HashSet<TenantId> = changes.iter().flat_map(tenants).collect();
        let mut diff = diff::of_tenants(&old, &new, &concerned);
        let is_used = |pool: &config::PoolKey| {
            let mut applications = new.applications.values();
            !roster.is_unused(pool) || applications.any(|own| *own.login.route.pool == *pool)
        };
        let pools = concerned
            .iter()
            .filter_map(|id| old.tenants.get(id.as_str()));
        let pools = pools.map(|tenant| &tenant.route.pool);
        let gone: HashSet<_> = pools.filter(|pool| !is_used(pool)).collect();
        diff.pools_removed = gone.into_iter().map(|pool| (**pool).clone()).collect();
        let new = Arc::new(new);
        self.config.store(new.clone());
        for id in &concerned {
            self.note_times_of(&new, id);
        }
        self.settle(&old, &new, &diff, Some(&concerned));
    }

    /// Tells tenants, pools and clients that a configuration is in force.
    fn settle(&self, old: &Config, new: &Config, diff: &Diff, concerned: Concerned<'_>) {
        match concerned {
            None => {
                self.tenants
                    .iter()
                    .for_each(|state| self.set_up(new, &state));
                self.routes
                    .retain(|(_, tenant), _| new.tenants.contains_key(tenant.as_str()));
            }
            Some(ids) => {
                let states = ids.iter().filter_map(|id| self.tenants.get(id));
                states.for_each(|state| self.set_up(new, &state));
                for id in &diff.tenants_removed {
                    for application in new.applications.keys() {
                        self.routes.remove(&(application.clone(), id.clone()));
                    }
                }
            }
        }
        self.apply_pauses(concerned);
        let is_quiet = concerned.is_some()
            && diff.pools_removed.is_empty()
            && diff.tenants_limits_changed.is_empty();
        if !is_quiet {
            for instance in self.instances().values() {
                instance.retire_pools(|key| diff.pools_removed.contains(key));
                instance.wake();
            }
        }
        self.revoke_clients(old, new, concerned);
        self.clients.iter().for_each(|client| {
            if is_of(&client.0, concerned) {
                client.0.call();
            }
        });
    }

    // ---- states that change by themselves ----

    /// Notes when tenants change their states by themselves.
    pub(super) fn note_times(&self, config: &Config) {
        self.due().clear();
        for tenant in config.tenants.values() {
            if tenant.lifecycle.times().next().is_some() {
                self.note_times_of(config, &tenant.id);
            }
        }
    }

    fn note_times_of(&self, config: &Config, id: &TenantId) {
        let Some(tenant) = config.tenants.get(id.as_str()) else {
            return;
        };
        let now = SystemTime::now();
        for time in tenant.lifecycle.times().filter(|time| *time > now) {
            self.due().entry(time).or_default().insert(id.clone());
        }
    }

    fn due(&self) -> MutexGuard<'_, BTreeMap<SystemTime, HashSet<TenantId>>> {
        self.due.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the states in force that tenants have by themselves by now. To be called now and then.
    /// True: the file must be read again, since a tenant of it is served by another role now.
    pub fn pass_time(&self) -> bool {
        let now = SystemTime::now();
        let concerned: HashSet<TenantId> = {
            let mut due = self.due();
            let later = due.split_off(&now);
            let passed = std::mem::replace(&mut *due, later);
            passed.into_values().flatten().collect()
        };
        if concerned.is_empty() {
            return false;
        }
        let mut roster = self.roster();
        let old = self.config();
        let mut new = (*old).clone();
        let tenants = concerned
            .iter()
            .filter_map(|id| old.tenants.get(id.as_str()));
        let is_read_only = |tenant: &config::Tenant| tenant.lifecycle.state == State::ReadOnly;
        let mut needs_file = false;
        for tenant in tenants.filter(|tenant| is_read_only(tenant)) {
            needs_file |= tenant.listed.is_none();
            tracing::info!(tenant = %tenant.id, state = %tenant.lifecycle.now(), "its time has come");
            let put = roster
                .as_mut()
                .map(|roster| roster.put_again(&mut new, tenant));
            if let Some(Err(mistakes)) = put {
                tracing::error!(tenant = %tenant.id, ?mistakes, "not taken from the catalog");
            }
        }
        let diff = diff::of_tenants(&old, &new, &concerned);
        let new = Arc::new(new);
        self.config.store(new.clone());
        self.settle(&old, &new, &diff, Some(&concerned));
        needs_file
    }

    // ---- clients that may not go on ----

    /// Ends the clients whose tenant, user or credential is gone, or whose tenant's state lets no
    /// clients be: at their next clean point, and after the grace of the config wherever they are.
    fn revoke_clients(&self, old: &Config, new: &Config, concerned: Concerned<'_>) {
        let mut revoked: Vec<Weak<ClientHandle>> = Vec::new();
        for client in self.clients.iter().map(|client| client.0.clone()) {
            let id = client.tenant.as_str();
            if concerned.is_some_and(|ids| !ids.contains(&client.tenant)) {
                continue;
            }
            let credential = |config: &'_ Config| {
                let tenant = config.login(id)?;
                tenant.users.get(&client.user).cloned()
            };
            let now = credential(new);
            let state = new.login(id).map(|tenant| tenant.lifecycle.now());
            let is_gone = now.is_none() || now != credential(old);
            if is_gone || state.is_none_or(State::ends_transactions) {
                client.revoke();
                revoked.push(Arc::downgrade(&client));
            } else if !state.is_some_and(State::lets_in) {
                client.revoke();
            }
        }
        // Of applications: between transactions they find out themselves.
        let served = self.serving_gone(new, concerned);
        if revoked.is_empty() && served.is_empty() {
            return;
        }
        let grace = new.timeouts.revoked;
        self.workers.spawn(self.workers.in_turn(0), async move {
            timer::sleep(grace).await;
            let still = served.iter().filter_map(|(client, tenant)| {
                let client = client.upgrade()?;
                let is_open = client.activity() != Activity::Idle;
                (is_open && client.serves() == *tenant).then_some(client)
            });
            let left = revoked.iter().filter_map(Weak::upgrade).chain(still);
            let left: Vec<_> = left.collect();
            if !left.is_empty() {
                tracing::warn!(
                    clients = left.len(),
                    "ending transactions of clients whose tenant, user or password is gone"
                );
            }
            left.iter().for_each(|client| client.kill());
        });
    }

    /// Clients of applications that use a server connection for a tenant that is gone or suspended,
    /// and that tenant.
    fn serving_gone(
        &self,
        new: &Config,
        concerned: Concerned<'_>,
    ) -> Vec<(Weak<ClientHandle>, TenantId)> {
        let clients = self.clients.iter().map(|client| client.0.clone());
        let busy = clients.filter(|client| client.activity() != Activity::Idle);
        let may_stay = |tenant: &TenantId| {
            let tenant = new.login(tenant.as_str());
            tenant.is_some_and(|tenant| !tenant.lifecycle.now().ends_transactions())
        };
        busy.map(|client| (Arc::downgrade(&client), client.serves()))
            .filter(|(_, tenant)| concerned.is_none_or(|ids| ids.contains(tenant)))
            .filter(|(_, tenant)| !may_stay(tenant))
            .collect()
    }
}

/// Whether a change is about this client: its own tenant, or whom it serves.
fn is_of(client: &ClientHandle, concerned: Concerned<'_>) -> bool {
    concerned.is_none_or(|ids| ids.contains(&client.tenant) || ids.contains(&client.serves()))
}
