"""Use cases: the rules, without Flask's request."""
