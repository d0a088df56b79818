-- Tier "schema": a schema and a role for each tenant. The role owns nothing, and has rights in its
-- own schema only.
CREATE ROLE t_{tenant} LOGIN PASSWORD '{password}';
GRANT CONNECT ON DATABASE {database} TO t_{tenant};

CREATE SCHEMA t_{tenant};
CREATE TABLE t_{tenant}.orders (
    id        int PRIMARY KEY,
    tenant_id text NOT NULL DEFAULT '{tenant}',
    item      text NOT NULL,
    amount    numeric(10, 2) NOT NULL
);

GRANT USAGE ON SCHEMA t_{tenant} TO t_{tenant};
GRANT SELECT, INSERT, UPDATE, DELETE ON t_{tenant}.orders TO t_{tenant};
