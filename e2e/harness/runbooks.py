"""Runbooks as tests: their pages read into blocks, and followed on a real stack as an operator follows them.

A page's blocks run as they stand, in a checkout of the test's own; only what differs between two stacks on one machine
(the port, the names of projects) is put in. Comments in a page, which its readers do not see, steer it:

    <!-- situation: paused -->     the blocks from here on belong to that situation alone, until the next heading of
                                   level 2, or another such comment; `all` ends it too
    <!-- ends with 3 -->           the next block's exit code while the situation lasts, when it is not 0
    <!-- on: the old machine -->   the next block is typed on another machine
    <!-- not run: reason -->       the next block is for reading
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from e2e.harness.checkout import Checkout
from e2e.harness.stack import ROOT
from e2e.harness.waiting import wait_until

RUNBOOKS = ROOT / "runbooks"
HEADINGS = ("Meaning", "Impact", "Diagnosis", "Mitigation", "Verification")
HEADINGS_ZH = ("含义", "影响", "诊断", "处理", "验证")
#: How long a Verification may take to pass, in seconds: health and heartbeats follow a mitigation within it.
SETTLES_WITHIN_S = 60

#: Every page with the situations that it tells apart; a page without any is one situation.
PAGES = {
    path.stem: path
    for path in sorted(RUNBOOKS.glob("*.md"))
    if not path.stem.startswith("README") and not path.name.endswith(".zh-CN.md")
}

#: The task of the pages' examples, as a drop-in module: it copies, and then may fail.
COPY_REPORT = """
from app.tasks import task

@task("copy_report", description="Copies the report")
def copy_report(fails: bool = False, *, run):
    print("copied")
    if fails and run.attempt == 1:
        raise RuntimeError("the target says it is there already")
"""

_LINE = re.compile(
    r"^(?:## (?P<heading>.+)|<!-- (?P<steer>situation|ends with|on|not run):? (?P<value>.+?) -->|```(?P<language>\w+))$"
)


@dataclass(frozen=True)
class Block:
    """One block of shell commands of a page."""

    section: str
    """The heading of level 2 above it, in the page's language; empty before the first."""
    body: str
    line: int
    situation: str | None = None
    """The one situation of the page that it belongs to; None: all of them."""
    ends_with: int = 0
    """Its exit code while the situation lasts."""
    machine: str | None = None
    """The machine that it is typed on, where that is not the one that the page is about."""
    not_run: str | None = None
    """Why no test can run it."""


def blocks_of(path: Path) -> list[Block]:
    """The `sh` blocks of a page in their order. ValueError when a comment that steers stands above no block."""
    found: list[Block] = []
    section, situation = "", None
    above: dict[str, str] = {}
    lines = iter(enumerate(path.read_text(encoding="utf-8").splitlines(), start=1))
    for number, line in lines:
        match = _LINE.match(line)
        if match is None:
            if line and above:
                raise ValueError(f"{path.name}:{number}: {above} stands above no block")
            continue
        if match["heading"]:
            section, situation = match["heading"], None
        elif match["steer"] == "situation":
            situation = None if match["value"] == "all" else match["value"]
        elif match["steer"]:
            above[match["steer"]] = match["value"]
        else:
            body = []
            for _, inner in lines:
                if inner == "```":
                    break
                body.append(inner)
            if match["language"] == "sh":
                block = Block(
                    section,
                    "\n".join(body),
                    number,
                    situation,
                    int(above.pop("ends with", "0")),
                    above.pop("on", None),
                    above.pop("not run", None),
                )
                found.append(block)
    return found


def situations_of(path: Path) -> set[str | None]:
    """The situations that a page tells apart, also those without a block; {None} when it is about one."""
    named = set(re.findall(r"^<!-- situation: (.+?) -->$", path.read_text(encoding="utf-8"), re.MULTILINE)) - {"all"}
    return set(named) or {None}


@dataclass
class Followed:
    """What came of a page's blocks, for the assertions of a test that look closer."""

    diagnosis: str = ""
    mitigation: str = ""
    verification: str = ""


@dataclass
class Operator:
    """Somebody with a shell in a checkout, who does what the pages say."""

    checkout: Checkout
    replacing: Mapping[str, str] = field(default_factory=dict)
    """Further names of this very test in the place of those that the pages use."""
    machines: Mapping[str, Operator] = field(default_factory=dict)
    """Who types what is to be typed on another machine."""

    def follow(self, page: str, situation: str | None = None) -> Followed:
        """In the situation: Diagnosis works, Verification fails; after the Mitigation it passes. Their output."""
        done = Followed()
        blocks = [block for block in blocks_of(PAGES[page]) if block.situation in (None, situation)]
        told = {name: [block for block in blocks if block.section == name] for name in HEADINGS}
        assert {block.section for block in blocks} <= set(HEADINGS), page
        assert any(block.not_run is None for block in told["Verification"]), f"{page} has nothing to verify with"
        for name in ("Meaning", "Impact", "Diagnosis"):
            for block in told[name]:
                done.diagnosis += self.run(block, page)
        failed = self.verify(told["Verification"], page)
        assert failed is not None, f"{page}: its Verification passes while the situation lasts"
        for block in told["Mitigation"]:
            done.mitigation += self.run(block, page)
        wait_until(
            f"the Verification of {page} passes",
            lambda: self.verify(told["Verification"], page, done),
            lambda failure: failure is None,
            within=SETTLES_WITHIN_S,
            every=1,
        )
        return done

    def run(self, block: Block, page: str) -> str:
        """Run a block; its output. Fails with all it printed unless it ends as the page says."""
        if block.not_run is not None:
            return ""
        typing = self.machines[block.machine] if block.machine else self
        code, output = typing.shell(block.body)
        assert code == block.ends_with, f"{page}:{block.line}: ends with {code}, not {block.ends_with}\n{output}"
        return output

    def verify(self, blocks: list[Block], page: str, done: Followed | None = None) -> str | None:
        """What failed of the Verification; None: it passes."""
        said = ""
        for block in blocks:
            if block.not_run is not None:
                continue
            code, output = self.shell(block.body)
            said += output
            if code != 0:
                return f"{page}:{block.line}: ends with {code}\n{output}"
        if done is not None:
            done.verification = said
        return None

    def shell(self, body: str) -> tuple[int, str]:
        """Run shell lines in the checkout; the exit code and all that was printed."""
        begin = time.monotonic()
        done = self.checkout.run("bash", "-euo", "pipefail", "-c", self.as_here(body), env={})
        print(f"$ {body}\n{done.stdout}{done.stderr}[exit {done.returncode}, {time.monotonic() - begin:.1f} s]\n")
        return done.returncode, done.stdout + done.stderr

    def as_here(self, body: str) -> str:
        """The lines with this stack's port and names."""
        here = {
            "http://localhost/": f"http://localhost:{self.checkout.port}/",
            "whalefall_userdata": f"{self.checkout.project}_userdata",
            "whalefall_postgres": f"{self.checkout.project}_postgres",
            **self.replacing,
        }
        for name, ours in here.items():
            body = body.replace(name, ours)
        return body
