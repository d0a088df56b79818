-- pgtenant's seal, version 1: what lets policies tell which tenant a session serves, whatever SQL the session runs.
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

-- Asked by pgtenant before it seals: version|epoch|pid|start of the server|its clock|is the key known. The epoch is a
-- new one unless it is `known`. A tenant that calls it makes its own context worthless, and nothing else.
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
    RETURN pg_catalog.concat_ws('|', 1, epoch, pg_catalog.pg_backend_pid(),
        (extract(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::bigint,
        extract(epoch FROM pg_catalog.clock_timestamp())::bigint,
        (SELECT count(*) FROM pgtenant.keys k
            WHERE k.id = challenge.key AND (k.not_after IS NULL OR k.not_after > pg_catalog.now())));
END
$body$;

-- The tenant of this session. NULL without a context; an error for one that is forged, expired, or of another
-- session or binding.
--
-- The value is tenant|expires|key|mac. What it expires by is the start of the transaction or of the statement, whichever
-- was first: neither a long transaction nor a procedure that commits loses its tenant half-way.
--
-- What it compares first are hashes, so that the time it takes tells nothing of the right MAC. No query has the pads as
-- parameters, so that no plan that is printed (debug_print_plan) shows them.
CREATE OR REPLACE FUNCTION pgtenant.tenant_id() RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp
AS $body$
DECLARE
    sealed text := pg_catalog.current_setting('pgtenant.context', true);
    part text[];
    epoch bigint;
    inner_pad bytea;
    outer_pad bytea;
    mac text;
BEGIN
    IF sealed IS NULL OR sealed = '' THEN
        RETURN NULL;
    END IF;
    part := pg_catalog.string_to_array(sealed, '|');
    IF pg_catalog.cardinality(part) = 4 THEN
        SELECT k.inner_pad, k.outer_pad INTO inner_pad, outer_pad FROM pgtenant.keys k
            WHERE k.id = part[3] AND (k.not_after IS NULL OR k.not_after > pg_catalog.now());
        IF FOUND THEN
            -- An error (55000) in a session without one. It is not caught: a parallel query allows no subtransaction.
            epoch := pg_catalog.currval('pgtenant.epoch'::pg_catalog.regclass);
            mac := pg_catalog.encode(pg_catalog.sha256(outer_pad || pg_catalog.sha256(inner_pad ||
                pg_catalog.convert_to(pg_catalog.concat_ws('|', 1, part[1], part[2], epoch, pg_catalog.pg_backend_pid(),
                    (extract(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::bigint), 'UTF8'))), 'hex');
            IF pg_catalog.hashtextextended(mac, 0) = pg_catalog.hashtextextended(part[4], 0) AND mac = part[4]
                AND extract(epoch FROM least(pg_catalog.transaction_timestamp(), pg_catalog.statement_timestamp()))
                    <= part[2]::bigint
            THEN
                RETURN part[1];
            END IF;
        END IF;
    END IF;
    RAISE 'the tenant context of this session is not valid' USING ERRCODE = 'insufficient_privilege';
END
$body$;

-- The same for columns of other types: integer, bigint, uuid.
CREATE OR REPLACE FUNCTION pgtenant.tenant_id_int() RETURNS integer
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
AS 'BEGIN RETURN pgtenant.tenant_id()::pg_catalog.int4; END';

CREATE OR REPLACE FUNCTION pgtenant.tenant_id_bigint() RETURNS bigint
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
AS 'BEGIN RETURN pgtenant.tenant_id()::pg_catalog.int8; END';

CREATE OR REPLACE FUNCTION pgtenant.tenant_id_uuid() RETURNS uuid
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED SET search_path = pg_catalog, pg_temp
AS 'BEGIN RETURN pgtenant.tenant_id()::pg_catalog.uuid; END';

GRANT EXECUTE ON FUNCTION pgtenant.challenge(bigint, text), pgtenant.tenant_id(), pgtenant.tenant_id_int(),
    pgtenant.tenant_id_bigint(), pgtenant.tenant_id_uuid() TO PUBLIC;

COMMENT ON SCHEMA pgtenant IS 'pgtenant seal, version 1';
COMMIT;
