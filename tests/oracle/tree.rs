//! What PostgreSQL's parse tree says that a text does, and whether the reader says so, too.
//!
//! The tree is walked in its general form (as JSON), so that no place where a statement or a call
//! can stand is forgotten: what matters is only what a node is, not where.

use pg_query::protobuf::{AlterTableType, ObjectType, TransactionStmtKind, VariableSetKind};
use pgtenant::sql::builtin::is_builtin;
use pgtenant::sql::effects::{Effects, Setting, What, is_safe_encoding};
use serde_json::{Map, Value};

/// What a text does for certain.
#[derive(Debug, Default)]
pub struct Required {
    pub effects: Effects,
    /// Parameters whose names are told, and which may be set for the transaction only, or not.
    sql: String,
}

/// Kinds of statements, and what each does whatever else it says.
const KINDS: &[(&str, What)] = &[
    ("ListenStmt", What::LISTEN),
    ("UnlistenStmt", What::UNLISTENS),
    ("NotifyStmt", What::NOTIFIES),
    ("DoStmt", What::CODE.union(What::OPAQUE)),
    ("CallStmt", What::CALLS),
    ("PrepareStmt", What::PREPARE),
    ("ExecuteStmt", What::OPAQUE),
    ("DeallocateStmt", What::DEALLOCATES),
    ("DiscardStmt", What::CONTROL.union(What::DROPS)),
    ("ClosePortalStmt", What::CLOSES),
    ("LoadStmt", What::STUCK.union(What::DEFINES)),
    ("DropOwnedStmt", What::ROLE_WIDE),
    ("ReassignOwnedStmt", What::ROLE_WIDE),
    ("CommentStmt", What::SHOWS),
    ("SecLabelStmt", What::SHOWS),
    ("DropStmt", What::DROPS),
    ("InsertStmt", What::WRITES.union(What::ADVANCES_SEQUENCE)),
    ("MergeStmt", What::WRITES.union(What::ADVANCES_SEQUENCE)),
    ("UpdateStmt", What::WRITES),
    ("DeleteStmt", What::WRITES),
    ("TruncateStmt", What::WRITES),
    ("CreateStmt", What::CREATES),
    ("CreateForeignTableStmt", What::CREATES),
    ("CreateSeqStmt", What::CREATES),
    ("ViewStmt", What::CREATES),
    ("CreateTableAsStmt", What::CREATES),
    ("IntoClause", What::CREATES),
    ("CreateFunctionStmt", What::DEFINES.union(What::CREATES)),
    ("AlterFunctionStmt", What::DEFINES),
    ("DefineStmt", What::CREATES),
    ("CreateTrigStmt", What::DEFINES),
    ("CreateEventTrigStmt", What::DEFINES),
    ("RuleStmt", What::DEFINES),
    ("CreateRoleStmt", What::DEFINES),
    ("AlterRoleStmt", What::DEFINES),
    ("AlterRoleSetStmt", What::DEFINES),
    ("AlterDatabaseSetStmt", What::DEFINES),
    ("AlterSystemStmt", What::DEFINES),
    ("AlterDefaultPrivilegesStmt", What::DEFINES),
    ("CreatePolicyStmt", What::DEFINES),
    ("AlterPolicyStmt", What::DEFINES),
    ("CreateDomainStmt", What::DEFINES),
    ("AlterDomainStmt", What::DEFINES),
    ("CreateCastStmt", What::DEFINES),
    ("CreateTransformStmt", What::DEFINES),
    ("CreatePLangStmt", What::DEFINES),
    ("CreateExtensionStmt", What::DEFINES),
    ("AlterExtensionStmt", What::DEFINES),
    ("AlterExtensionContentsStmt", What::DEFINES),
    ("CreateConversionStmt", What::DEFINES),
    ("CreateOpClassStmt", What::DEFINES),
    ("CreateOpFamilyStmt", What::DEFINES),
    ("CompositeTypeStmt", What::DEFINES.union(What::CREATES)),
    ("CreateEnumStmt", What::DEFINES.union(What::CREATES)),
    ("CreateRangeStmt", What::DEFINES.union(What::CREATES)),
];

/// Nodes whose literals stay in a catalog.
const KEEPS_LITERALS: &[&str] = &[
    "ViewStmt",
    "Constraint",
    "IndexStmt",
    "PartitionElem",
    "PartitionBoundSpec",
    "StatsElem",
];

/// Functions of PostgreSQL that matter, and what they do.
const FUNCTIONS: &[(&str, What)] = &[
    ("pg_advisory_lock", What::ADVISORY.union(What::ANY_ADVISORY)),
    (
        "pg_advisory_lock_shared",
        What::ADVISORY.union(What::ANY_ADVISORY),
    ),
    (
        "pg_try_advisory_lock",
        What::ADVISORY.union(What::ANY_ADVISORY),
    ),
    (
        "pg_try_advisory_lock_shared",
        What::ADVISORY.union(What::ANY_ADVISORY),
    ),
    ("pg_advisory_xact_lock", What::ANY_ADVISORY),
    ("pg_advisory_xact_lock_shared", What::ANY_ADVISORY),
    ("pg_try_advisory_xact_lock", What::ANY_ADVISORY),
    ("pg_try_advisory_xact_lock_shared", What::ANY_ADVISORY),
    ("pg_advisory_unlock", What::UNLOCKS),
    ("pg_advisory_unlock_shared", What::UNLOCKS),
    ("pg_advisory_unlock_all", What::UNLOCKS),
    ("pg_notify", What::NOTIFIES),
    ("loread", What::LARGE_OBJECT),
    ("lowrite", What::LARGE_OBJECT),
    ("lo_create", What::LARGE_OBJECT),
    ("lo_from_bytea", What::LARGE_OBJECT),
    ("lo_unlink", What::LARGE_OBJECT),
    ("lo_open", What::LARGE_OBJECT),
    ("lo_get", What::LARGE_OBJECT),
    ("lo_put", What::LARGE_OBJECT),
    ("lo_import", What::LARGE_OBJECT),
    ("currval", What::READS_SEQUENCE),
    ("lastval", What::READS_SEQUENCE),
    ("nextval", What::ADVANCES_SEQUENCE),
    ("setval", What::ADVANCES_SEQUENCE),
    ("setseed", What::STUCK),
    ("pg_create_logical_replication_slot", What::STUCK),
    ("pg_create_physical_replication_slot", What::STUCK),
    ("pg_replication_origin_session_setup", What::STUCK),
    ("query_to_xml", What::OPAQUE.union(What::RUNS_STRINGS)),
    (
        "query_to_xml_and_xmlschema",
        What::OPAQUE.union(What::RUNS_STRINGS),
    ),
    ("query_to_xmlschema", What::OPAQUE.union(What::RUNS_STRINGS)),
    ("cursor_to_xml", What::OPAQUE.union(What::RUNS_STRINGS)),
    ("ts_stat", What::OPAQUE.union(What::RUNS_STRINGS)),
    ("ts_rewrite", What::OPAQUE.union(What::RUNS_STRINGS)),
];

/// Parameters that end with the transaction and cannot be reset.
const OF_TRANSACTION: [&str; 4] = [
    "transaction_isolation",
    "transaction_read_only",
    "transaction_deferrable",
    "TRANSACTION SNAPSHOT",
];

impl Required {
    /// What a parse tree says of `sql`.
    pub fn of(sql: &str, tree: &pg_query::protobuf::ParseResult) -> Self {
        let mut required = Self {
            sql: sql.to_owned(),
            ..Self::default()
        };
        required.walk(&serde_json::to_value(&tree.stmts).unwrap(), false);
        required
    }

    /// `keeps`: literals here stay in a catalog.
    fn walk(&mut self, value: &Value, keeps: bool) {
        match value {
            Value::Array(values) => values.iter().for_each(|value| self.walk(value, keeps)),
            Value::Object(fields) => self.node(fields, keeps),
            _ => {}
        }
    }

    fn node(&mut self, fields: &Map<String, Value>, keeps: bool) {
        if fields.contains_key("relpersistence") {
            self.relation(fields);
        }
        if fields.contains_key("agg_within_group") && fields.contains_key("funcname") {
            self.call(fields);
        }
        for (name, value) in fields {
            let mut keeps = keeps;
            if let Value::Object(inner) = value {
                self.kind(name, inner);
                keeps |= KEEPS_LITERALS.contains(&&**name)
                    || (name == "CreateTableAsStmt" && is_materialized_view(inner))
                    || (name == "AlterTableCmd" && sets_expression(inner));
                if name == "AConst" {
                    self.literal(inner, keeps);
                }
            }
            // What such a function sets is set when it runs, and the names of constraints are no
            // relations.
            let ends_here = matches!(
                &**name,
                "CreateFunctionStmt" | "AlterFunctionStmt" | "ConstraintsSetStmt"
            );
            // The bounds of a partition have no node's name there.
            keeps |= matches!(&**name, "partbound" | "bound");
            if !ends_here {
                self.walk(value, keeps);
            }
        }
    }

    fn kind(&mut self, name: &str, fields: &Map<String, Value>) {
        if let Some((_, what)) = KINDS.iter().find(|(kind, _)| *kind == name) {
            self.effects.what |= *what;
        }
        match name {
            "VariableSetStmt" => self.set(fields),
            "TransactionStmt" => {
                let kind = fields["kind"].as_i64().unwrap() as i32;
                let two_phase = [
                    TransactionStmtKind::TransStmtPrepare as i32,
                    TransactionStmtKind::TransStmtCommitPrepared as i32,
                    TransactionStmtKind::TransStmtRollbackPrepared as i32,
                ];
                if two_phase.contains(&kind) {
                    self.effects.what |= What::TWO_PHASE;
                }
            }
            // CURSOR_OPT_HOLD of parsenodes.h
            "DeclareCursorStmt" if fields["options"].as_i64().unwrap() & 0x20 != 0 => {
                self.effects.what |= What::HOLD;
            }
            // lockdefs.h: the weak ones are 1 to 3.
            "LockStmt" if fields["mode"].as_i64().unwrap() > 3 => {
                self.effects.what |= What::LOCKS_TABLE;
            }
            "VacuumStmt" => {
                let analyzes = fields["options"].to_string().contains("\"analyze\"");
                if !fields["is_vacuumcmd"].as_bool().unwrap() || analyzes {
                    self.effects.what |= What::SHOWS;
                }
            }
            "CopyStmt" if fields["is_from"].as_bool().unwrap() => {
                self.effects.what |= What::WRITES;
            }
            "UpdateStmt" if fields["relation"]["relname"] == "pg_settings" => {
                self.effects.what |= What::SETS_UNKNOWN;
            }
            "DefineStmt" => {
                // pg_query.proto: aggregates, operators and types have code; text search and
                // collations have none.
                let kind = fields["kind"].as_i64().unwrap() as i32;
                let with_code = [
                    ObjectType::ObjectAggregate as i32,
                    ObjectType::ObjectOperator as i32,
                    ObjectType::ObjectType as i32,
                ];
                if with_code.contains(&kind) {
                    self.effects.what |= What::DEFINES;
                }
            }
            _ => {}
        }
    }

    fn relation(&mut self, fields: &Map<String, Value>) {
        let schema = fields["schemaname"].as_str().unwrap_or_default();
        if fields["relpersistence"] == "t" || schema.starts_with("pg_temp") {
            self.effects.what |= What::TEMPORARY;
        }
    }

    /// A constant; those that the grammar itself makes of keywords do not count.
    fn literal(&mut self, fields: &Map<String, Value>, keeps: bool) {
        let at = fields["location"].as_i64().unwrap_or(-1);
        let written = usize::try_from(at).ok();
        let written = written.and_then(|at| self.sql.as_bytes().get(at));
        let is_literal = written.is_some_and(|byte| b"0123456789.'$".contains(byte));
        if keeps && is_literal {
            self.effects.what |= What::SHOWS;
        }
    }

    fn set(&mut self, fields: &Map<String, Value>) {
        self.effects.what |= What::CONTROL;
        let kind = VariableSetKind::try_from(fields["kind"].as_i64().unwrap() as i32).unwrap();
        let name = fields["name"].as_str().unwrap();
        let is_local = fields["is_local"].as_bool().unwrap();
        // No time zone is called that: the reader takes it for SET TIME ZONE LOCAL.
        let is_local_zone = name.eq_ignore_ascii_case("timezone")
            && fields["args"].to_string().contains("\"local\"");
        let resets = is_local_zone
            || matches!(
                kind,
                VariableSetKind::VarSetDefault | VariableSetKind::VarReset
            );
        match (kind, name) {
            (VariableSetKind::VarResetAll, _) => self.effects.what |= What::RESETS_ALL,
            (_, "SESSION CHARACTERISTICS") => {
                // Those that the statement names; the reader says all three.
                self.add("default_transaction_isolation", is_local, false);
            }
            (VariableSetKind::VarSetMulti, _) => {}
            (_, "session_authorization") => {
                self.add(name, is_local, resets);
                self.add("role", is_local, resets);
            }
            _ => self.add(name, is_local, resets),
        }
        if name.eq_ignore_ascii_case("client_encoding")
            && kind == VariableSetKind::VarSetValue
            && !fields["args"].as_array().unwrap().iter().all(is_safe_value)
        {
            self.effects.what |= What::ENCODING;
        }
    }

    fn add(&mut self, name: &str, is_local: bool, reset: bool) {
        let name = name.to_ascii_lowercase();
        if OF_TRANSACTION
            .iter()
            .any(|own| name.eq_ignore_ascii_case(own))
        {
            return;
        }
        if name == "seed" {
            self.effects.what |= What::STUCK;
            return;
        }
        if is_local {
            self.effects.local.push(name.into());
            return;
        }
        self.effects.settings.retain(|known| *known.name != *name);
        self.effects.settings.push(Setting {
            name: name.into(),
            reset,
        });
    }

    fn call(&mut self, fields: &Map<String, Value>) {
        let names: Vec<_> = fields["funcname"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|name| name["node"]["String"]["sval"].as_str())
            .collect();
        let (schema, name) = match names[..] {
            [name] => (None, name),
            [.., schema, name] => (Some(schema), name),
            [] => return,
        };
        let is_own = schema.is_none_or(|schema| schema == "pg_catalog");
        if !is_own || !is_builtin(name) {
            // COERCE_SQL_SYNTAX: the grammar's own name for it.
            self.effects.functions.push(name.into());
            return;
        }
        if name == "set_config" {
            self.set_config(fields["args"].as_array().unwrap());
        }
        if let Some((_, what)) = FUNCTIONS.iter().find(|(known, _)| *known == name) {
            self.effects.what |= *what;
        }
    }

    fn set_config(&mut self, args: &[Value]) {
        self.effects.what |= What::CONTROL;
        // The name is the first argument, unless that has a name of its own.
        let is_local = args.get(2).is_some_and(is_true);
        match args.first().and_then(string) {
            Some(name) => {
                if name.eq_ignore_ascii_case("client_encoding") {
                    self.effects.what |= What::ENCODING;
                }
                if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || is_bits(&args[0]) {
                    return;
                }
                self.add(name, is_local, false);
            }
            None if is_local => self.effects.what |= What::SETS_UNKNOWN_LOCALLY,
            None => self.effects.what |= What::SETS_UNKNOWN,
        }
    }
}

fn is_materialized_view(fields: &Map<String, Value>) -> bool {
    fields["objtype"].as_i64() == Some(ObjectType::ObjectMatview as i64)
}

/// ALTER COLUMN … SET DEFAULT, or SET EXPRESSION.
fn sets_expression(fields: &Map<String, Value>) -> bool {
    let kinds = [
        AlterTableType::AtColumnDefault as i64,
        AlterTableType::AtSetExpression as i64,
    ];
    fields["subtype"]
        .as_i64()
        .is_some_and(|kind| kinds.contains(&kind))
}

/// The string that an expression is, with or without a cast.
fn string(value: &Value) -> Option<&str> {
    let node = &value["node"];
    let constant = match node.get("TypeCast") {
        Some(cast) => return string(&cast["arg"]),
        None => &node.get("AConst")?["val"],
    };
    // No bits can be a name.
    let value = constant.get("Sval").or(constant.get("Bsval"))?;
    value["sval"].as_str().or(value["bsval"].as_str())
}

fn is_true(value: &Value) -> bool {
    if let Some(cast) = value["node"].get("TypeCast") {
        return is_true(&cast["arg"]);
    }
    let constant = &value["node"]["AConst"]["val"];
    constant["Boolval"]["boolval"] == true
        || matches!(
            constant["Sval"]["sval"].as_str(),
            Some("t" | "true" | "1" | "on" | "yes")
        )
}

fn is_bits(value: &Value) -> bool {
    if let Some(cast) = value["node"].get("TypeCast") {
        return is_bits(&cast["arg"]);
    }
    value["node"]["AConst"]["val"].get("Bsval").is_some()
}

fn is_safe_value(value: &Value) -> bool {
    string(value).is_some_and(is_safe_encoding)
}

/// Whether settings that are reset are told as such.
fn told_setting(setting: &Setting, told: &Effects) -> bool {
    // The tree does not say whether `local` is in quotes, which makes it a zone's name.
    let is_zone = &*setting.name == "timezone";
    // What a function does when it is defined is nothing.
    let is_defined = told.what.contains(What::DEFINES);
    let is_told = |known: &Setting| {
        // What was reset is asked of the server, whatever it was set to besides.
        let is_covered = known.reset || !setting.reset || is_zone || is_defined;
        known.name == setting.name && is_covered
    };
    told.what.contains(What::SETS_UNKNOWN) || told.settings.iter().any(is_told)
}

/// What the reader does not say of a text although the tree does.
pub fn missing(required: &Required, told: &Effects) -> Option<String> {
    // Nothing is certain about such a text: the guard refuses it, and anything may happen.
    if told.what.contains(What::HIDDEN.union(What::OPAQUE)) {
        return None;
    }
    let lacks = required.effects.what - told.what;
    let mut covered = What::empty();
    if told.what.contains(What::SETS_UNKNOWN) {
        covered |= What::SETS_UNKNOWN_LOCALLY;
    }
    if told
        .what
        .intersects(What::SETS_UNKNOWN | What::SETS_UNKNOWN_LOCALLY)
    {
        covered |= What::ENCODING;
    }
    // Of what is never allowed nothing else matters.
    if told.what.contains(What::DEFINES) {
        covered |= What::FOR_GUARD;
    }
    let lacks = lacks - covered;
    if !lacks.is_empty() {
        return Some(format!("{lacks:?} is not told"));
    }
    let settings = &required.effects.settings;
    if let Some(setting) = settings.iter().find(|setting| !told_setting(setting, told)) {
        return Some(format!("{setting:?} is not told"));
    }
    let unknown = What::SETS_UNKNOWN | What::SETS_UNKNOWN_LOCALLY;
    let mut local = required.effects.local.iter();
    let local = local.find(|name| {
        !told.what.intersects(unknown)
            && !told.local.contains(name)
            && !told.settings.iter().any(|setting| setting.name == **name)
    });
    if let Some(name) = local {
        return Some(format!("that {name} is set locally is not told"));
    }
    let mut functions = required.effects.functions.iter();
    let function =
        functions.find(|name| !told.what.contains(What::OPAQUE) && !told.functions.contains(name));
    function.map(|name| format!("a call of {name} is not told"))
}
