"""Alembic's scripts; see broker.store.schema."""
