"""Tables with all that reflection has to find."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "one"
down_revision = None


def upgrade():
    op.create_table(
        "shelf",
        sa.Column("id", sa.Integer, sa.Identity(), primary_key=True),
        sa.Column("name", sa.String(40), nullable=False, comment="what it is called"),
        sa.Column("kind", sa.Enum("tall", "low", name="kind"), server_default="tall"),
        sa.Column("made", sa.DateTime(timezone=True), server_default=sa.func.now()),
        sa.UniqueConstraint("name", name="shelf_name"),
        sa.CheckConstraint("length(name) > 0", name="shelf_named"),
        comment="where books are",
    )
    op.create_table(
        "book",
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("shelf", sa.Integer, sa.ForeignKey("shelf.id", name="book_shelf", ondelete="CASCADE")),
        sa.Column("about", postgresql.JSONB),
        sa.Column("tags", postgresql.ARRAY(sa.Text)),
        sa.Column("price", sa.Numeric(8, 2)),
        sa.Column("code", postgresql.UUID, server_default=sa.text("gen_random_uuid()")),
    )
    op.create_index("book_tags", "book", ["tags"], postgresql_using="gin")
    op.create_index("book_dear", "book", ["price"], postgresql_where=sa.text("price > 10"))


def downgrade():
    op.drop_table("book")
    op.drop_table("shelf")
    op.execute("DROP TYPE kind")
