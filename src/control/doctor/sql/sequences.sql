-- Sequences whose state the roles may read or set. $1: the roles.
SELECT n.nspname AS schema, c.relname AS name, bool_or(has_sequence_privilege(r.id, c.oid, 'UPDATE')) AS "update"
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN unnest($1::oid[]) r(id) ON has_schema_privilege(r.id, n.oid, 'USAGE')
WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
GROUP BY n.nspname, c.relname
HAVING bool_or(has_sequence_privilege(r.id, c.oid, 'SELECT')) OR bool_or(has_sequence_privilege(r.id, c.oid, 'UPDATE'))
ORDER BY 1, 2
