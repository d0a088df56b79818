//! What a server asks for to let pgtenant in, and whether it may (`require_auth`): looked at before
//! anything is answered, so that a password is never sent in a way that the config does not have.
//! For the pools' logins and the control plane's.

use crate::config::{AuthMethod, RequireAuth, Server};

/// An authentication request's kind (the protocol chapter, "Message Formats").
pub const OK: u32 = 0;
pub const CLEARTEXT: u32 = 3;
pub const MD5: u32 = 5;
pub const SASL: u32 = 10;
pub const SASL_CONTINUE: u32 = 11;
pub const SASL_FINAL: u32 = 12;
const GSS: u32 = 7;
const GSS_CONTINUE: u32 = 8;
const SSPI: u32 = 9;

/// What a server has asked for during a login.
#[derive(Debug)]
pub struct Demands {
    server: String,
    allowed: RequireAuth,
    /// Something was asked for, and is to be answered to its end.
    asked: Option<AuthMethod>,
    is_over: bool,
}

impl Demands {
    pub fn of(server: &Server) -> Self {
        Self {
            server: server.name.to_string(),
            allowed: server.require_auth,
            asked: None,
            is_over: false,
        }
    }

    /// Takes note of the body of an authentication request before it is answered. Returns what it
    /// asks.
    ///
    /// # Errors
    /// The server may not ask this; for the log. Nothing is to be answered.
    pub fn hear(&mut self, body: &[u8]) -> Result<u32, String> {
        let code = body
            .first_chunk()
            .map(|code| u32::from_be_bytes(*code))
            .ok_or("malformed authentication request")?;
        let method = match code {
            OK => {
                return match self.asked {
                    Some(AuthMethod::ScramSha256) if !self.is_over => Err(
                        "the server ends the SCRAM exchange before it has proved who it is".into(),
                    ),
                    Some(_) => Ok(code),
                    None => self.check(AuthMethod::None).map(|()| code),
                };
            }
            CLEARTEXT => AuthMethod::Password,
            MD5 => AuthMethod::Md5,
            GSS | GSS_CONTINUE => AuthMethod::Gss,
            SSPI => AuthMethod::Sspi,
            SASL | SASL_CONTINUE | SASL_FINAL => AuthMethod::ScramSha256,
            other => return Err(format!("unknown authentication method {other}")),
        };
        self.check(method)?;
        let goes_on = matches!(code, SASL_CONTINUE | SASL_FINAL);
        if goes_on != self.asked.is_some() || self.is_over {
            return Err("the server asks for more than one proof".into());
        }
        self.asked = Some(method);
        self.is_over = code == SASL_FINAL;
        Ok(code)
    }

    fn check(&self, method: AuthMethod) -> Result<(), String> {
        if self.allowed.allows(method) {
            return Ok(());
        }
        let asks = match method {
            AuthMethod::None => "asks for no proof of who pgtenant is",
            AuthMethod::Password => "asks for the password in clear",
            AuthMethod::Md5 => "asks for an MD5 hash of the password",
            AuthMethod::Gss => "asks for GSSAPI",
            AuthMethod::Sspi => "asks for SSPI",
            AuthMethod::ScramSha256 => "asks for SCRAM",
        };
        Err(format!(
            "the server {asks}, and servers.{}.require_auth does not have \"{}\"",
            self.server,
            method.name()
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn demands(require_auth: &str) -> Demands {
        let text = format!(
            "listen: [{{ address: \"127.0.0.1:0\" }}]
servers: {{ s: {{ host: /tmp, max_connections: 2, require_auth: \"{require_auth}\" }} }}
placements: {{ p: {{ tier: instance, server: s, database: d, login: {{ user: u }} }} }}
tenants: {{ t: {{ placement: p, users: {{ app: {{ password: x }} }} }} }}"
        );
        let config = crate::config::load_text(&text, Path::new("."), &|_| None).unwrap();
        Demands::of(&config.servers[0])
    }

    #[test]
    fn a_server_may_ask_for_what_the_config_has_and_once() {
        let all = "none,password,md5,scram-sha-256";
        let scram: &[u32] = &[SASL, SASL_CONTINUE, SASL_FINAL, OK];
        for (list, codes, refused) in [
            ("scram-sha-256", scram, None),
            ("none", scram, Some((0, "\"scram-sha-256\""))),
            ("scram-sha-256", &[OK], Some((0, "\"none\""))),
            ("scram-sha-256,none", &[OK], None),
            (
                "scram-sha-256,none",
                &[CLEARTEXT],
                Some((0, "\"password\"")),
            ),
            ("scram-sha-256,none", &[MD5], Some((0, "\"md5\""))),
            ("scram-sha-256,none", &[SASL, MD5], Some((1, "\"md5\""))),
            ("scram-sha-256,none", &[GSS], Some((0, "\"gss\""))),
            ("scram-sha-256,none", &[SSPI], Some((0, "\"sspi\""))),
            ("scram-sha-256,none", &[2], Some((0, "unknown"))),
            ("md5", &[MD5, OK], None),
            (all, &[CLEARTEXT, OK], None),
            // Not half of an exchange, and not two.
            (all, &[SASL, OK], Some((1, "before it has proved"))),
            (all, &[SASL, SASL_CONTINUE, OK], Some((2, "before it has"))),
            (all, &[SASL_CONTINUE], Some((0, "more than one"))),
            (all, &[SASL_FINAL, OK], Some((0, "more than one"))),
            (all, &[SASL, SASL], Some((1, "more than one"))),
            (all, &[MD5, CLEARTEXT], Some((1, "more than one"))),
            (all, &[CLEARTEXT, SASL], Some((1, "more than one"))),
        ] {
            let mut demands = demands(list);
            let heard: Vec<_> = codes
                .iter()
                .map(|code| demands.hear(&code.to_be_bytes()))
                .take_while(Result::is_ok)
                .collect();
            match refused {
                None => assert_eq!(heard.len(), codes.len(), "{list} {codes:?}"),
                Some((at, why)) => {
                    assert_eq!(heard.len(), at, "{list} {codes:?}");
                    let error = demands.hear(&codes[at].to_be_bytes()).unwrap_err();
                    assert!(error.contains(why), "{list} {codes:?}: {error}");
                }
            }
        }
        assert!(demands("none").hear(&[0, 0]).is_err());
    }
}
