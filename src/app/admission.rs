//! How many clients there may be at a place, and how many of them may wait for a server connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::{App, moved};
use crate::backend::instance::Instance;
use crate::config::{Config, Route, Tenant};
use crate::error::{Error, Kind, Result};
use crate::id::PlacementName;
use crate::tenant::level::Level;
use crate::tenant::meter::Meter;
use crate::tenant::state::TenantState;

/// What is known of a placement while the proxy runs.
#[derive(Default)]
pub(super) struct PlacementState {
    clients: AtomicUsize,
    waiting: AtomicUsize,
    /// Server connections that its tenants have in use, where that is limited.
    active: Arc<Level>,
    /// What all its clients have used of its rates.
    pub meter: Arc<Meter>,
}

/// A client of a placement and of a server, counted for as long as this lives.
pub struct PlacedClient {
    placement: Arc<PlacementState>,
    instance: Arc<Instance>,
}

impl PlacedClient {
    pub fn is_on(&self, instance: &Arc<Instance>) -> bool {
        Arc::ptr_eq(&self.instance, instance)
    }
}

impl Drop for PlacedClient {
    fn drop(&mut self) {
        self.placement.clients.fetch_sub(1, Relaxed);
        self.instance.clients.fetch_sub(1, Relaxed);
    }
}

/// A client that waits for a server connection, counted for as long as this lives.
pub struct WaitingClient {
    app: Arc<App>,
    placement: Arc<PlacementState>,
    instance: Arc<Instance>,
}

impl Drop for WaitingClient {
    fn drop(&mut self) {
        for waiting in [
            &self.app.waiting,
            &self.placement.waiting,
            &self.instance.waiting,
        ] {
            waiting.fetch_sub(1, Relaxed);
        }
    }
}

fn is_over(before: usize, limit: Option<usize>) -> bool {
    limit.is_some_and(|limit| before >= limit)
}

fn too_many(message: String) -> Error {
    Error::new(Kind::TooManyConnections, message)
}

impl App {
    /// Counts a client of a tenant in where it lives.
    ///
    /// # Errors
    /// 53300 over the limit of the placement or of the server, 57P01 if a reload has just removed
    /// that.
    pub fn admit_to_place(&self, tenant: &TenantState, route: &Route) -> Result<PlacedClient> {
        let name = &route.placement.name;
        let instances = self.instances.load();
        let instance = instances.get(&route.pool.server).ok_or_else(moved)?;
        let placed = PlacedClient {
            placement: self.placement_state(name),
            instance: instance.clone(),
        };
        let of_placement = placed.placement.clients.fetch_add(1, Relaxed);
        let of_server = instance.clients.fetch_add(1, Relaxed);
        if is_over(of_placement, route.placement.max_clients) {
            return Err(too_many(format!(
                "too many connections for placement \"{name}\""
            )));
        }
        if is_over(of_server, instance.server().max_clients) {
            let id = &tenant.id;
            return Err(too_many(format!(
                "too many connections for the server of tenant \"{id}\""
            )));
        }
        Ok(placed)
    }

    /// Counts a client in that is to wait for a server connection, where that is limited. While its
    /// tenant is paused it may in any case.
    ///
    /// # Errors
    /// 53300: so many wait already, in the proxy, of the placement or of the server. The limit of
    /// the tenant is its pool's to know.
    pub fn admit_to_wait(
        self: &Arc<Self>,
        tenant: &TenantState,
        route: &Route,
        instance: &Arc<Instance>,
    ) -> Result<Option<WaitingClient>> {
        let placement = &route.placement;
        let limits = [
            self.config.load().limits.waiting,
            placement.max_waiting,
            instance.server().max_waiting,
        ];
        if limits == [None; 3] {
            return Ok(None);
        }
        let counted = WaitingClient {
            app: self.clone(),
            placement: self.placement_state(&placement.name),
            instance: instance.clone(),
        };
        let in_proxy = self.waiting.fetch_add(1, Relaxed);
        let of_placement = counted.placement.waiting.fetch_add(1, Relaxed);
        let of_server = instance.waiting.fetch_add(1, Relaxed);
        let [of_all, of_placements, of_servers] = limits;
        let whose = if is_over(in_proxy, of_all) {
            String::new()
        } else if is_over(of_placement, of_placements) {
            format!(" of placement \"{}\"", placement.name)
        } else if is_over(of_server, of_servers) {
            format!(" of the server of tenant \"{}\"", tenant.id)
        } else {
            return Ok(Some(counted));
        };
        match tenant.is_paused() {
            true => Ok(Some(counted)),
            false => Err(too_many(format!(
                "too many clients{whose} wait for a server connection"
            ))),
        }
    }

    pub(super) fn placement_state(&self, name: &PlacementName) -> Arc<PlacementState> {
        if let Some(known) = self.placements.get(name) {
            return known.clone();
        }
        self.placements.entry(name.clone()).or_default().clone()
    }

    /// The levels whose `limits.active` hold for a tenant, beside its own.
    pub(super) fn levels_of(&self, config: &Config, tenant: &Tenant) -> Vec<Arc<Level>> {
        let placement = &tenant.route.placement;
        let of_placement = placement.max_active.map(|limit| {
            let level = self.placement_state(&placement.name).active.clone();
            level.set_limit(Some(limit));
            level
        });
        let of_proxy = config.limits.active.map(|limit| {
            self.active.set_limit(Some(limit));
            self.active.clone()
        });
        of_placement.into_iter().chain(of_proxy).collect()
    }

    /// What all clients of a placement have used of its rates.
    pub fn placement_meter(&self, name: &PlacementName) -> Arc<Meter> {
        self.placement_state(name).meter.clone()
    }
}
