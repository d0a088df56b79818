"""Applications as their users write them, that choose a tenant for each request. DSN, and of each tenant the bodies that
it must find (JSON)."""

import asyncio
import json
import sys
from contextlib import contextmanager
from urllib.parse import urlparse

import asyncpg
import django
import pg8000.dbapi
import psycopg
import psycopg2
import sqlalchemy as sa
from django.conf import settings
from sqlalchemy.orm import Session

dsn, expected = sys.argv[1], json.loads(sys.argv[2])
SELECT = "SELECT body FROM items WHERE id < 900 ORDER BY id"
TURNS = 3


def requests():
    """Tenants, by turns."""
    for turn in range(TURNS):
        yield from expected.items()


def with_psycopg():
    with psycopg.connect(dsn, prepare_threshold=2) as conn:
        for name, bodies in requests():
            with conn.transaction():
                conn.execute("SELECT set_config('app.tenant_id', %s, true)", (name,))
                assert [row[0] for row in conn.execute(SELECT)] == bodies, name
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=0) as conn:
        for name, bodies in requests():
            conn.execute("SELECT set_config('app.tenant_id', %s, false)", (name,))
            assert [row[0] for row in conn.execute(SELECT)] == bodies, name
            assert conn.execute("SHOW app.tenant_id").fetchone() == (name,)
            conn.execute("SELECT set_config('app.tenant_id', '', false)")
            assert conn.execute(SELECT).fetchall() == []
        with conn.pipeline():
            for name, bodies in expected.items():
                with conn.transaction():
                    conn.execute("SELECT set_config('app.tenant_id', %s, true)", (name,))
                    rows = conn.execute(SELECT)
                assert [row[0] for row in rows] == bodies, name
    # The cursors of clients that bind on their own side.
    with psycopg.connect(dsn, cursor_factory=psycopg.ClientCursor) as conn:
        for name, bodies in requests():
            cursor = conn.cursor()
            cursor.execute("SET LOCAL app.tenant_id TO %s", (name,))
            assert [row[0] for row in cursor.execute(SELECT)] == bodies, name
            conn.commit()


def with_psycopg2():
    with psycopg2.connect(dsn) as conn, conn.cursor() as cursor:
        for name, bodies in requests():
            cursor.execute("SELECT set_config('app.tenant_id', %s, true)", (name,))
            cursor.execute(SELECT)
            assert [row[0] for row in cursor.fetchall()] == bodies, name
            conn.commit()
    conn.close()
    # Rails' around_action, as its adapter says it: SET before, RESET after, in autocommit.
    conn = psycopg2.connect(dsn)
    conn.autocommit = True
    with conn.cursor() as cursor:
        for name, bodies in requests():
            cursor.execute("SET SESSION app.tenant_id = %s", (name,))
            cursor.execute(SELECT)
            assert [row[0] for row in cursor.fetchall()] == bodies, name
            cursor.execute("RESET app.tenant_id")
            cursor.execute(SELECT)
            assert cursor.fetchall() == []
    conn.close()


def with_pg8000():
    url = urlparse(dsn)
    conn = pg8000.dbapi.connect(
        user=url.username, password=url.password, host=url.hostname, port=url.port, database=url.path[1:]
    )
    cursor = conn.cursor()
    for name, bodies in requests():
        cursor.execute("SELECT set_config('app.tenant_id', %s, true)", (name,))
        cursor.execute(SELECT)
        assert [row[0] for row in cursor.fetchall()] == bodies, name
        cursor.execute("SELECT body FROM items WHERE id = %s", (1,))
        assert [row[0] for row in cursor.fetchall()] == bodies[:1], name
        conn.commit()
    conn.close()


def with_sqlalchemy():
    engine = sa.create_engine(dsn.replace("postgresql:", "postgresql+psycopg:"), pool_size=2)
    current = {}

    @sa.event.listens_for(engine, "begin")
    def choose(connection):
        connection.exec_driver_sql("SELECT set_config('app.tenant_id', %s, true)", (current["name"],))

    for name, bodies in requests():
        current["name"] = name
        with Session(engine) as session:
            assert list(session.execute(sa.text(SELECT)).scalars()) == bodies, name
            try:
                with session.begin_nested():
                    session.execute(sa.text("SELECT 1/0"))
            except sa.exc.DataError:
                pass
            rows = session.execute(sa.text("SELECT body FROM items WHERE id = :id"), {"id": 1})
            assert list(rows.scalars()) == bodies[:1], name
            session.commit()
            assert list(session.execute(sa.text(SELECT)).scalars()) == bodies, name
    engine.dispose()


def with_django():
    url = urlparse(dsn)
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": url.hostname,
        "PORT": url.port,
        "USER": url.username,
        "PASSWORD": url.password,
        "NAME": url.path[1:],
        "ATOMIC_REQUESTS": True,
    }
    settings.configure(DATABASES={"default": database}, USE_TZ=True)
    django.setup()
    from django.db import connection, transaction

    @contextmanager
    def request_of(name):
        """As a middleware does it, around a view that is atomic."""
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SELECT set_config('app.tenant_id', %s, true)", [name])
            yield

    for name, bodies in requests():
        with request_of(name), connection.cursor() as cursor:
            cursor.execute(SELECT)
            assert [row[0] for row in cursor.fetchall()] == bodies, name
            with transaction.atomic():
                cursor.execute("SELECT count(*) FROM items WHERE id < %s", [900])
                assert cursor.fetchone() == (len(bodies),), name
    # On each checkout, for the session.
    for name, bodies in requests():
        with connection.cursor() as cursor:
            cursor.execute("SET SESSION app.tenant_id = %s", [name])
            cursor.execute(SELECT)
            assert [row[0] for row in cursor.fetchall()] == bodies, name
    connection.close()


async def with_asyncpg():
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=2)
    for name, bodies in requests():
        async with pool.acquire() as conn, conn.transaction(isolation="repeatable_read"):
            await conn.execute("SELECT set_config('app.tenant_id', $1, true)", name)
            rows = await conn.fetch("SELECT body FROM items WHERE id < $1 ORDER BY id", 900)
            assert [row["body"] for row in rows] == bodies, name
            try:
                async with conn.transaction():
                    await conn.execute("SELECT 1/0")
            except asyncpg.DivisionByZeroError:
                pass
            assert await conn.fetchval("SELECT count(*) FROM items WHERE id < 900") == len(bodies), name
    await pool.close()


with_psycopg()
with_psycopg2()
with_pg8000()
with_sqlalchemy()
with_django()
asyncio.run(with_asyncpg())
print("ok")
