//! Which settings a level of the config file says itself, so that it can be told where a value
//! comes from. A set of bits for each tenant, placement and server: a fleet has many.

use std::collections::HashMap;

use super::file::{
    ClientLogFile, ClientTimeoutsFile, ConfigFile, PlacementFile, ServerFile, TenantFile,
};
use crate::id::{PlacementName, ServerName};

/// A setting that more than one level may say, or that only one says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    Server,
    Pooling,
    Posture,
    Guard,
    Allow,
    Weight,
    PoolSize,
    PoolReserve,
    PoolMin,
    PoolReuse,
    LimitClients,
    LimitActive,
    LimitWaiting,
    LimitStatements,
    LimitBytes,
    Statement,
    Transaction,
    IdleInTransaction,
    IdleSession,
    Pinned,
    Login,
    Checkout,
    Connect,
    Slow,
}

/// What the levels above the tenants say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SaidAbove {
    pub file: Said,
    pub servers: HashMap<ServerName, Said>,
    pub placements: HashMap<PlacementName, Said>,
}

impl SaidAbove {
    pub fn of(file: &ConfigFile) -> Self {
        let servers = file.servers.iter().flatten();
        let servers = servers.filter_map(|(name, file)| {
            Some((ServerName::new(name).ok()?, Said::of_server(file.as_ref()?)))
        });
        let placements = file.placements.iter().flatten();
        let placements = placements.filter_map(|(name, file)| {
            let said = Said::of_placement(file.as_ref()?);
            Some((PlacementName::new(name).ok()?, said))
        });
        Self {
            file: Said::of_file(file),
            servers: servers.collect(),
            placements: placements.collect(),
        }
    }
}

/// What one level says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Said(u32);

impl Said {
    pub fn has(self, setting: Setting) -> bool {
        self.0 & 1 << setting as u32 != 0
    }

    fn with(self, settings: impl IntoIterator<Item = (Setting, bool)>) -> Self {
        let said = settings.into_iter().filter(|(_, is_said)| *is_said);
        Self(said.fold(self.0, |bits, (setting, _)| bits | 1 << setting as u32))
    }

    fn of_clients(timeouts: &ClientTimeoutsFile, log: &ClientLogFile) -> Self {
        Self::default().with([
            (Setting::Statement, timeouts.statement.is_some()),
            (Setting::Transaction, timeouts.transaction.is_some()),
            (
                Setting::IdleInTransaction,
                timeouts.idle_in_transaction.is_some(),
            ),
            (Setting::IdleSession, timeouts.idle_session.is_some()),
            (Setting::Pinned, timeouts.pinned.is_some()),
            (Setting::Login, timeouts.login.is_some()),
            (Setting::Checkout, timeouts.checkout.is_some()),
            (Setting::Connect, timeouts.connect.is_some()),
            (Setting::Slow, log.slow.is_some()),
        ])
    }

    pub fn of_tenant(file: &TenantFile) -> Self {
        let limits = &file.limits;
        Self::of_clients(&file.timeouts, &file.log).with([
            (Setting::Server, file.server.is_some()),
            (Setting::Pooling, file.pooling.is_some()),
            (Setting::Weight, file.weight.is_some()),
            (Setting::PoolMin, file.pool.min.is_some()),
            (Setting::LimitClients, limits.clients.is_some()),
            (Setting::LimitActive, limits.active.is_some()),
            (Setting::LimitWaiting, limits.waiting.is_some()),
            (
                Setting::LimitStatements,
                limits.statements_per_second.is_some(),
            ),
            (Setting::LimitBytes, limits.bytes_per_second.is_some()),
        ])
    }

    /// Where a setting has a default in the file's type, it is said if it is another.
    pub fn of_placement(file: &PlacementFile) -> Self {
        let default = PlacementFile::default();
        Self::of_clients(&file.timeouts, &file.log).with([
            (Setting::Server, true),
            (Setting::Pooling, file.pooling != default.pooling),
            (Setting::Posture, file.posture.is_some()),
            (Setting::Guard, file.guard.is_some()),
            (Setting::Allow, !file.allow.is_empty()),
            (Setting::Weight, file.weight != default.weight),
            (Setting::PoolSize, file.pool.size != default.pool.size),
            (Setting::PoolReserve, file.pool.reserve.is_some()),
            (Setting::PoolMin, file.pool.min != default.pool.min),
            (Setting::PoolReuse, file.pool.reuse),
        ])
    }

    pub fn of_server(file: &ServerFile) -> Self {
        Self::of_clients(&file.timeouts, &file.log)
    }

    pub fn of_file(file: &ConfigFile) -> Self {
        let (timeouts, default) = (&file.timeouts, ConfigFile::default().timeouts);
        Self::default().with([
            (Setting::LimitClients, file.limits.tenant.is_some()),
            (Setting::Statement, timeouts.statement.is_some()),
            (Setting::Transaction, timeouts.transaction.is_some()),
            (
                Setting::IdleInTransaction,
                timeouts.idle_in_transaction.is_some(),
            ),
            (Setting::IdleSession, timeouts.idle_session.is_some()),
            (Setting::Pinned, timeouts.pinned.is_some()),
            (Setting::Login, timeouts.login != default.login),
            (Setting::Checkout, timeouts.checkout != default.checkout),
            (Setting::Connect, timeouts.connect != default.connect),
            (Setting::Slow, file.log.slow.is_some()),
        ])
    }
}
