//! How servers may ask pgtenant to prove who it is: libpq's `require_auth` (PostgreSQL 16).

/// What is asked for, as libpq calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMethod {
    /// Nothing is asked for: `trust`, `peer`, `cert` in pg_hba.conf.
    None,
    /// The password in clear: `password`, `ldap`, `pam`, `radius`.
    Password,
    Md5,
    Gss,
    Sspi,
    ScramSha256,
}

use AuthMethod::{Gss, Md5, None as Nothing, Password, ScramSha256, Sspi};

impl AuthMethod {
    const ALL: [Self; 6] = [Nothing, Password, Md5, Gss, Sspi, ScramSha256];

    pub fn name(self) -> &'static str {
        match self {
            Nothing => "none",
            Password => "password",
            Md5 => "md5",
            Gss => "gss",
            Sspi => "sspi",
            ScramSha256 => "scram-sha-256",
        }
    }

    /// Whether pgtenant can do it.
    fn is_known(self) -> bool {
        !matches!(self, Gss | Sspi)
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// The methods that a server may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequireAuth(u8);

impl RequireAuth {
    /// Where nothing is said: a password is proved, and never sent. `none` is among them, other
    /// than where libpq is told `scram-sha-256`, since servers that know their clients by the Unix
    /// socket, or by where they come from, ask for nothing.
    pub const DEFAULT: &str = "scram-sha-256,none";

    /// Reads a list as libpq does (`connectOptions2` in fe-connect.c): methods, or methods with `!`
    /// ahead of each, which are all others.
    ///
    /// # Errors
    /// What is wrong with it, for the operator.
    pub fn parse(list: &str) -> Result<Self, String> {
        let negates = list.trim_start().starts_with('!');
        let mut named = 0;
        for word in list.split(',').map(str::trim) {
            let name = match (word.strip_prefix('!'), negates) {
                (Some(name), true) => name,
                (None, false) => word,
                _ => return Err("cannot have both methods and methods with !".to_owned()),
            };
            let method = AuthMethod::ALL.iter().find(|method| method.name() == name);
            let method = method.ok_or_else(|| {
                let all = AuthMethod::ALL.map(AuthMethod::name).join(", ");
                format!("has no method \"{name}\": there are {all}")
            })?;
            if named & method.bit() != 0 {
                return Err(format!("has {name} more than once"));
            }
            named |= method.bit();
        }
        let allowed = match negates {
            true => Self(!named),
            false => Self(named),
        };
        let can_be_done = |method: &AuthMethod| method.is_known() && allowed.allows(*method);
        match AuthMethod::ALL.iter().any(can_be_done) {
            true => Ok(allowed),
            false => Err(
                "allows nothing that pgtenant can do: none, password, md5, scram-sha-256"
                    .to_owned(),
            ),
        }
    }

    pub fn allows(self, method: AuthMethod) -> bool {
        self.0 & method.bit() != 0
    }
}

impl std::fmt::Display for RequireAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let allowed = AuthMethod::ALL
            .iter()
            .filter(|method| self.allows(**method));
        let names: Vec<_> = allowed.map(|method| method.name()).collect();
        f.write_str(&names.join(","))
    }
}

impl Default for RequireAuth {
    fn default() -> Self {
        Self(ScramSha256.bit() | Nothing.bit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_by_libpq() {
        for (list, expected) in [
            (RequireAuth::DEFAULT, "none,scram-sha-256"),
            ("scram-sha-256", "scram-sha-256"),
            ("none", "none"),
            ("scram-sha-256,md5", "md5,scram-sha-256"),
            ("password, md5", "password,md5"),
            ("gss,none", "none,gss"),
            ("!password", "none,md5,gss,sspi,scram-sha-256"),
            ("!password,!md5,!none", "gss,sspi,scram-sha-256"),
        ] {
            let allowed = RequireAuth::parse(list).unwrap();
            assert_eq!(allowed.to_string(), expected, "{list}");
        }
        assert_eq!(
            RequireAuth::parse(RequireAuth::DEFAULT),
            Ok(RequireAuth::default())
        );
    }

    #[test]
    fn other_lists_are_refused() {
        for (list, why) in [
            ("", "has no method \"\""),
            ("scram", "has no method \"scram\""),
            ("SCRAM-SHA-256", "has no method"),
            ("md5,", "has no method \"\""),
            ("!", "has no method \"\""),
            ("!!md5", "has no method \"!md5\""),
            ("md5,!password", "cannot have both"),
            ("!md5,password", "cannot have both"),
            ("md5,none,md5", "has md5 more than once"),
            ("!md5,!md5", "has md5 more than once"),
            ("gss", "nothing that pgtenant can do"),
            ("gss,sspi", "nothing that pgtenant can do"),
            (
                "!none,!password,!md5,!scram-sha-256",
                "nothing that pgtenant can do",
            ),
        ] {
            let error = RequireAuth::parse(list).unwrap_err();
            assert!(error.contains(why), "{list}: {error}");
        }
    }
}
