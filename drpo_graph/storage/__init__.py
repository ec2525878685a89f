"""Where runs are kept: a SQLite file or a PostgreSQL database."""
