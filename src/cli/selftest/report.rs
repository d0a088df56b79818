//! What came of a placement, for people and for programs.

pub(super) mod place;

use std::fmt;

use serde_json::{Value, json};

use self::place::Place;
use crate::attacks::Attack;
use crate::attacks::play::Verdict;
use crate::cli::demo::table::Table;

pub struct Report {
    pub place: Place,
    /// Its tenants live beside each other.
    is_shared: bool,
    pub outcomes: Vec<Outcome>,
    /// What could not be done.
    pub trouble: Vec<String>,
    /// Tables of the operator's in which a tenant without rows finds some.
    pub leaking: Vec<String>,
    /// What the operator should know, and nothing more.
    pub notices: Vec<String>,
}

pub struct Outcome {
    pub attack: &'static Attack,
    pub verdict: Verdict,
    is_allowed: bool,
}

impl Outcome {
    pub fn new(attack: &'static Attack, verdict: Verdict) -> Self {
        Self {
            attack,
            verdict,
            is_allowed: false,
        }
    }

    fn word(&self) -> &'static str {
        match (&self.verdict, self.is_allowed) {
            (Verdict::Held(_), _) => "held",
            (Verdict::Escaped(_), true) => "allowed",
            (Verdict::Escaped(_), false) => "escaped",
            (Verdict::NotHere, _) => "not here",
            (Verdict::Trouble(_), _) => "not played",
        }
    }

    fn how(&self) -> String {
        match &self.verdict {
            Verdict::Held(Some(code)) => format!("refused, {code}"),
            Verdict::Held(None) => "nothing came of it".to_owned(),
            Verdict::Escaped(signs) => match signs.first() {
                Some((sign, how)) => format!("{sign}: {}", shortened(how)),
                None => self.attack.gives.to_owned(),
            },
            Verdict::NotHere => String::new(),
            Verdict::Trouble(why) => shortened(why),
        }
    }
}

/// Most characters of what is told of one attack.
const SHORT: usize = 90;

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHORT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl Report {
    pub fn new(place: Place, is_shared: bool) -> Self {
        Self {
            place,
            is_shared,
            outcomes: Vec::new(),
            trouble: Vec::new(),
            leaking: Vec::new(),
            notices: Vec::new(),
        }
    }

    pub fn is_to_be_played(&self) -> bool {
        self.is_shared
    }

    /// Attacks of these names may succeed.
    pub fn allow(&mut self, names: &[String]) {
        for outcome in &mut self.outcomes {
            outcome.is_allowed = names.iter().any(|name| name == outcome.attack.name);
        }
    }

    pub fn was_played(&self) -> bool {
        !self.outcomes.is_empty()
    }

    pub fn has_escapes(&self) -> bool {
        let escaped = self
            .outcomes
            .iter()
            .any(|outcome| outcome.word() == "escaped");
        escaped || !self.leaking.is_empty()
    }

    pub fn has_trouble(&self) -> bool {
        let untold = self
            .outcomes
            .iter()
            .any(|outcome| outcome.word() == "not played");
        untold || !self.trouble.is_empty()
    }

    fn count(&self, word: &str) -> usize {
        self.outcomes
            .iter()
            .filter(|outcome| outcome.word() == word)
            .count()
    }

    fn json(&self) -> Value {
        let outcomes: Vec<_> = self
            .outcomes
            .iter()
            .map(|outcome| {
                json!({
                    "attack": outcome.attack.name,
                    "category": outcome.attack.category.to_string(),
                    "gives": outcome.attack.gives,
                    "verdict": outcome.word(),
                    "how": outcome.how(),
                })
            })
            .collect();
        json!({
            "placement": self.place.placement.as_str(),
            "server": self.place.server.as_str(),
            "tier": self.place.tier.to_string(),
            "posture": self.place.posture.map(|posture| posture.to_string()),
            "attacks": outcomes,
            "leaking_tables": self.leaking,
            "not_played": self.trouble,
            "notices": self.notices,
        })
    }
}

/// All reports as one JSON document.
pub fn json(reports: &[Report]) -> String {
    let reports: Vec<_> = reports.iter().map(Report::json).collect();
    format!("{:#}", json!({ "placements": reports }))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let posture = self.place.posture.map(|posture| format!(", {posture}"));
        writeln!(
            f,
            "placement {} ({}{}) on server {}",
            self.place.placement,
            self.place.tier,
            posture.unwrap_or_default(),
            self.place.server
        )?;
        if !self.is_shared {
            return writeln!(
                f,
                "  left out: its tenant has the server alone, there is nobody beside it\n"
            );
        }
        if self.was_played() {
            let mut table = Table::new(["attack", "by", "", "how"]);
            for outcome in self
                .outcomes
                .iter()
                .filter(|outcome| outcome.verdict != Verdict::NotHere)
            {
                table.row([
                    outcome.attack.name.to_owned(),
                    outcome.attack.category.to_string(),
                    outcome.word().to_owned(),
                    outcome.how(),
                ]);
            }
            writeln!(f, "\n{table}")?;
        }
        for line in &self.trouble {
            writeln!(f, "  not played: {line}")?;
        }
        for table in &self.leaking {
            writeln!(
                f,
                "  escaped: a tenant that has no rows sees some in {table}"
            )?;
        }
        for line in &self.notices {
            writeln!(f, "  note: {line}")?;
        }
        writeln!(
            f,
            "  {} held, {} escaped, {} allowed, {} not played; {} do not apply here\n",
            self.count("held"),
            self.count("escaped") + self.leaking.len(),
            self.count("allowed"),
            self.count("not played") + self.trouble.len(),
            self.count("not here"),
        )
    }
}
