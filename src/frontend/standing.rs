//! What a client is to the proxy, whatever it does at the moment: whose it is, where it belongs,
//! what it is counted in.

use std::sync::Arc;
use std::time::Duration;

use crate::app::{App, PlacedClient, Registered, moved, state_lets_in};
use crate::backend::connection::Parameters;
use crate::backend::instance::Pool;
use crate::client::Reason;
use crate::config::{Credential, Route};
use crate::error::{Error, Kind, Result};
use crate::frontend::statements::Statements;
use crate::frontend::throttle::Throttle;
use crate::places::Place;
use crate::tenant::state::{ClientGuard, TenantState};
use crate::workers::WorkerId;

/// What the client is counted in.
pub struct Guards {
    pub connection: Place,
    pub client: Place,
    pub placement: PlacedClient,
    pub tenant: ClientGuard,
}

pub struct Standing {
    pub registered: Registered,
    pub tenant: Arc<TenantState>,
    pub route: Arc<Route>,
    pub credential: Arc<Credential>,
    pub pool: Arc<Pool>,
    /// Where it is.
    pub worker: WorkerId,
    /// It was idle once, and so asked to be [parked](super::parking).
    pub was_asked_to_park: bool,
    /// Calls of the handle that were answered.
    pub answered: u32,
    pub guards: Guards,
}

/// The error of a client that must go.
pub(super) fn farewell(registered: &Registered) -> Error {
    match registered.reason() {
        Some(reason) => timed_out(reason),
        None if registered.is_revoked() => revoked(registered),
        None => stopped(),
    }
}

/// The error of a client whose login is good no more, or whose tenant's state lets no clients be.
fn revoked(registered: &Registered) -> Error {
    let config = registered.app().config();
    let tenant = config.tenants.get(registered.tenant.as_str());
    let state = tenant.and_then(|tenant| state_lets_in(tenant).err());
    match state {
        None => moved(),
        Some(state) => moved().with_detail(format!("The {}.", state.message())),
    }
}

/// As PostgreSQL says it (postgres.c: ProcessInterrupts).
pub(super) fn timed_out(reason: Reason) -> Error {
    let (kind, message) = match reason {
        Reason::Statement => (
            Kind::QueryCanceled,
            "canceling statement due to statement timeout",
        ),
        Reason::Transaction => (
            Kind::TransactionTimeout,
            "terminating connection due to transaction timeout",
        ),
        Reason::IdleInTransaction => (
            Kind::IdleInTransactionTimeout,
            "terminating connection due to idle-in-transaction timeout",
        ),
        Reason::IdleSession => (
            Kind::IdleSessionTimeout,
            "terminating connection due to idle-session timeout",
        ),
    };
    Error::new(kind, message)
}

/// The error of a client that is ended with the proxy, or by an administrator.
pub(super) fn stopped() -> Error {
    Error::new(
        Kind::AdminShutdown,
        "terminating connection due to administrator command",
    )
}

impl Standing {
    pub fn app(&self) -> &Arc<App> {
        self.registered.app()
    }

    /// What keeps it within its rates, if there are any.
    pub fn throttle(&self) -> Option<Box<Throttle>> {
        Throttle::new(self.app(), &self.tenant, &self.route, &self.pool.instance)
    }

    /// How long what the proxy itself asks a server for this client may take.
    pub fn connect_timeout(&self) -> Duration {
        self.tenant.connect_timeout(&self.app().config().timeouts)
    }

    /// Takes note of the name that the client's application has by what it was told.
    pub fn note_application(&self, reported: &Parameters) {
        let name = reported.get("application_name").map_or("", |name| &**name);
        if self.registered.application().as_deref().unwrap_or_default() != name {
            let name = self.tenant.shared_name(name);
            self.registered.set_application(Some(name));
        }
    }

    /// Answers a call: may this client go on, and where? True: at another worker.
    ///
    /// # Errors
    /// 57P01 if the proxy stops, or if the tenant, the user or its credential is gone.
    pub fn look_around(&mut self, statements: Option<&mut Statements>) -> Result<bool> {
        self.answered = self.registered.called();
        if self.registered.must_go() {
            return Err(farewell(&self.registered));
        }
        let config = self.app().config();
        // An application's client may be served for another now.
        let own = self.registered.tenant.as_str();
        let tenant = config.login(own).ok_or_else(moved)?;
        let credential = tenant.users.get(&self.registered.user).ok_or_else(moved)?;
        if *credential != self.credential {
            return Err(moved());
        }
        if config.applications.contains_key(own) {
            // Where it goes is looked up with its next transaction.
            return Ok(self.registered.worker() != self.worker);
        }
        if tenant.route == self.route {
            return Ok(self.registered.worker() != self.worker);
        }
        if tenant.route.pooling != self.route.pooling {
            return Err(moved());
        }
        // Route and pool change together, or neither does.
        let pool = self.app().pool(&tenant.route)?;
        let stays = tenant.route.placement.name == self.route.placement.name
            && self.guards.placement.is_on(&pool.instance);
        if !stays {
            self.guards.placement = self.app().admit_to_place(&self.tenant, &tenant.route)?;
        }
        self.route = tenant.route.clone();
        if !Arc::ptr_eq(&pool.instance, &self.pool.instance) {
            let worker = self.app().place(&self.tenant, &pool.instance);
            self.registered.set_worker(worker);
        }
        if !Arc::ptr_eq(&pool, &self.pool)
            && let Some(statements) = statements
        {
            statements.rehome(&pool.statements);
        }
        self.pool = pool;
        Ok(self.registered.worker() != self.worker)
    }
}
