"""Parts of cards: which part a pool's devices are, and in what steps its cards are split"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("pool", sa.Column("card_permille", sa.Integer(), nullable=False, server_default="1000"))
    op.add_column("pool", sa.Column("split_permille", sa.Integer(), nullable=False, server_default="0"))
