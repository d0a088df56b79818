// node-postgres as web applications and migration tools use it: a pool, and a client with a session of its own.
// Where to connect comes from libpq's environment variables.
const { Client, Pool } = require('pg');

const say = (what, value) => console.log(what, JSON.stringify(value));
const rest = () => new Promise((resolve) => setTimeout(resolve, 20));

async function main() {
  const pool = new Pool({ max: 3 });
  await pool.query('CREATE TABLE job (id serial PRIMARY KEY, name text, done bool DEFAULT false, at timestamptz DEFAULT now())');
  await Promise.all([...Array(20).keys()].map((n) => pool.query('INSERT INTO job (name) VALUES ($1)', [`job ${n % 5}`])));
  say('jobs', (await pool.query('SELECT name, count(*) FROM job GROUP BY name ORDER BY name')).rows);
  const taken = await Promise.all([0, 1, 2].map(async () => {
    const client = await pool.connect();
    await client.query('BEGIN');
    const { rowCount } = await client.query({ name: 'take', text: 'UPDATE job SET done = true WHERE id IN (SELECT id FROM job WHERE NOT done ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED)' });
    await rest();
    await client.query('COMMIT');
    client.release();
    return rowCount;
  }));
  say('taken', taken);
  const several = await pool.query('SELECT 1 AS a; SELECT 2 AS b');
  say('several', several.map((result) => result.rows));
  say('array', (await pool.query({ text: 'SELECT $1::int[] AS a, $2::jsonb AS j', values: [[1, 2], { k: null }], rowMode: 'array' })).rows);
  await pool.end();

  // As migration tools do: a lock, a setting and a table for the session.
  const client = new Client();
  await client.connect();
  client.on('notification', ({ channel, payload }) => say('notification', { channel, payload }));
  await client.query('SELECT pg_advisory_lock(4714)');
  await rest();
  await client.query("SET statement_timeout = '7s'");
  await rest();
  say('timeout', (await client.query('SHOW statement_timeout')).rows);
  await client.query('CREATE TEMP TABLE seen (n int)');
  await rest();
  await client.query('INSERT INTO seen SELECT generate_series(1, $1)', [3]);
  await rest();
  say('seen', (await client.query('SELECT sum(n) FROM seen')).rows);
  await client.query('LISTEN node_session');
  await rest();
  await client.query("NOTIFY node_session, 'heard'");
  await rest();
  say('unlocked', (await client.query('SELECT pg_advisory_unlock(4714) AS was')).rows);
  await client.end();
}

main().catch((error) => { console.error(error.message); process.exit(1); });
