"""Alembic and SQLAlchemy with two drivers: migrate up, reflect, compare, migrate down. Prints all it finds.

Where to connect comes from libpq's environment variables.
"""

import asyncio
import os
import pathlib
import re

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

OPTIONS = dict(part.split("=", 1) for part in os.environ["PGOPTIONS"].split() if "=" in part)


def url(driver):
    return sa.URL.create(
        f"postgresql+{driver}",
        os.environ["PGUSER"],
        os.environ["PGPASSWORD"],
        os.environ["PGHOST"],
        int(os.environ["PGPORT"]),
        os.environ["PGDATABASE"],
    )


class Base(DeclarativeBase):
    pass


class Shelf(Base):
    """The table `shelf` as the code wants it: not quite as the migrations make it."""

    __tablename__ = "shelf"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(99))
    color: Mapped[str | None]


def config(connection):
    config = Config()
    config.set_main_option("script_location", str(pathlib.Path(__file__).parent / "alembic"))
    config.attributes["connection"] = connection
    return config


def found(connection):
    inspector = sa.inspect(connection)
    print("schema", inspector.default_schema_name)
    for table in sorted(inspector.get_table_names()):
        print(table, inspector.get_table_comment(table))
        for column in inspector.get_columns(table):
            print("  column", {**column, "type": repr(column["type"])})
        for what in ("pk_constraint", "foreign_keys", "indexes", "unique_constraints", "check_constraints"):
            print(" ", what, getattr(inspector, f"get_{what}")(table))
    print("enums", inspector.get_enums())
    print("sequences", sorted(inspector.get_sequence_names()))
    reflected = sa.MetaData()
    reflected.reflect(connection)
    for table in reflected.sorted_tables:
        print(sa.schema.CreateTable(table).compile(connection))


def work(connection):
    command.upgrade(config(connection), "head")
    command.current(config(connection), verbose=False)
    found(connection)
    differences = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    # What Python calls some of them is new each time.
    for difference in sorted(re.sub(" at 0x[0-9a-f]+", "", repr(difference)) for difference in differences):
        print("difference", difference)
    connection.commit()
    command.downgrade(config(connection), "one")
    command.upgrade(config(connection), "two")
    rows = sa.text("SELECT name, kind::text, $1$ FROM shelf ORDER BY name".replace("$1$", ":n"))
    for n in range(8):
        print(connection.execute(rows, {"n": str(n)}).all())
        connection.commit()
    command.downgrade(config(connection), "base")
    connection.commit()
    Base.metadata.create_all(connection)
    connection.commit()
    with Session(connection) as session:
        session.add_all([Shelf(name=f"shelf {n}") for n in range(20)])
        session.commit()
        with session.begin_nested() as nested:
            session.add(Shelf(name="gone"))
            session.flush()
            nested.rollback()
        print(session.scalars(sa.select(Shelf.name).order_by(Shelf.id)).all())
        streamed = session.execute(sa.select(Shelf.id).order_by(Shelf.id), execution_options={"yield_per": 7})
        print([len(part) for part in streamed.partitions()])
        session.commit()
    Base.metadata.drop_all(connection)
    connection.execute(sa.text("DROP TABLE alembic_version"))
    connection.commit()


print("== psycopg")
engine = sa.create_engine(url("psycopg"))
with engine.connect() as connection:
    work(connection)
engine.dispose()


async def main():
    engine = create_async_engine(url("asyncpg"), connect_args={"server_settings": OPTIONS})
    async with engine.connect() as connection:
        await connection.run_sync(work)
    await engine.dispose()


print("== asyncpg")
asyncio.run(main())
