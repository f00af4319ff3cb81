"""Faults that the stack must survive, injected for real, and what each did to the fires, measured."""
