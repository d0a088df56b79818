-- What an interactive session leaves on its connection from one transaction to the next: what comes between gives
-- a neighbour the time to use the same server connections.
\pset pager off

CREATE TEMPORARY TABLE mine AS SELECT n FROM generate_series(1, 3) n;
\! sleep 0.02
SELECT sum(n) FROM mine;
SELECT n INTO TEMPORARY others FROM mine WHERE n > 1;
\! sleep 0.02
SELECT count(*) FROM others;

SET work_mem = '123kB';
\! sleep 0.02
SHOW work_mem;
SELECT set_config('enable_seqscan', 'off', false);
\! sleep 0.02
SHOW enable_seqscan;
RESET enable_seqscan;
\! sleep 0.02
SHOW enable_seqscan;
SHOW work_mem;
SELECT set_config('my.own', 'value', false);
\! sleep 0.02
SELECT current_setting('my.own', true);
SET statement_timeout = '20ms';
\! sleep 0.02
SELECT pg_sleep(2);
RESET ALL;
\! sleep 0.02
SHOW statement_timeout;
SET search_path = nowhere;
\! sleep 0.02
SHOW search_path;
RESET search_path;
SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY;
\! sleep 0.02
CREATE TABLE refused (x int);
SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE;

PREPARE twice (int) AS SELECT 2 * $1 AS twice;
PREPARE thrice (int) AS SELECT 3 * $1 AS thrice;
\! sleep 0.02
EXECUTE twice (21);
DEALLOCATE twice;
\! sleep 0.02
EXECUTE thrice (14);
SELECT sum(n) FROM mine;
DEALLOCATE ALL;

SELECT pg_try_advisory_lock(4711);
\! sleep 0.02
SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND pid = pg_backend_pid();
SELECT pg_advisory_unlock(4711);
SELECT pg_advisory_unlock(4711);

DECLARE rows CURSOR WITH HOLD FOR SELECT generate_series(1, 5);
\! sleep 0.02
FETCH 2 FROM rows;
\! sleep 0.02
FETCH ALL FROM rows;
CLOSE rows;

LISTEN session_sql;
\! sleep 0.02
NOTIFY session_sql, 'heard';
\! sleep 0.02
SELECT channel FROM pg_listening_channels() channel;
UNLISTEN *;

DO $$ BEGIN PERFORM setseed(0.5); END $$;
CREATE SEQUENCE counter;
SELECT nextval('counter');
\! sleep 0.02
SELECT currval('counter'), lastval();

DISCARD TEMP;
\! sleep 0.02
SELECT count(*) FROM pg_class WHERE relname = 'mine' AND relpersistence = 't' AND pg_table_is_visible(oid);
DISCARD ALL;
\! sleep 0.02
SHOW work_mem;
