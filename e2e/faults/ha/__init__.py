"""Faults under several schedulers on one PostgreSQL: one stack for the quick ones, under probe jobs all the time."""
