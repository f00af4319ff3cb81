"""Faults in the one-container shape: one stack for the quick ones, under probe jobs all the time."""
