//! The metrics endpoint.
use crate::app::App;
use std::sync::Arc;
use tokio::runtime::Handle;
pub fn start(
    _app: &Arc<App>,
    _listener: std::net::TcpListener,
    _control: &Handle,
) -> std::io::Result<()> {
    Ok(())
}
