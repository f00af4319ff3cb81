"""Bad input to every script: one clear line, a failure, and nothing changed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from e2e.harness.scripts import Outcome, environment_of, run_script
from e2e.harness.stack import ROOT, Stack, free_port

SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.sh") if os.access(path, os.X_OK))
ON_A_STACK = [
    "backup_jobstore.sh",
    "export_jobs.sh",
    "failover_drill.sh",
    "import_jobs.sh",
    "prove_once.sh",
    "reset_jobstore.sh",
    "rotate_secrets.sh",
]
#: Of those that do harm.
AGREED = {
    "failover_drill.sh": ["--yes"],
    "rotate_secrets.sh": ["--yes", "all"],
    "import_jobs.sh": [str(ROOT / "README.md"), "--yes"],
    "prove_once.sh": ["--yes"],
    "reset_jobstore.sh": ["--yes"],
}

#: What must stand before anything can be too much.
OPERANDS = {
    "explain.sh": ["job", "12:00"],
    "import_jobs.sh": [str(ROOT / "README.md")],
    "import_legacy_jobstore.sh": [str(ROOT / "README.md")],
    "load_bundle.sh": [str(ROOT / "README.md")],
    "save_bundle.sh": ["/nowhere/bundle.tar"],
}

#: Takes as many words as there are names.
TAKES_ANY_WORD = ("make_dev_cert.sh", "surplus")

#: What an operator's machine has, docker apart.
TOOLS = Path("/usr/bin"), Path("/bin"), Path("/usr/sbin"), Path("/sbin")


def assert_one_clear_line(script: str, outcome: Outcome, *, names: str) -> None:
    """One line on standard error that begins with the script's name and says `names`; no result."""
    assert outcome.code != 0, outcome
    assert outcome.stdout == "", outcome
    assert len(outcome.stderr.splitlines()) == 1, outcome
    assert outcome.stderr.startswith(f"{script}: "), outcome
    assert names in outcome.stderr, outcome


@pytest.fixture(autouse=True)
def _nothing_changes(tmp_path: Path) -> Iterator[None]:
    """The project's own files and this machine's containers are the same before and after."""
    before = present_state()
    yield
    assert present_state() == before


def present_state() -> dict[str, object]:
    files = {
        str(path.relative_to(ROOT)): path.stat().st_mtime_ns
        for pattern in (".env", ".secrets/*", ".build/**/*", "compose/.env")
        for path in ROOT.glob(pattern)
        if path.suffix != ".lock"  # of operations on the stacks of tests that run beside this one
    }
    containers = docker.from_env().containers.list(
        all=True, filters={"label": "com.docker.compose.project.working_dir=" + str(ROOT)}
    )
    return {"files": files, "containers": {container.id for container in containers}}


@pytest.fixture
def without_docker(tmp_path: Path) -> dict[str, str]:
    """An environment whose PATH has everything but docker."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for folder in TOOLS:
        for tool in folder.iterdir() if folder.is_dir() else ():
            if not tool.name.startswith("docker") and not (tools / tool.name).exists():
                (tools / tool.name).symlink_to(tool)
    assert shutil.which("docker", path=str(tools)) is None
    return {"PATH": str(tools), "HOME": str(tmp_path)}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("argument", ["--no-such-flag", "surplus", "-z", "--help-me", "--yes=1"])
def test_unknown_argument(script: str, argument: str) -> None:
    if (script, argument) == TAKES_ANY_WORD:
        pytest.skip("a certificate may be made for any name")
    assert_one_clear_line(script, run_script(script, *OPERANDS.get(script, []), argument), names=argument)


@pytest.mark.parametrize("script", SCRIPTS)
def test_unknown_argument_behind_a_good_one(script: str) -> None:
    good = {
        "up.sh": "--install-engine",
        "doctor.sh": "--json",
        "failover_drill.sh": "--yes",
        "rotate_secrets.sh": "all",
        "test.sh": "--unit",
        "backup_jobstore.sh": "--json",
        "export_jobs.sh": "--json",
        "import_jobs.sh": "--yes",
        "reset_jobstore.sh": "--yes",
        "restore_jobstore.sh": "--dry-run",
        "move_to_postgres.sh": "--yes",
        "prove_once.sh": "--yes",
        "rolling_restart.sh": "--dry-run",
        "explain.sh": "--json",
        "import_legacy_jobstore.sh": "--yes",
        "load_bundle.sh": "--dry-run",
        "logs.sh": "--json",
        "make_dev_cert.sh": "--dry-run",
        "rollback.sh": "--dry-run",
        "save_bundle.sh": "--dry-run",
        "upgrade.sh": "--local",
    }
    assert_one_clear_line(script, run_script(script, good[script], "--no-such-flag"), names="--no-such-flag")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_a_result(script: str) -> None:
    outcome = run_script(script, "--help")
    assert outcome.code == 0
    assert outcome.stdout.startswith(f"Usage: scripts/{script}")
    assert outcome.stderr == ""


@pytest.mark.parametrize("script", sorted({*SCRIPTS} - {"test.sh", "up.sh"}))
def test_every_operation_takes_the_common_options(script: str) -> None:
    options = ["--yes", "--dry-run", "--json", "--help"]
    outcome = run_script(script, *options)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert [option for option in options if option not in outcome.stdout] == []


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("test.sh", ["-k"]),
        ("explain.sh", ["--lang"]),
        ("explain.sh", ["--lang", "fr"]),
        ("import_legacy_jobstore.sh", ["--map"]),
        ("import_legacy_jobstore.sh", ["--map", "no-task"]),
        ("import_legacy_jobstore.sh", ["--table", "--json"]),
        ("export_jobs.sh", ["--output"]),
        ("export_jobs.sh", ["--output", "--json"]),
        ("reset_jobstore.sh", ["--from-export"]),
        ("backup_jobstore.sh", ["--keep"]),
        ("backup_jobstore.sh", ["--reason"]),
        ("backup_jobstore.sh", ["--reason", "--json"]),
        ("backup_jobstore.sh", ["--copy-to", ""]),
        ("backup_jobstore.sh", ["--verify"]),
        ("restore_jobstore.sh", ["--catch-up"]),
    ],
)
def test_missing_value(script: str, arguments: list[str]) -> None:
    assert_one_clear_line(script, run_script(script, *arguments), names=arguments[0])


def test_import_of_nothing() -> None:
    assert_one_clear_line("import_jobs.sh", run_script("import_jobs.sh", "--yes"), names="which FILE?")


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", "99999"])
def test_wrong_number(value: str) -> None:
    outcome = run_script("backup_jobstore.sh", "--keep", value)
    assert_one_clear_line("backup_jobstore.sh", outcome, names=value)
    assert "1 to 9999" in outcome.stderr


def test_folder_that_does_not_exist(tmp_path: Path) -> None:
    outcome = run_script("backup_jobstore.sh", "--copy-to", str(tmp_path / "missing"))
    assert_one_clear_line("backup_jobstore.sh", outcome, names="missing")


@pytest.mark.parametrize("script", ON_A_STACK)
def test_no_engine(script: str, without_docker: dict[str, str]) -> None:
    outcome = run_script(script, *AGREED.get(script, []), environment=without_docker)
    assert_one_clear_line(script, outcome, names="--install-engine")


@pytest.mark.parametrize("script", ON_A_STACK)
def test_engine_that_does_not_answer(script: str) -> None:
    environment = {**os.environ, "DOCKER_HOST": f"tcp://127.0.0.1:{free_port()}"}
    outcome = run_script(script, *AGREED.get(script, []), environment=environment)
    assert_one_clear_line(script, outcome, names="does not answer")


@pytest.mark.parametrize("script", ON_A_STACK)
def test_no_stack(script: str) -> None:
    environment = {**os.environ, "COMPOSE_PROJECT_NAME": "whalefall-never-started"}
    outcome = run_script(script, *AGREED.get(script, []), environment=environment)
    assert_one_clear_line(script, outcome, names="scripts/up.sh")


def test_reset_asks_before_it_does_anything(stack: Stack) -> None:
    """Without a terminal there is nobody to ask."""
    outcome = run_script("reset_jobstore.sh", environment=environment_of(stack))
    assert_one_clear_line("reset_jobstore.sh", outcome, names="--yes")
    stack.wait_until_ready(within=5)
