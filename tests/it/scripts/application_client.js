// node-postgres and postgres.js behind a handler of requests, each of which chooses its tenant. DSN, and of each tenant the bodies that
// it must find (JSON).
const assert = require('assert');
const { Pool } = require('pg');
const postgres = require('postgres');

const [dsn, json] = process.argv.slice(2);
const tenants = Object.entries(JSON.parse(json));
const SELECT = 'SELECT body FROM items WHERE id < $1 ORDER BY id';

async function handle(pool, name, work) {
  const client = await pool.connect();
  try {
    await client.query('BEGIN');
    await client.query("SELECT set_config('app.tenant_id', $1, true)", [name]);
    const result = await work(client);
    await client.query('COMMIT');
    return result;
  } catch (error) {
    await client.query('ROLLBACK');
    throw error;
  } finally {
    client.release();
  }
}

async function main() {
  const pool = new Pool({ connectionString: dsn, max: 3 });
  for (let turn = 0; turn < 5; turn++) {
    const requests = tenants.map(async ([name, bodies]) => {
      const rows = await handle(pool, name, (client) => client.query({ name: 'bodies', text: SELECT, values: [900] }));
      assert.deepStrictEqual(rows.rows.map((row) => row.body), bodies, name);
      await assert.rejects(handle(pool, name, (client) => client.query('SELECT 1/0')), { code: '22012' });
    });
    await Promise.all(requests);
  }
  await assert.rejects(handle(pool, 'nobody', (client) => client.query('SELECT 1')), { code: '42501' });
  await pool.end();
  await withPostgresJs();
  console.log('ok');
}

// Its transactions and its statements come in pipelines.
async function withPostgresJs() {
  const sql = postgres(dsn, { max: 2 });
  for (let turn = 0; turn < 3; turn++) {
    const requests = tenants.map(async ([name, bodies]) => {
      const [, rows] = await sql.begin((tx) => [
        tx`SELECT set_config('app.tenant_id', ${name}, true)`,
        tx`SELECT body FROM items WHERE id < ${900} ORDER BY id`,
      ]);
      assert.deepStrictEqual(rows.map((row) => row.body), bodies, name);
      const read = await sql.begin('read only', async (tx) => {
        await tx`SELECT set_config('app.tenant_id', ${name}, true)`;
        return tx.savepoint((inner) => inner`SELECT count(*)::int AS n FROM items WHERE id < 900`);
      });
      assert.strictEqual(read[0].n, bodies.length, name);
    });
    await Promise.all(requests);
  }
  await sql.end();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
