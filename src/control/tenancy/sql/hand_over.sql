-- Makes a role, the one that pgtenant.new_owner names, the owner of all that was copied from a template, but for
-- what is the server's and what is an extension's.
DO $hand_over$
DECLARE
    role name := current_setting('pgtenant.new_owner');
    o record;
BEGIN
    FOR o IN
        SELECT 'SCHEMA' AS kind, format('%I', n.nspname) AS object FROM pg_namespace n
            WHERE n.nspname !~ '^pg_' AND n.nspname <> ALL (ARRAY['information_schema', 'pgtenant'])
                AND NOT EXISTS (SELECT FROM pg_depend d
                    WHERE d.classid = n.tableoid AND d.objid = n.oid AND d.deptype = 'e')
        UNION ALL
        SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW'
                WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END, format('%I.%I', n.nspname, c.relname)
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname !~ '^pg_' AND n.nspname <> ALL (ARRAY['information_schema', 'pgtenant'])
                AND c.relkind = ANY (ARRAY['r', 'p', 'S', 'v', 'm', 'f']::"char"[])
                -- A sequence of a column goes with its table.
                AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = c.tableoid AND d.objid = c.oid
                    AND (d.deptype = 'e' OR c.relkind = 'S' AND d.deptype = ANY (ARRAY['a', 'i']::"char"[])))
        UNION ALL
        SELECT CASE p.prokind WHEN 'p' THEN 'PROCEDURE' WHEN 'a' THEN 'AGGREGATE' ELSE 'FUNCTION' END,
                format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid))
            FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
            WHERE n.nspname !~ '^pg_' AND n.nspname <> ALL (ARRAY['information_schema', 'pgtenant'])
                AND NOT EXISTS (SELECT FROM pg_depend d
                    WHERE d.classid = p.tableoid AND d.objid = p.oid AND d.deptype = 'e')
        UNION ALL
        SELECT CASE t.typtype WHEN 'd' THEN 'DOMAIN' ELSE 'TYPE' END, format('%I.%I', n.nspname, t.typname)
            FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
            WHERE n.nspname !~ '^pg_' AND n.nspname <> ALL (ARRAY['information_schema', 'pgtenant'])
                AND (t.typtype = ANY (ARRAY['d', 'e', 'r']::"char"[])
                    OR t.typtype = 'c' AND EXISTS (SELECT FROM pg_class c WHERE c.oid = t.typrelid AND c.relkind = 'c'))
                AND NOT EXISTS (SELECT FROM pg_depend d
                    WHERE d.classid = t.tableoid AND d.objid = t.oid AND d.deptype = 'e')
    LOOP
        EXECUTE format('ALTER %s %s OWNER TO %I', o.kind, o.object, role);
    END LOOP;
END
$hand_over$;
