"""The ledger: every due moment of every job has exactly one outcome on record, and starts at most once.

A fire goes one way: the loop (apscheduler_overrides) -> claim -> dispatch -> record (start) -> execution ->
record (finish); `recover` sees to what a node left behind, `retries` to the attempts that follow, `outbox` to who is
told. It knows no Flask.
"""

from app.ledger.apscheduler_overrides import LedgerScheduler, LoopHealth
from app.ledger.execution import Ending, execute
from app.ledger.holds import CATCH_UPS, CatchUp, CaughtUp, DueMoments, Hold, TooMuchToCatchUp
from app.ledger.jobs import EXECUTORS, Job, NewJob, job_from_row
from app.ledger.ledger import Ledger, LoadReport, ReloadReport
from app.ledger.nodes import Node
from app.ledger.repeats import RepeatedRequest, RepeatKey
from app.ledger.run_ids import run_id_floor
from app.ledger.runs import Run, RunContext, Ticket, run_from_row

__all__ = [
    "CATCH_UPS",
    "EXECUTORS",
    "CatchUp",
    "CaughtUp",
    "DueMoments",
    "Ending",
    "Hold",
    "Job",
    "Ledger",
    "LedgerScheduler",
    "LoadReport",
    "LoopHealth",
    "NewJob",
    "Node",
    "ReloadReport",
    "RepeatKey",
    "RepeatedRequest",
    "Run",
    "RunContext",
    "Ticket",
    "TooMuchToCatchUp",
    "execute",
    "job_from_row",
    "run_from_row",
    "run_id_floor",
]
