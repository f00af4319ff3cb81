"""A drill on a real store with the real scheduler, from start to report; what its commands make of bad input."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from sqlalchemy import delete, func, select, update

from app import create_app
from app.db.engines import write_transaction
from app.db.jobstore_tables import jobs, runs
from app.errors import ValidationError
from app.runtime import Runtime, runtime_of
from app.scheduler import stop_scheduler
from app.services.operations.drill import drill as drill_module
from app.services.operations.drill.drill import KEPT, Plan, conclude_drill, parse_faults, start_drill, stop_drill
from app.services.operations.drill.log import drill_folder, drills_folder, fires_file, read_starts
from app.services.operations.drill.verdict import Fault
from app.services.operations.failure import OperationFailed
from app.services.scheduler.scheduler_actions_service import SchedulerActionsService
from app.services.scheduler.scheduler_job_write_service import SchedulerJobWriteService
from app.settings import Settings

Run = Callable[..., Result]


def begin(runtime: Runtime, **options: Any) -> Plan:
    return start_drill(runtime, **{"count": 3, "period": 1.0, "executor": "default", "minutes": 5, **options})


def conclude(runtime: Runtime, drill: str, *faults: Fault, rest_within_s: float = 10.0) -> Any:
    verdict, _ = conclude_drill(runtime, drill, faults, rest_within_s=rest_within_s, tell=lambda line: None)
    return verdict


def wait_for_starts(runtime: Runtime, drill: str, wanted: int) -> None:
    deadline = time.monotonic() + 60
    while len(read_starts(fires_file(runtime.settings.userdata_dir, drill))) < wanted:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def stored_probes(runtime: Runtime) -> int:
    with runtime.jobstore.connect() as connection:
        return connection.execute(select(func.count()).where(jobs.c.task == "drill_probe")).scalar_one()


def rewrite_plan(runtime: Runtime, drill: str, **changes: Any) -> None:
    file = drill_folder(runtime.settings.userdata_dir, drill) / "drill.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drill_module, "HEAD_START_S", 1)


@pytest.fixture
def scheduling(settings: Settings) -> Iterator[Flask]:
    """The app with its scheduler."""
    app = create_app(settings)
    yield app
    stop_scheduler()
    runtime = runtime_of(app)
    runtime.jobstore.dispose()
    runtime.database.dispose()


@pytest.fixture
def drilled(scheduling: Flask) -> tuple[Flask, str]:
    """An app whose drill has ended, flawlessly; not concluded yet."""
    runtime = runtime_of(scheduling)
    drill = begin(runtime).drill
    wait_for_starts(runtime, drill, 6)
    # A run that a person asks for is no fire.
    SchedulerActionsService(runtime).start_run(f"drill-{drill}-000")
    stop_drill(runtime, drill)
    return scheduling, drill


@pytest.fixture
def run(app: Flask) -> Run:
    return lambda *arguments, **options: app.test_cli_runner().invoke(args=["jobs", *arguments], **options)


class TestWithAScheduler:
    def test_a_flawless_drill_is_proven_and_leaves_nothing_but_its_record(self, drilled: tuple[Flask, str]) -> None:
        app, drill = drilled
        runtime = runtime_of(app)
        faults = [
            json.dumps({"kind": "kill", "target": "scheduler-1", "begin": time.time() - 3, "end": time.time() - 2})
        ]
        done = app.test_cli_runner().invoke(
            args=["jobs", "drill-verdict", drill, "--faults", "-"], input="\n".join(faults)
        )
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith("proven: ")
        assert "kill scheduler-1: next fire at most" in done.stdout
        folder = drill_folder(runtime.settings.userdata_dir, drill)
        assert f"report: {folder}/report.html" in done.stdout
        document = json.loads((folder / "report.json").read_text())
        assert document["proven"]
        assert document["due"] == sum(document["outcomes"].values())
        assert document["starts"] == len(document["fires"]) >= 6
        assert stored_probes(runtime) == 0, "neither to be restored nor listed as deleted"
        with runtime.jobstore.connect() as connection:
            probes = runs.c.job_id.startswith(f"drill-{drill}")
            assert connection.execute(select(func.count()).where(probes)).scalar_one() >= document["starts"]
        again = app.test_cli_runner().invoke(args=["jobs", "drill-verdict", drill, "--json"])
        assert again.exit_code == 0, "it may be repeated"
        assert json.loads(again.stdout)["due"] == document["due"]
        stop_drill(runtime, drill)

    def test_a_start_that_was_written_twice_is_found(self, drilled: tuple[Flask, str]) -> None:
        app, drill = drilled
        log = fires_file(runtime_of(app).settings.userdata_dir, drill)
        line = log.read_text().splitlines()[4]
        with log.open("a") as file:
            file.write(line + "\n")
        done = app.test_cli_runner().invoke(args=["jobs", "drill-verdict", drill])
        assert done.exit_code == 4
        assert done.stdout.startswith("NOT PROVEN")
        assert f"{json.loads(line)['job_id']} was started 2 times" in done.stdout

    def test_a_row_that_is_gone_is_found(self, drilled: tuple[Flask, str]) -> None:
        app, drill = drilled
        runtime = runtime_of(app)
        conclude(runtime, drill)
        start = read_starts(fires_file(runtime.settings.userdata_dir, drill))[4]
        with write_transaction(runtime.jobstore) as connection:
            connection.execute(delete(runs).where(runs.c.run_id == start.run_id))
        done = app.test_cli_runner().invoke(args=["jobs", "drill-verdict", drill, "--json"])
        assert done.exit_code == 4
        document = json.loads(done.stdout)
        assert not document["proven"]
        assert document["absent"] == [f"{start.job_id} at {start.scheduled_for:.3f} is not in the ledger"]
        assert len(document["contradictions"]) == 1

    def test_a_moment_that_was_claimed_during_the_deletion_is_due(self, drilled: tuple[Flask, str]) -> None:
        """The deletion takes its time before it gets its locks; what others claim until then is theirs."""
        runtime, drill = runtime_of(drilled[0]), drilled[1]
        last = max(start.scheduled_for for start in read_starts(fires_file(runtime.settings.userdata_dir, drill)))
        plan = json.loads((drill_folder(runtime.settings.userdata_dir, drill) / "drill.json").read_text())
        rewrite_plan(runtime, drill, until=dict.fromkeys(plan["first"], last - 0.001))
        assert conclude(runtime, drill).proven
        rewrite_plan(runtime, drill, stopped=last - 0.001)
        verdict = conclude(runtime, drill)
        assert any("when it was not due" in sentence for sentence in verdict.contradictions), "after the deletion"

    def test_a_run_that_does_not_end_is_found_and_its_probe_kept(self, drilled: tuple[Flask, str]) -> None:
        app, drill = drilled
        runtime = runtime_of(app)
        stop_scheduler()
        start = read_starts(fires_file(runtime.settings.userdata_dir, drill))[0]
        with write_transaction(runtime.jobstore) as connection:
            changed = {"outcome": "running", "finished_at": None}
            connection.execute(update(runs).where(runs.c.run_id == start.run_id).values(changed))
        verdict = conclude(runtime, drill, rest_within_s=0.3)
        assert verdict.unfinished == 1
        assert not verdict.proven
        assert stored_probes(runtime) == 3

    def test_probes_that_nobody_stops_end_by_themselves(self, scheduling: Flask) -> None:
        runtime = runtime_of(scheduling)
        plan = begin(runtime, count=2, minutes=1)
        trigger = json.loads(self.stored_trigger(runtime, next(iter(plan.first))))
        assert trigger["end_date"] > trigger["start_date"]
        # As if the minute were over: two moments each.
        ends = min(plan.first.values()) + 2
        for job_id in plan.first:
            trigger = json.loads(self.stored_trigger(runtime, job_id))
            trigger["end_date"] = datetime.fromtimestamp(ends - 0.001, UTC).isoformat()
            runtime.ledger.change_job(job_id, {"trigger": trigger}, by="test")
        rewrite_plan(runtime, plan.drill, ends=ends)
        wait_for_starts(runtime, plan.drill, 4)
        deadline = time.monotonic() + 20
        while any(job.next_run_time for job_id in plan.first if (job := runtime.ledger.get_job(job_id))):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # Another drill may begin, and the leftovers go; the old one can still be concluded.
        other = begin(runtime)
        assert runtime.ledger.get_job(next(iter(plan.first))) is None
        stop_drill(runtime, other.drill)
        stop_drill(runtime, plan.drill)
        verdict = conclude(runtime, plan.drill)
        assert (verdict.due, verdict.proven) == (4, True)

    @staticmethod
    def stored_trigger(runtime: Runtime, job_id: str) -> str:
        with runtime.jobstore.connect() as connection:
            return str(connection.execute(select(jobs.c.trigger).where(jobs.c.id == job_id)).scalar_one())


class TestTheStart:
    def test_the_probes_are_spread_over_the_period(self, runtime: Runtime) -> None:
        plan = begin(runtime, count=4, period=2.0)
        moments = [moment - min(plan.first.values()) for moment in plan.first.values()]
        assert moments == [0.0, 0.5, 1.0, 1.5]
        job = runtime.ledger.get_job(f"drill-{plan.drill}-002")
        assert job is not None
        assert job.next_run_time is not None
        assert job.next_run_time.timestamp() == plan.first[job.id]

    def test_one_drill_at_a_time(self, runtime: Runtime, run: Run) -> None:
        drill = begin(runtime).drill
        refused = run("drill-start")
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert refused.stderr.splitlines() == [
            f"Error: the drill {drill} is running; wait for it, or stop it: flask jobs drill-stop {drill}"
        ]
        assert stored_probes(runtime) == 3
        assert run("drill-stop", drill).exit_code == 0
        time.sleep(1.01)  # a drill is named by its second
        assert run("drill-start", "--jobs", "2").exit_code == 0
        assert stored_probes(runtime) == 2, "those of the drill that was stopped and never concluded are dropped"

    def test_the_fleet_is_refused_where_there_is_none(self, runtime: Runtime, run: Run) -> None:
        with pytest.raises(ValidationError):
            begin(runtime, executor="celery")
        refused = run("drill-start", "--executor", "celery")
        assert refused.exit_code == 1
        assert "CELERY_BROKER_URL" in refused.stderr
        assert stored_probes(runtime) == 0
        assert not drills_folder(runtime.settings.userdata_dir).exists()

    def test_what_cannot_be_made_leaves_no_folder(self, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
        begun = time.strftime("%Y", time.gmtime())
        with write_transaction(runtime.jobstore) as connection:
            connection.exec_driver_sql(
                "CREATE TRIGGER full BEFORE INSERT ON jobs BEGIN SELECT RAISE(ABORT, 'full'); END"
            )
        with pytest.raises(Exception, match="full"):
            begin(runtime)
        assert list(drills_folder(runtime.settings.userdata_dir).glob(f"{begun}*")) == []

    def test_the_newest_drills_are_kept(self, runtime: Runtime) -> None:
        folder = drills_folder(runtime.settings.userdata_dir)
        old = [f"20260101-0000{index:02}" for index in range(KEPT + 3)]
        for name in [*old, "notes of mine"]:
            (folder / name).mkdir(parents=True)
        plan = begin(runtime)
        assert sorted(each.name for each in folder.iterdir()) == [*old[4:], plan.drill, "notes of mine"]

    @pytest.mark.parametrize("name", ["../../etc", "20260101-000000/../..", "20260101-00000", "20260101-000000\n", ""])
    def test_a_probe_writes_nowhere_else(self, runtime: Runtime, name: str) -> None:
        job = {"id": "mine", "task": "drill_probe", "kwargs": {"drill": name}, "trigger_type": "interval", "seconds": 5}
        with pytest.raises(ValidationError):
            SchedulerJobWriteService(runtime).upsert(job)
        assert runtime.ledger.get_job("mine") is None


class TestBadInput:
    @pytest.fixture
    def stopped(self, runtime: Runtime) -> str:
        drill = begin(runtime).drill
        stop_drill(runtime, drill)
        return drill

    @pytest.mark.parametrize("command", ["drill-stop", "drill-verdict"])
    @pytest.mark.parametrize("name", ["20260101-000000", "../../..", "nope", "", "20260101-000000\n", "%s", "2" * 300])
    def test_a_drill_that_does_not_exist(self, run: Run, command: str, name: str) -> None:
        self.assert_one_line(run(command, name), "there is no drill")

    def test_a_drill_that_is_not_stopped(self, run: Run, runtime: Runtime) -> None:
        drill = begin(runtime).drill
        self.assert_one_line(run("drill-verdict", drill), f"flask jobs drill-stop {drill}")

    @pytest.mark.parametrize(
        ("faults", "named"),
        [
            (b"nonsense", "line 1"),
            (b"{}", "kind"),
            (b"[]", "line 1"),
            (b"\xff\xfe", "line 1"),
            (b"\n", "line 1"),
            (b'{"kind": "kill", "target": "s", "begin": "soon", "end": 2}', "begin"),
            (b'{"kind": "kill", "target": "s", "begin": 3, "end": 2}', "3.0 to 2.0"),
            (b'{"kind": "kill", "target": "s", "begin": NaN, "end": 2}', "nan"),
            (b'{"kind": "kill", "target": "s", "begin": 1, "end": Infinity}', "inf"),
            (b'{"kind": "kill", "target": "s", "begin": 1, "end": 1e18}', "1e+18"),
            (b'{"kind": "kill", "target": "s", "begin": -1, "end": 2}', "-1.0"),
            (b'{"kind": "kill", "target": "s", "begin": 1, "end": 2}\n{"kind": 5}', "line 2"),
        ],
    )
    def test_faults_that_are_none(self, run: Run, stopped: str, faults: bytes, named: str) -> None:
        refused = run("drill-verdict", stopped, "--faults", "-", input=faults)
        self.assert_one_line(refused, named)
        assert 'accepted: {"kind"' in refused.stderr

    def test_a_file_of_faults_that_is_not_there(self, run: Run, stopped: str) -> None:
        refused = run("drill-verdict", stopped, "--faults", "/nowhere")
        assert refused.exit_code == 2
        assert "/nowhere" in refused.stderr

    @pytest.mark.parametrize("line", ["nonsense", "{}", "[]", '{"run_id": 1}', "\x00"])
    def test_a_log_that_is_no_probes(self, run: Run, runtime: Runtime, stopped: str, line: str) -> None:
        fires_file(runtime.settings.userdata_dir, stopped).write_text(line + "\n")
        self.assert_one_line(run("drill-verdict", stopped), "fires.jsonl, line 1,")

    @pytest.mark.parametrize("plan", ["", "[]", "{}", '{"drill": 1}'])
    def test_a_plan_that_cannot_be_read(self, run: Run, runtime: Runtime, stopped: str, plan: str) -> None:
        (drill_folder(runtime.settings.userdata_dir, stopped) / "drill.json").write_text(plan)
        self.assert_one_line(run("drill-verdict", stopped), "drill.json")
        self.assert_one_line(run("drill-stop", stopped), "drill.json")

    def test_a_folder_that_is_gone(self, run: Run, runtime: Runtime, stopped: str) -> None:
        shutil.rmtree(drills_folder(runtime.settings.userdata_dir))
        self.assert_one_line(run("drill-verdict", stopped), "there is no drill")

    def test_a_probe_that_is_gone(self, run: Run, runtime: Runtime) -> None:
        plan = begin(runtime)
        with write_transaction(runtime.jobstore) as connection:
            connection.execute(delete(jobs).where(jobs.c.id == next(iter(plan.first))))
        self.assert_one_line(run("drill-stop", plan.drill), "is gone from the job store")
        assert all(runtime.ledger.get_job(job_id) is None for job_id in plan.first), "the others are stopped"

    @pytest.mark.parametrize(
        "arguments",
        [
            ("--jobs", "0"),
            ("--jobs", "501"),
            ("--period", "0.5"),
            ("--minutes", "0"),
            ("--executor", "x"),
            ("surplus",),
        ],
    )
    def test_wrong_options(self, run: Run, runtime: Runtime, arguments: tuple[str, ...]) -> None:
        assert run("drill-start", *arguments).exit_code == 2
        assert stored_probes(runtime) == 0

    @staticmethod
    def assert_one_line(refused: Result, names: str) -> None:
        assert refused.exit_code == 1, refused.output
        assert refused.stdout == ""
        # On a slow machine a probe came due before it was stopped: that it is waited for is told before.
        said = refused.stderr.splitlines()
        assert [line for line in said if line.startswith("Error: ")] == said[-1:], refused.stderr
        assert names in said[-1]


def test_faults_are_read_whole() -> None:
    line = b'{"kind": "cut", "target": "scheduler-2", "node": "abc", "begin": 1.5, "end": 2}\n'
    assert parse_faults(line * 2) == [Fault("cut", "scheduler-2", 1.5, 2.0, "abc")] * 2
    assert parse_faults(b"") == []


def test_a_log_that_was_never_written_holds_no_start(tmp_path: Path) -> None:
    assert read_starts(tmp_path / "fires.jsonl") == []
    (tmp_path / "fires.jsonl").write_text("{\n")
    with pytest.raises(OperationFailed):
        read_starts(tmp_path / "fires.jsonl")
