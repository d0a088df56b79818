-- Tables, views and the like. $1: the roles.
SELECT c.oid::int8 AS oid, n.nspname AS schema, c.relname AS name, c.relkind::text AS kind,
    c.relrowsecurity AS rls, c.relforcerowsecurity AS forced, pg_get_userbyid(c.relowner) AS owner,
    c.relowner = ANY ($1::oid[]) AS owned, coalesce(o.rolsuper OR o.rolbypassrls, true) AS owner_bypasses,
    coalesce(array_to_string(c.reloptions, ',') ~* '(^|,)security_invoker=(true|on|yes|1)(,|$)', false) AS invoker,
    coalesce(bool_or(p.s), false) AS "select", coalesce(bool_or(p.i), false) AS "insert",
    coalesce(bool_or(p.u), false) AS "update", coalesce(bool_or(p.d), false) AS "delete",
    coalesce(bool_or(p.t), false) AS "truncate", coalesce(bool_or(p.g), false) AS "trigger",
    (SELECT i.inhparent::int8 FROM pg_inherits i WHERE i.inhrelid = c.oid ORDER BY i.inhseqno LIMIT 1) AS parent,
    EXISTS (SELECT FROM pg_depend e WHERE e.classid = 'pg_class'::regclass AND e.objid = c.oid AND e.deptype = 'e') AS of_extension,
    (SELECT coalesce(json_agg(json_build_object('name', a.attname, 'type', format_type(a.atttypid, NULL)) ORDER BY a.attnum), '[]')
        FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped) AS columns
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_roles o ON o.oid = c.relowner
LEFT JOIN LATERAL (
    SELECT has_table_privilege(r.id, c.oid, 'SELECT') OR has_any_column_privilege(r.id, c.oid, 'SELECT') AS s,
        has_table_privilege(r.id, c.oid, 'INSERT') OR has_any_column_privilege(r.id, c.oid, 'INSERT') AS i,
        has_table_privilege(r.id, c.oid, 'UPDATE') OR has_any_column_privilege(r.id, c.oid, 'UPDATE') AS u,
        has_table_privilege(r.id, c.oid, 'DELETE') AS d,
        has_table_privilege(r.id, c.oid, 'TRUNCATE') AS t,
        has_table_privilege(r.id, c.oid, 'TRIGGER') AS g
    FROM unnest($1::oid[]) r(id) WHERE has_schema_privilege(r.id, n.oid, 'USAGE')
) p ON true
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't'
    AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
GROUP BY c.oid, n.oid, n.nspname, o.rolsuper, o.rolbypassrls
ORDER BY n.nspname, c.relname
