-- Tier "pool": every tenant's rows in the same tables, kept apart by row level security.
-- {login} is the role that the proxy logs in as: it owns nothing and bypasses nothing.
CREATE ROLE {login} LOGIN PASSWORD '{password}';
GRANT CONNECT ON DATABASE {database} TO {login};

CREATE TABLE IF NOT EXISTS orders (
    id        int PRIMARY KEY,
    tenant_id text NOT NULL,
    item      text NOT NULL,
    amount    numeric(10, 2) NOT NULL
);
CREATE INDEX IF NOT EXISTS orders_tenant_id ON orders (tenant_id);

-- FORCE: not even the owner is exempt.
ALTER TABLE orders ENABLE ROW LEVEL SECURITY;
ALTER TABLE orders FORCE ROW LEVEL SECURITY;

-- Without a tenant the variable is NULL or empty: no row has that tenant_id. The subselect is
-- evaluated once a statement and not once a row.
DROP POLICY IF EXISTS tenant ON orders;
CREATE POLICY tenant ON orders
    USING (tenant_id = (SELECT current_setting('app.tenant_id', true)))
    WITH CHECK (tenant_id = (SELECT current_setting('app.tenant_id', true)));

GRANT SELECT, INSERT, UPDATE, DELETE ON orders TO {login};
