// node-postgres as one tenant: DSN, the bodies it must find (JSON), the first of the ids it may use.
const assert = require('assert');
const { Client } = require('pg');

const [dsn, json, first] = process.argv.slice(2);
const bodies = JSON.parse(json);
const id = Number(first);
const SELECT = 'SELECT body FROM items WHERE id < 900 ORDER BY id';
const SELECT_FROM = 'SELECT body FROM items WHERE id >= $1 AND id < 900 ORDER BY id';
const found = (result) => result.rows.map((row) => row.body);

async function main() {
  const clients = [new Client(dsn), new Client(dsn)];
  for (const client of clients) await client.connect();
  const [client] = clients;

  assert.deepStrictEqual(found(await client.query(SELECT)), bodies);
  assert.deepStrictEqual(found(await client.query(SELECT_FROM, [2])), bodies.slice(1));
  for (let n = 0; n < 30; n++) {
    for (const c of clients) {
      const named = { name: 'rows', text: SELECT_FROM, values: [1] };
      assert.deepStrictEqual(found(await c.query(named)), bodies);
      const sum = { name: `sum ${n % 7}`, text: `SELECT $1::int + ${n % 7} AS n`, values: [n] };
      assert.strictEqual((await c.query(sum)).rows[0].n, n + (n % 7));
    }
  }
  await assert.rejects(client.query('SELECT 1/0'), { code: '22012' });
  await assert.rejects(client.query('SELECT $1::int / 0', [1]), { code: '22012' });
  await assert.rejects(client.query({ name: 'bad', text: 'SELEC $1', values: [1] }), { code: '42601' });
  await client.query('BEGIN');
  await client.query('INSERT INTO items (id, body) VALUES ($1, $2)', [id, 'written']);
  await assert.rejects(client.query('INSERT INTO items (id) VALUES ($1)', [id]), { code: '23505' });
  await client.query('ROLLBACK');
  await client.query('INSERT INTO items (id, body) VALUES ($1, $2)', [id, 'written']);
  assert.strictEqual((await client.query('DELETE FROM items WHERE id = $1', [id])).rowCount, 1);
  // Queries sent before the answer to the one before.
  const many = await Promise.all([...Array(20).keys()].map((n) => client.query('SELECT $1::int AS n', [n])));
  assert.deepStrictEqual(many.map((r) => r.rows[0].n), [...Array(20).keys()]);
  for (const c of clients) await c.end();
  console.log('ok');
}

main().catch((error) => { console.error(error); process.exit(1); });
