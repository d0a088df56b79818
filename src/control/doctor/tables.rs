//! Row level security: which tables have it, and whether their policies keep tenants apart.

use std::collections::{BTreeMap, BTreeSet};

use super::case::{Case, Mend, finding, literal, name, quoted};
use super::facts::{Index, Policy, Relation};
use super::policy::{self, Judgement, TenantFunction, Verdict, Vocabulary};
use crate::findings::Severity::{Critical, Notice, Warning};
use crate::findings::{Finding, Step};

/// Names that columns have for the tenant, where no policy says which it is.
const USUAL_NAMES: [&str; 1] = ["tenant_id"];

/// Which columns hold the tenant.
#[derive(Debug, Default)]
pub struct TenantColumns {
    /// By table, as its policies have it.
    by_table: BTreeMap<u32, String>,
    /// Names that mean the tenant in any table.
    names: BTreeSet<String>,
}

impl TenantColumns {
    pub fn of(case: &Case<'_>) -> Self {
        let vocabulary = vocabulary(case);
        let mut columns = Self {
            names: USUAL_NAMES.map(str::to_owned).into(),
            ..Self::default()
        };
        for policy in &case.facts.policies {
            let texts = [&policy.using, &policy.check];
            let judged = texts
                .into_iter()
                .flatten()
                .map(|text| policy::judge(text, &vocabulary));
            let found: Vec<_> = judged.flat_map(|judged| judged.columns).collect();
            let usual = found.iter().find(|c| USUAL_NAMES.contains(&c.as_str()));
            if let Some(column) = usual.or(found.first()) {
                let known = columns.by_table.entry(policy.relation);
                let column = known.or_insert_with(|| column.clone()).clone();
                // A key such as `tenants.id` is the tenant there, and something else elsewhere.
                let is_key = case.facts.indexes.iter().any(|index| {
                    index.relation == policy.relation
                        && index.primary
                        && index.columns == [Some(column.clone())]
                });
                if !is_key {
                    columns.names.insert(column);
                }
            }
        }
        columns
    }

    /// The column of a relation that holds the tenant.
    pub fn of_relation<'a>(&'a self, relation: &'a Relation) -> Option<&'a str> {
        let known = self.by_table.get(&relation.oid).map(String::as_str);
        known.or_else(|| {
            let columns = relation.columns.iter().map(|column| &*column.name);
            columns
                .into_iter()
                .find(|column| self.names.contains(*column))
        })
    }
}

/// What policies call the tenant here.
fn vocabulary(case: &Case<'_>) -> Vocabulary {
    let target = case.target;
    let function = |name: String, sealed| TenantFunction { name, sealed };
    let mut functions: Vec<_> = ["", "_int", "_bigint", "_uuid"]
        .map(|kind| function(format!("pgtenant.tenant_id{kind}"), true))
        .into();
    for known in &case.facts.policy_functions {
        let source = known.source.to_ascii_lowercase();
        let variables = target.tenant_variables.iter();
        let by_variable = variables.into_iter().any(|v| source.contains(v.as_str()));
        let by_seal = source.contains("pgtenant.tenant_id");
        if by_variable || by_seal {
            let name = format!("{}.{}", known.schema, known.name);
            functions.push(function(name, !by_variable));
        }
    }
    Vocabulary {
        tenant_variables: target.tenant_variables.clone(),
        other_variables: target.other_variables.clone(),
        functions,
    }
}

pub fn judge(case: &Case<'_>, columns: &TenantColumns) -> Vec<Finding> {
    let vocabulary = vocabulary(case);
    let mut findings = Vec::new();
    let tables = case.facts.relations.iter();
    for table in tables.filter(|r| r.is_table() && !r.of_extension) {
        let column = columns.of_relation(table);
        coverage(case, table, column, &mut findings);
        if !case.is_superuser() {
            rights(case, table, column, &mut findings);
        }
        policies(case, table, column, &vocabulary, &mut findings);
        if let Some(column) = column
            && (table.rls || table.is_reachable())
        {
            keys(case, table, column, columns, &mut findings);
        }
    }
    for function in &case.facts.policy_functions {
        if function.owned && !case.is_superuser() {
            findings.push(
                finding(
                    Critical,
                    "policy-function-owned",
                    format!("function {}", function.signature),
                    "policies call it, and the application's role owns it",
                    "its owner can make it return any tenant",
                )
                .fix(
                    Step::Owners,
                    [
                        format!(
                            "ALTER FUNCTION {} OWNER TO CURRENT_USER",
                            function.signature
                        ),
                        format!(
                            "GRANT EXECUTE ON FUNCTION {} TO {}",
                            function.signature,
                            case.login()
                        ),
                    ],
                ),
            );
        }
    }
    findings
}

/// What a new policy compares the tenant's column with.
fn tenant_expression(case: &Case<'_>, table: &Relation, column: &str) -> String {
    let kind = table.columns.iter().find(|c| c.name == column);
    let kind = kind.map_or("text", |column| &*column.kind);
    let is_text = matches!(kind, "text" | "character varying" | "character" | "name");
    let variable = case.target.tenant_variables.first();
    let variable = variable.map(|name| format!("current_setting({}, true)", literal(name)));
    let value = match variable {
        Some(variable) if !case.is_sealed() && is_text => variable,
        Some(variable) if !case.is_sealed() => format!("nullif({variable}, '')::{kind}"),
        _ => match kind {
            "integer" => "pgtenant.tenant_id_int()".to_owned(),
            "bigint" => "pgtenant.tenant_id_bigint()".to_owned(),
            "uuid" => "pgtenant.tenant_id_uuid()".to_owned(),
            _ if is_text => "pgtenant.tenant_id()".to_owned(),
            kind => format!("pgtenant.tenant_id()::{kind}"),
        },
    };
    format!("{} = (SELECT {value})", quoted(column))
}

fn new_policy(case: &Case<'_>, table: &Relation, column: &str) -> String {
    let is = tenant_expression(case, table, column);
    let on = table.sql();
    format!("CREATE POLICY pgtenant_tenant ON {on} USING ({is}) WITH CHECK ({is})")
}

fn enable(table: &Relation) -> String {
    format!(
        "ALTER TABLE {} ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
        table.sql()
    )
}

/// Whether row level security is on.
#[expect(clippy::too_many_lines, reason = "one finding after the other")]
fn coverage(case: &Case<'_>, table: &Relation, column: Option<&str>, findings: &mut Vec<Finding>) {
    let reachable = table.is_reachable();
    let has_policy = case
        .facts
        .policies
        .iter()
        .any(|p| p.relation == table.oid && p.applies);
    if table.rls {
        if !table.forced && reachable {
            findings.push(
                finding(
                    if table.owned { Critical } else { Warning },
                    "rls-not-forced",
                    table.title(),
                    "row level security is not FORCEd",
                    "its owner, and views and functions that act with the owner's rights, see all rows",
                )
                .fix(
                    Step::Tables,
                    [format!("ALTER TABLE {} FORCE ROW LEVEL SECURITY", table.sql())],
                ),
            );
        }
        if !has_policy && reachable {
            findings.push(finding(
                Notice,
                "policy-missing",
                table.title(),
                "row level security is on, and no policy is for the application's role",
                "nothing leaks: the role sees no rows, which is hardly what it was given rights for",
            ));
        }
        return;
    }
    let cover = |column: &str| {
        let policy = (!has_policy).then(|| new_policy(case, table, column));
        policy.into_iter().chain([enable(table)])
    };
    let parent = table.parent.and_then(|parent| case.relation(parent));
    match column {
        Some(column) if reachable => {
            let (check, problem) = match parent {
                Some(parent) if parent.rls => (
                    "rls-disabled-on-child",
                    format!(
                        "it is a part of {}, and reached directly without its policies",
                        name(&parent.schema, &parent.name)
                    ),
                ),
                _ => (
                    "rls-disabled",
                    format!("it holds tenants' rows (column \"{column}\") without row level security"),
                ),
            };
            findings.push(
                finding(
                    Critical,
                    check,
                    table.title(),
                    problem,
                    "every tenant reads, or writes, the rows of all",
                )
                .fix(Step::Policies, cover(column)),
            );
        }
        Some(column) if parent.is_none() => {
            findings.push(
                finding(
                    Notice,
                    "rls-disabled-unreached",
                    table.title(),
                    format!(
                        "it holds tenants' rows (column \"{column}\") without row level security; the application's role has no right on it"
                    ),
                    "one GRANT, view or function is enough to show the rows of all",
                )
                .fix(Step::Policies, cover(column)),
            );
        }
        Some(_) => {}
        None if case.is_superuser() => {}
        None if table.is_writable() => findings.push(
            finding(
                Warning,
                "shared-writable",
                table.title(),
                "all tenants can write it, and it has no row level security",
                "what one tenant writes there, the others read, or miss",
            )
            .advice("If it is common data, revoke INSERT, UPDATE and DELETE; if not, it needs a column for the tenant and a policy."),
        ),
        None if table.select => findings.push(
            finding(
                Notice,
                "shared-readable",
                table.title(),
                "all tenants can read it, and it has no row level security",
                "right for data that is common to all, wrong for any other",
            )
            .advice("If it is common data, nothing; if not, it needs a column for the tenant and a policy."),
        ),
        None => {}
    }
}

/// Rights that policies do not limit.
fn rights(case: &Case<'_>, table: &Relation, column: Option<&str>, findings: &mut Vec<Finding>) {
    if table.owned {
        let owner = quoted(&format!("{}_owner", case.target.place.login));
        let mut sql = vec![
            format!(
                "DO $pgtenant$ BEGIN IF to_regrole({}) IS NULL THEN CREATE ROLE {owner} NOLOGIN; END IF; END $pgtenant$",
                literal(&owner)
            ),
            format!(
                "GRANT USAGE, CREATE ON SCHEMA {} TO {owner}",
                quoted(&table.schema)
            ),
            format!("ALTER TABLE {} OWNER TO {owner}", table.sql()),
        ];
        if table.owner == case.target.place.login {
            sql.push(format!(
                "GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO {}",
                table.sql(),
                case.login()
            ));
        }
        findings.push(
            finding(
                Critical,
                "table-owner",
                table.title(),
                format!(
                    "the application's role owns it, or can become its owner \"{}\"",
                    table.owner
                ),
                "the owner can turn row level security off and drop its policies",
            )
            .fix(Step::Owners, sql),
        );
        return;
    }
    if table.truncate && (table.rls || column.is_some()) {
        findings.push(
            finding(
                Critical,
                "table-truncate",
                table.title(),
                "the application's role may TRUNCATE it",
                "TRUNCATE removes the rows of all tenants: policies do not apply to it",
            )
            .fix(
                Step::Tables,
                [format!(
                    "REVOKE TRUNCATE ON {} FROM {}",
                    table.sql(),
                    case.grantees()
                )],
            ),
        );
    }
    if table.trigger {
        findings.push(
            finding(
                Warning,
                "table-trigger",
                table.title(),
                "the application's role may make triggers on it",
                "a trigger runs in the sessions of other tenants and of the operator, with their rights",
            )
            .fix(
                Step::Tables,
                [format!("REVOKE TRIGGER ON {} FROM {}", table.sql(), case.grantees())],
            ),
        );
    }
}

const COMMANDS: [(&str, &str); 4] = [
    ("r", "SELECT"),
    ("a", "INSERT"),
    ("w", "UPDATE"),
    ("d", "DELETE"),
];

/// The expression of a policy that holds for a command: which rows are reached (USING), which may
/// be left behind (WITH CHECK). As in PostgreSQL's rewrite/rowsecurity.c: USING stands in for a
/// WITH CHECK that is not there; INSERT has only WITH CHECK, SELECT and DELETE only USING.
fn expression<'p>(policy: &'p Policy, command: &str, clause: &str) -> Option<&'p str> {
    let using = policy.using.as_deref();
    match (command, clause) {
        ("r" | "d" | "w", "USING") => using,
        ("a" | "w", "WITH CHECK") => policy.check.as_deref().or(using),
        _ => None,
    }
}

#[expect(clippy::too_many_lines, reason = "one finding after the other")]
fn policies(
    case: &Case<'_>,
    table: &Relation,
    column: Option<&str>,
    vocabulary: &Vocabulary,
    findings: &mut Vec<Finding>,
) {
    let applying: Vec<_> = case
        .facts
        .policies
        .iter()
        .filter(|policy| policy.relation == table.oid && policy.applies)
        .collect();
    let allowed = |command: &str| match command {
        "r" => table.select,
        "a" => table.insert,
        "w" => table.update,
        _ => table.delete,
    };
    // The mistakes of each policy: which clause lets what through, for which commands.
    let mut open: BTreeMap<(&str, &str), (Judgement, Vec<&str>)> = BTreeMap::new();
    let mut tight_for = Vec::new();
    for (command, word) in COMMANDS.iter().filter(|(command, _)| allowed(command)) {
        let here = applying
            .iter()
            .copied()
            .filter(|p| p.command == "*" || p.command == *command);
        let (permissive, restrictive): (Vec<&Policy>, Vec<&Policy>) =
            here.partition(|p| p.permissive);
        for clause in ["USING", "WITH CHECK"] {
            let judged = |policy: &Policy| {
                expression(policy, command, clause).map(|text| policy::judge(text, vocabulary))
            };
            let holds = restrictive.iter().filter_map(|p| judged(p)).any(|judged| {
                matches!(judged.verdict, Verdict::Tenant | Verdict::Nothing)
                    && !judged.shares
                    && !(judged.by_variable && case.is_sealed())
            });
            if holds {
                continue;
            }
            for policy in &permissive {
                let Some(judged) = judged(policy) else {
                    continue;
                };
                if matches!(judged.verdict, Verdict::Tenant) && !judged.shares {
                    tight_for.push((*command, &*policy.name));
                }
                // The clause that is written there.
                let written = match policy.check {
                    Some(_) if clause == "WITH CHECK" => clause,
                    None if policy.using.is_some() => "USING",
                    _ => clause,
                };
                let entry = open.entry((&policy.name, written));
                let (_, commands) = entry.or_insert_with(|| (judged, Vec::new()));
                if !commands.contains(word) {
                    commands.push(word);
                }
            }
        }
    }
    let mut mended = BTreeSet::new();
    for ((policy_name, clause), (judged, commands)) in &open {
        let Some(policy) = applying.iter().find(|p| p.name == *policy_name) else {
            continue;
        };
        // Others let the tenants' own rows through: without this one, nothing that is theirs is
        // lost.
        let beside = COMMANDS
            .iter()
            .filter(|(command, _)| allowed(command))
            .filter(|(command, _)| policy.command == "*" || policy.command == *command)
            .all(|(command, _)| {
                tight_for
                    .iter()
                    .any(|(of, name)| of == command && name != policy_name)
            });
        let about = About {
            case,
            table,
            column,
            policy,
            clause,
            commands: commands.join(", "),
            beside,
        };
        let before = findings.len();
        about.tell(judged, findings);
        if findings
            .iter()
            .skip(before)
            .any(|finding| finding.fix.is_some())
        {
            mended.insert((*policy_name, if beside { "" } else { *clause }));
        }
    }
    let mut slow = false;
    let mut sql = Vec::new();
    for policy in &applying {
        let clauses = [("USING", &policy.using), ("WITH CHECK", &policy.check)];
        let mut wrapped = String::new();
        for (clause, text) in clauses {
            let Some(text) = text else { continue };
            let calls = policy::judge(text, vocabulary).per_row;
            if calls.is_empty() {
                continue;
            }
            slow = true;
            // What is dropped or written anew is not to be brought back.
            let name = &*policy.name;
            if !mended.contains(&(name, "")) && !mended.contains(&(name, clause)) {
                wrapped += &format!(" {clause} ({})", policy::wrapped(text, &calls));
            }
        }
        if !wrapped.is_empty() {
            let (name, on) = (quoted(&policy.name), table.sql());
            sql.push(format!("ALTER POLICY {name} ON {on}{wrapped}"));
        }
    }
    if slow {
        findings.push(
            finding(
                Notice,
                "policy-per-row",
                table.title(),
                "its policies ask for the tenant once a row",
                "nothing leaks: a scan is slower; in a sub-select the tenant is asked for once a statement",
            )
            .fix(Step::Policies, sql),
        );
    }
}

/// A policy that lets something through.
struct About<'a> {
    case: &'a Case<'a>,
    table: &'a Relation,
    column: Option<&'a str>,
    policy: &'a Policy,
    clause: &'a str,
    commands: String,
    beside: bool,
}

impl About<'_> {
    fn object(&self) -> String {
        let Relation {
            schema, name: of, ..
        } = self.table;
        format!("policy {} on {}", self.policy.name, name(schema, of))
    }

    fn tell(&self, judged: &Judgement, findings: &mut Vec<Finding>) {
        let (clause, commands) = (self.clause, &self.commands);
        let writes = clause == "WITH CHECK" || self.policy.command == "a";
        let why = match writes {
            true => "a tenant can write rows as another",
            false => "rows of other tenants are within reach",
        };
        let found = match &judged.verdict {
            Verdict::Everything => finding(
                Critical,
                "policy-true",
                self.object(),
                format!(
                    "{clause} lets every row through ({commands}); permissive policies are joined by OR"
                ),
                why,
            ),
            Verdict::EverythingWithoutTenant => finding(
                Critical,
                "policy-fail-open",
                self.object(),
                format!("{clause} lets every row through while no tenant is set ({commands})"),
                "a connection without a tenant, or RESET by a client, sees the rows of all",
            ),
            Verdict::ClientSetting(variable) => finding(
                Critical,
                "policy-client-setting",
                self.object(),
                format!(
                    "{clause} depends on the setting {variable}, which the proxy does not set ({commands})"
                ),
                "any client can set it, and so choose what it sees",
            ),
            Verdict::NotTheRow | Verdict::NotTheTenant => finding(
                Critical,
                "policy-without-tenant",
                self.object(),
                format!("{clause} does not compare the row with the tenant ({commands})"),
                why,
            ),
            Verdict::Unknown(what) => {
                findings.push(finding(
                    Notice,
                    "policy-unclear",
                    self.object(),
                    format!("{clause} could not be judged: {what} ({commands})"),
                    "it may be right; see for yourself that it holds without a tenant, and with another",
                ));
                return;
            }
            Verdict::Tenant | Verdict::Nothing => {
                self.tell_of_tight(judged, findings);
                return;
            }
        };
        findings.push(self.mend(found));
    }

    fn tell_of_tight(&self, judged: &Judgement, findings: &mut Vec<Finding>) {
        let (clause, commands) = (self.clause, &self.commands);
        if judged.shares {
            findings.push(
                finding(
                    Warning,
                    "policy-shares",
                    self.object(),
                    format!("{clause} lets rows through that are not the tenant's ({commands})"),
                    "right if those rows are meant for all tenants; whoever may write such rows writes for all",
                )
                .advice("Keep it for SELECT alone, and let tenants write only their own rows."),
            );
        }
        if judged.by_variable && self.case.is_sealed() {
            findings.push(self.mend(finding(
                Warning,
                "policy-unsealed",
                self.object(),
                format!("{clause} takes the tenant from a variable ({commands})"),
                "it holds as in posture guarded: a function that sets the variable is not seen",
            )));
        }
        if let Some(default) = &judged.default_tenant {
            findings.push(self.mend(finding(
                Warning,
                "policy-default-tenant",
                self.object(),
                format!("{clause} takes {default} for the tenant when none is set ({commands})"),
                "a connection without a tenant, or RESET by a client, is that tenant",
            )));
        }
    }

    fn mend(&self, found: Finding) -> Finding {
        let policy = quoted(&self.policy.name);
        let on = self.table.sql();
        if self.beside {
            return found.fix(Step::Policies, [format!("DROP POLICY {policy} ON {on}")]);
        }
        let Some(column) = self.column else {
            return found.advice("Which column holds the tenant is not known: compare it with the tenant, or drop the policy.");
        };
        let is = tenant_expression(self.case, self.table, column);
        let clause = match &*self.policy.command {
            "a" => "WITH CHECK",
            _ => self.clause,
        };
        found.fix(
            Step::Policies,
            [format!("ALTER POLICY {policy} ON {on} {clause} ({is})")],
        )
    }
}

/// Indexes, unique constraints and foreign keys.
fn keys(
    case: &Case<'_>,
    table: &Relation,
    column: &str,
    columns: &TenantColumns,
    findings: &mut Vec<Finding>,
) {
    let indexes: Vec<_> = case
        .facts
        .indexes
        .iter()
        .filter(|index| index.relation == table.oid)
        .collect();
    let leads =
        |columns: &[Option<String>]| columns.first().and_then(Option::as_deref) == Some(column);
    let serves = |index: &&&Index| index.valid && !index.partial && leads(&index.columns);
    if !indexes.iter().any(|index| serves(&index)) {
        let method = match &*table.kind {
            // Not CONCURRENTLY: partitioned tables cannot.
            "p" => "CREATE INDEX",
            _ => "CREATE INDEX CONCURRENTLY",
        };
        findings.push(
            finding(
                Notice,
                "tenant-index-missing",
                table.title(),
                format!("no index begins with \"{column}\""),
                "nothing leaks: each statement reads the rows of all tenants, so one tenant's data slows the others",
            )
            .fix(
                Step::Indexes,
                [format!("{method} ON {} ({})", table.sql(), quoted(column))],
            ),
        );
    }
    unique_keys(table, column, &indexes, findings);
    let keys = case.facts.foreign_keys.iter();
    for key in keys.filter(|key| key.relation == table.oid) {
        let target = case.relation(key.target);
        let target_column = target.and_then(|target| columns.of_relation(target));
        if target_column.is_some() && !key.columns.iter().any(|c| c == column) {
            findings.push(
                finding(
                    Notice,
                    "foreign-key-without-tenant",
                    table.title(),
                    format!("foreign key \"{}\" does not have \"{column}\"", key.name),
                    "it is checked past policies: a row may point to another tenant's, which tells that it exists and keeps it from being deleted",
                )
                .advice("Reference (tenant, key), with a unique constraint over both."),
            );
        }
    }
}

/// What holds over the rows of all tenants.
fn unique_keys(table: &Relation, column: &str, indexes: &[&Index], findings: &mut Vec<Finding>) {
    let has = |columns: &[Option<String>]| columns.iter().flatten().any(|c| c == column);
    for index in indexes
        .iter()
        .filter(|index| index.unique && !has(&index.columns))
    {
        if let Some(drawn) = &index.drawn {
            findings.push(
                finding(
                    Warning,
                    "key-from-shared-sequence",
                    table.title(),
                    format!(
                        "unique index \"{}\" does not have \"{column}\", and \"{drawn}\" is drawn from a sequence of all tenants",
                        index.name
                    ),
                    "a tenant that inserts the numbers that come next makes the INSERTs of others fail (23505), or wait for its transaction",
                )
                .advice("Begin the key with the tenant's column, take keys that nobody foresees (gen_random_uuid()), or grant INSERT and UPDATE by column, without this one."),
            );
            continue;
        }
        findings.push(
            finding(
                Notice,
                "unique-without-tenant",
                table.title(),
                format!("unique index \"{}\" does not have \"{column}\"", index.name),
                "it holds over all tenants: a duplicate tells that another tenant has the value",
            )
            .advice("Right for keys that nobody can foresee, such as gen_random_uuid(); else put the tenant's column in."),
        );
    }
}
