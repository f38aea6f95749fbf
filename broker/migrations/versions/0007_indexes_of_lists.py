"""Indexes that lists of jobs are read and counted by"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name, column in (("ix_job_account", "account_id"), ("ix_job_tenant", "tenant_id")):
        op.drop_index(name, "job")
        op.create_index(name, "job", [column, "kind", "deleted_ms", "id"])
