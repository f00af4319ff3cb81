"""The registry: built-in tasks, drop-in modules, and what happens when those are broken."""

from __future__ import annotations

import os
import sys
from textwrap import dedent

import pytest

from app.errors import ValidationError
from app.tasks import BUILTIN_TASK_IDS, TaskRegistry


@pytest.fixture
def drop_in(tmp_path):
    """Write modules `name -> source`, load the folder; the registry and its problems by module."""

    def load(**modules: str):
        for name, source in modules.items():
            (tmp_path / f"{name}.py").write_text(dedent(source))
        registry = TaskRegistry()
        registry.load_builtin()
        problems = registry.load_folder(tmp_path)
        assert registry.problems == tuple(problems)
        return registry, {problem.module: problem.error for problem in problems}

    return load


COPY = """
    from app.tasks import task

    @task("copy_report", description="Copies the report")
    def copy_report(target: str, *, run):
        return target, run
"""


def test_builtin_tasks_are_there():
    registry = TaskRegistry()
    registry.load_builtin()
    assert {task.name for task in registry.all()} == BUILTIN_TASK_IDS | {"drill_probe"}
    assert {task.name for task in registry.all() if task.takes_manual_context} == {
        "calculate_database_size_aggregations",
        "sync_accounts",
    }


def test_drop_in_task_is_loaded(drop_in):
    registry, problems = drop_in(copy=COPY)
    task = registry.get("copy_report")
    assert problems == {}
    assert task.call({"target": "here"}, "the run") == ("here", "the run")
    assert task.func_ref == "dropin_tasks.copy:copy_report"
    assert registry.check_kwargs("copy_report", {"target": "here"}) == {"target": "here"}
    assert task in registry.all()
    assert "copy_report" in [described["name"] for described in registry.describe()]


def test_broken_modules_are_reported_and_stop_nothing(drop_in):
    registry, problems = drop_in(
        copy=COPY,
        missing="import no_such_module_anywhere",
        syntax="def broken(:",
        leaves="import sys\nsys.exit(3)",
        raises="x = 1\n\nraise ValueError('two\\nlines')",
        wrong_task="from app.tasks import task\n\n@task('bad name')\ndef f(): pass",
    )
    assert registry.get("copy_report") is not None
    assert problems == {
        "missing.py": "ModuleNotFoundError: No module named 'no_such_module_anywhere' (line 1)",
        "syntax.py": problems["syntax.py"],
        "leaves.py": "SystemExit: 3 (line 2)",
        "raises.py": "ValueError: two lines (line 3)",
        "wrong_task.py": problems["wrong_task.py"],
    }
    assert problems["syntax.py"].startswith("SyntaxError: ")
    assert "line 1" in problems["syntax.py"]
    assert "TypeError: task name 'bad name'" in problems["wrong_task.py"]


def test_a_name_stays_with_the_first_module(drop_in):
    registry, problems = drop_in(
        a_first=COPY,
        b_second=COPY
        + """
    @task("other")
    def other(): ...
""",
    )
    assert registry.get("copy_report").func_ref == "dropin_tasks.a_first:copy_report"
    assert problems == {"b_second.py": "the name 'copy_report' is already taken by dropin_tasks.a_first:copy_report"}
    assert registry.get("other") is not None


def test_a_name_given_twice_in_one_module_is_reported(drop_in):
    source = """
        from app.tasks import task

        @task("twice")
        def one(): return 1

        @task("twice")
        def two(): return 2
    """
    registry, problems = drop_in(pair=source)
    assert registry.get("twice").call({}, None) == 1
    assert "already taken" in problems["pair.py"]


@pytest.mark.parametrize("name", sorted(BUILTIN_TASK_IDS))
def test_builtin_names_cannot_be_taken(drop_in, name):
    registry, problems = drop_in(hijack=f"from app.tasks import task\n\n@task({name!r})\ndef f(): pass")
    assert registry.get(name).func_ref.startswith("app.tasks.builtin.")
    assert problems == {"hijack.py": f"the name {name!r} belongs to a built-in task"}


def test_builtin_names_are_kept_even_before_the_builtin_tasks_are_loaded(tmp_path):
    (tmp_path / "hijack.py").write_text("from app.tasks import task\n\n@task('sync_accounts')\ndef f(): pass")
    registry = TaskRegistry()
    assert [problem.module for problem in registry.load_folder(tmp_path)] == ["hijack.py"]
    assert registry.get("sync_accounts") is None


def test_modules_share_code_through_the_package(drop_in):
    registry, problems = drop_in(
        _shared="ANSWER = 42",
        absolute="""
            from app.tasks import task
            from dropin_tasks._shared import ANSWER

            @task("absolute")
            def absolute(): return ANSWER
        """,
        relative="""
            from app.tasks import task
            from . import absolute
            from ._shared import ANSWER

            @task("relative")
            def relative(): return ANSWER + absolute.ANSWER
        """,
    )
    assert problems == {}
    assert registry.get("relative").call({}, None) == 84


def test_decorators_and_postponed_annotations_work(drop_in):
    source = """
        from __future__ import annotations

        import functools
        from typing import TYPE_CHECKING, Optional

        from app.tasks import task

        if TYPE_CHECKING:
            from app.ledger import RunContext

        def loud(function):
            @functools.wraps(function)
            def wrapper(*args, **kwargs):
                return function(*args, **kwargs)
            return wrapper

        @task("wrapped")
        @loud
        def wrapped(count: Optional[int] = None, *, run: RunContext) -> RunContext:
            return count, run
    """
    registry, problems = drop_in(wrapping=source)
    assert problems == {}
    assert registry.get("wrapped").call({"count": "3"}, "run") == (3, "run")


def test_a_module_without_tasks_is_reported(drop_in):
    _, problems = drop_in(empty="")
    assert "declares no task" in problems["empty.py"]


def test_two_folders_may_hold_modules_of_one_name(tmp_path):
    registry = TaskRegistry()
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(
            f"from app.tasks import task\n\n@task('{folder}')\ndef f(): return '{folder}'"
        )
        assert registry.load_folder(tmp_path / folder) == []
    assert [task.call({}, None) for task in registry.all()] == ["one", "two"]


def test_a_missing_folder_holds_no_tasks(tmp_path):
    assert TaskRegistry().load_folder(tmp_path / "absent") == []


def test_what_is_no_folder_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    (problem,) = TaskRegistry().load_folder(tmp_path / "file")
    assert problem.error == "the folder cannot be read: Not a directory"


def test_other_files_are_left_alone(tmp_path):
    for name in ("_private.py", ".hidden.py", "notes.txt"):
        (tmp_path / name).write_text("raise RuntimeError")
    (tmp_path / "folder.py").mkdir()
    assert TaskRegistry().load_folder(tmp_path) == []


def test_a_dangling_link_is_reported(tmp_path):
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    (problem,) = TaskRegistry().load_folder(tmp_path)
    assert problem.module == "gone.py"
    assert "FileNotFoundError" in problem.error


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_module_is_reported(tmp_path):
    (tmp_path / "locked.py").write_text("")
    (tmp_path / "locked.py").chmod(0)
    (problem,) = TaskRegistry().load_folder(tmp_path)
    assert "PermissionError" in problem.error


def test_a_failed_module_leaves_nothing_behind(drop_in):
    drop_in(raises="raise ValueError")
    assert "dropin_tasks.raises" not in sys.modules


def test_kwargs_of_an_unknown_task_are_refused():
    with pytest.raises(ValidationError) as caught:
        TaskRegistry().check_kwargs("nothing", {})
    assert caught.value.context["field"] == "task"
