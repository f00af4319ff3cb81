"""What the documents name exists: files, commands, options, tests, variables; and both READMEs say the same."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from app.cli.console import db, jobs

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "runbooks/*.md", "e2e/faults/*.md")
    for path in ROOT.glob(pattern)
)

LINK = re.compile(r"!?\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
CODE = re.compile(r"`([^`\n]+)`")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TEST = re.compile(r"^((?:tests|e2e)/[\w/]+\.py)::(?:Test\w+::)?(test_\w+)$")
#: Folders of this repository: a path that begins with one of them, or a file's name with an ending of ours, must exist.
FOLDERS = tuple(f"{path.name}/" for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
#: Written as code, but made at run time or in a volume.
MADE_LATER = ("userdata/", "tasks/", "backups/", "exports/")
VARIABLE = re.compile(r"^[A-Z][A-Z0-9]+(?:_[A-Z0-9]+)+$")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose_of(page: str) -> str:
    return BLOCK.sub("", text_of(page))


def commands_of(page: str) -> Iterator[str]:
    """Every command line: of the shell blocks, and inline ones that begin like one."""
    for language, body in BLOCK.findall(text_of(page)):
        if language == "sh":
            yield from (line for line in body.splitlines() if line and not line.startswith("#"))
    for code in CODE.findall(prose_of(page)):
        if code.startswith(("./scripts/", "scripts/", "flask ", "docker compose exec", "docker compose run")):
            yield code


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in LINK.findall(text_of(page)):
        if "://" not in target:
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page} links to {target}"


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page: str) -> None:
    for code in CODE.findall(prose_of(page)):
        path = code.split("::")[0].split(" ")[0].removeprefix("./")
        if path.startswith(FOLDERS) and not path.startswith(MADE_LATER) and "*" not in path:
            assert (ROOT / path).exists(), f"{page} names {code}"


@pytest.mark.parametrize("page", PAGES)
def test_named_tests_exist(page: str) -> None:
    for code in CODE.findall(prose_of(page)):
        if "::" in code:
            found = TEST.match(code)
            assert found, f"{page} names {code}, which is no test"
            assert found[2] in functions_of(found[1]), f"{page} names {code}"


def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", PAGES)
def test_named_tests_of_a_choice_exist(page: str) -> None:
    """`test.sh -k NAME` picks by name."""
    everything = {name for file in ROOT.glob("e2e/**/test_*.py") for name in functions_of(str(file))}
    for command in commands_of(page):
        for name in re.findall(r"-k (test_\w+)", command):
            assert name in everything, f"{page}: {command}"


@pytest.mark.parametrize("page", PAGES)
def test_scripts_know_their_options(page: str) -> None:
    for command in commands_of(page):
        for script, arguments in re.findall(r"(scripts/\w+\.sh)([^|&;`]*)", command):
            usage = re.findall(r"^usage\(\) \{\n.*?^\}$", text_of(script), re.MULTILINE | re.DOTALL)
            for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", arguments):
                # What its --help tells: some options are read by the parser that all scripts share.
                assert re.search(rf"(?<![\w-]){option}(?![\w-])", usage[0]), f"{page}: {command}"


@pytest.mark.parametrize("page", PAGES)
def test_flask_commands_exist(page: str) -> None:
    groups: dict[str, click.Group] = {"jobs": jobs, "db": db}
    for command in commands_of(page):
        for group, rest in re.findall(r"flask (jobs|db) ([^|&;]*)", command):
            if rest.startswith("..."):
                continue
            name, *arguments = shlex.split(rest)
            found = groups[group].commands.get(name)
            assert found is not None, f"{page}: {command}"
            known = {option for parameter in found.params for option in parameter.opts}
            assert {word for word in arguments if word.startswith("--")} <= known, f"{page}: {command}"


@pytest.mark.parametrize("page", PAGES)
def test_variables_are_in_env_example(page: str) -> None:
    known = set(re.findall(r"^#?([A-Z][A-Z0-9_]*)=", text_of("env.example"), re.MULTILINE))
    constants = {"STATE_RUNNING", "STATE_PAUSED", "CONSTRAINT_VIOLATION", "BUILTIN_TASK_IDS"}
    for code in CODE.findall(prose_of(page)):
        name = code.partition("=")[0]
        if VARIABLE.match(name) and name not in constants:
            assert name in known, f"{page} names {name}, which env.example does not have"


def test_both_readmes_lead_to_the_runbooks() -> None:
    assert "(runbooks/README.md)" in text_of("README.md")
    assert "(runbooks/README.zh-CN.md)" in text_of("README.zh-CN.md")


def test_both_readmes_say_the_same() -> None:
    """The same blocks, links, tests and names, in the same order; only the words between them differ."""
    english, chinese = text_of("README.md"), text_of("README.zh-CN.md")
    assert BLOCK.findall(english) == BLOCK.findall(chinese)
    proofs = [[code for code in CODE.findall(text) if "::" in code] for text in (english, chinese)]
    assert proofs[0] == proofs[1]
    links = [
        [link.replace(".zh-CN", "") for link in LINK.findall(text) if not link.startswith("README")]
        for text in (english, chinese)
    ]
    assert links[0] == links[1]
    assert len(re.findall(r"^\|", english, re.MULTILINE)) == len(re.findall(r"^\|", chinese, re.MULTILINE))


def test_changelog_has_this_release() -> None:
    from app.version import VERSION

    assert f"## {VERSION}" in text_of("CHANGELOG.md")
