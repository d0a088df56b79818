//! What ends clients that take too long, how long they wait, and what of them is in the slow log:
//! said for the whole proxy, a server, a placement or a tenant, the nearer first.

use std::collections::HashMap;
use std::time::Duration;

use indexmap::IndexMap;

use crate::config::file::{ClientLogFile, ClientTimeoutsFile, ServerFile, TimeoutsFile};
use crate::config::units::{Limit, Period};
use crate::config::{ClientTimeouts, OwnTimeouts, Tier};

/// How long a transaction may wait for its client where tenants share server connections.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(10 * 60);

/// What is said of all tenants, and of those of a server.
pub(super) struct Layers {
    proxy: (ClientTimeoutsFile, ClientLogFile),
    servers: HashMap<String, (ClientTimeoutsFile, ClientLogFile)>,
}

impl Layers {
    pub fn new(
        file: &TimeoutsFile,
        slow: Option<Limit>,
        servers: &IndexMap<String, Option<ServerFile>>,
    ) -> Self {
        let timeouts = ClientTimeoutsFile {
            statement: file.statement,
            transaction: file.transaction,
            idle_in_transaction: file.idle_in_transaction,
            idle_session: file.idle_session,
            pinned: file.pinned,
            // What is said of all clients stays apart: the console may change it.
            login: None,
            checkout: None,
            connect: None,
        };
        let of_server = |file: &ServerFile| (file.timeouts, file.log);
        Self {
            proxy: (timeouts, ClientLogFile { slow }),
            servers: servers
                .iter()
                .filter_map(|(name, file)| Some((name.clone(), of_server(file.as_ref()?))))
                .collect(),
        }
    }

    /// From what time on what a tenant there does is in the slow log. `nearer`: as of
    /// [`of`](Self::of).
    pub fn slow(&self, server: &str, nearer: [ClientLogFile; 2]) -> Option<Duration> {
        let (_, server) = self.servers.get(server).copied().unwrap_or_default();
        let [placement, tenant] = nearer;
        let layers = [tenant, placement, server, self.proxy.1];
        let Limit(time) = layers.iter().find_map(|file| file.slow)?;
        time
    }

    /// Those of a tenant that lives there. `nearer`: what its placement says, and then what it says
    /// itself.
    pub fn of(
        &self,
        server: &str,
        tier: Tier,
        nearer: [ClientTimeoutsFile; 2],
    ) -> (ClientTimeouts, OwnTimeouts) {
        let (server, _) = self.servers.get(server).copied().unwrap_or_default();
        let [placement, tenant] = nearer;
        let layers = [tenant, placement, server, self.proxy.0];
        let find = |limit: fn(&ClientTimeoutsFile) -> Option<Limit>| {
            layers.iter().find_map(limit).map(|Limit(time)| time)
        };
        let own = |limit: fn(&ClientTimeoutsFile) -> Option<Period>| {
            layers.iter().find_map(limit).map(|Period(time)| time)
        };
        let own = OwnTimeouts {
            login: own(|file| file.login),
            checkout: own(|file| file.checkout),
            connect: own(|file| file.connect),
        };
        let pool = (tier == Tier::Pool).then_some(IDLE_IN_TRANSACTION);
        let clients = ClientTimeouts {
            statement: find(|file| file.statement).flatten(),
            transaction: find(|file| file.transaction).flatten(),
            idle_in_transaction: find(|file| file.idle_in_transaction).unwrap_or(pool),
            idle_session: find(|file| file.idle_session).flatten(),
            pinned: find(|file| file.pinned).flatten(),
        };
        (clients, own)
    }
}
