"""The move from SQLite files to PostgreSQL."""
