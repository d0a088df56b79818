-- The database and the session. $1: the roles, $2: the login.
SELECT current_setting('server_version_num')::int4 AS version_num, current_setting('server_version') AS version,
    current_database() AS database, d.datdba = ANY ($1::oid[]) AS owned,
    EXISTS (SELECT FROM unnest($1::oid[]) r(id) WHERE has_database_privilege(r.id, d.oid, 'TEMP')) AS temp,
    EXISTS (SELECT FROM unnest($1::oid[]) r(id) WHERE has_database_privilege(r.id, d.oid, 'CREATE')) AS "create",
    has_database_privilege('public', d.oid, 'CONNECT') AS public_connect,
    EXISTS (SELECT FROM unnest($1::oid[]) r(id)
        WHERE has_table_privilege(r.id, 'pg_catalog.pg_settings'::regclass::oid, 'UPDATE')
           OR has_any_column_privilege(r.id, 'pg_catalog.pg_settings'::regclass::oid, 'UPDATE')) AS update_settings,
    to_regprocedure('pg_catalog.set_config(text,text,boolean)')::oid IS NOT DISTINCT FROM 2078::oid AS set_config_is_2078,
    coalesce(has_function_privilege($2::text, to_regprocedure('pg_catalog.set_config(text,text,boolean)'), 'EXECUTE'), false)
        AS set_config_executable,
    to_regprocedure('pgtenant.tenant_id()') IS NOT NULL AS has_tenant_id,
    obj_description(to_regnamespace('pgtenant')::oid, 'pg_namespace') AS seal,
    -- The pads were in a table up to version 2.
    EXISTS (SELECT FROM pg_class k JOIN pg_namespace n ON n.oid = k.relnamespace, unnest($1::oid[]) r(id)
        WHERE n.nspname = 'pgtenant' AND (r.id = n.nspowner OR r.id = k.relowner
            OR k.relkind = 'S' AND has_sequence_privilege(r.id, k.oid, 'SELECT, UPDATE, USAGE')
            OR k.relkind = 'r' AND has_any_column_privilege(r.id, k.oid, 'SELECT'))) AS reads_keys,
    current_setting('lo_compat_privileges')::bool AS lo_compat,
    current_setting('max_locks_per_transaction')::int8 AS locks_per_transaction,
    current_setting('max_connections')::int8 + current_setting('max_prepared_transactions')::int8 AS lockers,
    (SELECT count(*) FROM pg_largeobject_metadata WHERE lomowner = ANY ($1::oid[])) AS large_objects,
    ARRAY(SELECT n.nspname FROM pg_namespace n WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
        AND EXISTS (SELECT FROM unnest($1::oid[]) r(id) WHERE has_schema_privilege(r.id, n.oid, 'CREATE')) ORDER BY 1)
        AS creatable,
    ARRAY(SELECT w.fdwname FROM pg_foreign_data_wrapper w
        WHERE EXISTS (SELECT FROM unnest($1::oid[]) r(id) WHERE has_foreign_data_wrapper_privilege(r.id, w.oid, 'USAGE'))
        ORDER BY 1) AS wrappers,
    ARRAY(SELECT s.srvname FROM pg_foreign_server s
        WHERE EXISTS (SELECT FROM unnest($1::oid[]) r(id) WHERE has_server_privilege(r.id, s.oid, 'USAGE'))
        ORDER BY 1) AS foreign_servers,
    -- What shows values of tables that were analyzed, those of temporary ones too.
    ARRAY(SELECT k.relname FROM pg_class k WHERE k.relnamespace = 'pg_catalog'::regnamespace
        AND k.relname IN ('pg_stats', 'pg_stats_ext', 'pg_stats_ext_exprs', 'pg_statistic', 'pg_statistic_ext_data')
        AND EXISTS (SELECT FROM unnest($1::oid[]) r(id)
            WHERE has_table_privilege(r.id, k.oid, 'SELECT') OR has_any_column_privilege(r.id, k.oid, 'SELECT'))
        ORDER BY 1) AS statistics,
    -- 16384: what is made after initdb; 13: the language C.
    ARRAY(SELECT DISTINCT p.probin FROM pg_proc p WHERE p.oid >= 16384 AND p.prolang = 13 AND p.probin IS NOT NULL ORDER BY 1)
        AS libraries
FROM pg_database d WHERE d.datname = current_database()
