"""Alembic's scripts; see broker.store.schema.  There is no downgrade: the way back is the copy that is made
before an upgrade."""
