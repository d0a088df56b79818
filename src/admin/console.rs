//! The admin console.
use crate::app::App;
use crate::frontend::login::AdminLogin;
use std::net::SocketAddr;
use std::sync::Arc;
pub async fn serve(_app: Arc<App>, _admin: AdminLogin, _peer: SocketAddr) {}
