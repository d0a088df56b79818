"""Runs migrations on the connection that alembic_client.py gives, under a migration lock of the session."""

import time

from alembic import context
from sqlalchemy import text

connection = context.config.attributes["connection"]
metadata = context.config.attributes.get("metadata")
LOCK = 4712

if metadata is None:
    connection.execute(text(f"SELECT pg_advisory_lock({LOCK})"))
    connection.commit()
    # Others come by meanwhile.
    time.sleep(0.02)
context.configure(connection=connection, target_metadata=metadata, compare_server_default=True)
with context.begin_transaction():
    context.run_migrations()
if metadata is None:
    connection.commit()
    print("unlocked:", connection.execute(text(f"SELECT pg_advisory_unlock({LOCK})")).scalar())
    connection.commit()
