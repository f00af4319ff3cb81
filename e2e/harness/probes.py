"""Probe jobs: they fire every second, spread over the second, while faults strike; each fault's fires are judged.

The probes run as long as their stack; `watch` cuts the time around one fault out of them, from when all was well to
when all is well again, and compares the three sources (e2e/harness/oracle.py) within it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from e2e.harness.measurements import Measurement, late, measure
from e2e.harness.oracle import FINAL, Start, Verdict, judge, parse_moment, read_log
from e2e.harness.stack import Stack
from e2e.harness.waiting import wait_for_clock, wait_until

#: All is well: in so many seconds every probe was started within ON_TIME_S of its moment.
CALM_S = 2
ON_TIME_S = 1.0
#: How long one may take to recover before its test fails for that alone.
RECOVERED_WITHIN_S = 90.0
#: How long open runs may take to come to an end; a silent node's are lost after LOST_AFTER_SECONDS (30).
AT_REST_WITHIN_S = 75.0


@dataclass
class Watch:
    """The time around one fault. The test says when it struck and, where that matters, when it was over."""

    fault: str
    how: str
    #: The whole stack has to wait for the end of the fault: what is measured counts from there.
    outage: bool = False
    limit: str = ""
    first: datetime = field(default_factory=lambda: datetime.now(UTC))
    struck: float | None = None
    healed: float | None = None
    # Known once the watch is over.
    last: datetime = field(default_factory=lambda: datetime.now(UTC))
    starts: list[Start] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    measurement: Measurement | None = None

    def strike(self) -> float:
        """The fault strikes now; only the first call counts."""
        self.struck = self.struck or time.time()
        return self.struck

    def heal(self) -> float:
        """The fault is over now."""
        self.healed = time.time()
        return self.healed

    def lateness(self, *, not_by: str = "") -> list[float]:
        """How late every start from a second before the fault on was, in seconds; those of a node left out."""
        assert self.struck is not None
        since = self.struck - 1
        return [
            late(start)
            for start in self.starts
            if start.scheduled_for.timestamp() >= since and (not not_by or start.node != not_by)
        ]

    @property
    def next_fire_late(self) -> float:
        assert self.measurement is not None
        assert self.measurement.next_fire_late is not None, "no fire ran after the fault"
        return self.measurement.next_fire_late

    @property
    def recovery(self) -> float:
        assert self.measurement is not None
        assert self.measurement.recovery is not None, "no fire ran after the fault"
        return self.measurement.recovery

    def check(self, *, share: float = 0.5) -> None:
        """At most one start a fire, every fire on record with an outcome, none absent; at least that share ran."""
        assert self.verdict.clean, self.verdict
        # A time in which nothing ran would be clean too.
        assert self.verdict.outcomes["success"] >= share * self.verdict.expected, self.verdict


class Probes:
    """`number` jobs that fire every second, each at its own fraction of it; half of them coalesce."""

    def __init__(
        self,
        stack: Stack,
        number: int = 10,
        *,
        per_second: bool = False,
        prefix: str = "probe",
        executor: str = "default",
    ) -> None:
        """`per_second`: all of them at the full second, as most people's jobs are."""
        self.stack = stack
        self.executor = executor
        self.jobs = {
            f"{prefix}-{index:03}": timedelta(microseconds=0 if per_second else index * 1_000_000 // number)
            for index in range(number)
        }
        self.begin = datetime.fromtimestamp(0, UTC)
        #: Nodes whose clock a test steps: their starts are timed by the machine's monotonic clock instead.
        self.wrong_clocks: set[str] = set()

    def start(self) -> None:
        """Creates the jobs. What is judged begins when all of them are there."""
        client = self.stack.bearer()
        grid = datetime.fromtimestamp(int(time.time()), tz=UTC)
        for index, (job_id, offset) in enumerate(self.jobs.items()):
            trigger = {"trigger_type": "interval", "seconds": 1, "start_date": (grid + offset).isoformat()}
            # A run that is late or hangs on a frozen node is no reason to skip the next: the stack is measured.
            settings = {"max_instances": 10, "coalesce": index % 2 == 0, "executor": self.executor}
            client.create_job(job_id, "oracle_fire", trigger, **settings)
        self.begin = datetime.fromtimestamp(int(time.time()) + 2, tz=UTC)

    def stop(self) -> None:
        client = self.stack.bearer()
        for job_id in self.jobs:
            client.delete_job(job_id)

    def starts(self, first: datetime, last: datetime) -> list[Start]:
        """The probes' starts that are due from `first` to before `last`."""
        log = read_log(self.stack.oracle_folder / "fires.jsonl")
        return [
            self._truly_timed(start)
            for start in log
            if start.job_id in self.jobs and start.kind == "schedule" and first <= start.scheduled_for < last
        ]

    def _truly_timed(self, start: Start) -> Start:
        if start.node not in self.wrong_clocks:
            return start
        assert start.uptime is not None
        return replace(start, time=time.time() - time.monotonic() + start.uptime)

    def expected(self, first: datetime, last: datetime) -> dict[str, list[datetime]]:
        """The moments of every probe from `first` to before `last`, both full seconds."""
        seconds = range(int((last - first).total_seconds()))
        return {
            job_id: [first + offset + timedelta(seconds=s) for s in seconds] for job_id, offset in self.jobs.items()
        }

    def calm_until(self, since: float) -> datetime | None:
        """The end of the last CALM_S seconds, if they began after `since` and every fire in them was on time."""
        # A fire that was due ON_TIME_S ago is either there by now, or late.
        end = int(time.time() - ON_TIME_S)
        if end - CALM_S < since:
            return None
        first, last = (datetime.fromtimestamp(moment, tz=UTC) for moment in (end - CALM_S, end))
        on_time = {(start.job_id, start.scheduled_for) for start in self.starts(first, last) if late(start) < ON_TIME_S}
        due = {(job_id, moment) for job_id, moments in self.expected(first, last).items() for moment in moments}
        return last if due <= on_time else None

    @contextmanager
    def watch(
        self,
        fault: str,
        how: str,
        *,
        outage: bool = False,
        limit: str = "",
        within: float = RECOVERED_WITHIN_S,
        at_rest_within: float = AT_REST_WITHIN_S,
    ) -> Iterator[Watch]:
        """Begins when all is well, and ends, after the fault, when all is well again; then judges and measures."""
        calm = wait_until(
            "probes on time before the fault", lambda: self.calm_until(self.begin.timestamp()), within=within
        )
        assert calm is not None
        watch = Watch(fault, how, outage=outage, limit=limit, first=calm)
        yield watch
        assert watch.struck is not None, "the test did not say when the fault struck"
        since = max(watch.struck, watch.healed or 0.0, time.time())
        last = wait_until("probes on time after the fault", lambda: self.calm_until(since), within=within)
        assert last is not None
        watch.last = last
        self.conclude(watch, at_rest_within)

    def conclude(self, watch: Watch, at_rest_within: float = AT_REST_WITHIN_S) -> None:
        """Waits until every run of the watched time has ended, judges it, keeps and prints the figures."""
        assert watch.struck is not None
        histories = self.histories_at_rest(watch.first, watch.last, within=at_rest_within)
        watch.starts = self.starts(watch.first, watch.last)
        watch.verdict = judge(self.expected(watch.first, watch.last), watch.starts, histories)
        watch.measurement = measure(
            watch.fault,
            watch.how,
            verdict=watch.verdict,
            starts=watch.starts,
            struck=watch.struck,
            healed=watch.healed,
            outage=watch.outage,
            limit=watch.limit,
        )
        watch.measurement.keep()
        print(f"\n{watch.fault}: {watch.how}\n{watch.verdict}\n{watch.measurement}")

    def histories_at_rest(
        self, first: datetime, last: datetime, *, within: float
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """The ledger's rows of every probe due from `first` to before `last`, once all of them have ended."""
        client = self.stack.bearer()
        histories: dict[str, list[dict[str, Any]]] = {}

        def open_runs() -> list[str]:
            found: list[str] = []
            for job_id in self.jobs:
                if job_id in histories:
                    continue
                rows = list(_within(client.history(job_id), first, last))
                still_open = [row["run_id"] for row in rows if row["outcome"] not in FINAL]
                if still_open:
                    found += still_open
                else:
                    histories[job_id] = rows
            return found

        wait_until("every run has ended", open_runs, lambda found: not found, within=within, every=1.0)
        return histories

    def judge_all(self, *, within: float = AT_REST_WITHIN_S) -> Verdict:
        """Everything from the first moment of the probes to the last calm one, over all faults."""
        # In a calm, no row of the ledger spans the end of what is judged.
        last = wait_until("probes on time", lambda: self.calm_until(self.begin.timestamp()), within=RECOVERED_WITHIN_S)
        assert last is not None
        histories = self.histories_at_rest(self.begin, last, within=within)
        return judge(self.expected(self.begin, last), self.starts(self.begin, last), histories)


@contextmanager
def judged_probes(stack: Stack) -> Iterator[Probes]:
    """Ten jobs that fire every second, at every tenth of it. In the end all their fires of all faults are judged."""
    running = Probes(stack)
    running.start()
    yield running
    verdict = running.judge_all()
    print(f"\nover all faults: {verdict}")
    assert verdict.clean, verdict


def _within(rows: Iterable[dict[str, Any]], first: datetime, last: datetime) -> Iterator[dict[str, Any]]:
    """The rows that cover a moment from `first` to before `last`; rows come newest first."""
    for row in rows:
        newest = parse_moment(row["scheduled_for"])
        oldest = parse_moment(row["scheduled_from"]) if row.get("scheduled_from") else newest
        if newest >= first and oldest < last:
            yield row


def let_pass(seconds: float) -> None:
    """Time in which the fault lasts."""
    wait_for_clock(time.time() + seconds)
