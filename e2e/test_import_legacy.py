"""scripts/import_legacy_jobstore.sh: an older app's store is taken over, and what its pickles ask for never happens."""

from __future__ import annotations

import json
import pickle
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from e2e.harness.client import SCHEDULER, Client
from e2e.harness.runbooks import Block, Operator, blocks_of
from e2e.harness.scripts import environment_of, run_on, run_script
from e2e.harness.site import Site, site
from e2e.harness.stack import ROOT, Shape, Stack

SHANGHAI = ZoneInfo("Asia/Shanghai")
NIGHTLY = CronTrigger(hour=2, minute=45, timezone=SHANGHAI)
PAGE = ROOT / "docs" / "legacy-store.md"
#: An older app, which writes its store itself; into the stack's own where no address is given.
OLD_APP = """
import sys, types
from apscheduler.schedulers.background import BackgroundScheduler

for name, function in (("shop", ""), ("shop.reports", "nightly"), ("shop.health", "ping"), ("shop.accounts", "sync")):
    sys.modules[name] = types.ModuleType(name)
    setattr(sys.modules[name], function, lambda *arguments: None)
if len(sys.argv) > 1:
    url = sys.argv[1]
else:
    from app.settings import Settings
    url = Settings.load().jobstore_url

scheduler = BackgroundScheduler(timezone="Asia/Shanghai")
scheduler.add_jobstore("sqlalchemy", url=url)
scheduler.start(paused=True)
scheduler.add_job(
    "shop.reports:nightly", "cron", day_of_week=0, hour=2, minute=30, args=["/srv/reports"], id="weekly_report"
)
scheduler.add_job("shop.health:ping", "interval", minutes=5, id="health")
scheduler.add_job("shop.accounts:sync", "cron", hour=2, minute=45, id="sync_accounts").pause()
scheduler.shutdown()
"""
SENTINEL = "/oracle/executed-by-a-pickle"


def state(func: str, trigger: Any, **changes: Any) -> bytes:
    """A row as APScheduler 3 pickles it."""
    values = {
        **{"version": 1, "id": "x", "func": func, "trigger": trigger, "executor": "default", "args": (), "kwargs": {}},
        **{"name": "old", "misfire_grace_time": 30, "coalesce": True, "max_instances": 1, "next_run_time": None},
    }
    return pickle.dumps(values | changes)


@pytest.fixture
def old_store(tmp_path: Path) -> Iterator[Path]:
    """A store whose newest rows are in its -wal, as an app that was killed leaves it; readable for its owner alone."""
    path = tmp_path / "old app's store.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(
            "CREATE TABLE apscheduler_jobs"
            " (id VARCHAR(191) PRIMARY KEY, next_run_time FLOAT(25), job_state BLOB NOT NULL)"
        )
        rows = [
            ("sync_accounts", None, state("old.tasks:sync_accounts", NIGHTLY)),
            ("old-sleep", 4e9, state("old.tasks:oracle_sleep", IntervalTrigger(hours=7), args=(0.5,))),
            ("old-renamed", 4e9, state("old.tasks:fire_away", NIGHTLY)),
            ("old-unknown", 4e9, state("old.tasks:nobody_knows", NIGHTLY)),
            ("old-hostile", 4e9, f"cos\nsystem\n(Vtouch {SENTINEL}\ntR.".encode()),
        ]
        connection.executemany("INSERT INTO apscheduler_jobs VALUES (?, ?, ?)", rows)
        connection.commit()
        path.chmod(0o600)
        yield path


@pytest.fixture
def _as_it_was(api: Client) -> Iterator[None]:
    before = api.job("sync_accounts")["trigger_spec"]
    yield
    fields = {name: value for name, value in before.items() if name != "type"}
    api.data("PUT", f"{SCHEDULER}/jobs/sync_accounts", json={"trigger_type": before["type"], **fields})
    api.data("POST", f"{SCHEDULER}/jobs/sync_accounts/actions/resume")
    for job in api.jobs():
        if job["id"].startswith("old-"):
            api.delete_job(job["id"])


@pytest.mark.usefixtures("_as_it_was")
def test_take_over(stack: Stack, api: Client, old_store: Path) -> None:
    options = [str(old_store), "--map", "fire_away=oracle_fire"]
    api.data("POST", f"{SCHEDULER}/jobs/actions/reload")  # nothing was changed here by hand
    before = api.jobs()
    asked = run_script("import_legacy_jobstore.sh", *options, environment=environment_of(stack))
    assert asked.code == 1  # without a terminal there is nobody to ask
    assert "--yes" in asked.stderr
    planned = run_on(stack, "import_legacy_jobstore.sh", *options, "--dry-run").stdout
    assert "would be changed: sync_accounts (task sync_accounts, At 02:45, every day, paused)" in planned
    assert api.jobs() == before

    done = json.loads(run_on(stack, "import_legacy_jobstore.sh", *options, "--yes", "--json").stdout)
    assert {job["id"]: job["action"] for job in done["jobs"]} == {
        "sync_accounts": "change",
        "old-sleep": "add",
        "old-renamed": "add",
    }
    reasons = {job["id"]: job["reason"] for job in done["not_taken"]}
    assert "no task here stands for its function old.tasks:nobody_knows" in reasons["old-unknown"]
    assert "os.system" in reasons["old-hostile"]
    assert not (stack.oracle_folder / Path(SENTINEL).name).exists()

    changed = api.job("sync_accounts")
    assert (changed["trigger_args"]["hour"], changed["trigger_args"]["minute"]) == ("2", "45")
    assert changed["is_paused"]
    assert api.job("old-sleep")["kwargs"] == {"seconds": 0.5}
    assert api.job("old-renamed")["task_name"] == "oracle_fire"

    again = json.loads(run_on(stack, "import_legacy_jobstore.sh", *options, "--yes", "--json").stdout)
    assert {job["action"] for job in again["jobs"]} == {"unchanged"}


def test_what_is_no_store_changes_nothing(stack: Stack, api: Client, tmp_path: Path) -> None:
    before = api.jobs()
    file = tmp_path / "no store"
    file.write_bytes(b"SQLite format 3\0 and then nothing of the kind" * 100)
    for arguments, part in (([str(file)], "no SQLite database"), (["--from-store"], "holds no table apscheduler_jobs")):
        refused = run_script("import_legacy_jobstore.sh", *arguments, "--yes", environment=environment_of(stack))
        assert (refused.code, refused.stdout) == (1, ""), refused
        assert part in refused.stderr
    assert api.jobs() == before


def follow(made: Site, blocks: Sequence[Block]) -> list[str]:
    """What the page's blocks print, in a checkout that has the page's drop-in module."""
    (made.folder / "reports.py").write_text(shown_on_the_page("python"))
    operator = Operator(made, {} if made.shape == "prod" else {" whalefall ": f" {made.service} "})
    said = []
    for block in blocks:
        said.append(operator.run(block, PAGE.name))
        made.wait_until_ready()
    return said


def shown_on_the_page(language: str) -> str:
    (shown,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return str(shown)


def definitions(made: Site) -> dict[str, Any]:
    """What the jobs are, by their ids."""
    names = ("task_name", "name", "trigger_spec", "kwargs", "is_paused", "is_enabled", "misfire_grace_time")
    return {job["id"]: {name: job[name] for name in names} for job in made.bearer().jobs()}


def test_the_page_works_as_it_stands(tmp_path: Path) -> None:
    blocks = [block for block in blocks_of(PAGE) if block.situation is None]
    with site(tmp_path, "legacy") as made:
        url = f"sqlite:///{made.folder / 'old-jobs.db'}"
        subprocess.run([sys.executable, "-c", OLD_APP, url], check=True, timeout=60)
        before = definitions(made)

        give_tasks, look, keep, take_over, see, back = blocks
        _, planned, _ = follow(made, [give_tasks, look, keep])
        assert planned == shown_on_the_page("text")
        assert definitions(made) == before
        _, listed = follow(made, [take_over, see])
        assert re.search(r"^weekly_report +.* scheduled ", listed, re.MULTILINE), listed
        assert re.search(r"^sync_accounts +.* paused", listed, re.MULTILINE), listed
        after = definitions(made)
        assert after["weekly_report"]["kwargs"] == {"target": "/srv/reports"}
        (again,) = follow(made, [take_over])
        assert again.count("unchanged") == 2
        assert definitions(made) == after
        follow(made, [back])
        assert definitions(made) == before


@pytest.mark.parametrize("shape", ["prod", pytest.param("ha", marks=pytest.mark.faults_long)])
def test_the_page_works_on_a_table_in_the_stacks_own_store(tmp_path: Path, shape: Shape) -> None:
    blocks = blocks_of(PAGE)
    with site(tmp_path, "legacy-own", shape) as made:
        made.execute("python3", "-c", OLD_APP)
        follow(made, [blocks[0], *(block for block in blocks if block.situation is not None)])
        taken = definitions(made)
        assert (taken["weekly_report"]["task_name"], taken["sync_accounts"]["is_paused"]) == ("copy_report", True)
