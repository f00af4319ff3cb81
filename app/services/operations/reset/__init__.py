"""Resets: a job store set aside whole, and the default jobs registered anew."""
