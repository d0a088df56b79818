"""psycopg 3 as one tenant: DSN, the bodies it must find (JSON), the first of the ids it may use."""

import json
import sys

import psycopg

dsn, bodies, first = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
SELECT = "SELECT body FROM items WHERE id < 900 ORDER BY id"
SELECT_FROM = "SELECT body FROM items WHERE id >= %s AND id < 900 ORDER BY id"


def found(cursor):
    return [row[0] for row in cursor]


with psycopg.connect(dsn, autocommit=True) as conn:
    assert found(conn.execute(SELECT)) == bodies
    assert found(conn.execute(SELECT_FROM, (2,))) == bodies[1:]
    assert found(conn.execute(SELECT_FROM, (2,), binary=True)) == bodies[1:]

    # Prepared statements of this client and of others, used by turns in transactions of their own.
    with psycopg.connect(dsn, autocommit=True) as second:
        for n in range(30):
            for c in (conn, second):
                assert found(c.execute(SELECT_FROM, (1,), prepare=True)) == bodies
                assert c.execute("SELECT %s::int + 1", (n,), prepare=True).fetchone() == (n + 1,)
        # More different ones than psycopg keeps: it deallocates the oldest.
        for n in range(120):
            assert conn.execute(f"SELECT {n} + %s::int", (n,), prepare=True).fetchone() == (2 * n,)

    with conn.pipeline():
        cursors = [conn.execute("SELECT %s::int", (n,)) for n in range(20)]
        rows = conn.execute(SELECT)
    assert [c.fetchone()[0] for c in cursors] == list(range(20))
    assert found(rows) == bodies
    try:
        with conn.pipeline() as pipeline:
            conn.execute("SELECT 1")
            conn.execute("SELECT 1/0")
            conn.execute("SELECT 2")
            pipeline.sync()
    except psycopg.errors.DivisionByZero:
        pass
    else:
        raise AssertionError("the pipeline did not fail")
    assert found(conn.execute(SELECT)) == bodies

    with conn.cursor().copy("COPY plain (id, body) FROM STDIN") as copy:
        for n in range(5):
            copy.write_row((first + n, f"copied {n}"))
    with conn.cursor().copy(f"COPY (SELECT body FROM plain WHERE id >= {first} AND id < {first} + 500 ORDER BY id) TO STDOUT") as copy:
        assert [row[0] for row in copy.rows()] == [f"copied {n}" for n in range(5)]
    try:
        with conn.cursor().copy("COPY plain (id, body) FROM STDIN") as copy:
            copy.write_row((first, "twice"))
    except psycopg.errors.UniqueViolation:
        pass
    else:
        raise AssertionError("the copy did not fail")
    assert conn.execute("DELETE FROM plain WHERE id >= %s AND id < %s", (first, first + 500)).rowcount == 5

with psycopg.connect(dsn) as conn:
    with conn.cursor(name="on_the_server") as cursor:
        cursor.itersize = 1
        cursor.execute(SELECT)
        assert found(cursor) == bodies
    conn.commit()
    try:
        conn.execute("SELECT 1/0")
    except psycopg.errors.DivisionByZero:
        conn.rollback()
    conn.execute("UPDATE items SET body = 'changed' WHERE id = 1")
    conn.rollback()
    assert found(conn.execute(SELECT)) == bodies

print("ok")
