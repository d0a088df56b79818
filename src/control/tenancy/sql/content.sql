-- A digest of what a database holds, or the schema $1 if that is not empty, but for rows: the same for two that were
-- made alike. Of one schema, its own name does not count.
WITH spaces AS (
    SELECT n.oid, CASE $1::text WHEN '' THEN n.nspname ELSE '' END AS nspname FROM pg_namespace n
        WHERE CASE $1 WHEN '' THEN n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' ELSE n.nspname = $1 END
),
foreign_objects AS (
    SELECT d.classid, d.objid FROM pg_depend d WHERE d.deptype = 'e'
),
relations AS (
    SELECT c.*, s.nspname FROM pg_class c JOIN spaces s ON s.oid = c.relnamespace
        WHERE (c.tableoid, c.oid) NOT IN (SELECT classid, objid FROM foreign_objects)
),
lines(line) AS (
    SELECT concat_ws(' ', 'relation', nspname, relname, relkind, relrowsecurity, relforcerowsecurity, relispartition,
            relpersistence, reloptions)
        FROM relations WHERE relkind <> 'i'
    UNION ALL
    SELECT concat_ws(' ', 'inherits', r.nspname, r.relname, i.inhparent::regclass) FROM relations r
        JOIN pg_inherits i ON i.inhrelid = r.oid
    UNION ALL
    SELECT concat_ws(' ', 'sequence', r.nspname, r.relname, format_type(q.seqtypid, NULL), q.seqstart, q.seqincrement,
            q.seqmin, q.seqmax, q.seqcache, q.seqcycle)
        FROM relations r JOIN pg_sequence q ON q.seqrelid = r.oid
    UNION ALL
    SELECT concat_ws(' ', 'type', s.nspname, t.typname, t.typtype, format_type(t.typbasetype, t.typtypmod), t.typnotnull)
        FROM pg_type t JOIN spaces s ON s.oid = t.typnamespace
        WHERE t.typtype <> ALL (ARRAY['b', 'c']::"char"[])
            AND (t.tableoid, t.oid) NOT IN (SELECT classid, objid FROM foreign_objects)
    UNION ALL
    SELECT concat_ws(' ', 'column', r.nspname, r.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod),
            a.attnotnull, a.attidentity, a.attgenerated, pg_get_expr(d.adbin, d.adrelid))
        FROM relations r JOIN pg_attribute a ON a.attrelid = r.oid
        LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attnum > 0 AND NOT a.attisdropped AND r.relkind <> 'i'
    UNION ALL
    SELECT concat_ws(' ', 'constraint', r.nspname, r.relname, c.conname, pg_get_constraintdef(c.oid))
        FROM relations r JOIN pg_constraint c ON c.conrelid = r.oid
    UNION ALL
    SELECT concat_ws(' ', 'index', pg_get_indexdef(r.oid)) FROM relations r WHERE r.relkind = 'i'
    UNION ALL
    SELECT concat_ws(' ', 'view', r.nspname, r.relname, pg_get_viewdef(r.oid)) FROM relations r
        WHERE r.relkind = ANY (ARRAY['v', 'm']::"char"[])
    UNION ALL
    SELECT concat_ws(' ', 'trigger', pg_get_triggerdef(t.oid)) FROM relations r JOIN pg_trigger t ON t.tgrelid = r.oid
        WHERE NOT t.tgisinternal
    UNION ALL
    SELECT concat_ws(' ', 'policy', r.nspname, r.relname, p.polname, p.polcmd, p.polpermissive, p.polroles,
            pg_get_expr(p.polqual, p.polrelid), '|', pg_get_expr(p.polwithcheck, p.polrelid))
        FROM relations r JOIN pg_policy p ON p.polrelid = r.oid
    UNION ALL
    SELECT concat_ws(' ', 'function', s.nspname, p.proname, pg_get_function_arguments(p.oid),
            CASE WHEN p.prokind = ANY (ARRAY['f', 'p']::"char"[]) THEN pg_get_functiondef(p.oid) END)
        FROM pg_proc p JOIN spaces s ON s.oid = p.pronamespace
        WHERE (p.tableoid, p.oid) NOT IN (SELECT classid, objid FROM foreign_objects)
    UNION ALL
    SELECT concat_ws(' ', 'enum', s.nspname, t.typname, e.enumsortorder, e.enumlabel)
        FROM pg_type t JOIN spaces s ON s.oid = t.typnamespace JOIN pg_enum e ON e.enumtypid = t.oid
    UNION ALL
    SELECT concat_ws(' ', 'extension', e.extname, e.extversion) FROM pg_extension e
        WHERE $1 = ''
),
own(line) AS (
    SELECT CASE $1 WHEN '' THEN line ELSE regexp_replace(line, '(?<![[:alnum:]_"$])' || regexp_replace(quote_ident($1), '([^[:alnum:]_])', '\\\1', 'g') || '[.]', '', 'g') END FROM lines
)
SELECT encode(sha256(convert_to(coalesce(string_agg(line, E'\n' ORDER BY line COLLATE "C"), ''), 'UTF8')), 'hex') FROM own
