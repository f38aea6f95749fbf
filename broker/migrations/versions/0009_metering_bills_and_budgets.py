"""Metering, bill lines, budgets and balances, links of platform users"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("run", sa.Column("tariff", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("job", sa.Column("estimated_micro", sa.BigInteger(), nullable=True))
    op.create_table(
        "meter",
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("center_id", sa.String(), nullable=False),
        sa.Column("spec_id", sa.String(), nullable=False),
        sa.Column("nodes", sa.Integer(), nullable=False),
        sa.Column("started_ms", sa.BigInteger(), nullable=True),
        sa.Column("ended_ms", sa.BigInteger(), nullable=True),
        sa.Column("rates", sa.JSON(), nullable=False),
        sa.Column("estimated_micro", sa.BigInteger(), nullable=False),
        sa.Column("measured_micro", sa.BigInteger(), nullable=False),
        sa.Column("interrupted", sa.String(), nullable=False),
        sa.Column("billed", sa.Boolean(), nullable=False),
        sa.Column("center_spans", sa.JSON(), nullable=True),
        sa.Column("center_micro", sa.BigInteger(), nullable=True),
        sa.Column("center_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("owed_next_ms", sa.BigInteger(), nullable=True),
        sa.Column("owed_tries", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"]),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"]),
        sa.PrimaryKeyConstraint("run_id"),
    )
    op.create_index("ix_meter_job", "meter", ["job_id"])
    op.create_index(
        "ix_meter_owed",
        "meter",
        ["owed_next_ms"],
        sqlite_where=sa.text("owed_next_ms IS NOT NULL"),
        postgresql_where=sa.text("owed_next_ms IS NOT NULL"),
    )
    op.create_table(
        "bill",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("center_id", sa.String(), nullable=False),
        sa.Column("spec_id", sa.String(), nullable=False),
        sa.Column("nodes", sa.Integer(), nullable=False),
        sa.Column("started_ms", sa.BigInteger(), nullable=True),
        sa.Column("ended_ms", sa.BigInteger(), nullable=True),
        sa.Column("seconds", sa.BigInteger(), nullable=False),
        sa.Column("amount_micro", sa.BigInteger(), nullable=False),
        sa.Column("day", sa.String(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"]),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"]),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"]),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_bill_account", "bill", ["account_id", "created_ms"])
    op.create_index("ix_bill_tenant", "bill", ["tenant_id", "created_ms"])
    op.create_index("ix_bill_job", "bill", ["job_id"])
    op.create_index("ix_bill_day", "bill", ["day"])
    op.create_index("ix_bill_created_ms", "bill", ["created_ms"])
    op.create_table(
        "purse",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("spent_micro", sa.BigInteger(), nullable=False),
        sa.Column("month", sa.String(), nullable=False),
        sa.Column("month_micro", sa.BigInteger(), nullable=False),
        sa.Column("budget_micro", sa.BigInteger(), nullable=True),
        sa.Column("per_month", sa.Boolean(), nullable=False),
        sa.Column("base_micro", sa.BigInteger(), nullable=False),
        sa.Column("balance_micro", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"]),
        sa.PrimaryKeyConstraint("tenant_id"),
    )
    op.create_table(
        "ledgerentry",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("amount_micro", sa.BigInteger(), nullable=False),
        sa.Column("balance_micro", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_ledgerentry_tenant", "ledgerentry", ["tenant_id", "id"])
    op.create_table(
        "userlink",
        sa.Column("center_id", sa.String(), nullable=False),
        sa.Column("native", sa.String(), nullable=False),
        sa.Column("account_id", sa.String(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"]),
        sa.ForeignKeyConstraint(["center_id"], ["center.id"]),
        sa.PrimaryKeyConstraint("center_id", "native"),
    )
    op.create_index("ix_userlink_account_id", "userlink", ["account_id"])
