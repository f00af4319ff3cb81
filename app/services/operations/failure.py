"""The one error of the operations."""


class OperationFailed(Exception):
    """An operation that could not be done. Its message is one line: what, where, and what to do about it."""
