//! Servers: where they are, how they are reached, and how many connections they take.

use std::net::Ipv6Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;

use super::{MAX_CONNECTIONS, Resolver, name_mistake};
use crate::config::file::{SealFile, ServerAdminFile, ServerFile};
use crate::config::outline::At;
use crate::config::{
    AuthMethod, Login, RequireAuth, Secret, Server, ServerAddress, ServerSeal, ServerTls, SslMode,
    TcpKeepalives,
};
use crate::id::ServerName;

/// Longest path of a Unix socket (`sun_path`, with its final NUL).
const MAX_SOCKET_PATH: usize = 107;

/// Shortest secret to make keys of, in characters.
const MIN_SEAL_KEY: usize = 32;

/// The clock of a server is asked to the second.
const MIN_SEAL_LIFETIME: Duration = Duration::from_secs(2);

impl Resolver<'_, '_> {
    pub(super) fn servers(
        &mut self,
        files: &IndexMap<String, Option<ServerFile>>,
        tcp_keepalives: TcpKeepalives,
    ) -> IndexMap<ServerName, Arc<Server>> {
        let at = At::ROOT.key("servers");
        let mut servers = IndexMap::with_capacity(files.len());
        for (name, file) in files {
            let at = at.key(&**name);
            let server_name = self.name(&at, ServerName::new(name));
            let server = file
                .as_ref()
                .and_then(|file| self.server(&at, server_name?, file, tcp_keepalives));
            if let Some(server) = server {
                servers.insert(server.name.clone(), Arc::new(server));
            }
        }
        servers
    }

    fn server(
        &mut self,
        at: &At<'_>,
        name: ServerName,
        file: &ServerFile,
        tcp_keepalives: TcpKeepalives,
    ) -> Option<Server> {
        let port = self.count(&at.key("port"), file.port, usize::from(u16::MAX));
        let port = port.and_then(|port| u16::try_from(port).ok());
        let host = self.required(at, "host", file.host.as_deref());
        let address = host
            .zip(port)
            .and_then(|(host, port)| self.server_address(at, host, port));
        if let Some(ServerAddress::Unix { .. }) = address
            && !matches!(file.sslmode, SslMode::Disable | SslMode::Prefer)
        {
            self.mistakes.add(
                &at.key("sslmode"),
                "a Unix socket has no TLS: must be disable",
            );
        }
        let tls = self.server_tls(at, file);
        let require_auth = self.require_auth(&at.key("require_auth"), file);
        let max_at = at.key("max_connections");
        let max_connections = self.required(at, "max_connections", file.max_connections);
        let max_connections = max_connections.and_then(|n| self.count(&max_at, n, MAX_CONNECTIONS));
        if file.admin.is_some() && max_connections == Some(1) {
            self.mistakes.add(
                &max_at,
                "must be at least 2, because the admin login takes one",
            );
        }
        let limits_at = at.key("limits");
        let max_clients = self.optional_count(&limits_at.key("clients"), file.limits.clients);
        let max_waiting = self.optional_count(&limits_at.key("waiting"), file.limits.waiting);
        let rates = self.rates(
            &limits_at,
            file.limits.statements_per_second,
            file.limits.bytes_per_second,
        );
        let admin = match &file.admin {
            Some(admin) => Some(Arc::new(self.admin(&at.key("admin"), admin)?)),
            None => None,
        };
        let admin_database = match &file.admin {
            Some(admin) => admin.database.clone(),
            None => ServerAdminFile::default().database,
        };
        let seal = match &file.seal {
            Some(seal) => Some(self.seal(&at.key("seal"), seal)?),
            None => None,
        };
        Some(Server {
            name,
            address: address?,
            tcp_keepalives,
            tls: tls?,
            require_auth: require_auth?,
            max_connections: max_connections?,
            max_clients,
            max_waiting,
            rates,
            fail_fast: file.fail_fast,
            admin,
            admin_database,
            seal,
        })
    }

    fn seal(&mut self, at: &At<'_>, file: &SealFile) -> Option<ServerSeal> {
        let lifetime = file.lifetime.0;
        if lifetime < MIN_SEAL_LIFETIME {
            self.mistakes
                .add(&at.key("lifetime"), "must be at least 2s");
        }
        let (at, key) = match (&file.key, &file.key_file) {
            (Some(key), None) => (at.key("key"), Ok(key.clone())),
            (None, Some(file)) => (at.key("key_file"), self.read_password(file)),
            _ => {
                self.mistakes
                    .add(at, "needs exactly one of key and key_file");
                return None;
            }
        };
        let checked = key.and_then(|key: Secret| match key.expose().chars().count() {
            length if length < MIN_SEAL_KEY => Err(format!(
                "must have at least {MIN_SEAL_KEY} characters (`openssl rand -hex 32` makes a good one)"
            )),
            _ => Ok(key),
        });
        match checked {
            Ok(key) => Some(ServerSeal { key, lifetime }),
            Err(error) => {
                self.mistakes.add(&at, error);
                None
            }
        }
    }

    fn server_address(&mut self, at: &At<'_>, host: &str, port: u16) -> Option<ServerAddress> {
        let at = at.key("host");
        if host.starts_with('/') {
            let path = Path::new(host).join(format!(".s.PGSQL.{port}"));
            if path.as_os_str().len() > MAX_SOCKET_PATH {
                let message =
                    format_args!("gives a socket path of more than {MAX_SOCKET_PATH} bytes");
                self.mistakes.add(&at, message);
                return None;
            }
            return Some(ServerAddress::Unix { path });
        }
        let bare = host
            .strip_prefix('[')
            .and_then(|h| h.strip_suffix(']'))
            .unwrap_or(host);
        let is_name = !host.is_empty()
            && host
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
        if is_name || bare.parse::<Ipv6Addr>().is_ok() {
            return Some(ServerAddress::Tcp {
                host: bare.to_owned(),
                port,
            });
        }
        let message = "must be a host name, an IP address or the directory of a Unix socket, \
                       without a port";
        self.mistakes.add(&at, message);
        None
    }

    fn server_tls(&mut self, at: &At<'_>, file: &ServerFile) -> Option<ServerTls> {
        let root_cert_pem = match &file.root_cert {
            Some(root) => Some(self.root_cert(&at.key("root_cert"), root)?),
            None => None,
        };
        Some(ServerTls {
            mode: file.sslmode,
            root_cert_pem,
        })
    }

    /// A password in clear goes only where nobody else can read it, and to nobody else.
    fn require_auth(&mut self, at: &At<'_>, file: &ServerFile) -> Option<RequireAuth> {
        let auth = match RequireAuth::parse(&file.require_auth) {
            Ok(auth) => auth,
            Err(mistake) => {
                self.mistakes.add(at, mistake);
                return None;
            }
        };
        let is_local = || file.host.as_ref().is_some_and(|host| host.starts_with('/'));
        let is_known = match file.sslmode {
            SslMode::VerifyFull => true,
            // With the public authorities anybody can have a certificate.
            SslMode::VerifyCa => file.root_cert.is_some(),
            SslMode::Disable | SslMode::Prefer | SslMode::Require => is_local(),
        };
        if auth.allows(AuthMethod::Password) && !is_known {
            let message = "allows password, which needs sslmode verify-full, verify-ca with \
                           root_cert, or a Unix socket";
            self.mistakes.add(at, message);
        }
        Some(auth)
    }

    fn admin(&mut self, at: &At<'_>, file: &ServerAdminFile) -> Option<Login> {
        if let Some(mistake) = name_mistake(&file.database) {
            self.mistakes.add(&at.key("database"), mistake);
        }
        if let Some(password) = &file.password {
            self.password(&at.key("password"), password);
        }
        let user = self.required(at, "user", file.user.clone())?;
        if let Some(mistake) = name_mistake(&user) {
            self.mistakes.add(&at.key("user"), mistake);
        }
        Some(Login {
            user,
            password: file.password.clone(),
        })
    }
}
