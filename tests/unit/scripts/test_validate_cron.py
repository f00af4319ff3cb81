"""scripts/validate_cron.py on a host that has the packages: its zone, its answer, its refusals."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from app.settings import PROJECT_ROOT


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script in a checkout whose .env is empty."""
    spec = spec_from_file_location("validate_cron", PROJECT_ROOT / "scripts" / "validate_cron.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # what the script adds goes with the test
    for name in ("SCHEDULER_TIMEZONE", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    return module


@pytest.mark.parametrize(
    ("content", "zone"),
    [
        ("", "Asia/Shanghai"),
        ("SCHEDULER_TIMEZONE=Europe/Berlin\n", "Europe/Berlin"),
        ('# SCHEDULER_TIMEZONE=UTC\nSCHEDULER_TIMEZONE="America/New_York"\n', "America/New_York"),
        ("SCHEDULER_TIMEZONE=\n", "Asia/Shanghai"),
    ],
)
def test_the_zone_is_the_stacks(
    script: ModuleType, capsys: pytest.CaptureFixture[str], content: str, zone: str
) -> None:
    (script.ROOT / ".env").write_text(content)
    assert script.main(["0 1 * * *"]) == 0
    assert capsys.readouterr().out.startswith(f"0 1 * * *  ({zone})\nAt 01:00")


def test_the_environment_goes_before_the_file(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCHEDULER_TIMEZONE", "UTC")
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    (script.ROOT / ".env").write_text("SCHEDULER_TIMEZONE=Europe/Berlin\n")
    assert script.main(["0 1 * * *", "--count", "1"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("0 1 * * *  (UTC)\n在")
    assert len(told.splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        ([], 2, "EXPR is missing"),
        (["*", "*", "*", "*", "*"], 2, "EXPR is one argument, in quotes"),
        (["* * * * *", "--colour"], 2, "unknown argument '--colour'"),
        (["* * * * *", "--count"], 2, "--count needs a value"),
        (["* * * * *", "--timezone", "--json"], 2, "--timezone needs a value"),
        (["* * * * *", "--count", "101"], 2, "101 is not in the range"),
        (["* * * * *", "--timezone", "Mars"], 1, "'Mars' is not known"),
        (["* * * *"], 1, "has 4 parts"),
        (["* * * * *", "--after", "9999-12-31"], 1, "--after is '9999-12-31'"),
    ],
)
def test_refusals_are_one_line(
    script: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, part: str
) -> None:
    assert script.main(arguments) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("validate_cron.py: ")
    assert part in told.err
    assert len(told.err.splitlines()) == 1


def test_a_stack_with_a_wrong_zone(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    (script.ROOT / ".env").write_text("SCHEDULER_TIMEZONE=Mars/Base\n")
    assert script.main(["* * * * *"]) == 1
    assert "'Mars/Base' is not known" in capsys.readouterr().err
