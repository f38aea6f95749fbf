"""Runs that have not ended are in no index of ends, and none of jobs' ends is kept, which nothing read"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

ENDED = sa.text("ended_ms IS NOT NULL")


def upgrade() -> None:
    op.drop_index("ix_job_ended", "job")
    op.drop_index("ix_run_ended", "run")
    op.create_index("ix_run_ended", "run", ["ended_ms"], sqlite_where=ENDED, postgresql_where=ENDED)
