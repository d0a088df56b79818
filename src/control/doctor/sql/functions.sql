-- Functions of the users' own that act with their owner's rights, that see rows before policies do, or that may do
-- what the server's account may. $1: the roles.
SELECT n.nspname AS schema,
    format('%I.%I(%s)', n.nspname, f.proname, oidvectortypes(f.proargtypes)) AS signature,
    f.prokind::text AS kind, pg_get_userbyid(f.proowner) AS owner, f.proowner = ANY ($1::oid[]) AS owned,
    coalesce(o.rolsuper OR o.rolbypassrls, true) AS owner_bypasses, f.prosecdef AS definer, f.proleakproof AS leakproof,
    CASE WHEN NOT l.lanpltrusted AND l.lanname NOT IN ('internal', 'c') THEN l.lanname END AS untrusted_language,
    (SELECT substr(s, 13) FROM unnest(f.proconfig) s WHERE s LIKE 'search_path=%') AS search_path,
    f.prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)
        AND EXISTS (SELECT FROM unnest($1::oid[]) r(id)
            WHERE has_schema_privilege(r.id, n.oid, 'USAGE') AND has_function_privilege(r.id, f.oid, 'EXECUTE')) AS executable
FROM pg_proc f
JOIN pg_namespace n ON n.oid = f.pronamespace
JOIN pg_language l ON l.oid = f.prolang
LEFT JOIN pg_roles o ON o.oid = f.proowner
WHERE (f.prosecdef OR f.proleakproof OR NOT l.lanpltrusted AND l.lanname NOT IN ('internal', 'c')) AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_proc'::regclass AND e.objid = f.oid AND e.deptype = 'e')
ORDER BY 3
