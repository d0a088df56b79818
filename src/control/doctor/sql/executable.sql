-- Which of the server's or an extension's functions with these names the roles may execute. $1: the roles, $2: names.
SELECT f.proname AS name, format('%I.%I(%s)', n.nspname, f.proname, oidvectortypes(f.proargtypes)) AS signature
FROM pg_proc f
JOIN pg_namespace n ON n.oid = f.pronamespace
WHERE f.proname = ANY ($2::text[])
    AND (n.nspname = 'pg_catalog' OR EXISTS (SELECT FROM pg_depend e
        WHERE e.classid = 'pg_proc'::regclass AND e.objid = f.oid AND e.deptype = 'e'))
    AND EXISTS (SELECT FROM unnest($1::oid[]) r(id)
        WHERE has_schema_privilege(r.id, n.oid, 'USAGE') AND has_function_privilege(r.id, f.oid, 'EXECUTE'))
ORDER BY 2
