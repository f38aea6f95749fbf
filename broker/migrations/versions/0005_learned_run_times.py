"""Learned run times, and forecasts of starts"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "runhistory",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("durations", sa.JSON(), nullable=False),
        sa.Column("ratios", sa.JSON(), nullable=False),
        sa.Column("written_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index("ix_runhistory_written_ms", "runhistory", ["written_ms"])
    op.create_table(
        "forecast",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("p50_s", sa.BigInteger(), nullable=False),
        sa.Column("p90_s", sa.BigInteger(), nullable=True),
        sa.Column("started_ms", sa.BigInteger(), nullable=True),
        sa.Column("center_id", sa.String(), nullable=False),
        sa.Column("spec_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"]),
        sa.PrimaryKeyConstraint("job_id"),
    )
    op.create_index("ix_forecast_at_ms", "forecast", ["at_ms"])
    op.create_index(
        "ix_forecast_started",
        "forecast",
        ["started_ms"],
        sqlite_where=sa.text("started_ms IS NOT NULL"),
        postgresql_where=sa.text("started_ms IS NOT NULL"),
    )
