"""An index of the runs that owe a stop, so that tracking looks through no others"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "ix_run_stop_owed",
        "run",
        ["center_id"],
        sqlite_where=sa.text("stop_owed_ms IS NOT NULL"),
        postgresql_where=sa.text("stop_owed_ms IS NOT NULL"),
    )
