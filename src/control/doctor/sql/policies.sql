-- Policies, with the expressions as the server writes them. $1: the roles.
SELECT p.polrelid::int8 AS relation, p.polname AS name, p.polcmd::text AS command, p.polpermissive AS permissive,
    0::oid = ANY (p.polroles) OR p.polroles && $1::oid[] AS applies,
    pg_get_expr(p.polqual, p.polrelid) AS "using", pg_get_expr(p.polwithcheck, p.polrelid) AS "check"
FROM pg_policy p ORDER BY p.polrelid, p.polname
