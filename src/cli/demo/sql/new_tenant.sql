-- What `pgtenant tenant create` makes in the schema of a new tenant of placement "new".
CREATE TABLE orders (
    id        int PRIMARY KEY,
    item      text NOT NULL
);
INSERT INTO orders VALUES (1, 'a welcome present');
