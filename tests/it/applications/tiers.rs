//! Random programs of an application over tenants in all four tiers, guarded and sealed. What each
//! statement must say, which tenant is chosen and whose rows are seen comes from the model below,
//! which knows PostgreSQL's rules for a variable and docs/applications.md, and nothing of the
//! proxy.
//!
//! `PGTENANT_TIER_PROGRAMS` programs from `PGTENANT_TIER_SEED` on.

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use super::places::{Member, Places, Sizes};
use super::{extended, log_in};
use crate::wire::{Frame, Wire, bind, describe, errors, execute, parse, query, rows, sync};

const SIZES: Sizes = Sizes {
    tenants: [3, 3, 3, 3, 3],
    movers: 0,
};

/// One row: what is chosen, and the rows that are seen.
const READ: &str = "SELECT coalesce(current_setting('app.tenant_id', true), '') || ': ' \
    || coalesce(string_agg(body, ', ' ORDER BY id), '') FROM items WHERE id < 900";
/// It fails when it is executed, and not when it is planned.
const DIVIDES: &str = "SELECT 1 / count(*) FROM items WHERE id < 0";
const NAMED: &str = "reads";
const DIVISION: &str = "22012";
const ABORTED: &str = "25P02";
const ANOTHER: &str = "25001";
const DENIED: &str = "42501";
const NO_TRANSACTION: &str = "25P01";
const NO_SAVEPOINT: &str = "3B001";
const UNDEFINED: &str = "42704";

/// The tenant, by its place in the program's list.
type Choice = Option<usize>;

#[derive(Debug, Clone, PartialEq)]
enum Op {
    Begin(&'static str),
    Commit,
    Rollback,
    Savepoint(&'static str),
    RollbackTo(&'static str),
    Release(&'static str),
    Choose {
        who: Choice,
        local: bool,
        form: usize,
    },
    /// A tenant that there is not.
    ChooseNobody {
        local: bool,
    },
    Read,
    /// The same by a statement that a message has prepared, for whomever it was then.
    ReadNamed,
    /// The same by SQL's EXECUTE.
    ReadExecute,
    Divide,
    Show,
    DiscardAll,
    ResetAll,
    Discard(&'static str),
}

impl Op {
    fn can_be_in_pipeline(&self) -> bool {
        !matches!(
            self,
            Self::DiscardAll
                | Self::ResetAll
                | Self::Discard(_)
                | Self::Savepoint(_)
                | Self::RollbackTo(_)
                | Self::Release(_)
                | Self::Show
                | Self::ReadExecute
        )
    }

    fn sql(&self, members: &[&Member]) -> String {
        match self {
            Self::Begin(text) => (*text).to_owned(),
            Self::Commit => "COMMIT".to_owned(),
            Self::Rollback => "ROLLBACK".to_owned(),
            Self::Savepoint(name) => format!("SAVEPOINT {name}"),
            Self::RollbackTo(name) => format!("ROLLBACK TO SAVEPOINT {name}"),
            Self::Release(name) => format!("RELEASE {name}"),
            Self::Choose { who, local, form } => choice(who.map(|at| members[at]), *local, *form),
            Self::ChooseNobody { local: true } => "SET LOCAL app.tenant_id = 'nobody'".to_owned(),
            Self::ChooseNobody { local: false } => "SET app.tenant_id = 'nobody'".to_owned(),
            Self::Read | Self::ReadNamed => READ.to_owned(),
            Self::ReadExecute => "EXECUTE by_sql".to_owned(),
            Self::Divide => DIVIDES.to_owned(),
            Self::Show => "SHOW app.tenant_id".to_owned(),
            Self::DiscardAll => "DISCARD ALL".to_owned(),
            Self::ResetAll => "RESET ALL".to_owned(),
            Self::Discard(what) => format!("DISCARD {what}"),
        }
    }

    fn messages(&self, members: &[&Member]) -> Vec<u8> {
        let flag = |local: bool| if local { "true" } else { "false" };
        match self {
            Self::ReadNamed => [bind("", NAMED, &[]), execute("", 0)].concat(),
            Self::Choose { who, local, form } => {
                let name = who.map_or("", |at| &members[at].name);
                let pair = format!("[[\"app.tenant_id\",\"{name}\"]]");
                let constant = format!("SELECT set_config('app.tenant_id', $1, {})", flag(*local));
                match form % 4 {
                    0 => extended(&constant, &[Some(name)]),
                    1 => extended(
                        "SELECT set_config($1, $2, $3)",
                        &[Some("app.tenant_id"), Some(name), Some(flag(*local))],
                    ),
                    2 if *local && who.is_some() => extended(
                        "select set_config(el->>0, el->>1, true) from json_array_elements($1::json) el",
                        &[Some(&pair)],
                    ),
                    _ => extended(&self.sql(members), &[]),
                }
            }
            _ => extended(&self.sql(members), &[]),
        }
    }

    /// Whether the choice is in a statement that a server runs, too.
    fn is_by_json(&self, is_query: bool) -> bool {
        !is_query
            && matches!(self, Self::Choose { who: Some(_), local: true, form } if form % 4 == 2)
    }

    /// Whether the choice is made by a SELECT, which returns it, where it is a Query or is not.
    fn returns_row(&self, is_query: bool) -> bool {
        match self {
            Self::Choose { form, .. } if !is_query => {
                form % 4 < 2 || self.is_by_json(is_query) || is_select(*form)
            }
            Self::Choose { form, .. } => is_select(*form),
            _ => false,
        }
    }
}

const TEXT_FORMS: usize = 7;

fn is_select(form: usize) -> bool {
    form % TEXT_FORMS >= 5
}

/// A choice as it is written in a text.
fn choice(who: Option<&Member>, local: bool, form: usize) -> String {
    let scope = if local { "LOCAL " } else { "" };
    let name = who.map_or("", |member| &member.name);
    match form % TEXT_FORMS {
        0 if who.is_none() && !local => "RESET app.tenant_id".to_owned(),
        0 | 1 if who.is_none() => format!("SET {scope}app.tenant_id TO DEFAULT"),
        0 | 1 => format!("SET {scope}app.tenant_id = '{name}'"),
        2 => format!("set {scope}\"app\" . Tenant_Id to $${name}$$"),
        3 => format!("/* a /* b */ */ SET {scope}app.tenant_id = E'{name}' -- c"),
        4 => format!("SET {scope}app.tenant_id = U&'{name}';"),
        5 => format!("SELECT set_config('app.tenant_id', '{name}', {local})"),
        _ => format!("select pg_catalog.set_config('APP.tenant_id', '{name}', {local}) AS chosen"),
    }
}

/// What a statement says.
#[derive(Debug, Clone, PartialEq)]
enum Said {
    Done,
    Row(String),
    Error(&'static str),
}

/// The session's choice, and the one in force.
#[derive(Debug, Clone, Copy, Default)]
struct Values {
    session: Choice,
    now: Choice,
}

#[derive(Debug, Clone)]
struct Open {
    is_explicit: bool,
    has_failed: bool,
    before: Values,
    savepoints: Vec<(&'static str, Values)>,
}

#[derive(Debug, Clone, Default)]
struct Model {
    values: Values,
    open: Option<Open>,
    /// For whom a statement of the transaction, or of the messages up to a Sync, was served.
    served: Option<Choice>,
    /// The last choice was refused.
    is_barred: bool,
    has_named: bool,
    has_sql: bool,
}

impl Model {
    fn begin(&mut self, is_explicit: bool) {
        let before = self.values;
        let open = self.open.get_or_insert(Open {
            is_explicit,
            has_failed: false,
            before,
            savepoints: Vec::new(),
        });
        open.is_explicit |= is_explicit;
    }

    fn end(&mut self, commits: bool) {
        let Some(open) = self.open.take() else { return };
        let session = match commits && !open.has_failed {
            true => self.values.session,
            false => open.before.session,
        };
        self.values = Values {
            session,
            now: session,
        };
    }

    fn has_failed(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.has_failed)
    }

    fn is_explicit(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.is_explicit)
    }

    fn savepoints(&mut self) -> &mut Vec<(&'static str, Values)> {
        &mut self.open.as_mut().expect("a transaction").savepoints
    }

    fn status(&self) -> u8 {
        match (self.is_explicit(), self.has_failed()) {
            (true, true) => b'E',
            (true, false) => b'T',
            _ => b'I',
        }
    }

    /// Messages up to a ReadyForQuery; returns what they say, up to the first error.
    fn run(&mut self, ops: &[Op], is_query: bool, members: &[&Member]) -> Vec<Said> {
        let mut said = Vec::new();
        let before = self.clone();
        for op in ops {
            self.begin(false);
            let one = self.one(op, is_query, members);
            let is_error = matches!(one, Said::Error(_));
            if one != Said::Done {
                said.push(one);
            }
            if is_error && is_query && ops.len() > 1 && before.served.is_some() {
                // A text is refused before any of it is run.
                *self = Self {
                    is_barred: true,
                    ..before
                };
                break;
            }
            if is_error {
                if let Some(open) = &mut self.open {
                    open.has_failed = true;
                }
                break;
            }
        }
        if !self.is_explicit() {
            self.end(true);
            // What is prepared in SQL is of its server connection.
            self.served = self.served.filter(|_| self.has_sql);
        }
        said
    }

    fn one(&mut self, op: &Op, is_query: bool, members: &[&Member]) -> Said {
        let may_end = matches!(op, Op::Commit | Op::Rollback | Op::RollbackTo(_));
        if self.has_failed() && !may_end {
            return Said::Error(ABORTED);
        }
        match op {
            Op::Begin(_)
            | Op::Commit
            | Op::Rollback
            | Op::Savepoint(_)
            | Op::RollbackTo(_)
            | Op::Release(_) => return self.control(op),
            Op::Choose { who, local, .. } => {
                let said = self.choose(*who, *local);
                if said == Said::Done
                    && op.is_by_json(is_query)
                    && let Err(code) = self.serve()
                {
                    return Said::Error(code);
                }
                if said == Said::Done && op.returns_row(is_query) {
                    let name = who.map_or("", |at| &members[at].name);
                    return Said::Row(name.to_owned());
                }
                return said;
            }
            Op::ChooseNobody { .. } => {
                self.is_barred = true;
                return Said::Error(DENIED);
            }
            Op::Show => {
                return match self.values.now {
                    Some(at) => Said::Row(members[at].name.clone()),
                    None => Said::Error(UNDEFINED),
                };
            }
            Op::Read | Op::ReadNamed | Op::ReadExecute | Op::Divide => {
                if let Err(code) = self.serve() {
                    return Said::Error(code);
                }
                if *op == Op::Divide {
                    return Said::Error(DIVISION);
                }
                return Said::Row(seen(self.values.now.map(|at| members[at])));
            }
            Op::DiscardAll | Op::ResetAll | Op::Discard(_) => {
                if let Err(code) = self.serve() {
                    // They choose nobody, and that is refused.
                    self.is_barred |= !matches!(op, Op::Discard(_));
                    return Said::Error(code);
                }
                if *op == Op::DiscardAll && self.is_explicit() {
                    return Said::Error("25001");
                }
                if matches!(op, Op::DiscardAll | Op::ResetAll) {
                    self.values = Values::default();
                }
                if *op == Op::DiscardAll {
                    (self.has_named, self.has_sql) = (false, false);
                }
            }
        }
        Said::Done
    }

    /// What begins or ends a transaction or a savepoint.
    fn control(&mut self, op: &Op) -> Said {
        match op {
            Op::Begin(_) => self.begin(true),
            Op::Commit => self.end(true),
            Op::Rollback => self.end(false),
            Op::Savepoint(_) | Op::RollbackTo(_) | Op::Release(_) if !self.is_explicit() => {
                // A server says so.
                return Said::Error(match self.is_barred && self.served.is_none() {
                    true => DENIED,
                    false => NO_TRANSACTION,
                });
            }
            Op::Savepoint(name) => {
                let values = self.values;
                self.savepoints().push((*name, values));
            }
            Op::RollbackTo(name) | Op::Release(name) => {
                let savepoints = self.savepoints();
                let Some(at) = savepoints.iter().rposition(|(own, _)| own == name) else {
                    return Said::Error(NO_SAVEPOINT);
                };
                if matches!(op, Op::Release(_)) {
                    savepoints.truncate(at);
                    return Said::Done;
                }
                savepoints.truncate(at + 1);
                self.values = savepoints[at].1;
                if let Some(open) = &mut self.open {
                    open.has_failed = false;
                }
            }
            _ => {}
        }
        Said::Done
    }

    fn choose(&mut self, who: Choice, local: bool) -> Said {
        self.is_barred = false;
        if who.is_some() && self.served.is_some_and(|served| served != who) {
            self.is_barred = true;
            return Said::Error(ANOTHER);
        }
        self.values.now = who;
        if !local {
            self.values.session = who;
        }
        Said::Done
    }

    /// A statement needs a place.
    fn serve(&mut self) -> Result<(), &'static str> {
        match self.served {
            _ if self.is_barred => Err(DENIED),
            Some(served) if served != self.values.now => Err(ANOTHER),
            _ => {
                self.served = Some(self.values.now);
                Ok(())
            }
        }
    }
}

/// What [`READ`] shows.
fn seen(member: Option<&Member>) -> String {
    let name = member.map_or("", |member| &member.name);
    let bodies = member.map_or_else(String::new, |member| member.bodies.join(", "));
    format!("{name}: {bodies}")
}

fn op(rng: &mut StdRng, model: &Model) -> Op {
    let begins = [
        "BEGIN",
        "BEGIN",
        "START TRANSACTION READ ONLY",
        "BEGIN ISOLATION LEVEL SERIALIZABLE",
    ];
    let savepoint = *["s", "s2"].choose(rng).expect("one");
    let who = rng.random_bool(0.85).then(|| rng.random_range(0..3));
    let form = rng.random_range(0..1000);
    match rng.random_range(0..100) {
        0..12 if model.open.is_some() => Op::Begin("BEGIN"),
        0..12 => Op::Begin(begins.choose(rng).expect("one")),
        12..20 => Op::Commit,
        20..26 => Op::Rollback,
        26..31 => Op::Savepoint(savepoint),
        31..37 => Op::RollbackTo(savepoint),
        37..40 => Op::Release(savepoint),
        40..56 => Op::Choose {
            who,
            local: true,
            form,
        },
        56..67 => Op::Choose {
            who,
            local: false,
            form,
        },
        67..69 => Op::ChooseNobody {
            local: rng.random(),
        },
        69..78 => Op::Read,
        78..84 if model.has_named => Op::ReadNamed,
        84..87 if model.has_sql => Op::ReadExecute,
        87..91 => Op::Divide,
        91..93 if model.values.now.is_some() => Op::Show,
        93 => Op::DiscardAll,
        // In a transaction, a sealed one loses its tenant by it.
        94 if model.open.is_none() => Op::ResetAll,
        95 => Op::Discard(["PLANS", "TEMP"].choose(rng).expect("one")),
        // A sealed transaction loses its tenant by it.
        96 if model.open.is_none() => Op::Discard("SEQUENCES"),
        _ => Op::Read,
    }
}

/// What is sent up to a ReadyForQuery.
struct Step {
    ops: Vec<Op>,
    is_query: bool,
    bytes: Vec<u8>,
}

fn step(rng: &mut StdRng, model: &Model, members: &[&Member]) -> Step {
    let mut ops = vec![op(rng, model)];
    let mut is_query = !matches!(ops[0], Op::ReadNamed);
    if ops[0].can_be_in_pipeline() && rng.random_bool(0.4) {
        is_query = false;
        for _ in 0..rng.random_range(0..4) {
            ops.push(op(rng, model));
        }
        ops.retain(Op::can_be_in_pipeline);
        // Behind a query PostgreSQL does not take the modes.
        for op in &mut ops[1..] {
            if let Op::Begin(text) = op {
                *text = "BEGIN";
            }
        }
    } else if rng.random_bool(0.1) && model.open.is_none() {
        // A text that says all of it.
        // Beside others, what has U& is refused.
        let form = *[0, 1, 2, 3, 5, 6].choose(rng).expect("one");
        let local = rng.random();
        let who = Some(rng.random_range(0..3));
        ops = vec![Op::Choose { who, local, form }, Op::Read];
        if rng.random() {
            ops.insert(0, Op::Begin("BEGIN"));
            ops.push([Op::Commit, Op::Rollback].choose(rng).expect("one").clone());
        }
        is_query = true;
    }
    let bytes = match is_query {
        true => {
            let texts: Vec<_> = ops.iter().map(|op| op.sql(members)).collect();
            query(&texts.join("\n; "))
        }
        false => {
            let mut bytes: Vec<u8> = ops.iter().flat_map(|op| op.messages(members)).collect();
            bytes.extend(sync());
            bytes
        }
    };
    Step {
        ops,
        is_query,
        bytes,
    }
}

/// What a reply says, as the model says it.
fn heard(frames: &[Frame]) -> Vec<String> {
    let mut heard = Vec::new();
    for frame in frames {
        match frame.tag {
            b'D' => heard.extend(rows(std::slice::from_ref(frame))),
            b'E' => heard.push(format!("error {}", frame.sqlstate())),
            _ => {}
        }
    }
    heard
}

fn said(said: &[Said]) -> Vec<String> {
    let text = |said: &Said| match said {
        Said::Done => unreachable!("it says nothing"),
        Said::Row(row) => row.clone(),
        Said::Error(code) => format!("error {code}"),
    };
    said.iter().map(text).collect()
}

/// Has statements prepared, for whoever is chosen now.
async fn prepare(wire: &mut Wire, model: &mut Model, rng: &mut StdRng) {
    if model.open.is_some() || model.is_barred || model.served.is_some() {
        return;
    }
    if !model.has_named && rng.random_bool(0.3) {
        let messages = [parse(NAMED, READ), describe(b'S', NAMED), sync()];
        wire.send(&messages.concat()).await;
        assert_eq!(heard(&wire.until_ready().await), [""; 0], "Parse");
        model.has_named = true;
    }
    if !model.has_sql && rng.random_bool(0.02) {
        let frames = wire.query(&format!("PREPARE by_sql AS {READ}")).await;
        assert_eq!(heard(&frames), [""; 0], "PREPARE");
        model.has_sql = true;
        model.served = Some(model.values.now);
    }
}

/// Returns how many steps were compared.
///
/// # Errors
/// What differs.
async fn play(seed: u64, wire: &mut Wire, members: &[&Member]) -> Result<usize, String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut model = Model::default();
    let mut log = Vec::new();
    let mut compared = 0;
    for _ in 0..rng.random_range(6..=24) {
        prepare(wire, &mut model, &mut rng).await;
        let mut steps = vec![step(&mut rng, &model, members)];
        // A look after each step; while a transaction is open, it may decide for whom it is.
        if model.open.is_none() || rng.random_bool(0.3) {
            steps.push(Step {
                ops: vec![Op::Read],
                is_query: true,
                bytes: query(READ),
            });
        }
        let is_slow = rng.random_bool(0.1);
        let all: Vec<_> = steps.iter().flat_map(|step| step.bytes.clone()).collect();
        match is_slow {
            true => wire.send_slowly(&all).await,
            false => wire.send(&all).await,
        }
        for step in steps {
            let expected = said(&model.run(&step.ops, step.is_query, members));
            let frames = wire.until_ready().await;
            let status = frames.last().expect("a reply").body[0];
            log.push(format!("{:?} {} -> {expected:?}", step.ops, step.is_query));
            let heard = heard(&frames);
            if heard != expected || status != model.status() {
                let status = char::from(status);
                let errors = frames.iter().filter_map(|frame| frame.field(b'M'));
                let errors: Vec<_> = errors.collect();
                return Err(format!(
                    "seed {seed}: {log:#?}\nheard {heard:?} {errors:?}, {status}; the model: {model:?}"
                ));
            }
            compared += 1;
        }
    }
    Ok(compared)
}

#[tokio::test(flavor = "multi_thread")]
async fn random_programs_over_all_tiers_see_what_the_model_says() {
    let number = |name: &str, usual: u64| {
        let value = std::env::var(format!("PGTENANT_TIER_{name}")).ok();
        value.map_or(usual, |value| value.parse().expect("a number"))
    };
    let places = Places::make("tiers", &SIZES).await;
    let proxy = places.start();
    let (first, programs) = (number("SEED", 1), number("PROGRAMS", 1000));
    let mut wire = log_in(&proxy, None).await;
    let (mut compared, mut differences) = (0, Vec::new());
    for seed in first..first + programs {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut members: Vec<_> = places.members.iter().map(|member| &**member).collect();
        members.shuffle(&mut rng);
        for reset in ["ROLLBACK", "RESET app.tenant_id", "DISCARD ALL"] {
            // A session that keeps a server connection is at an end.
            if !errors(&wire.query(reset).await).is_empty() {
                wire = log_in(&proxy, None).await;
            }
        }
        match play(seed, &mut wire, &members[..3]).await {
            Ok(steps) => compared += steps,
            Err(difference) => {
                differences.push(difference);
                wire = log_in(&proxy, None).await;
            }
        }
        if differences.len() == 5 {
            break;
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    println!("{programs} programs, {compared} replies");
    assert!(compared as u64 > programs * 10, "{compared}");
}
