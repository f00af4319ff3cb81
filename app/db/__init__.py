"""The two databases: engines, tables, migrations."""
