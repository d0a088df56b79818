-- Indexes of the users' own tables, and their key columns in order (NULL: an expression). $1: the roles.
SELECT i.indrelid::int8 AS relation, c.relname AS name, i.indisunique AS "unique", i.indisprimary AS "primary",
    i.indpred IS NOT NULL AS partial, i.indisvalid AS valid,
    ARRAY(SELECT a.attname FROM generate_series(0, i.indnkeyatts - 1) k
        LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k] ORDER BY k) AS columns,
    -- An identity, serial, or whatever else has a sequence in its default. OVERRIDING SYSTEM VALUE takes no right of its own.
    (SELECT a.attname FROM generate_series(0, i.indnkeyatts - 1) k
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[k]
        WHERE i.indisunique AND (a.attidentity <> '' OR EXISTS (SELECT FROM pg_attrdef d
                JOIN pg_depend e ON e.classid = 'pg_attrdef'::regclass AND e.objid = d.oid AND e.refclassid = 'pg_class'::regclass
                JOIN pg_class s ON s.oid = e.refobjid AND s.relkind = 'S'
                WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum))
            AND EXISTS (SELECT FROM unnest($1::oid[]) r(id) WHERE has_column_privilege(r.id, a.attrelid, a.attnum, 'INSERT')
                OR has_column_privilege(r.id, a.attrelid, a.attnum, 'UPDATE'))
        ORDER BY k LIMIT 1) AS drawn
FROM pg_index i
JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_class t ON t.oid = i.indrelid
JOIN pg_namespace n ON n.oid = t.relnamespace
WHERE t.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
ORDER BY 1, 2
