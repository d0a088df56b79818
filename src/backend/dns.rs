//! The addresses of a server whose host is a name, which may be given others while the old server
//! lives on: a planned switch.
//!
//! A name is asked for with each new connection, and again after `timeouts.dns_max_ttl`. A
//! connection to an address that the name does not have any more is closed where it is idle, and
//! else when it is given back. A name that cannot be resolved keeps the addresses that it had.
//! Hosts that are addresses, and Unix sockets, are no names.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};

use crate::config::{Server, ServerAddress};

type Resolve = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// Finds the addresses of a name, best first; it may block.
#[derive(Clone)]
pub struct Resolver(Arc<Resolve>);

impl Resolver {
    pub fn new(resolve: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static) -> Self {
        Self(Arc::new(resolve))
    }
}

/// The operating system's.
impl Default for Resolver {
    fn default() -> Self {
        Self::new(|name| {
            let found = (name, 0).to_socket_addrs()?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// What a server's name was last found to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    pub name: String,
    /// Never empty.
    pub addresses: Vec<IpAddr>,
    /// When it was asked for last, also in vain.
    pub asked: Instant,
}

/// The name of one server.
pub struct Names {
    resolver: Resolver,
    known: ArcSwap<Option<Known>>,
}

/// The host of a server, if it is a name.
pub fn name_of(server: &Server) -> Option<&str> {
    match &server.address {
        ServerAddress::Tcp { host, .. } if host.parse::<IpAddr>().is_err() => Some(host),
        _ => None,
    }
}

impl Names {
    pub fn new(resolver: Resolver) -> Self {
        Self {
            resolver,
            known: ArcSwap::default(),
        }
    }

    /// None before the first connection.
    pub fn known(&self) -> Guard<Arc<Option<Known>>> {
        self.known.load()
    }

    /// Whether a connection to `peer` is to one of the addresses that the name has.
    pub fn has(&self, peer: IpAddr) -> bool {
        match &**self.known.load() {
            Some(known) => known.addresses.contains(&peer),
            None => true,
        }
    }

    /// Whether `name`, which was asked for before, is to be asked for again.
    pub fn is_due(&self, name: &str, life: Duration) -> bool {
        let known = self.known.load();
        let known = known.as_ref().as_ref();
        known.is_some_and(|known| known.name == name && known.asked.elapsed() >= life)
    }

    /// The addresses of `name` now, or the last that it had.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// It cannot be resolved, and never was.
    pub async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let (resolver, asked) = (self.resolver.clone(), name.to_owned());
        let found = tokio::task::spawn_blocking(move || (resolver.0)(&asked)).await;
        let found = found.unwrap_or_else(|error| Err(io::Error::other(error)));
        let error = match found {
            Ok(addresses) if addresses.is_empty() => io::Error::other("the name has no address"),
            Ok(addresses) => {
                self.learn(name, &addresses);
                return Ok(addresses);
            }
            Err(error) => error,
        };
        match &**self.known.load() {
            Some(known) if known.name == name => {
                tracing::warn!(name, %error, "a server's name cannot be resolved: it keeps its addresses");
                self.known.store(Arc::new(Some(Known {
                    asked: Instant::now(),
                    ..known.clone()
                })));
                Ok(known.addresses.clone())
            }
            _ => Err(error),
        }
    }

    fn learn(&self, name: &str, addresses: &[IpAddr]) {
        let before = self.known.load();
        if let Some(before) = &**before
            && before.name == name
            && let gone = before.addresses.iter().filter(|a| !addresses.contains(a))
            && let gone = gone.collect::<Vec<_>>()
            && !gone.is_empty()
        {
            tracing::info!(name, ?gone, now = ?addresses, "a server's name has other addresses");
        }
        self.known.store(Arc::new(Some(Known {
            name: name.to_owned(),
            addresses: addresses.to_vec(),
            asked: Instant::now(),
        })));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn a_name_keeps_its_addresses_until_it_has_others() {
        let answers = Arc::new(Mutex::new(Vec::<io::Result<Vec<IpAddr>>>::new()));
        let script = answers.clone();
        let names = Names::new(Resolver::new(move |_| script.lock().unwrap().remove(0)));
        let ip = |last| IpAddr::from([127, 0, 0, last]);
        assert!(names.has(ip(1)) && !names.is_due("db", Duration::ZERO));
        let fails = || Err(io::Error::other("no"));
        for (answer, addresses) in [
            (fails(), None),
            (Ok(vec![]), None),
            (Ok(vec![ip(1), ip(2)]), Some(vec![ip(1), ip(2)])),
            (fails(), Some(vec![ip(1), ip(2)])),
            (Ok(vec![]), Some(vec![ip(1), ip(2)])),
            (Ok(vec![ip(2)]), Some(vec![ip(2)])),
        ] {
            answers.lock().unwrap().push(answer);
            let resolved = names.resolve("db").await.ok();
            assert_eq!(resolved, addresses);
            let expected = addresses.is_none_or(|addresses| addresses.contains(&ip(1)));
            assert_eq!(names.has(ip(1)), expected);
        }
        assert!(names.is_due("db", Duration::ZERO));
        assert!(!names.is_due("db", Duration::from_secs(60)));
        assert!(!names.is_due("other", Duration::ZERO));
        // Another name's are not its own.
        answers.lock().unwrap().push(fails());
        assert!(names.resolve("other").await.is_err());
    }
}
