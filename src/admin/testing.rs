//! A proxy in the test's own process, for the tests of the console and of the metrics.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::runtime::Handle;

use crate::admin::console;
use crate::app::App;
use crate::backend::dns::Resolver;
use crate::config;
use crate::frontend::login::{Admitted, admit};

pub const CONFIG: &str = r#"
admin: { users: { admin: { password: console-secret } } }
servers:
  main: { host: 127.0.0.1, port: 1, max_connections: 5, admin: { user: check, password: check-secret } }
  other: { host: /nowhere, max_connections: 7 }
placements:
  shared: { tier: pool, server: main, database: app, login: { user: app, password: app-secret }, context: { app.tenant_id: "{tenant}" } }
  own: { tier: schema, server: other, database: app, schema: "t_{tenant}", login: { user: "t_{tenant}" }, pooling: session }
tenants:
  globex: { placement: shared, users: { app: { password: globex-secret } }, limits: { clients: 3 } }
  acme: { placement: own, users: { app: { password: acme-secret }, report: { password: acme-secret } } }
"#;

pub fn app(text: &str, file: Option<PathBuf>) -> Arc<App> {
    let config = config::load_text(text, Path::new(""), &|_| None).unwrap();
    App::new(config, file, vec![Handle::current()], Resolver::default()).unwrap()
}

/// Logs users of the console in and serves them.
pub async fn listen(app: &Arc<App>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = app.clone();
    tokio::spawn(async move {
        loop {
            let (tcp, peer) = listener.accept().await.unwrap();
            let app = app.clone();
            tokio::spawn(async move {
                let door = app.door(0).unwrap();
                let counted = app.count_connection().unwrap();
                match admit(&app, &door, tcp, peer, counted).await {
                    Admitted::Admin(admin) => console::serve(app, admin, peer).await,
                    Admitted::Tenant(_) | Admitted::Done => {}
                }
            });
        }
    });
    address
}
