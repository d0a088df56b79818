-- Tier "schema" over a table for each tenant: the tables are together in schema data, and the
-- tenant's schema has updatable views with the names that the application uses. The tenant's role
-- has no right on the tables; the views act with the rights of their owner.
CREATE SCHEMA IF NOT EXISTS data;
CREATE TABLE data.orders_{tenant} (
    id        int PRIMARY KEY,
    tenant_id text NOT NULL DEFAULT '{tenant}' CHECK (tenant_id = '{tenant}'),
    item      text NOT NULL,
    amount    numeric(10, 2) NOT NULL
);

CREATE ROLE t_{tenant} LOGIN PASSWORD '{password}';
GRANT CONNECT ON DATABASE {database} TO t_{tenant};

CREATE SCHEMA t_{tenant};
CREATE VIEW t_{tenant}.orders AS SELECT id, tenant_id, item, amount FROM data.orders_{tenant};

GRANT USAGE ON SCHEMA t_{tenant} TO t_{tenant};
GRANT SELECT, INSERT, UPDATE, DELETE ON t_{tenant}.orders TO t_{tenant};
