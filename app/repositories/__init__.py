"""Queries, without rules."""
