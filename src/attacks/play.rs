//! Playing an attack, and what came of it.

use super::session::{self, Heard, Session};
use super::stage::Stage;
use super::{Attack, Sign, Step, Variant, Who, Words};

/// What came of an attack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It was played and B was unharmed; what A was told, if it was refused.
    Held(Option<String>),
    /// Each way in which it succeeded, in words.
    Escaped(Vec<(Sign, String)>),
    /// It needs something that this place does not have.
    NotHere,
    /// It could not be played, which says nothing.
    Trouble(String),
}

impl Verdict {
    pub fn has(&self, sign: Sign) -> bool {
        matches!(self, Self::Escaped(signs) if signs.iter().any(|(seen, _)| *seen == sign))
    }

    /// What came of two of them together: the worse.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Escaped(mut signs), Self::Escaped(more)) => {
                signs.extend(more);
                Self::Escaped(signs)
            }
            (escaped @ Self::Escaped(_), _) | (_, escaped @ Self::Escaped(_)) => escaped,
            (trouble @ Self::Trouble(_), _) | (_, trouble @ Self::Trouble(_)) => trouble,
            (Self::Held(one), Self::Held(other)) => Self::Held(one.or(other)),
            (Self::NotHere, other) => other,
            (held, Self::NotHere) => held,
        }
    }
}

/// Plays all variants of an attack.
pub async fn play(attack: &Attack, stage: &Stage) -> Verdict {
    let mut verdict = Verdict::NotHere;
    for variant in attack.variants {
        verdict = verdict.and(play_variant(variant, stage).await);
    }
    verdict
}

/// Plays one: a trick in every form.
pub async fn play_variant(variant: &Variant, stage: &Stage) -> Verdict {
    match variant {
        Variant::Scene(steps) => play_scene(steps, stage).await,
        Variant::Trick(statements) => {
            let mut verdict = Verdict::NotHere;
            for form in Form::ALL {
                verdict = verdict.and(play_trick(statements, form, stage).await);
            }
            verdict
        }
    }
}

/// How the statements of a trick, and the look behind them, become messages.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// All in one Query.
    OneQuery,
    /// A Query each, in a transaction.
    Transaction,
    /// A Query each.
    Queries,
    /// Parse, Bind and Execute each, and one Sync.
    Batch,
    /// Named statements, prepared before and run in one batch.
    Prepared,
}

impl Form {
    const ALL: [Self; 5] = [
        Self::OneQuery,
        Self::Transaction,
        Self::Queries,
        Self::Batch,
        Self::Prepared,
    ];

    /// Messages and the number of answers to each.
    fn messages(self, statements: &[Vec<u8>]) -> Vec<(Vec<u8>, usize)> {
        let queries = || statements.iter().map(|sql| (session::query(sql), 1));
        let names: Vec<_> = (0..statements.len()).map(|n| format!("s{n}")).collect();
        match self {
            Self::OneQuery => vec![(session::query(&statements.join(&b"; "[..])), 1)],
            Self::Queries => queries().collect(),
            Self::Transaction => {
                let mut messages = vec![(session::query(b"BEGIN"), 1)];
                messages.extend(queries());
                messages.push((session::query(b"ROLLBACK"), 1));
                messages
            }
            Self::Batch => {
                let mut batch = Vec::new();
                for sql in statements {
                    batch.extend(session::step(sql, &[]));
                }
                vec![([batch, session::sync()].concat(), 1)]
            }
            Self::Prepared => {
                let parses = names.iter().zip(statements);
                let mut messages: Vec<_> = parses
                    .map(|(name, sql)| ([session::parse(name, sql), session::sync()].concat(), 1))
                    .collect();
                let mut batch = Vec::new();
                for name in &names {
                    batch.extend([session::bind(name, &[]), session::execute()].concat());
                }
                messages.push(([batch, session::sync()].concat(), 1));
                messages
            }
        }
    }
}

async fn play_trick(statements: &[&str], form: Form, stage: &Stage) -> Verdict {
    let look = std::iter::once(&"{loot}");
    let filled = statements
        .iter()
        .chain(look)
        .map(|sql| stage.words.fill(sql));
    let Some(statements) = filled.collect::<Option<Vec<_>>>() else {
        return Verdict::NotHere;
    };
    let mut playing = Playing::on(stage);
    let mut played = Ok(());
    for (messages, readies) in form.messages(&statements) {
        played = playing.say(Who::A, &messages, readies).await;
        if played.is_err() {
            break;
        }
    }
    playing.end(played).await
}

async fn play_scene(steps: &[Step], stage: &Stage) -> Verdict {
    if !stage.words.fit(steps) {
        return Verdict::NotHere;
    }
    let mut playing = Playing::on(stage);
    let mut played = Ok(());
    for step in steps {
        played = playing.step(step).await;
        if played.is_err() {
            break;
        }
    }
    playing.end(played).await
}

/// Whether both tenants can do their work, and see nothing but what is theirs. Without that no
/// attack says anything.
///
/// # Errors
/// What does not work.
pub async fn honest_work(stage: &Stage) -> Result<(), String> {
    for (who, secret, other) in [
        (Who::A, &stage.planted, &stage.secret),
        (Who::B, &stage.secret, &stage.planted),
    ] {
        let mut playing = Playing::on(stage);
        for (how, messages) in honest_messages(&stage.words) {
            let session = playing.session(who).await.map_err(Stop::into_words)?;
            let heard = session.ask(&messages, 1).await?;
            if let Some(code) = heard.codes.first() {
                return Err(format!("{who:?} {how}: error {code}"));
            }
            if !heard.holds(secret) {
                return Err(format!("{who:?} {how}: does not find its rows"));
            }
            if heard.holds(other) {
                return Err(format!("{who:?} {how}: finds rows of the other"));
            }
        }
    }
    match stage.inspect().await? {
        true => Ok(()),
        false => Err("the rows are not as they were".to_owned()),
    }
}

fn honest_messages(words: &Words) -> Vec<(&'static str, Vec<u8>)> {
    let fill = |sql: &str| words.fill(sql).unwrap_or_default();
    let look = fill("SELECT secret FROM {table} ORDER BY id");
    let touch = fill("UPDATE {table} SET touched = touched + 1 WHERE id = 1 RETURNING secret");
    let transaction = fill("BEGIN; SELECT secret FROM {table}; COMMIT");
    let run = [
        session::bind("look", &[]),
        session::execute(),
        session::sync(),
    ]
    .concat();
    vec![
        ("by a query", session::query(&look)),
        ("in a transaction", session::query(&transaction)),
        ("writing", session::query(&touch)),
        (
            "by a statement",
            [session::step(&look, &[]), session::sync()].concat(),
        ),
        (
            "by a named one",
            [session::parse("look", &look), run.clone()].concat(),
        ),
        ("by a named one again", run),
    ]
}

/// Why a scene goes no further.
enum Stop {
    NotHere,
    Trouble(String),
    /// A was not let in, or B was kept out, and that is noted.
    End,
}

impl Stop {
    fn into_words(self) -> String {
        match self {
            Self::Trouble(why) => why,
            Self::NotHere | Self::End => "cannot log in".to_owned(),
        }
    }
}

struct Playing<'s> {
    stage: &'s Stage,
    words: Words,
    sessions: [Option<Session>; 2],
    /// Whose turn it is, where there is one connection for both; it is A's in `sessions`.
    turn: Option<Who>,
    crowd: Vec<Session>,
    seen: Vec<(Sign, String)>,
    refused: Option<String>,
}

impl<'s> Playing<'s> {
    fn on(stage: &'s Stage) -> Self {
        Self {
            stage,
            words: stage.words.clone(),
            sessions: [None, None],
            turn: None,
            crowd: Vec::new(),
            seen: Vec::new(),
            refused: None,
        }
    }

    /// The verdict, after B has done its work and the rows were looked at.
    async fn end(mut self, played: Result<(), Stop>) -> Verdict {
        // What A holds, such as the only connection, hinders B where a step says that it works, and
        // not here.
        if self.stage.turns.is_none() {
            self.sessions[0] = None;
        }
        let played = match played {
            Ok(()) | Err(Stop::End) if self.seen.is_empty() => self.work().await,
            stop => stop,
        };
        // What they hold is let go of before the rows are looked at.
        self.sessions = [None, None];
        self.crowd.clear();
        let rows = self.stage.inspect().await;
        if rows == Ok(false) {
            self.note(Sign::Changed, "its rows are others");
        }
        // What was seen counts, whatever could not be done after it.
        match (played, rows) {
            _ if !self.seen.is_empty() => Verdict::Escaped(self.seen),
            (Err(Stop::Trouble(why)), _) | (_, Err(why)) => Verdict::Trouble(why),
            (Err(Stop::NotHere), _) => Verdict::NotHere,
            _ => Verdict::Held(self.refused),
        }
    }

    fn note(&mut self, sign: Sign, how: impl Into<String>) {
        self.seen.push((sign, how.into()));
    }

    fn fill(&self, text: &str) -> Result<Vec<u8>, Stop> {
        self.words.fill(text).ok_or(Stop::NotHere)
    }

    fn fill_all(&self, texts: &[&str]) -> Result<Vec<Vec<u8>>, Stop> {
        texts.iter().map(|text| self.fill(text)).collect()
    }

    async fn step(&mut self, step: &Step) -> Result<(), Stop> {
        let (who, messages) = match step {
            Step::Query(who, sql) => (*who, session::query(&self.fill(sql)?)),
            Step::Batch(who, texts) => {
                let texts = self.fill_all(texts)?;
                let steps = texts.iter().map(|sql| session::step(sql, &[]));
                (
                    *who,
                    [steps.collect::<Vec<_>>().concat(), session::sync()].concat(),
                )
            }
            Step::Bound(who, sql, values) => {
                let step = session::step(&self.fill(sql)?, &self.fill_all(values)?);
                (*who, [step, session::sync()].concat())
            }
            Step::BindOnly(who, sql, values) => {
                let parse = session::parse("", &self.fill(sql)?);
                let bind = session::bind("", &self.fill_all(values)?);
                (*who, [parse, bind, session::sync()].concat())
            }
            Step::Prepare(who, name, sql) => {
                let parse = session::parse(name, &self.fill(sql)?);
                (*who, [parse, session::sync()].concat())
            }
            Step::Run(who, name) => {
                let bind = session::bind(name, &[]);
                (*who, [bind, session::execute(), session::sync()].concat())
            }
            Step::Call(who, oid, values) => {
                (*who, session::function_call(*oid, &self.fill_all(values)?))
            }
            Step::CopyIn(who, sql, data) => {
                (*who, session::copy_in(&self.fill(sql)?, &self.fill(data)?))
            }
            other => return self.act(other).await,
        };
        self.say(who, &messages, 1).await
    }

    /// The steps that are more than messages and their answer.
    async fn act(&mut self, step: &Step) -> Result<(), Stop> {
        match step {
            Step::Begin(who, sql) => {
                let messages = session::query(&self.fill(sql)?);
                self.session(*who).await?.send(&messages).await;
                Ok(())
            }
            Step::Await(who) => self.say(*who, &[], 1).await,
            Step::Pid => self.learn_pid().await,
            Step::Leave(who) => {
                if self.stage.turns.is_none() {
                    self.sessions[*who as usize] = None;
                }
                Ok(())
            }
            Step::LogIn(parameters) => self.log_in(parameters).await,
            Step::Crowd(number) => {
                for _ in 0..*number {
                    let Ok(mut session) = Session::open(&self.stage.ways[0], &[]).await else {
                        continue;
                    };
                    let heard = session.ask(&session::query(b"BEGIN; SELECT 1"), 1).await;
                    heard.map_err(Stop::Trouble)?;
                    self.crowd.push(session);
                }
                Ok(())
            }
            Step::Work => match self.work().await {
                // The scene may have something to put right.
                Err(Stop::End) => Ok(()),
                other => other,
            },
            _ => Ok(()),
        }
    }

    async fn log_in(&mut self, parameters: &[(&str, &str)]) -> Result<(), Stop> {
        let mut filled = Vec::new();
        for (name, value) in parameters {
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            filled.push((text(self.fill(name)?), text(self.fill(value)?)));
        }
        self.sessions[0] = None;
        match Session::open(&self.stage.ways[0], &filled).await {
            Ok(session) => self.sessions[0] = Some(session),
            Err(_) => {
                self.refused = Some("at login".to_owned());
                return Err(Stop::End);
            }
        }
        Ok(())
    }

    async fn learn_pid(&mut self) -> Result<(), Stop> {
        let session = self.session(Who::B).await?;
        let heard = session
            .ask(
                &session::query(b"SELECT 'pid=' || pg_backend_pid() || ';'"),
                1,
            )
            .await
            .map_err(Stop::Trouble)?;
        let said = String::from_utf8_lossy(&heard.said).into_owned();
        let pid = said
            .split_once("pid=")
            .and_then(|(_, rest)| rest.split_once(';'));
        let pid = pid.ok_or_else(|| Stop::Trouble("B does not know its process".to_owned()))?;
        self.words.set("b_pid", pid.0);
        Ok(())
    }

    /// The session of a tenant, made where there is none.
    async fn session(&mut self, who: Who) -> Result<&mut Session, Stop> {
        let turns = self.stage.turns.as_ref();
        // One connection for both was made for B.
        let (place, way) = match turns {
            Some(_) => (0, &self.stage.ways[1]),
            None => (who as usize, &self.stage.ways[who as usize]),
        };
        if self.sessions[place].is_none() {
            let opened = Session::open(way, &[]).await;
            let opened = opened.map_err(|error| self.kept_out(who, &error.to_string()))?;
            self.sessions[place] = Some(opened);
            self.turn = None;
        }
        let Some(session) = &mut self.sessions[place] else {
            return Err(Stop::End);
        };
        if let Some(turns) = turns
            && self.turn != Some(who)
        {
            let give = &turns[who as usize];
            session.ask(give, 1).await.map_err(Stop::Trouble)?;
            self.turn = Some(who);
        }
        Ok(session)
    }

    fn kept_out(&mut self, who: Who, why: &str) -> Stop {
        if who == Who::A {
            return Stop::Trouble(format!("A cannot log in: {why}"));
        }
        self.note(Sign::Hindered, format!("it cannot log in: {why}"));
        Stop::End
    }

    /// Sends messages, and judges what is heard.
    async fn say(&mut self, who: Who, messages: &[u8], readies: usize) -> Result<(), Stop> {
        let session = self.session(who).await?;
        let heard = session
            .ask(messages, readies)
            .await
            .map_err(Stop::Trouble)?;
        self.judge(who, messages, &heard);
        if heard.ended {
            let place = if self.stage.turns.is_some() {
                0
            } else {
                who as usize
            };
            self.sessions[place] = None;
        }
        Ok(())
    }

    fn judge(&mut self, who: Who, sent: &[u8], heard: &Heard) {
        let is_sent = |word: &str| sent.windows(word.len()).any(|part| part == word.as_bytes());
        let stage = self.stage;
        let canaries = match who {
            Who::A => [Some(&stage.secret), Some(&stage.number)],
            Who::B => [Some(&stage.planted), None],
        };
        let found = canaries
            .into_iter()
            .flatten()
            .find(|canary| !is_sent(canary) && heard.holds(canary));
        if found.is_some() {
            let sign = [Sign::Read, Sign::Planted][who as usize];
            self.note(sign, session::shown(sent));
        }
        match who {
            Who::A if self.refused.is_none() => self.refused = heard.codes.first().cloned(),
            Who::A => {}
            Who::B => {
                if let Some(code) = heard.codes.iter().find(|code| hinders(code)) {
                    self.note(Sign::Hindered, format!("error {code}"));
                } else if heard.ended {
                    self.note(Sign::Hindered, "its connection was closed");
                }
            }
        }
    }

    /// B reads its rows and writes one of them.
    async fn work(&mut self) -> Result<(), Stop> {
        // Whatever B was in the middle of.
        let session = self.session(Who::B).await?;
        let rollback = session::query(b"ROLLBACK");
        session.ask(&rollback, 1).await.map_err(Stop::Trouble)?;
        for sql in [
            "SELECT secret FROM {table} ORDER BY id",
            "UPDATE {table} SET touched = touched + 1 WHERE id = 1 RETURNING secret",
        ] {
            let messages = session::query(&self.fill(sql)?);
            let session = self.session(Who::B).await?;
            let heard = session.ask(&messages, 1).await.map_err(Stop::Trouble)?;
            let before = self.seen.len();
            self.judge(Who::B, &messages, &heard);
            if self.seen.len() == before && !heard.holds(&self.stage.secret) {
                let code = heard.codes.first().map_or("no rows", |code| code);
                self.note(Sign::Hindered, format!("it does not find its rows: {code}"));
            }
            if self.seen.len() > before || heard.ended {
                return Err(Stop::End);
            }
        }
        Ok(())
    }
}

/// Whether an error is one that others can cause: not a refusal, nor a mistake.
fn hinders(code: &str) -> bool {
    ["57", "53", "08"]
        .iter()
        .any(|class| code.starts_with(class))
        || matches!(code, "55P03" | "25006" | "40P01")
}
