"""Newest checkpoints of runs, and runs to be stopped for another one once that one was taken"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.add_column(sa.Column("checkpoint_ms", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("stop_for", sa.String(), nullable=True))
        batch_op.create_index(
            "ix_run_stop_for",
            ["stop_for"],
            unique=False,
            sqlite_where=sa.text("stop_for IS NOT NULL"),
            postgresql_where=sa.text("stop_for IS NOT NULL"),
        )
