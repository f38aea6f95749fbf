"""Data sets that are deleted, copies that are tried again or removed, and what centers list of their own"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("dataset", schema=None) as batch_op:
        batch_op.add_column(sa.Column("tags", sa.Text(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("deleted_ms", sa.BigInteger(), nullable=True))
    with op.batch_alter_table("copy", schema=None) as batch_op:
        batch_op.add_column(sa.Column("tries", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("next_ms", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_table(
        "jobdataset",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("dataset_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"]),
        sa.PrimaryKeyConstraint("job_id", "dataset_id"),
    )
    op.create_index("ix_jobdataset_dataset", "jobdataset", ["dataset_id"])
    op.create_table(
        "asset",
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("center_id", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("native", sa.String(), nullable=False),
        sa.Column("title", sa.String(), nullable=False),
        sa.Column("desc", sa.Text(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("owner", sa.String(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("remote", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["center_id"], ["center.id"]),
        sa.PrimaryKeyConstraint("kind", "center_id", "id"),
    )
    op.create_index("ix_asset_id", "asset", ["id"])
    _name_what_jobs_read()


def _name_what_jobs_read() -> None:
    job = sa.table("job", sa.column("id"), sa.column("state"), sa.column("request", sa.JSON()))
    reads = sa.table("jobdataset", sa.column("job_id"), sa.column("dataset_id"))
    rows = op.get_bind().execute(
        sa.select(job.c.id, job.c.request).where(job.c.state.in_(["QUEUED", "ACTIVE"]))
    )
    pairs = [
        {"job_id": id, "dataset_id": dataset}
        for id, request in rows
        for dataset in dict.fromkeys(request.get("datasets", ()))
    ]
    if pairs:
        op.get_bind().execute(sa.insert(reads), pairs)
