-- What ALTER ROLE and ALTER DATABASE set for sessions of the login here. $1: the login.
SELECT r.rolname AS role, d.datname AS database, split_part(s, '=', 1) AS name, substr(s, strpos(s, '=') + 1) AS value
FROM pg_db_role_setting x
LEFT JOIN pg_roles r ON r.oid = x.setrole
LEFT JOIN pg_database d ON d.oid = x.setdatabase
CROSS JOIN LATERAL unnest(x.setconfig) s
WHERE (x.setrole = 0 OR r.rolname = $1::text) AND (x.setdatabase = 0 OR d.datname = current_database())
ORDER BY 1, 2, 3
