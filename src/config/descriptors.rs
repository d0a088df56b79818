//! How many descriptors a config needs: what does not fit is found before the first client is.

use nix::sys::resource::{Resource, getrlimit};

use super::{Config, Mistake};

/// Connections of the http address at once, standard streams, files of logs and certificates,
/// cancel requests on their way.
const SPARE: u64 = 256;
/// For each worker: its event queue, its io_uring, what wakes it.
const EACH_WORKER: u64 = 8;

/// Descriptors that may be open at once.
pub fn needed(config: &Config) -> u64 {
    let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    let limits = &config.limits;
    let clients = [limits.clients, limits.logins, limits.console];
    let clients = clients.into_iter().map(count).fold(0, u64::saturating_add);
    let servers = config.servers.values();
    let servers = servers.map(|server| count(server.max_connections));
    let workers = count(config.workers);
    clients
        .saturating_add(servers.fold(0, u64::saturating_add))
        .saturating_add(workers * (EACH_WORKER + count(config.listen.len())))
        .saturating_add(SPARE)
}

/// What is wrong if this process may not open as many. Where its limit cannot be read, nothing is.
pub fn too_few(config: &Config) -> Option<Mistake> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    too_few_of(config, hard)
}

fn too_few_of(config: &Config, hard: u64) -> Option<Mistake> {
    let needed = needed(config);
    (needed > hard).then(|| Mistake {
        path: "limits.clients".to_owned(),
        line: None,
        message: format!(
            "needs {needed} descriptors with limits.logins and the servers' max_connections, and this process may open {hard}: \
             raise the hard limit (ulimit -Hn, LimitNOFILE) or lower them"
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_does_not_fit_is_a_mistake_that_names_the_number() {
        let yaml = "listen: [{ address: \"127.0.0.1:0\" }]\nworkers: 2\nlimits: { clients: 1000, logins: 100, console: 10 }\n\
            servers: { s: { host: /tmp, max_connections: 40 } }\nplacements: {}\ntenants: {}\n";
        let config = super::super::load_text(yaml, Path::new("."), &|_| None).unwrap();
        let needed = 1000 + 100 + 10 + 40 + 2 * (EACH_WORKER + 1) + SPARE;
        assert_eq!(super::needed(&config), needed);
        assert!(too_few_of(&config, needed).is_none());
        let mistake = too_few_of(&config, needed - 1).unwrap().to_string();
        assert!(mistake.contains(&needed.to_string()), "{mistake}");
    }
}
