-- Indexes of the users' own tables, and their key columns in order (NULL: an expression).
SELECT i.indrelid::int8 AS relation, c.relname AS name, i.indisunique AS "unique", i.indisprimary AS "primary",
    i.indpred IS NOT NULL AS partial, i.indisvalid AS valid,
    ARRAY(SELECT a.attname FROM generate_series(0, i.indnkeyatts - 1) k
        LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k] ORDER BY k) AS columns
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_class t ON t.oid = i.indrelid
JOIN pg_namespace n ON n.oid = t.relnamespace
WHERE t.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
ORDER BY 1, 2
