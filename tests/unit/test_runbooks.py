"""The runbooks' form: the same headings and blocks in both languages, an index that names them, and a test for each."""

from __future__ import annotations

import re

import pytest

from e2e.harness.runbooks import HEADINGS, HEADINGS_ZH, PAGES, RUNBOOKS, blocks_of, situations_of
from e2e.harness.stack import ROOT

#: What operators look for in the index; alerts and scripts link to these names.
NAMES = {
    "add-or-lose-a-scheduler",
    "backup-and-restore",
    "broker-down",
    "certificate-expired",
    "clock-change-nights",
    "database-is-locked",
    "disk-full",
    "forgotten-admin-password",
    "job-did-not-fire",
    "jobs-fire-late",
    "jobs-run-twice",
    "jobstore-damaged",
    "jobstore-without-jobs",
    "move-to-postgres",
    "reset-jobstore",
    "restore-to-another-machine",
    "scheduler-api-409",
    "two-deployments",
    "upgrade-and-rollback",
}
#: Blocks that no test can run, each with its reason above it: the fewer, the better.
NOT_RUN = {"README.md": 2}
#: A page's test says which page and which situation it follows.
FOLLOWED = re.compile(r"\.follow\(\s*\"([\w-]+)\"(?:,\s*\"([^\"]+)\")?")
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)")


def chinese(name: str) -> str:
    return (RUNBOOKS / f"{name}.zh-CN.md").read_text(encoding="utf-8")


def test_every_situation_has_its_page() -> None:
    assert set(PAGES) == NAMES


@pytest.mark.parametrize("name", PAGES)
def test_headings(name: str) -> None:
    headings = re.compile(r"^## (.+)$", re.MULTILINE)
    assert tuple(headings.findall(PAGES[name].read_text(encoding="utf-8"))) == HEADINGS
    assert tuple(headings.findall(chinese(name))) == HEADINGS_ZH


@pytest.mark.parametrize("name", PAGES)
def test_both_languages_give_the_same_commands(name: str) -> None:
    english, translated = blocks_of(PAGES[name]), blocks_of(RUNBOOKS / f"{name}.zh-CN.md")
    assert [block.body for block in english] == [block.body for block in translated]
    assert [HEADINGS.index(block.section) for block in english] == [
        HEADINGS_ZH.index(block.section) for block in translated
    ]
    for this, other in zip(english, translated, strict=True):
        assert (this.situation, this.ends_with, this.not_run is None) == (
            other.situation,
            other.ends_with,
            other.not_run is None,
        )


@pytest.mark.parametrize("name", PAGES)
def test_both_languages_say_the_same(name: str) -> None:
    """The same rows, subheadings, and links, which lead to pages of the same language."""
    text, translated = PAGES[name].read_text(encoding="utf-8"), chinese(name)
    for mark in (r"^\|", r"^### ", r"^- "):
        assert len(re.findall(mark, text, re.MULTILINE)) == len(re.findall(mark, translated, re.MULTILINE)), mark
    assert text.splitlines()[2] == f"[中文]({name}.zh-CN.md)"
    assert translated.splitlines()[2] == f"[English]({name}.md)"
    links = [link for link in LINK.findall(text) if link != f"{name}.zh-CN.md"]
    theirs = [link for link in LINK.findall(translated) if link != f"{name}.md"]
    assert sorted(theirs) == sorted(
        link.replace(".md", ".zh-CN.md") if link.removesuffix(".md") in PAGES else link for link in links
    )


@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_verified(name: str) -> None:
    assert any(block.section == "Verification" and block.not_run is None for block in blocks_of(PAGES[name]))
    for block in blocks_of(PAGES[name]):
        # `set -e` lets a negated command pass: only as the last one its status counts.
        assert not any(line.startswith("! ") for line in block.body.splitlines()[:-1]), f"{name}:{block.line}"


def test_a_test_follows_every_page_in_every_situation() -> None:
    followed = {
        (page, situation or None)
        for file in ROOT.glob("e2e/**/test_*.py")
        for page, situation in FOLLOWED.findall(file.read_text(encoding="utf-8"))
    }
    assert followed == {(name, situation) for name, path in PAGES.items() for situation in situations_of(path)}


def test_blocks_that_no_test_runs_are_few_and_say_why() -> None:
    counted = {
        path.relative_to(ROOT).as_posix(): sum(block.not_run is not None for block in blocks_of(path))
        for path in (ROOT / "README.md", *PAGES.values(), RUNBOOKS / "README.md")
    }
    assert {name: count for name, count in counted.items() if count} == NOT_RUN


@pytest.mark.parametrize(("index", "ending"), [("README.md", ".md"), ("README.zh-CN.md", ".zh-CN.md")])
def test_the_index_names_every_page(index: str, ending: str) -> None:
    links = LINK.findall((RUNBOOKS / index).read_text(encoding="utf-8"))
    assert {link for link in links if not link.startswith("README")} >= {f"{name}{ending}" for name in NAMES}


def test_both_indexes_give_the_same_commands() -> None:
    english, translated = (blocks_of(RUNBOOKS / name) for name in ("README.md", "README.zh-CN.md"))
    assert [block.body for block in english] == [block.body for block in translated]
