//! `pgtenant healthcheck`: is the proxy that runs with this config ready?

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::cli::check;

const TIMEOUT: Duration = Duration::from_secs(3);

/// 0 if `/readyz` answers 200, 1 if not, 78 if the config has no `http` or mistakes.
pub fn run(path: &Path) -> ExitCode {
    let config = match check::load_or_report(path) {
        Ok(config) => config,
        Err(code) => return code,
    };
    let Some(address) = config.http else {
        eprintln!("pgtenant: the config has no `http` address to ask");
        return ExitCode::from(check::EX_CONFIG);
    };
    match ask(address) {
        Ok(answer) if answer.starts_with("HTTP/1.1 200 ") => ExitCode::SUCCESS,
        Ok(answer) => {
            eprintln!(
                "pgtenant: not ready: {}",
                answer.lines().next().unwrap_or("no answer")
            );
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("pgtenant: {address}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn ask(mut address: SocketAddr) -> std::io::Result<String> {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: pgtenant\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(64 * 1024).read_to_string(&mut answer)?;
    Ok(answer)
}
