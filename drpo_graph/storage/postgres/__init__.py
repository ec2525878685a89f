"""Runs kept in a PostgreSQL database: saver, store, events, and a lease per run. Needs the extra ``postgres``."""

from drpo_graph.storage.postgres.place import PostgresStorage

__all__ = ["PostgresStorage"]
