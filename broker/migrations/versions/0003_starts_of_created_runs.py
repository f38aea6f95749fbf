"""Platforms that create and start a run in two calls: when its start was last sent"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("run", sa.Column("start_sent_ms", sa.BigInteger(), nullable=True))
