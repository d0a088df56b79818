"""Changes of what is there, with rows."""

import sqlalchemy as sa
from alembic import op

revision = "two"
down_revision = "one"


def upgrade():
    shelf = sa.table("shelf", sa.column("name", sa.String), sa.column("kind", sa.Enum("tall", "low", name="kind")))
    op.bulk_insert(shelf, [{"name": "a", "kind": "tall"}, {"name": "b", "kind": "low"}])
    op.add_column("book", sa.Column("pages", sa.Integer, nullable=False, server_default="1"))
    op.alter_column("shelf", "name", type_=sa.Text)
    # Cannot run in a transaction.
    with op.get_context().autocommit_block():
        op.create_index("book_pages", "book", ["pages"], postgresql_concurrently=True)
        op.execute("ALTER TYPE kind ADD VALUE IF NOT EXISTS 'wide'")
    op.execute("UPDATE shelf SET kind = 'wide' WHERE name = 'b'")


def downgrade():
    op.execute("DELETE FROM shelf")
    op.drop_index("book_pages", "book")
    op.alter_column("shelf", "name", type_=sa.String(40))
    op.drop_column("book", "pages")
