-- Types of the users' own that are no arrays and no rows of tables. $1: schemas of other tenants.
SELECT t.typname AS name, t.oid::int8 AS oid
FROM pg_type t
JOIN pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_class c ON c.oid = t.typrelid
WHERE t.oid >= 16384 AND t.typtype IN ('b', 'c', 'd', 'e', 'm', 'r') AND t.typcategory <> 'A'
    AND (t.typrelid = 0 OR c.relkind = 'c')
    AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgtenant') AND n.nspname <> ALL ($1::text[])
ORDER BY 1, 2
