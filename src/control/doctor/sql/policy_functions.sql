-- Functions of the users' own that policies call. $1: the roles.
SELECT DISTINCT n.nspname AS schema, f.proname AS name,
    format('%I.%I(%s)', n.nspname, f.proname, oidvectortypes(f.proargtypes)) AS signature,
    f.proowner = ANY ($1::oid[]) AS owned,
    coalesce(nullif(f.prosrc, ''), pg_get_function_sqlbody(f.oid), '') AS source
FROM pg_depend d
JOIN pg_proc f ON f.oid = d.refobjid
JOIN pg_namespace n ON n.oid = f.pronamespace
WHERE d.classid = 'pg_policy'::regclass AND d.refclassid = 'pg_proc'::regclass AND n.nspname <> 'pg_catalog'
