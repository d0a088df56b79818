//! What reads tables with other rights than the application's: views, materialized views, foreign
//! tables, functions; and sequences, which have no policies.

use super::case::{Case, Mend, finding, name, quoted};
use super::facts::{Function, Relation};
use super::tables::TenantColumns;
use crate::findings::Severity::{Critical, Notice, Warning};
use crate::findings::{Finding, Step};

pub fn judge(case: &Case<'_>, columns: &TenantColumns) -> Vec<Finding> {
    let mut findings = Vec::new();
    if case.is_superuser() {
        return findings;
    }
    for relation in case.facts.relations.iter().filter(|r| !r.of_extension) {
        match &*relation.kind {
            "v" if relation.is_reachable() => view(case, relation, columns, &mut findings),
            "m" if relation.select => materialized_view(case, relation, columns, &mut findings),
            "f" if relation.is_reachable() => findings.push(
                finding(
                    match columns.of_relation(relation) {
                        Some(_) => Critical,
                        None => Warning,
                    },
                    "foreign-table",
                    relation.title(),
                    "the application's role can use it",
                    "a foreign table has no row level security here, and the other server does not know the tenant",
                )
                .fix(
                    Step::Tables,
                    [format!("REVOKE ALL ON {} FROM {}", relation.sql(), case.grantees())],
                ),
            ),
            _ => {}
        }
    }
    for function in &case.facts.functions {
        definer(case, function, &mut findings);
        leakproof(function, &mut findings);
        untrusted(case, function, &mut findings);
    }
    for sequence in &case.facts.sequences {
        let (severity, problem, why) = match sequence.update {
            true => (
                Warning,
                "the application's role may set it",
                "one tenant makes the inserts of others fail, and a sequence tells how much all tenants insert",
            ),
            false => (
                Notice,
                "the application's role may read its state",
                "a sequence tells how much all tenants insert",
            ),
        };
        findings.push(
            finding(
                severity,
                "sequence",
                format!("sequence {}", name(&sequence.schema, &sequence.name)),
                problem,
                why,
            )
            .fix(
                Step::Grants,
                [format!(
                    "REVOKE SELECT, UPDATE ON SEQUENCE {}.{} FROM {}",
                    quoted(&sequence.schema),
                    quoted(&sequence.name),
                    case.grantees()
                )],
            ),
        );
    }
    findings
}

/// Tables with tenants' rows that a view reads.
fn tenants_tables<'a>(
    case: &'a Case<'_>,
    view: &Relation,
    columns: &'a TenantColumns,
) -> impl Iterator<Item = &'a Relation> {
    let reads = case.facts.views.iter().find(|known| known.view == view.oid);
    reads
        .into_iter()
        .flat_map(|known| &known.relations)
        .filter_map(|oid| case.relation(*oid))
        .filter(|relation| relation.is_table())
        .filter(|table| table.rls || columns.of_relation(table).is_some())
}

fn view(case: &Case<'_>, view: &Relation, columns: &TenantColumns, findings: &mut Vec<Finding>) {
    let owner = format!("ALTER VIEW {} OWNER TO CURRENT_USER", view.sql());
    let invoker = format!("ALTER VIEW {} SET (security_invoker = true)", view.sql());
    let grant = format!(
        "GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO {}",
        view.sql(),
        case.login()
    );
    if view.owned {
        findings.push(
            finding(
                Warning,
                "view-owner",
                view.title(),
                format!(
                    "the application's role owns it, or can become its owner \"{}\"",
                    view.owner
                ),
                "one tenant can change what the view shows to the others",
            )
            .fix(
                Step::Owners,
                match case.facts.database.version_num < 150_000 {
                    true => vec![owner, grant],
                    false => vec![owner, grant, invoker.clone()],
                },
            ),
        );
    }
    if view.invoker {
        return;
    }
    // With the rights of its owner, and under the policies that hold for the owner.
    let exposed: Vec<_> = tenants_tables(case, view, columns)
        .filter(|table| {
            view.owner_bypasses || !table.rls || (table.owner == view.owner && !table.forced)
        })
        .map(|table| name(&table.schema, &table.name))
        .collect();
    if exposed.is_empty() {
        return;
    }
    let found = finding(
        Critical,
        "view-with-owners-rights",
        view.title(),
        format!(
            "it reads {} with the rights of its owner \"{}\", to whom row level security does not apply",
            super::case::some(&exposed),
            view.owner
        ),
        "the view shows the rows of all tenants",
    );
    findings.push(match case.facts.database.version_num < 150_000 {
        true => found.advice(
            "Before PostgreSQL 15 views have no security_invoker: give it an owner that has no more rights than the application and is under the policies.",
        ),
        // Without a right on the tables the view fails, which is the safe side.
        false => found.fix(Step::Views, [invoker]),
    });
}

fn materialized_view(
    case: &Case<'_>,
    view: &Relation,
    columns: &TenantColumns,
    findings: &mut Vec<Finding>,
) {
    let of_tenants =
        tenants_tables(case, view, columns).next().is_some() || columns.of_relation(view).is_some();
    findings.push(
        finding(
            if of_tenants { Critical } else { Notice },
            "materialized-view",
            view.title(),
            "the application's role can read it",
            "a materialized view has no row level security: it shows what whoever refreshed it saw",
        )
        .fix(
            Step::Views,
            [format!(
                "REVOKE ALL ON {} FROM {}",
                view.sql(),
                case.grantees()
            )],
        ),
    );
}

/// Whether names in the function mean what its owner meant: `search_path` is pinned, and temporary
/// objects of the caller come last or not at all.
fn is_pinned(search_path: &str) -> bool {
    let last = search_path.rsplit(',').next().unwrap_or_default();
    let last = last.trim().trim_matches('"');
    last == "pg_temp" || last.is_empty()
}

fn definer(case: &Case<'_>, function: &Function, findings: &mut Vec<Finding>) {
    if !function.definer || !function.executable || function.owned {
        return;
    }
    if function.schema == "pgtenant" {
        // What pgtenant installs, where every name is qualified: no search_path decides over it.
        return;
    }
    let object = format!("function {}", function.signature);
    let routine = match &*function.kind {
        "p" => "PROCEDURE",
        _ => "FUNCTION",
    };
    let pinned = function.search_path.as_deref().is_some_and(is_pinned);
    if !pinned {
        let path = match function.search_path.as_deref() {
            None => format!("pg_catalog, {}, pg_temp", quoted(&function.schema)),
            Some(path) => format!("{path}, pg_temp"),
        };
        findings.push(
            finding(
                if function.owner_bypasses { Critical } else { Warning },
                "definer-search-path",
                object.clone(),
                format!(
                    "it acts with the rights of \"{}\", and its search_path is not pinned with pg_temp at the end",
                    function.owner
                ),
                "whoever calls it can make it use a table or function of their own",
            )
            .fix(
                Step::Functions,
                [format!("ALTER {routine} {} SET search_path = {path}", function.signature)],
            ),
        );
    }
    let (severity, why) = match function.owner_bypasses {
        true => (
            Warning,
            "row level security does not apply to its owner: what it returns or changes is of all tenants, unless its body sees to it",
        ),
        false => (
            Notice,
            "it does what its owner may; policies that are FORCEd still apply",
        ),
    };
    let found = finding(
        severity,
        "definer-function",
        object,
        format!(
            "the application's role can execute it, with the rights of \"{}\"",
            function.owner
        ),
        why,
    );
    findings.push(match function.owner_bypasses {
        true => found.fix(
            Step::Grants,
            [format!(
                "REVOKE EXECUTE ON {routine} {} FROM {}",
                function.signature,
                case.grantees()
            )],
        ),
        false => {
            found.advice("Read its body: it must not take the tenant, or SQL, from its arguments.")
        }
    });
}

/// Only superusers can write such functions; whoever may execute them has what they do.
fn untrusted(case: &Case<'_>, function: &Function, findings: &mut Vec<Finding>) {
    let Some(language) = &function.untrusted_language else {
        return;
    };
    if !function.executable {
        return;
    }
    findings.push(
        finding(
            Warning,
            "untrusted-language",
            format!("function {}", function.signature),
            format!("the application's role can execute it, and it is written in the untrusted language {language}"),
            "it may do what the server's account may: files of all tenants, programs, the network",
        )
        .fix(
            Step::Grants,
            [format!(
                "REVOKE EXECUTE ON ROUTINE {} FROM {}",
                function.signature,
                case.grantees()
            )],
        ),
    );
}

fn leakproof(function: &Function, findings: &mut Vec<Finding>) {
    if !function.leakproof {
        return;
    }
    findings.push(
        finding(
            Warning,
            "leakproof",
            format!("function {}", function.signature),
            match function.owned {
                true => "it is LEAKPROOF, and the application's role owns it",
                false => "it is LEAKPROOF",
            },
            "PostgreSQL calls it, and operators that are made of it, on rows that no policy has let through yet",
        )
        .fix(
            Step::Functions,
            [format!("ALTER FUNCTION {} NOT LEAKPROOF", function.signature)],
        ),
    );
}
