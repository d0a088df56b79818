-- pgtenant's seal, version 2: what lets policies tell which tenant a session serves, whatever SQL the session runs.
--
-- Run it in each database of a sealed placement, as the role that is to own the schema: not an application's, and none
-- that an application's is a member of. It can be run again at any time, also under load. `pgtenant seal` runs it
-- and installs the key.
--
-- A policy uses it as
--     CREATE POLICY tenant ON orders USING (tenant_id = (SELECT pgtenant.tenant_id()));
-- always in a sub-select, so that it is called once a query and not once a row.

BEGIN;
SET LOCAL client_min_messages = warning;
SELECT pg_catalog.pg_advisory_xact_lock(7309741246873632);

CREATE SCHEMA IF NOT EXISTS pgtenant;

-- A schema that somebody else made, or can make things in, may hold anything.
DO $check$
BEGIN
    PERFORM FROM pg_catalog.pg_namespace n
        WHERE n.nspname = 'pgtenant' AND n.nspowner = current_user::pg_catalog.regrole;
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

-- The keys as the two pads of HMAC (RFC 2104). Only the owner reads them.
CREATE TABLE IF NOT EXISTS pgtenant.keys (
    id text PRIMARY KEY,
    inner_pad bytea NOT NULL CHECK (octet_length(inner_pad) = 64),
    outer_pad bytea NOT NULL CHECK (octet_length(outer_pad) = 64),
    made timestamptz NOT NULL DEFAULT now(),
    -- After this nothing is good that was sealed with it. NULL: the key in use.
    not_after timestamptz
);
REVOKE ALL ON TABLE pgtenant.keys FROM PUBLIC;

-- The number of a binding of a session to a tenant. What a session has taken from it last is known to that session
-- alone (currval), only the functions below can advance it, and no number is given twice: a value that is sealed
-- for one is good in one session, and there only until the next.
CREATE SEQUENCE IF NOT EXISTS pgtenant.epoch;
REVOKE ALL ON SEQUENCE pgtenant.epoch FROM PUBLIC;

-- What follows is written for speed: a scrub (DISCARD ALL) throws the plans of functions away, so a function is planned anew
-- whenever its session has changed tenants. Few expressions, each with all names qualified: functions in place of
-- operators are found at once, and no search_path need be set, which would cost as much as all the rest. Do not add IN, BETWEEN,
-- IS DISTINCT FROM or a bare operator: they are looked up in the caller's search_path.

-- A number for a new binding. A tenant that calls it makes its own context worthless, and nothing else.
CREATE OR REPLACE FUNCTION pgtenant.next_epoch() RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER PARALLEL UNSAFE
AS 'BEGIN RETURN pg_catalog.nextval(''pgtenant.epoch''::pg_catalog.regclass); END';

-- Asked by pgtenant when it seals on a connection for the first time, and now and then:
-- version|epoch|pid|start of the server|its clock|is the key known|oid of next_epoch(). The epoch is a new one unless it is
-- `known`.
CREATE OR REPLACE FUNCTION pgtenant.challenge(known bigint, key text) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY DEFINER PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    epoch bigint;
BEGIN
    IF known > 0 THEN
        BEGIN
            epoch := pg_catalog.currval('pgtenant.epoch'::pg_catalog.regclass);
        EXCEPTION WHEN object_not_in_prerequisite_state THEN
            epoch := 0;
        END;
    END IF;
    IF epoch IS DISTINCT FROM known THEN
        epoch := pg_catalog.nextval('pgtenant.epoch'::pg_catalog.regclass);
    END IF;
    RETURN pg_catalog.concat_ws('|', 2, epoch, pg_catalog.pg_backend_pid(),
        (extract(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::bigint,
        extract(epoch FROM pg_catalog.clock_timestamp())::bigint,
        (SELECT count(*) FROM pgtenant.keys k
            WHERE k.id = challenge.key AND (k.not_after IS NULL OR k.not_after > pg_catalog.now())),
        'pgtenant.next_epoch()'::pg_catalog.regprocedure::pg_catalog.oid);
END
$body$;

CREATE OR REPLACE FUNCTION pgtenant.refuse() RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL SAFE
AS $body$
BEGIN
    RAISE 'the tenant context of this session is not valid' USING ERRCODE = 'insufficient_privilege';
END
$body$;

-- The tenant of this session. NULL without a context; an error for one that is forged, expired, or of another
-- session or binding; an error (55000) in a session without an epoch, which is not caught: a parallel query allows no
-- subtransaction.
--
-- The value is tenant|expires|key|mac, the MAC 64 hexadecimal digits of HMAC-SHA-256 over all before it, and then, in binary,
-- the epoch, the process id and the start of the server: what is of variable length comes first and cannot run into
-- them. What it expires by is the start of the transaction or of the statement, whichever was first: neither a long
-- transaction nor a procedure that commits loses its tenant half-way.
--
-- What it compares are hashes of the MACs, so that the time it takes tells nothing of the right one. No query has the pads as
-- parameters, so that no plan that is printed (debug_print_plan) shows them.
--
-- The check is a domain's, because expressions of domains are kept as they are when plans are thrown away, and never looked up
-- again: the function is left with two small plans. A value is the outer pad, the inner pad, and the text of the variable.
DO $domain$
BEGIN
    IF pg_catalog.to_regtype('pgtenant.sealed_value') IS NULL THEN
        CREATE DOMAIN pgtenant.sealed_value AS pg_catalog.bytea;
    END IF;
END
$domain$;
REVOKE ALL ON TYPE pgtenant.sealed_value FROM PUBLIC;
ALTER DOMAIN pgtenant.sealed_value DROP CONSTRAINT IF EXISTS valid;
ALTER DOMAIN pgtenant.sealed_value ADD CONSTRAINT valid CHECK (CASE
    WHEN pg_catalog.byteaeq(
            -- The last 64 bytes against the MAC of what is before them and the | between.
            pg_catalog.sha256(pg_catalog.substr(VALUE, pg_catalog.int4mi(pg_catalog.length(VALUE), 63))),
            pg_catalog.sha256(pg_catalog.convert_to(pg_catalog.encode(
                pg_catalog.sha256(pg_catalog.byteacat(
                    pg_catalog.substr(VALUE, 1, 64),
                    pg_catalog.sha256(pg_catalog.byteacat(pg_catalog.byteacat(pg_catalog.byteacat(
                        pg_catalog.substr(VALUE, 65, pg_catalog.int4mi(pg_catalog.length(VALUE), 129)),
                        pg_catalog.int8send(pg_catalog.currval('pgtenant.epoch'::pg_catalog.regclass))),
                        pg_catalog.int4send(pg_catalog.pg_backend_pid())),
                        pg_catalog.timestamptz_send(pg_catalog.pg_postmaster_start_time()))))),
                'hex'), 'UTF8')))
        AND pg_catalog.timestamptz_le(
            LEAST(pg_catalog.transaction_timestamp(), pg_catalog.statement_timestamp()),
            pg_catalog.to_timestamp(pg_catalog.split_part(
                pg_catalog.convert_from(pg_catalog.substr(VALUE, 129), 'UTF8'), '|', 2)::pg_catalog.float8))
        THEN true
    -- Also without a key.
    ELSE pgtenant.refuse() IS NULL
END);

CREATE OR REPLACE FUNCTION pgtenant.tenant_id() RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL RESTRICTED
AS $body$
DECLARE
    -- Types are looked for among temporary objects first.
    padded pg_catalog.bytea;
BEGIN
    SELECT pg_catalog.byteacat(pg_catalog.byteacat(k.outer_pad, k.inner_pad),
            pg_catalog.convert_to(pg_catalog.current_setting('pgtenant.context', true), 'UTF8'))
        INTO padded FROM pgtenant.keys k
        WHERE k.id OPERATOR(pg_catalog.=)
                pg_catalog.split_part(pg_catalog.current_setting('pgtenant.context', true), '|', 3)
            AND (k.not_after IS NULL OR pg_catalog.timestamptz_gt(k.not_after, pg_catalog.now()));
    RETURN CASE
        WHEN pg_catalog.texteq(COALESCE(pg_catalog.current_setting('pgtenant.context', true), ''), '') THEN NULL
        WHEN padded::pgtenant.sealed_value IS NOT NULL
            THEN pg_catalog.split_part(pg_catalog.current_setting('pgtenant.context', true), '|', 1)
        ELSE pgtenant.refuse()
    END;
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

GRANT EXECUTE ON FUNCTION pgtenant.challenge(bigint, text), pgtenant.next_epoch(), pgtenant.refuse(),
    pgtenant.tenant_id(), pgtenant.tenant_id_int(), pgtenant.tenant_id_bigint(), pgtenant.tenant_id_uuid() TO PUBLIC;

COMMENT ON SCHEMA pgtenant IS 'pgtenant seal, version 2';
COMMIT;
