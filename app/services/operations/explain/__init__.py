"""Explanations: why a job fired, did not fire, or fired late."""
