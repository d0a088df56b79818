-- pgtenant's catalog, version 1: tenants as data, each change of which is checked, numbered and told.
--
-- Run it in a database of your choice, as the role that is to own the schema: not a tenant's, and none that a tenant's is
-- a member of. It can be run again at any time: what is there stays, and is brought up to date.
--
-- It makes two roles that nobody can log in as, for you to grant:
--     GRANT pgtenant_catalog_reader TO …   the login of catalog.login: reads everything, changes nothing
--     GRANT pgtenant_catalog_writer TO …   the login of catalog.writer: and changes, by the functions alone

BEGIN;
-- Ahead of all else: this runs as an administrator, and an operator or function that somebody else made in another
-- schema would be taken for the server's where its types fit better.
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_min_messages = warning;
SELECT pg_catalog.pg_advisory_xact_lock(7309741246873633);

CREATE SCHEMA IF NOT EXISTS pgtenant_catalog;

-- A schema that somebody else made, or can make things in, may hold anything.
DO $check$
BEGIN
    -- Each operator here has the exact types of the server's own, which nothing else in its schema can have.
    PERFORM FROM pg_catalog.pg_namespace n, LATERAL pg_catalog.aclexplode(n.nspacl) a
        WHERE n.nspname OPERATOR(pg_catalog.=) 'pg_catalog'::pg_catalog.name
            AND a.privilege_type OPERATOR(pg_catalog.=) 'CREATE'::pg_catalog.text
            AND a.grantee OPERATOR(pg_catalog.<>) n.nspowner;
    IF FOUND THEN
        RAISE 'others than its owner can create objects in schema "pg_catalog"' USING ERRCODE = 'insufficient_privilege';
    END IF;
    PERFORM FROM pg_catalog.pg_namespace n
        WHERE n.nspname = 'pgtenant_catalog'
            AND n.nspowner OPERATOR(pg_catalog.=) current_user::pg_catalog.regrole::pg_catalog.oid;
    IF NOT FOUND THEN
        RAISE 'schema "pgtenant_catalog" exists and belongs to another role' USING ERRCODE = 'insufficient_privilege';
    END IF;
    PERFORM FROM pg_catalog.pg_namespace n, LATERAL pg_catalog.aclexplode(n.nspacl) a
        WHERE n.nspname = 'pgtenant_catalog' AND a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner;
    IF FOUND THEN
        RAISE 'others than its owner can create objects in schema "pgtenant_catalog"'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$check$;

-- Roles are of the whole server: the script may run in another of its databases at the same time.
DO $roles$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['pgtenant_catalog_reader', 'pgtenant_catalog_writer'] LOOP
        PERFORM FROM pg_catalog.pg_roles WHERE rolname = name;
        IF NOT FOUND THEN
            BEGIN
                EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', name);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
            END;
        END IF;
    END LOOP;
END
$roles$;

-- The catalog as a whole: one row. Whoever changes anything takes its lock first and holds it to the end of the
-- transaction. So revisions are given in the order of commits, without a gap, no two changes wait for each other in a
-- circle, and who sees a revision sees all that were before it.
CREATE TABLE IF NOT EXISTS pgtenant_catalog.about (
    is_one boolean PRIMARY KEY DEFAULT true CHECK (is_one),
    version int NOT NULL,
    -- The last that was given.
    revision bigint NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT now(),
    -- Changes up to this one are not in `changes` any more.
    forgotten bigint NOT NULL DEFAULT 0
);

DO $version$
DECLARE
    known int := (SELECT version FROM pgtenant_catalog.about);
BEGIN
    IF known > 1 THEN
        RAISE 'the catalog has version %, which is newer than this script', known
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END
$version$;

CREATE TABLE IF NOT EXISTS pgtenant_catalog.tenants (
    tenant text COLLATE "C" PRIMARY KEY
        CHECK (tenant COLLATE "C" ~ '^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$'),
    state text NOT NULL CHECK (state = ANY (ARRAY[
        'provisioning', 'active', 'read_only', 'paused', 'suspended', 'draining', 'deleted'])),
    -- Why, for whoever is refused.
    reason text,
    -- When the state ends by itself, and the tenant is active.
    until timestamptz,
    -- From then on it is suspended.
    expires timestamptz,
    -- For how long its data stays once it is deleted. NULL: seven days.
    retention interval,
    deleted_at timestamptz,
    -- Rises whenever it lives elsewhere than before.
    generation bigint NOT NULL DEFAULT 1,
    -- Of what its place was made.
    version text,
    -- The settings of `tenants.*` of the config file.
    spec jsonb NOT NULL,
    -- Of its last change.
    revision bigint NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    changed_at timestamptz NOT NULL DEFAULT now(),
    changed_by text NOT NULL
);

-- Those of the config file, and none of these, are used without a catalog. No spec: it was removed.
CREATE TABLE IF NOT EXISTS pgtenant_catalog.servers (
    server text COLLATE "C" PRIMARY KEY CHECK (server COLLATE "C" ~ '^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$'),
    spec jsonb,
    revision bigint NOT NULL UNIQUE
);
CREATE TABLE IF NOT EXISTS pgtenant_catalog.placements (
    placement text COLLATE "C" PRIMARY KEY CHECK (placement COLLATE "C" ~ '^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$'),
    spec jsonb,
    revision bigint NOT NULL UNIQUE
);

-- Every change, for whoever wants to hear of tenants: read it by changes_since().
CREATE TABLE IF NOT EXISTS pgtenant_catalog.changes (
    revision bigint PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    by text NOT NULL,
    kind text NOT NULL CHECK (kind = ANY (ARRAY['tenant', 'server', 'placement'])),
    name text NOT NULL,
    what text NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}'
);

-- What takes several steps outside of the catalog: making and dropping a tenant's place. A step is recorded before it is
-- taken, and again when it is done, so that whoever comes after a crash knows where to go on.
CREATE TABLE IF NOT EXISTS pgtenant_catalog.operations (
    operation bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant text COLLATE "C" NOT NULL,
    kind text NOT NULL CHECK (kind = ANY (ARRAY['create', 'purge'])),
    begun_at timestamptz NOT NULL DEFAULT now(),
    -- No time: it is under way, or was interrupted.
    finished_at timestamptz,
    by text NOT NULL
);
-- One at a time.
CREATE UNIQUE INDEX IF NOT EXISTS operations_open ON pgtenant_catalog.operations (tenant) WHERE finished_at IS NULL;
CREATE TABLE IF NOT EXISTS pgtenant_catalog.steps (
    operation bigint REFERENCES pgtenant_catalog.operations ON DELETE CASCADE,
    number int,
    step text NOT NULL,
    begun_at timestamptz NOT NULL DEFAULT now(),
    done_at timestamptz,
    -- What the step did, or what kept it from being done.
    detail jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (operation, number),
    UNIQUE (operation, step)
);

INSERT INTO pgtenant_catalog.about (version, revision) VALUES (1, 0)
    ON CONFLICT (is_one) DO UPDATE SET version = excluded.version WHERE pgtenant_catalog.about.version <> excluded.version;

-- ---- what all functions use; nobody may call these but the owner ----

-- Begins a change: from here to the end of the transaction nobody else changes anything.
CREATE OR REPLACE FUNCTION pgtenant_catalog.lock_catalog() RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    PERFORM FROM pgtenant_catalog.about FOR NO KEY UPDATE;
END
$body$;

-- Who changes something: the login, and whom it says to act for.
CREATE OR REPLACE FUNCTION pgtenant_catalog.who(actor text) RETURNS text
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    RETURN session_user || coalesce('/' || actor, '');
END
$body$;

-- Gives the next revision and tells of it. One notification a transaction, since equal ones are one.
CREATE OR REPLACE FUNCTION pgtenant_catalog.next_revision(kind text, name text, what text, detail jsonb, actor text)
RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    given bigint;
BEGIN
    UPDATE pgtenant_catalog.about AS a SET revision = a.revision + 1, changed_at = now() RETURNING a.revision INTO given;
    INSERT INTO pgtenant_catalog.changes (revision, by, kind, name, what, detail)
        VALUES (given, pgtenant_catalog.who(actor), kind, name, what, coalesce(detail, '{}'));
    PERFORM pg_notify('pgtenant_catalog', '');
    RETURN given;
END
$body$;

CREATE OR REPLACE FUNCTION pgtenant_catalog.refuse(what text, hint text DEFAULT '') RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    RAISE '%', what USING ERRCODE = 'invalid_parameter_value', HINT = hint;
END
$body$;

-- The row has another revision than it is expected to have; 0 is that of what is not there.
CREATE OR REPLACE FUNCTION pgtenant_catalog.check_revision(name text, known bigint, expected bigint) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF expected <> coalesce(known, 0) THEN
        RAISE '"%" has revision %, not %', name, coalesce(known, 0), expected USING ERRCODE = 'serialization_failure';
    END IF;
END
$body$;

CREATE OR REPLACE FUNCTION pgtenant_catalog.check_name(name text) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF name IS NULL OR name COLLATE "C" !~ '^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$' THEN
        PERFORM pgtenant_catalog.refuse('the name must begin with a letter or a digit, and hold at most 63 letters, digits, '
            '"_" and "-"');
    END IF;
END
$body$;

-- Whether it is a mapping of texts, with something in it.
CREATE OR REPLACE FUNCTION pgtenant_catalog.are_texts(mapping jsonb) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF jsonb_typeof(mapping) IS DISTINCT FROM 'object' OR mapping = '{}' THEN
        RETURN false;
    END IF;
    RETURN NOT EXISTS (SELECT FROM jsonb_each(mapping) e WHERE jsonb_typeof(e.value) <> 'string' OR e.key = '');
END
$body$;

-- What a tenant's settings must be so that a proxy may read them. That their values are good together is the proxy's to
-- say, which knows servers and placements.
CREATE OR REPLACE FUNCTION pgtenant_catalog.check_spec(spec jsonb) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    bad text;
BEGIN
    IF jsonb_typeof(spec) IS DISTINCT FROM 'object' THEN
        PERFORM pgtenant_catalog.refuse('the spec must be a JSON object');
    END IF;
    IF octet_length(spec::text) > 65536 THEN
        PERFORM pgtenant_catalog.refuse('the spec must be at most 65536 bytes long');
    END IF;
    SELECT key INTO bad FROM jsonb_object_keys(spec) key
        WHERE key = ANY (ARRAY['state', 'reason', 'until', 'expires']) LIMIT 1;
    IF FOUND THEN
        PERFORM pgtenant_catalog.refuse(format('spec.%s is not a setting here, but a column of the tenant', bad));
    END IF;
    SELECT key INTO bad FROM jsonb_object_keys(spec) key
        WHERE key <> ALL (ARRAY['placement', 'placements', 'server', 'attributes', 'users', 'limits', 'pool', 'weight',
            'timeouts', 'log', 'pooling', 'settings']) LIMIT 1;
    IF FOUND THEN
        PERFORM pgtenant_catalog.refuse(format('spec.%s is not a setting of tenants', bad));
    END IF;
    IF (spec ? 'placement') = (spec ? 'placements') THEN
        PERFORM pgtenant_catalog.refuse('the spec needs exactly one of placement and placements');
    END IF;
    IF spec ? 'placement' AND coalesce(jsonb_typeof(spec->'placement') <> 'string' OR spec->>'placement' = '', true) THEN
        PERFORM pgtenant_catalog.refuse('spec.placement must be the name of a placement');
    END IF;
    IF spec ? 'placements' AND NOT pgtenant_catalog.are_texts(spec->'placements') THEN
        PERFORM pgtenant_catalog.refuse('spec.placements must be a mapping of services to placements');
    END IF;
    IF spec ? 'server' AND coalesce(jsonb_typeof(spec->'server') <> 'string' OR spec->>'server' = '', true) THEN
        PERFORM pgtenant_catalog.refuse('spec.server must be the name of a server');
    END IF;
    IF spec ? 'attributes' AND spec->'attributes' <> '{}' AND NOT pgtenant_catalog.are_texts(spec->'attributes') THEN
        PERFORM pgtenant_catalog.refuse('spec.attributes must be a mapping of texts');
    END IF;
    IF spec ? 'settings' AND spec->'settings' <> '{}' AND NOT pgtenant_catalog.are_texts(spec->'settings') THEN
        PERFORM pgtenant_catalog.refuse('spec.settings must be a mapping of texts');
    END IF;
    SELECT s.key INTO bad FROM jsonb_each(spec) s
        WHERE s.key = ANY (ARRAY['limits', 'pool', 'timeouts', 'log']) AND jsonb_typeof(s.value) <> 'object' LIMIT 1;
    IF FOUND THEN
        PERFORM pgtenant_catalog.refuse(format('spec.%s must be a mapping', bad));
    END IF;
    IF jsonb_typeof(spec->'users') IS DISTINCT FROM 'object' OR spec->'users' = '{}' THEN
        PERFORM pgtenant_catalog.refuse('spec.users must be a mapping with at least one user');
    END IF;
    -- Nothing that anybody could log in with: not as a setting, and not in the place of a verifier.
    SELECT u.key INTO bad FROM jsonb_each(spec->'users') u
        WHERE u.key = '' OR jsonb_typeof(u.value) <> 'object' OR (u.value - 'scram') <> '{}'
            OR jsonb_typeof(u.value->'scram') IS DISTINCT FROM 'string'
            OR (u.value->>'scram') COLLATE "C" !~
                '^SCRAM-SHA-256[$][1-9][0-9]{0,8}:[A-Za-z0-9+/]+=*[$][A-Za-z0-9+/]{43}=:[A-Za-z0-9+/]{43}=$' LIMIT 1;
    IF FOUND THEN
        PERFORM pgtenant_catalog.refuse(format('spec.users.%s must be {"scram": …} with a SCRAM-SHA-256 verifier', bad),
            'Passwords do not stand in a catalog: `pgtenant hash-password` makes a verifier of one.');
    END IF;
END
$body$;

-- One setting of the secret kind: at this path there is none, or a reference to where the proxy finds it.
CREATE OR REPLACE FUNCTION pgtenant_catalog.check_secret(spec jsonb, path text[]) RETURNS void
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF spec #> path IS NOT NULL AND (jsonb_typeof(spec #> path) <> 'string'
            OR (spec #>> path) COLLATE "C" !~ '^[$][{][A-Za-z_][A-Za-z0-9_]*[}]$') THEN
        PERFORM pgtenant_catalog.refuse(format('spec.%s must be "${NAME}"', array_to_string(path, '.')),
            'Secrets do not stand in a catalog, but in a file or the environment of the proxy.');
    END IF;
END
$body$;

-- A JSON merge patch (RFC 7386): null takes a setting away.
CREATE OR REPLACE FUNCTION pgtenant_catalog.merged(target jsonb, patch jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    result jsonb := target;
    change record;
BEGIN
    IF jsonb_typeof(patch) IS DISTINCT FROM 'object' THEN
        RETURN patch;
    END IF;
    IF jsonb_typeof(result) IS DISTINCT FROM 'object' THEN
        result := '{}';
    END IF;
    FOR change IN SELECT key, value FROM jsonb_each(patch) LOOP
        IF change.value = 'null' THEN
            result := result - change.key;
        ELSE
            result := result
                || jsonb_build_object(change.key, pgtenant_catalog.merged(result->change.key, change.value));
        END IF;
    END LOOP;
    RETURN result;
END
$body$;

-- What says where a tenant lives.
CREATE OR REPLACE FUNCTION pgtenant_catalog.place_of(spec jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    RETURN jsonb_build_object('placement', spec->'placement', 'placements', spec->'placements',
        'server', spec->'server', 'attributes', coalesce(spec->'attributes', '{}'));
END
$body$;

-- Whether a tenant may go from one state to another. A state may always be said again, with another reason.
--
--   provisioning ──► active ◄──► read_only, paused, suspended, draining (each to each)
--        │             │                        │
--        └─────────────┴───────► deleted ◄──────┘        deleted ──► suspended, until its purge has begun
--
-- A place that is being made by an operation is ready when that says so, and not before.
CREATE OR REPLACE FUNCTION pgtenant_catalog.may_become(was text, state text) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    RETURN CASE
        WHEN was = state THEN true
        WHEN state = 'provisioning' THEN false
        WHEN was = 'provisioning' THEN state = ANY (ARRAY['active', 'deleted'])
        WHEN was = 'deleted' THEN state = 'suspended'
        ELSE true
    END;
END
$body$;

-- The row of a tenant that is to be changed.
CREATE OR REPLACE FUNCTION pgtenant_catalog.existing(name text, expected bigint) RETURNS pgtenant_catalog.tenants
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    row_of pgtenant_catalog.tenants;
BEGIN
    PERFORM pgtenant_catalog.lock_catalog();
    SELECT * INTO row_of FROM pgtenant_catalog.tenants t WHERE t.tenant = name;
    IF NOT FOUND THEN
        RAISE 'there is no tenant "%"', name USING ERRCODE = 'no_data_found';
    END IF;
    PERFORM pgtenant_catalog.check_revision(name, row_of.revision, expected);
    RETURN row_of;
END
$body$;

-- Writes another spec of a tenant, if it is another.
CREATE OR REPLACE FUNCTION pgtenant_catalog.write_spec(old pgtenant_catalog.tenants, new_spec jsonb, actor text)
RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    given bigint;
    moves boolean;
BEGIN
    IF old.state = 'deleted' THEN
        RAISE 'tenant "%" is deleted', old.tenant USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    PERFORM pgtenant_catalog.check_spec(new_spec);
    IF new_spec = old.spec THEN
        RETURN old.revision;
    END IF;
    moves := pgtenant_catalog.place_of(old.spec) <> pgtenant_catalog.place_of(new_spec);
    given := pgtenant_catalog.next_revision('tenant', old.tenant, 'spec', jsonb_build_object('moves', moves), actor);
    UPDATE pgtenant_catalog.tenants AS t SET spec = new_spec, revision = given, changed_at = now(),
        changed_by = pgtenant_catalog.who(actor), generation = t.generation + moves::int
        WHERE t.tenant = old.tenant;
    RETURN given;
END
$body$;

-- ---- tenants: what the writer calls ----
--
-- Each returns the tenant's revision then. `expected_revision`: the one that it must have now, else nothing is changed and the
-- error is serialization_failure (40001). `actor`: on whose behalf, for `changes`.

-- Makes a tenant, or gives one all its settings anew. `expected_revision` 0: it must not be there. `initial_state`: of one that
-- was not there, provisioning or active.
CREATE OR REPLACE FUNCTION pgtenant_catalog.put_tenant(tenant text, spec jsonb, expected_revision bigint DEFAULT NULL,
    initial_state text DEFAULT 'active', expires timestamptz DEFAULT NULL, retention interval DEFAULT NULL,
    actor text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    old pgtenant_catalog.tenants;
    given bigint;
BEGIN
    PERFORM pgtenant_catalog.check_name(put_tenant.tenant);
    PERFORM pgtenant_catalog.check_spec(put_tenant.spec);
    PERFORM pgtenant_catalog.lock_catalog();
    SELECT * INTO old FROM pgtenant_catalog.tenants t WHERE t.tenant = put_tenant.tenant;
    PERFORM pgtenant_catalog.check_revision(put_tenant.tenant, old.revision, expected_revision);
    IF old.tenant IS NOT NULL THEN
        IF put_tenant.expires IS NOT NULL OR put_tenant.retention IS NOT NULL THEN
            PERFORM pgtenant_catalog.refuse('expires and retention are of a tenant that is made: this one is there',
                'Use set_expires() and set_retention().');
        END IF;
        RETURN pgtenant_catalog.write_spec(old, put_tenant.spec, actor);
    END IF;
    IF initial_state IS NULL OR initial_state <> ALL (ARRAY['provisioning', 'active']) THEN
        PERFORM pgtenant_catalog.refuse('a tenant begins as provisioning or active');
    END IF;
    given := pgtenant_catalog.next_revision('tenant', put_tenant.tenant, 'created',
        jsonb_build_object('state', initial_state), actor);
    INSERT INTO pgtenant_catalog.tenants (tenant, state, expires, retention, spec, revision, changed_by)
        VALUES (put_tenant.tenant, initial_state, put_tenant.expires, put_tenant.retention, put_tenant.spec, given,
            pgtenant_catalog.who(actor));
    RETURN given;
END
$body$;

-- Changes some settings of a tenant and leaves the others: `patch` is a JSON merge patch (RFC 7386), null takes a setting away.
CREATE OR REPLACE FUNCTION pgtenant_catalog.set_spec(tenant text, patch jsonb, expected_revision bigint DEFAULT NULL,
    actor text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    old pgtenant_catalog.tenants := pgtenant_catalog.existing(tenant, expected_revision);
BEGIN
    IF jsonb_typeof(patch) IS DISTINCT FROM 'object' THEN
        PERFORM pgtenant_catalog.refuse('the patch must be a JSON object');
    END IF;
    RETURN pgtenant_catalog.write_spec(old, pgtenant_catalog.merged(old.spec, patch), actor);
END
$body$;

-- Puts a tenant into a state. `until`: when it is active again by itself.
CREATE OR REPLACE FUNCTION pgtenant_catalog.set_state(tenant text, state text, reason text DEFAULT NULL,
    until timestamptz DEFAULT NULL, expected_revision bigint DEFAULT NULL, actor text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    old pgtenant_catalog.tenants := pgtenant_catalog.existing(set_state.tenant, expected_revision);
    given bigint;
BEGIN
    IF set_state.state IS NULL OR set_state.state <> ALL (ARRAY[
            'provisioning', 'active', 'read_only', 'paused', 'suspended', 'draining', 'deleted']) THEN
        PERFORM pgtenant_catalog.refuse('there is no such state');
    END IF;
    IF set_state.until IS NOT NULL AND set_state.state = ANY (ARRAY['provisioning', 'active', 'deleted']) THEN
        PERFORM pgtenant_catalog.refuse(format('state %s has no end of its own', set_state.state));
    END IF;
    IF length(set_state.reason) > 500 OR set_state.reason ~ '[[:cntrl:]]' THEN
        PERFORM pgtenant_catalog.refuse('the reason must be one line of at most 500 characters');
    END IF;
    IF NOT pgtenant_catalog.may_become(old.state, set_state.state) THEN
        RAISE 'tenant "%" is %: it cannot become %', old.tenant, old.state, set_state.state
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF (old.state, old.reason, old.until) IS NOT DISTINCT FROM (set_state.state, set_state.reason, set_state.until) THEN
        RETURN old.revision;
    END IF;
    IF old.state = 'deleted' AND set_state.state <> 'deleted' THEN
        PERFORM FROM pgtenant_catalog.operations o
            WHERE o.tenant = old.tenant AND o.kind = 'purge' AND o.finished_at IS NULL;
        IF FOUND THEN
            RAISE 'the data of tenant "%" is being purged', old.tenant USING ERRCODE = 'object_not_in_prerequisite_state';
        END IF;
    END IF;
    IF old.state = 'provisioning' AND set_state.state = 'active' THEN
        PERFORM FROM pgtenant_catalog.operations o
            WHERE o.tenant = old.tenant AND o.kind = 'create' AND o.finished_at IS NULL;
        IF FOUND THEN
            RAISE 'the place of tenant "%" is not ready', old.tenant USING ERRCODE = 'object_not_in_prerequisite_state';
        END IF;
    END IF;
    given := pgtenant_catalog.next_revision('tenant', old.tenant, 'state',
        jsonb_strip_nulls(jsonb_build_object('was', old.state, 'state', set_state.state, 'reason', set_state.reason,
            'until', set_state.until)), actor);
    UPDATE pgtenant_catalog.tenants AS t SET state = set_state.state, reason = set_state.reason,
        until = set_state.until, revision = given, changed_at = now(), changed_by = pgtenant_catalog.who(actor),
        deleted_at = CASE WHEN set_state.state = 'deleted' THEN coalesce(t.deleted_at, now()) END
        WHERE t.tenant = old.tenant;
    RETURN given;
END
$body$;

-- When a tenant is suspended by itself. NULL: never.
CREATE OR REPLACE FUNCTION pgtenant_catalog.set_expires(tenant text, expires timestamptz,
    expected_revision bigint DEFAULT NULL, actor text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    old pgtenant_catalog.tenants := pgtenant_catalog.existing(set_expires.tenant, expected_revision);
    given bigint;
BEGIN
    IF old.expires IS NOT DISTINCT FROM set_expires.expires THEN
        RETURN old.revision;
    END IF;
    given := pgtenant_catalog.next_revision('tenant', old.tenant, 'expires',
        jsonb_build_object('expires', set_expires.expires), actor);
    UPDATE pgtenant_catalog.tenants AS t SET expires = set_expires.expires, revision = given, changed_at = now(),
        changed_by = pgtenant_catalog.who(actor) WHERE t.tenant = old.tenant;
    RETURN given;
END
$body$;

-- For how long a tenant's data stays once it is deleted. NULL: seven days.
CREATE OR REPLACE FUNCTION pgtenant_catalog.set_retention(tenant text, retention interval,
    expected_revision bigint DEFAULT NULL, actor text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    old pgtenant_catalog.tenants := pgtenant_catalog.existing(set_retention.tenant, expected_revision);
    given bigint;
BEGIN
    IF set_retention.retention < interval '0' THEN
        PERFORM pgtenant_catalog.refuse('the retention must not be negative');
    END IF;
    IF old.retention IS NOT DISTINCT FROM set_retention.retention THEN
        RETURN old.revision;
    END IF;
    given := pgtenant_catalog.next_revision('tenant', old.tenant, 'retention',
        jsonb_build_object('retention', set_retention.retention), actor);
    UPDATE pgtenant_catalog.tenants AS t SET retention = set_retention.retention, revision = given, changed_at = now(),
        changed_by = pgtenant_catalog.who(actor) WHERE t.tenant = old.tenant;
    RETURN given;
END
$body$;

-- Of what a tenant's place was made: the fingerprint of a template, or the version of a migration.
CREATE OR REPLACE FUNCTION pgtenant_catalog.set_version(tenant text, version text,
    expected_revision bigint DEFAULT NULL, actor text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    old pgtenant_catalog.tenants := pgtenant_catalog.existing(set_version.tenant, expected_revision);
    given bigint;
BEGIN
    IF length(set_version.version) > 200 THEN
        PERFORM pgtenant_catalog.refuse('the version must be at most 200 characters long');
    END IF;
    IF old.version IS NOT DISTINCT FROM set_version.version THEN
        RETURN old.revision;
    END IF;
    given := pgtenant_catalog.next_revision('tenant', old.tenant, 'version',
        jsonb_build_object('version', set_version.version), actor);
    UPDATE pgtenant_catalog.tenants AS t SET version = set_version.version, revision = given, changed_at = now(),
        changed_by = pgtenant_catalog.who(actor) WHERE t.tenant = old.tenant;
    RETURN given;
END
$body$;

-- Forgets a tenant that is deleted and whose data is gone; its name is free then. Before its retention is over only with `early`.
CREATE OR REPLACE FUNCTION pgtenant_catalog.purge(tenant text, early boolean DEFAULT false,
    expected_revision bigint DEFAULT NULL, actor text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    old pgtenant_catalog.tenants := pgtenant_catalog.existing(purge.tenant, expected_revision);
BEGIN
    PERFORM pgtenant_catalog.check_purge(old, early);
    DELETE FROM pgtenant_catalog.tenants t WHERE t.tenant = old.tenant;
    UPDATE pgtenant_catalog.operations AS o SET finished_at = now() WHERE o.tenant = old.tenant AND o.finished_at IS NULL;
    RETURN pgtenant_catalog.next_revision('tenant', old.tenant, 'purged', '{}', actor);
END
$body$;

CREATE OR REPLACE FUNCTION pgtenant_catalog.check_purge(old pgtenant_catalog.tenants, early boolean) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    IF old.state <> 'deleted' THEN
        RAISE 'tenant "%" is %: only one that is deleted can be purged', old.tenant, old.state
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF NOT coalesce(early, false) AND old.deleted_at + coalesce(old.retention, interval '7 days') > now() THEN
        RAISE 'the data of tenant "%" stays until %', old.tenant,
            old.deleted_at + coalesce(old.retention, interval '7 days')
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END
$body$;

-- ---- servers and placements ----

CREATE OR REPLACE FUNCTION pgtenant_catalog.put_server(server text, spec jsonb, expected_revision bigint DEFAULT NULL,
    actor text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    known bigint;
    given bigint;
BEGIN
    PERFORM pgtenant_catalog.check_name(put_server.server);
    IF jsonb_typeof(put_server.spec) IS DISTINCT FROM 'object' THEN
        PERFORM pgtenant_catalog.refuse('the spec must be a JSON object');
    END IF;
    PERFORM pgtenant_catalog.check_secret(put_server.spec, '{admin,password}');
    PERFORM pgtenant_catalog.check_secret(put_server.spec, '{seal,key}');
    PERFORM pgtenant_catalog.lock_catalog();
    SELECT s.revision INTO known FROM pgtenant_catalog.servers s WHERE s.server = put_server.server AND s.spec IS NOT NULL;
    PERFORM pgtenant_catalog.check_revision(put_server.server, known, expected_revision);
    given := pgtenant_catalog.next_revision('server', put_server.server, 'put', '{}', actor);
    INSERT INTO pgtenant_catalog.servers AS s VALUES (put_server.server, put_server.spec, given)
        ON CONFLICT (server) DO UPDATE SET spec = excluded.spec, revision = excluded.revision;
    RETURN given;
END
$body$;

CREATE OR REPLACE FUNCTION pgtenant_catalog.remove_server(server text, expected_revision bigint DEFAULT NULL,
    actor text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    known bigint;
    given bigint;
BEGIN
    PERFORM pgtenant_catalog.lock_catalog();
    SELECT s.revision INTO known FROM pgtenant_catalog.servers s
        WHERE s.server = remove_server.server AND s.spec IS NOT NULL;
    IF known IS NULL THEN
        RAISE 'there is no server "%"', remove_server.server USING ERRCODE = 'no_data_found';
    END IF;
    PERFORM pgtenant_catalog.check_revision(remove_server.server, known, expected_revision);
    given := pgtenant_catalog.next_revision('server', remove_server.server, 'removed', '{}', actor);
    UPDATE pgtenant_catalog.servers AS s SET spec = NULL, revision = given WHERE s.server = remove_server.server;
    RETURN given;
END
$body$;

CREATE OR REPLACE FUNCTION pgtenant_catalog.put_placement(placement text, spec jsonb,
    expected_revision bigint DEFAULT NULL, actor text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    known bigint;
    given bigint;
BEGIN
    PERFORM pgtenant_catalog.check_name(put_placement.placement);
    IF jsonb_typeof(put_placement.spec) IS DISTINCT FROM 'object' THEN
        PERFORM pgtenant_catalog.refuse('the spec must be a JSON object');
    END IF;
    PERFORM pgtenant_catalog.check_secret(put_placement.spec, '{login,password}');
    PERFORM pgtenant_catalog.check_secret(put_placement.spec, '{read_only_login,password}');
    PERFORM pgtenant_catalog.lock_catalog();
    SELECT p.revision INTO known FROM pgtenant_catalog.placements p
        WHERE p.placement = put_placement.placement AND p.spec IS NOT NULL;
    PERFORM pgtenant_catalog.check_revision(put_placement.placement, known, expected_revision);
    given := pgtenant_catalog.next_revision('placement', put_placement.placement, 'put', '{}', actor);
    INSERT INTO pgtenant_catalog.placements AS p VALUES (put_placement.placement, put_placement.spec, given)
        ON CONFLICT (placement) DO UPDATE SET spec = excluded.spec, revision = excluded.revision;
    RETURN given;
END
$body$;

-- Not one that a tenant, which is not purged, lives in.
CREATE OR REPLACE FUNCTION pgtenant_catalog.remove_placement(placement text, expected_revision bigint DEFAULT NULL,
    actor text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    known bigint;
    given bigint;
BEGIN
    PERFORM pgtenant_catalog.lock_catalog();
    SELECT p.revision INTO known FROM pgtenant_catalog.placements p
        WHERE p.placement = remove_placement.placement AND p.spec IS NOT NULL;
    IF known IS NULL THEN
        RAISE 'there is no placement "%"', remove_placement.placement USING ERRCODE = 'no_data_found';
    END IF;
    PERFORM pgtenant_catalog.check_revision(remove_placement.placement, known, expected_revision);
    PERFORM FROM pgtenant_catalog.tenants t WHERE t.spec->>'placement' = remove_placement.placement
        OR EXISTS (SELECT FROM jsonb_each_text(t.spec->'placements') e WHERE e.value = remove_placement.placement);
    IF FOUND THEN
        RAISE 'tenants live in placement "%"', remove_placement.placement
            USING ERRCODE = 'dependent_objects_still_exist';
    END IF;
    given := pgtenant_catalog.next_revision('placement', remove_placement.placement, 'removed', '{}', actor);
    UPDATE pgtenant_catalog.placements AS p SET spec = NULL, revision = given
        WHERE p.placement = remove_placement.placement;
    RETURN given;
END
$body$;

-- ---- the feed ----

-- At most `most` changes after that revision, in their order. Go on with the revision of the last one.
CREATE OR REPLACE FUNCTION pgtenant_catalog.changes_since(since bigint, most int DEFAULT 1000)
RETURNS SETOF pgtenant_catalog.changes
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    forgotten bigint := (SELECT a.forgotten FROM pgtenant_catalog.about a);
BEGIN
    IF since < forgotten THEN
        RAISE 'changes up to revision % are forgotten', forgotten USING ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Read the tenants afresh, and go on from about.revision.';
    END IF;
    RETURN QUERY SELECT * FROM pgtenant_catalog.changes c WHERE c.revision > since ORDER BY c.revision
        LIMIT least(greatest(most, 0), 10000);
END
$body$;

-- Drops changes and finished operations from before that time, and says how many changes.
CREATE OR REPLACE FUNCTION pgtenant_catalog.forget_changes(before timestamptz) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    last bigint;
    dropped bigint;
BEGIN
    PERFORM pgtenant_catalog.lock_catalog();
    DELETE FROM pgtenant_catalog.operations o WHERE o.finished_at < before;
    -- Up to a revision, not by their times: clocks may go back, and what is left must be without a gap.
    SELECT max(c.revision) INTO last FROM pgtenant_catalog.changes c WHERE c.at < before;
    DELETE FROM pgtenant_catalog.changes c WHERE c.revision <= last;
    GET DIAGNOSTICS dropped = ROW_COUNT;
    UPDATE pgtenant_catalog.about AS a SET forgotten = greatest(a.forgotten, last) WHERE last IS NOT NULL;
    RETURN dropped;
END
$body$;

-- ---- operations ----

-- Begins making or dropping a tenant's place, or goes on with what was begun: its number.
CREATE OR REPLACE FUNCTION pgtenant_catalog.begin_operation(tenant text, kind text, early boolean DEFAULT false,
    actor text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    old pgtenant_catalog.tenants := pgtenant_catalog.existing(begin_operation.tenant, NULL);
    open pgtenant_catalog.operations;
    begun bigint;
BEGIN
    IF begin_operation.kind IS NULL OR begin_operation.kind <> ALL (ARRAY['create', 'purge']) THEN
        PERFORM pgtenant_catalog.refuse('there is no such operation');
    END IF;
    IF begin_operation.kind = 'create' AND old.state <> 'provisioning' THEN
        RAISE 'tenant "%" is %: its place is made', old.tenant, old.state
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF begin_operation.kind = 'purge' THEN
        PERFORM pgtenant_catalog.check_purge(old, early);
    END IF;
    SELECT * INTO open FROM pgtenant_catalog.operations o WHERE o.tenant = old.tenant AND o.finished_at IS NULL;
    IF open.kind = begin_operation.kind THEN
        RETURN open.operation;
    END IF;
    -- A tenant that was deleted half-made is not made any further.
    UPDATE pgtenant_catalog.operations AS o SET finished_at = now() WHERE o.operation = open.operation;
    INSERT INTO pgtenant_catalog.operations (tenant, kind, by)
        VALUES (old.tenant, begin_operation.kind, pgtenant_catalog.who(actor)) RETURNING operation INTO begun;
    RETURN begun;
END
$body$;

-- Records that a step is about to be taken; false: it is done already.
CREATE OR REPLACE FUNCTION pgtenant_catalog.begin_step(operation bigint, step text) RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    done timestamptz;
BEGIN
    PERFORM FROM pgtenant_catalog.operations o
        WHERE o.operation = begin_step.operation AND o.finished_at IS NULL FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE 'there is no operation % under way', begin_step.operation USING ERRCODE = 'no_data_found';
    END IF;
    INSERT INTO pgtenant_catalog.steps AS s (operation, number, step)
        SELECT begin_step.operation, count(*) + 1, begin_step.step
            FROM pgtenant_catalog.steps x WHERE x.operation = begin_step.operation
        ON CONFLICT (operation, step) DO UPDATE SET begun_at = now() WHERE s.done_at IS NULL;
    SELECT s.done_at INTO done FROM pgtenant_catalog.steps s
        WHERE s.operation = begin_step.operation AND s.step = begin_step.step;
    RETURN done IS NULL;
END
$body$;

-- Records what became of a step: that it is done, or why it is not.
CREATE OR REPLACE FUNCTION pgtenant_catalog.end_step(operation bigint, step text, done boolean,
    detail jsonb DEFAULT '{}') RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
BEGIN
    UPDATE pgtenant_catalog.steps AS s SET done_at = CASE WHEN end_step.done THEN coalesce(s.done_at, now()) END,
        detail = coalesce(end_step.detail, '{}')
        WHERE s.operation = end_step.operation AND s.step = end_step.step;
    IF NOT FOUND THEN
        RAISE 'step "%" was not begun', end_step.step USING ERRCODE = 'no_data_found';
    END IF;
END
$body$;

-- Ends an operation all of whose steps are done: a tenant that was made becomes active.
CREATE OR REPLACE FUNCTION pgtenant_catalog.finish_operation(operation bigint, actor text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    open pgtenant_catalog.operations;
    tenant pgtenant_catalog.tenants;
BEGIN
    PERFORM pgtenant_catalog.lock_catalog();
    SELECT * INTO open FROM pgtenant_catalog.operations o
        WHERE o.operation = finish_operation.operation AND o.finished_at IS NULL;
    IF NOT FOUND THEN
        RAISE 'there is no operation % under way', finish_operation.operation USING ERRCODE = 'no_data_found';
    END IF;
    PERFORM FROM pgtenant_catalog.steps s WHERE s.operation = open.operation AND s.done_at IS NULL;
    IF FOUND THEN
        RAISE 'operation % has steps that are not done', open.operation
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF open.kind = 'purge' THEN
        -- Its data is gone: nothing is left to be kept for the rest of the retention.
        RETURN pgtenant_catalog.purge(open.tenant, true, NULL, actor);
    END IF;
    UPDATE pgtenant_catalog.operations AS o SET finished_at = now() WHERE o.operation = open.operation;
    SELECT * INTO tenant FROM pgtenant_catalog.tenants t WHERE t.tenant = open.tenant;
    IF tenant.state = 'provisioning' THEN
        RETURN pgtenant_catalog.set_state(open.tenant, 'active', NULL, NULL, NULL, actor);
    END IF;
    RETURN tenant.revision;
END
$body$;

-- ---- who may what ----

REVOKE ALL ON SCHEMA pgtenant_catalog FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA pgtenant_catalog FROM PUBLIC, pgtenant_catalog_reader, pgtenant_catalog_writer;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA pgtenant_catalog FROM PUBLIC, pgtenant_catalog_reader, pgtenant_catalog_writer;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA pgtenant_catalog FROM PUBLIC, pgtenant_catalog_reader, pgtenant_catalog_writer;
GRANT USAGE ON SCHEMA pgtenant_catalog TO pgtenant_catalog_reader, pgtenant_catalog_writer;
GRANT SELECT ON ALL TABLES IN SCHEMA pgtenant_catalog TO pgtenant_catalog_reader, pgtenant_catalog_writer;
GRANT EXECUTE ON FUNCTION pgtenant_catalog.changes_since(bigint, int)
    TO pgtenant_catalog_reader, pgtenant_catalog_writer;
GRANT EXECUTE ON FUNCTION
    pgtenant_catalog.put_tenant(text, jsonb, bigint, text, timestamptz, interval, text),
    pgtenant_catalog.set_spec(text, jsonb, bigint, text),
    pgtenant_catalog.set_state(text, text, text, timestamptz, bigint, text),
    pgtenant_catalog.set_expires(text, timestamptz, bigint, text),
    pgtenant_catalog.set_retention(text, interval, bigint, text),
    pgtenant_catalog.set_version(text, text, bigint, text),
    pgtenant_catalog.purge(text, boolean, bigint, text),
    pgtenant_catalog.put_server(text, jsonb, bigint, text),
    pgtenant_catalog.remove_server(text, bigint, text),
    pgtenant_catalog.put_placement(text, jsonb, bigint, text),
    pgtenant_catalog.remove_placement(text, bigint, text),
    pgtenant_catalog.forget_changes(timestamptz),
    pgtenant_catalog.begin_operation(text, text, boolean, text),
    pgtenant_catalog.begin_step(bigint, text),
    pgtenant_catalog.end_step(bigint, text, boolean, jsonb),
    pgtenant_catalog.finish_operation(bigint, text)
    TO pgtenant_catalog_writer;

COMMENT ON SCHEMA pgtenant_catalog IS 'pgtenant catalog, version 1';
COMMIT;
