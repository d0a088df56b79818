-- A database into which nobody gets without a grant, and in which nobody makes objects uninvited.
-- Statements one by one: CREATE DATABASE runs outside of transactions.
CREATE DATABASE {database};
REVOKE ALL ON DATABASE {database} FROM PUBLIC;
