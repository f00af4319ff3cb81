"""Backups: made while jobs run, kept, checked, and sent through a pipe."""
