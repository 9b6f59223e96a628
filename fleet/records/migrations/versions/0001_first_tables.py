"""The tables as they were when the revisions began."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    time = sa.DateTime(timezone=True)
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("api", sa.String(16), nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("inputs", sa.JSON, nullable=False),
        sa.Column("finetune_id", sa.Text, nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("webhook", sa.JSON),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("progress", sa.Float, nullable=False),
        sa.Column("logs", sa.Text, nullable=False),
        sa.Column("metrics", sa.JSON, nullable=False),
        sa.Column("output", sa.JSON),
        sa.Column("error", sa.Text),
        sa.Column("moderated", sa.Boolean, nullable=False),
        sa.Column("created_at", time, nullable=False),
        sa.Column("started_at", time),
        sa.Column("completed_at", time),
    )
    unended = sa.text("state IN ('queued', 'running')")
    op.create_index("jobs_by_owner", "jobs", ["owner", "created_at"])
    op.create_index("jobs_unended", "jobs", ["owner", "kind"], sqlite_where=unended, postgresql_where=unended)
    op.create_index("jobs_by_end", "jobs", ["completed_at"])
    op.create_index("jobs_by_finetune", "jobs", ["finetune_id", "kind"])
    op.create_table(
        "finetunes",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("inputs", sa.JSON, nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("created_at", time, nullable=False),
    )
    op.create_index("ix_finetunes_owner", "finetunes", ["owner"])
