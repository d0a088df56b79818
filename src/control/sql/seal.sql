-- pgtenant's seal, version 3: what lets policies tell which tenant a session serves, whatever SQL the session runs.
--
-- Run it in each database of a sealed placement, as the role that is to own the schema: not an application's, and none
-- that an application's is a member of. It can be run again at any time, also under load. `pgtenant seal` runs it
-- and installs the key.
--
-- A policy uses it as
--     CREATE POLICY tenant ON orders USING (tenant_id = (SELECT pgtenant.tenant_id()));
-- always in a sub-select, so that it is called once a query and not once a row.

BEGIN;
-- Ahead of all else: this runs as an administrator, and an operator or function that a tenant made in another
-- schema would be taken for the server's where its types fit better.
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL client_min_messages = warning;
SELECT pg_catalog.pg_advisory_xact_lock(7309741246873632);

CREATE SCHEMA IF NOT EXISTS pgtenant;

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
        WHERE n.nspname = 'pgtenant'
            AND n.nspowner OPERATOR(pg_catalog.=) current_user::pg_catalog.regrole::pg_catalog.oid;
    IF NOT FOUND THEN
        RAISE 'schema "pgtenant" exists and belongs to another role' USING ERRCODE = 'insufficient_privilege';
    END IF;
    PERFORM FROM pg_catalog.pg_namespace n, LATERAL pg_catalog.aclexplode(n.nspacl) a
        WHERE n.nspname = 'pgtenant' AND a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner;
    IF FOUND THEN
        RAISE 'others than its owner can create objects in schema "pgtenant"' USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$check$;

GRANT USAGE ON SCHEMA pgtenant TO PUBLIC;

-- How it works
--
--   pgtenant                                               PostgreSQL, this session
--   bind_<key>('tenant|until|hash|hash|in time|MAC') ────► the MAC is verified, once
--                                                          bound_until, bound_1, bound_2: the session's currval()
--                                                          pgtenant.context: the tenant's name
--   a tenant's query ────────────────────────────────────► tenant_id(): is the name in pgtenant.context the one whose
--                                                          hash the session is bound to, and is it early enough?
--
-- What a session is bound to it keeps as the values that it took last from three sequences. Those are the session's own: no
-- other has them, only who may update the sequences can change them, which is the owner of these functions, and DISCARD
-- ALL, with which pgtenant changes tenants, takes them away. So does a tenant's DISCARD SEQUENCES, which makes its own session
-- worthless and nothing else. What a transaction rolls back is not among them.
--
-- No tenant ever sees a value that binds. It is a parameter of pgtenant's own statement, ahead of the tenant's first, and kept
-- nowhere: pg_stat_activity shows the text, settings and plans of the tenant before are gone by then, and what the server says
-- meanwhile is not passed on. Were it read in a log: it is good in one session (process id and start of the server are under
-- the MAC), and for a minute.

-- Keys; no secrets. What a key is made of is in sequences, key_<key>_1 to _8.
DO $upgrade$
BEGIN
    -- Version 2 kept pads here. They are moved below.
    PERFORM FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = pg_catalog.to_regclass('pgtenant.keys') AND a.attname = 'inner_pad' AND NOT a.attisdropped;
    IF FOUND THEN
        ALTER TABLE pgtenant.keys RENAME TO keys_of_version_2;
    END IF;
END
$upgrade$;
CREATE TABLE IF NOT EXISTS pgtenant.keys (
    id text PRIMARY KEY CHECK (id ~ '^[0-9a-f]{16}$'),
    made timestamptz NOT NULL DEFAULT now(),
    -- After this nothing can be bound with it. NULL: the key in use.
    not_after timestamptz
);
REVOKE ALL ON TABLE pgtenant.keys FROM PUBLIC;

-- What a session is bound to: until when, in microseconds since 2000, and the first 16 bytes of SHA-256 of the tenant. No
-- tenant's name is another's by them: that takes 2^128 tries for a name. Unlogged: a value is nobody's but its session's, and
-- logging it would take a number of a transaction and a flush for each change of tenant.
DO $bound$
DECLARE
    name text;
    kind text := CASE WHEN pg_catalog.current_setting('server_version_num')::int >= 150000 THEN 'UNLOGGED' ELSE '' END;
BEGIN
    FOREACH name IN ARRAY ARRAY['bound_until', 'bound_1', 'bound_2'] LOOP
        EXECUTE pg_catalog.format('CREATE %s SEQUENCE IF NOT EXISTS pgtenant.%I
            MINVALUE -9223372036854775808 MAXVALUE 9223372036854775807', kind, name);
    END LOOP;
END
$bound$;

-- What follows is written for speed: a scrub (DISCARD ALL) throws the plans of functions away, so a function is planned anew
-- whenever its session has changed tenants. But expressions of domains are kept as they are, and never looked up
-- again: so all checks are domains', and functions have no more than one expression, or none. Names are all qualified, and types,
-- which are looked for among temporary objects first; functions are in the place of operators, so that no search_path need be
-- set, which would cost as much as all the rest. Do not add IN, BETWEEN, IS DISTINCT FROM or a bare operator: in a function
-- they are looked up in the search_path of who calls it. Times are compared as the bytes that they are sent as, whose order is that of
-- times since 2000.

CREATE OR REPLACE FUNCTION pgtenant.refuse() RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL SAFE
AS $body$
BEGIN
    RAISE 'the tenant context of this session is not valid' USING ERRCODE = 'insufficient_privilege';
END
$body$;

-- The name of the tenant that this session is bound to.
--
-- What it expires by is the start of the transaction or of the statement, whichever was first: neither a long
-- transaction nor a procedure that commits loses its tenant half-way.
DO $domain$
BEGIN
    IF pg_catalog.to_regtype('pgtenant.bound_tenant') IS NULL THEN
        CREATE DOMAIN pgtenant.bound_tenant AS pg_catalog.text;
    END IF;
END
$domain$;
REVOKE ALL ON TYPE pgtenant.bound_tenant FROM PUBLIC;
ALTER DOMAIN pgtenant.bound_tenant DROP CONSTRAINT IF EXISTS valid;
ALTER DOMAIN pgtenant.bound_tenant ADD CONSTRAINT valid CHECK (CASE
    WHEN VALUE IS NULL THEN true
    WHEN pg_catalog.byteaeq(
            pg_catalog.byteacat(
                pg_catalog.int8send(pg_catalog.currval('pgtenant.bound_1'::pg_catalog.regclass)),
                pg_catalog.int8send(pg_catalog.currval('pgtenant.bound_2'::pg_catalog.regclass))),
            pg_catalog.substr(pg_catalog.sha256(pg_catalog.convert_to(VALUE, 'UTF8')), 1, 16))
        AND pg_catalog.byteale(
            pg_catalog.timestamptz_send(
                LEAST(pg_catalog.transaction_timestamp(), pg_catalog.statement_timestamp())),
            pg_catalog.int8send(pg_catalog.currval('pgtenant.bound_until'::pg_catalog.regclass)))
        THEN true
    ELSE pgtenant.refuse() IS NULL
END);

-- The tenant of this session. NULL without a context; an error for one that is forged or has expired; an error (55000) in
-- a session that is not bound, which is not caught: a parallel query allows no subtransaction.
CREATE OR REPLACE FUNCTION pgtenant.tenant_id() RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL RESTRICTED
AS $body$
DECLARE
    -- To assign it is to check it.
    tenant pgtenant.bound_tenant := pg_catalog.current_setting('pgtenant.context', true);
BEGIN
    RETURN tenant;
END
$body$;

-- The same for columns of other types: integer, bigint, uuid.
CREATE OR REPLACE FUNCTION pgtenant.tenant_id_int() RETURNS integer
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
AS 'BEGIN RETURN pgtenant.tenant_id()::pg_catalog.int4; END';

CREATE OR REPLACE FUNCTION pgtenant.tenant_id_bigint() RETURNS bigint
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
AS 'BEGIN RETURN pgtenant.tenant_id()::pg_catalog.int8; END';

CREATE OR REPLACE FUNCTION pgtenant.tenant_id_uuid() RETURNS uuid
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
AS 'BEGIN RETURN pgtenant.tenant_id()::pg_catalog.uuid; END';

-- Asked by pgtenant on a connection that it is to bind for the first time, and now and then:
-- version|pid|start of the server|its clock|is the key known. `known` is what version 2 asked with.
CREATE OR REPLACE FUNCTION pgtenant.challenge(known bigint, key text) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    RETURN pg_catalog.concat_ws('|', 3, pg_catalog.pg_backend_pid(),
        (extract(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::bigint,
        extract(epoch FROM pg_catalog.clock_timestamp())::bigint,
        (SELECT count(*) FROM pgtenant.keys k
            WHERE k.id = challenge.key AND (k.not_after IS NULL OR k.not_after > pg_catalog.now())));
END
$body$;

-- Makes the function that binds a session to a tenant with what is sealed by a key: bind_<key>(sealed), of
-- tenant|until|hash 1|hash 2|in time|MAC. `until`: when the session has no tenant any more; `in time`: when this cannot be used any
-- more; both in microseconds since 2000. The MAC is 64 hexadecimal digits of HMAC-SHA-256 (RFC 2104) over all before it and, in
-- binary, the process id and the start of the server.
--
-- The parts of a pad that are not constant are the last values of sequences, of which an expression can read without a query that
-- would have to be planned. What is compared are hashes of the MACs, so that the time it takes tells nothing of the right one. No
-- query has a pad as a parameter, so that no plan that is printed (debug_print_plan) shows it.
CREATE OR REPLACE FUNCTION pgtenant.define_key(key text) RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    domain CONSTANT text := pg_catalog.format('pgtenant.%I', 'credential_' || key);
    until timestamptz := (SELECT k.not_after FROM pgtenant.keys k WHERE k.id = key);
    part CONSTANT text := $$pg_catalog.int8send(pg_catalog.pg_sequence_last_value('pgtenant.key_%s_%s'::pg_catalog.regclass))$$;
    field CONSTANT text := $$pg_catalog.split_part(VALUE, '|', %s)$$;
    pads text[];
    pad text;
    valid text;
BEGIN
    FOR half IN 0..1 LOOP
        pad := pg_catalog.format(part, key, 4 * half + 1);
        FOR n IN 2..4 LOOP
            pad := pg_catalog.format('pg_catalog.byteacat(%s, %s)', pad, pg_catalog.format(part, key, 4 * half + n));
        END LOOP;
        pads := pads || pg_catalog.format($$pg_catalog.byteacat(%s, '\x%s'::pg_catalog.bytea)$$, pad,
            pg_catalog.repeat((ARRAY['36', '5c'])[half + 1], 32));
    END LOOP;
    valid := pg_catalog.format($$pg_catalog.byteaeq(
            pg_catalog.sha256(pg_catalog.convert_to(pg_catalog.right(VALUE, 64), 'UTF8')),
            pg_catalog.sha256(pg_catalog.convert_to(pg_catalog.encode(
                pg_catalog.sha256(pg_catalog.byteacat(%s,
                    pg_catalog.sha256(pg_catalog.byteacat(%s, pg_catalog.byteacat(pg_catalog.byteacat(
                        pg_catalog.convert_to(pg_catalog.left(VALUE, -65), 'UTF8'),
                        pg_catalog.int4send(pg_catalog.pg_backend_pid())),
                        pg_catalog.timestamptz_send(pg_catalog.pg_postmaster_start_time())))))),
                'hex'), 'UTF8')))
        AND pg_catalog.byteale(
            pg_catalog.timestamptz_send(pg_catalog.clock_timestamp()),
            pg_catalog.int8send(%s::pg_catalog.int8))$$, pads[2], pads[1], pg_catalog.format(field, 5));
    IF until IS NOT NULL THEN
        valid := pg_catalog.format('pg_catalog.timestamptz_le(pg_catalog.clock_timestamp(), %L::pg_catalog.timestamptz) AND %s',
            until, valid);
    END IF;
    IF pg_catalog.to_regtype(domain) IS NULL THEN
        EXECUTE pg_catalog.format('CREATE DOMAIN %s AS pg_catalog.text', domain);
    END IF;
    EXECUTE pg_catalog.format('REVOKE ALL ON TYPE %s FROM PUBLIC', domain);
    EXECUTE pg_catalog.format('ALTER DOMAIN %s DROP CONSTRAINT IF EXISTS valid', domain);
    -- The last that is set is until when: before that nothing is valid.
    EXECUTE pg_catalog.format($$ALTER DOMAIN %s ADD CONSTRAINT valid CHECK (CASE
        WHEN %s THEN
            pg_catalog.set_config('pgtenant.context', %s, false) IS NOT NULL
            AND pg_catalog.setval('pgtenant.bound_1'::pg_catalog.regclass, %s::pg_catalog.int8) IS NOT NULL
            AND pg_catalog.setval('pgtenant.bound_2'::pg_catalog.regclass, %s::pg_catalog.int8) IS NOT NULL
            AND pg_catalog.setval('pgtenant.bound_until'::pg_catalog.regclass, %s::pg_catalog.int8) IS NOT NULL
        ELSE pgtenant.refuse() IS NULL
    END)$$, domain, valid, pg_catalog.format(field, 1), pg_catalog.format(field, 3), pg_catalog.format(field, 4),
        pg_catalog.format(field, 2));
    -- To return it is to check it; there is no expression to be planned.
    EXECUTE pg_catalog.format($$CREATE OR REPLACE FUNCTION pgtenant.%I(sealed text) RETURNS %s
        LANGUAGE plpgsql VOLATILE SECURITY DEFINER PARALLEL UNSAFE AS 'BEGIN RETURN sealed; END'$$, 'bind_' || key, domain);
    EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION pgtenant.%I(text) TO PUBLIC', 'bind_' || key);
END
$body$;

-- Puts a key in force, by the two pads of HMAC. Returns whether it is new.
CREATE OR REPLACE FUNCTION pgtenant.put_key(key text, inner_pad bytea, outer_pad bytea) RETURNS boolean
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    is_new boolean;
    name text;
BEGIN
    IF pg_catalog.substr(inner_pad, 33) <> pg_catalog.decode(pg_catalog.repeat('36', 32), 'hex')
        OR pg_catalog.substr(outer_pad, 33) <> pg_catalog.decode(pg_catalog.repeat('5c', 32), 'hex') THEN
        RAISE 'these are not the pads of a key of 32 bytes';
    END IF;
    INSERT INTO pgtenant.keys AS k (id) VALUES (key)
        ON CONFLICT (id) DO UPDATE SET not_after = NULL RETURNING k.xmax = 0 INTO is_new;
    FOR n IN 1..8 LOOP
        name := pg_catalog.format('pgtenant.%I', pg_catalog.format('key_%s_%s', key, n));
        EXECUTE pg_catalog.format('CREATE SEQUENCE IF NOT EXISTS %s
            MINVALUE -9223372036854775808 MAXVALUE 9223372036854775807', name);
        PERFORM pg_catalog.setval(name::regclass, ('x' || pg_catalog.encode(pg_catalog.substr(
            CASE WHEN n <= 4 THEN inner_pad ELSE outer_pad END, 8 * ((n - 1) % 4) + 1, 8), 'hex'))::bit(64)::bigint);
    END LOOP;
    PERFORM pgtenant.define_key(key), pgtenant.keep_to_owner();
    RETURN is_new;
END
$body$;

-- Retires all keys but one, and drops those whose time is over. Returns how many are left beside it.
CREATE OR REPLACE FUNCTION pgtenant.retire_keys(but text, after interval) RETURNS bigint
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    k record;
BEGIN
    FOR k IN UPDATE pgtenant.keys SET not_after = pg_catalog.now() + after
        WHERE id <> but AND not_after IS NULL RETURNING id
    LOOP
        PERFORM pgtenant.define_key(k.id);
    END LOOP;
    FOR k IN DELETE FROM pgtenant.keys WHERE not_after <= pg_catalog.now() RETURNING id LOOP
        EXECUTE pg_catalog.format('DROP FUNCTION IF EXISTS pgtenant.%I(text)', 'bind_' || k.id);
        EXECUTE pg_catalog.format('DROP DOMAIN IF EXISTS pgtenant.%I', 'credential_' || k.id);
        FOR n IN 1..8 LOOP
            EXECUTE pg_catalog.format('DROP SEQUENCE IF EXISTS pgtenant.%I', pg_catalog.format('key_%s_%s', k.id, n));
        END LOOP;
    END LOOP;
    RETURN (SELECT count(*) FROM pgtenant.keys WHERE id <> but);
END
$body$;

-- Takes away what others were given of the sequences: by ALTER DEFAULT PRIVILEGES, say.
CREATE OR REPLACE FUNCTION pgtenant.keep_to_owner() RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    r record;
BEGIN
    FOR r IN SELECT DISTINCT c.oid::regclass AS sequence,
            CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee
        FROM pg_class c, LATERAL aclexplode(c.relacl) a
        WHERE c.relnamespace = 'pgtenant'::regnamespace AND c.relkind = 'S' AND a.grantee <> c.relowner
    LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON SEQUENCE %s FROM %s CASCADE', r.sequence, r.grantee);
    END LOOP;
END
$body$;

DO $keys$
DECLARE
    k record;
BEGIN
    IF pg_catalog.to_regclass('pgtenant.keys_of_version_2') IS NOT NULL THEN
        FOR k IN SELECT * FROM pgtenant.keys_of_version_2 LOOP
            PERFORM pgtenant.put_key(k.id, k.inner_pad, k.outer_pad);
            UPDATE pgtenant.keys SET made = k.made, not_after = k.not_after WHERE id = k.id;
        END LOOP;
        DROP TABLE pgtenant.keys_of_version_2;
    END IF;
    -- As this version defines them.
    FOR k IN SELECT id FROM pgtenant.keys LOOP
        PERFORM pgtenant.define_key(k.id);
    END LOOP;
    PERFORM pgtenant.keep_to_owner();
END
$keys$;

-- Of version 2.
DROP FUNCTION IF EXISTS pgtenant.next_epoch();
DROP DOMAIN IF EXISTS pgtenant.sealed_value;
DROP SEQUENCE IF EXISTS pgtenant.epoch;

REVOKE ALL ON FUNCTION pgtenant.define_key(text), pgtenant.put_key(text, bytea, bytea),
    pgtenant.retire_keys(text, interval), pgtenant.keep_to_owner() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pgtenant.challenge(bigint, text), pgtenant.refuse(),
    pgtenant.tenant_id(), pgtenant.tenant_id_int(), pgtenant.tenant_id_bigint(), pgtenant.tenant_id_uuid() TO PUBLIC;

COMMENT ON SCHEMA pgtenant IS 'pgtenant seal, version 3';
COMMIT;
