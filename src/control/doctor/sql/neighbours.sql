-- What the roles have in the places of other tenants, and those here. $1: the roles, $2: the login,
-- $3: schemas of other tenants, $4: logins of other tenants, $5: the database of the catalog of tenants, if it is here.
SELECT
    ARRAY(SELECT n.nspname FROM pg_namespace n WHERE n.nspname = ANY ($3::text[])
        AND EXISTS (SELECT FROM unnest($1::oid[]) r(id)
            WHERE has_schema_privilege(r.id, n.oid, 'USAGE') OR has_schema_privilege(r.id, n.oid, 'CREATE'))
        ORDER BY 1) AS schemas,
    ARRAY(SELECT r.rolname FROM pg_roles r WHERE r.rolname = ANY ($4::text[]) AND r.rolname <> $2::text
        AND has_database_privilege(r.oid, current_database(), 'CONNECT') ORDER BY 1) AS connect,
    EXISTS (SELECT FROM pg_database d, unnest($1::oid[]) r(id) WHERE d.datname = $5::text
        AND has_database_privilege(r.id, d.oid, 'CONNECT')) AS catalog
