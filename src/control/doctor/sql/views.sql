-- Which relations each view and materialized view reads, directly or through other views.
WITH RECURSIVE reads(view, relation) AS (
    SELECT c.oid, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('v', 'm') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    UNION
    SELECT reads.view, d.refobjid
    FROM reads
    JOIN pg_rewrite w ON w.ev_class = reads.relation
    JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid AND d.refclassid = 'pg_class'::regclass
        AND d.refobjid <> w.ev_class
)
SELECT view::int8 AS view, array_agg(relation::int8 ORDER BY relation) AS relations
FROM reads WHERE relation <> view GROUP BY view
