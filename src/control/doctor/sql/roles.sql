-- The login and every role whose rights it has or can take. $1: the login.
SELECT r.oid::int8 AS oid, r.rolname AS name, r.oid = me.oid AS is_login, r.rolsuper AS superuser,
    r.rolbypassrls AS bypass_rls, r.rolcreaterole AS create_role, r.rolcreatedb AS create_db,
    r.rolreplication AS replication,
    -- Which of its own memberships lead there.
    ARRAY(SELECT d.rolname FROM pg_auth_members m JOIN pg_roles d ON d.oid = m.roleid
        WHERE m.member = me.oid AND pg_has_role(d.oid, r.oid, 'MEMBER') ORDER BY 1) AS via
FROM pg_roles me
JOIN pg_roles r ON r.oid = me.oid OR (NOT me.rolsuper AND pg_has_role(me.oid, r.oid, 'MEMBER'))
WHERE me.rolname = $1::text
