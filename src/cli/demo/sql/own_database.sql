-- Tiers "database" and "instance": the tenant has the whole database. Run in that database.
CREATE ROLE {login} LOGIN PASSWORD '{password}';
GRANT CONNECT ON DATABASE {database} TO {login};

CREATE TABLE orders (
    id        int PRIMARY KEY,
    tenant_id text NOT NULL DEFAULT '{tenant}',
    item      text NOT NULL,
    amount    numeric(10, 2) NOT NULL
);
GRANT SELECT, INSERT, UPDATE, DELETE ON orders TO {login};
