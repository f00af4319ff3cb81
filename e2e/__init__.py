"""The stack under test: one file a promise, and the harness they share."""
