"""Taking over the jobs of an older app: APScheduler 3's SQLAlchemyJobStore, whose rows are pickles.

A pickle is a program that builds objects, and loading one runs whatever it names. Here none is loaded: `pickles` reads
it as plain data, `values` and `triggers` know what some of that data stands for, `takeover` decides what becomes of it.
"""

from app.services.operations.legacy.source import LegacyRow, read_present_store, read_stream
from app.services.operations.legacy.takeover import Takeover, take_over

__all__ = ["LegacyRow", "Takeover", "read_present_store", "read_stream", "take_over"]
