"""Every command of the README and the runbooks works, as it stands there, on a healthy stack."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from e2e.harness.scripts import environment_of
from e2e.harness.stack import ROOT, Stack

BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = ("README.md", *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("runbooks/*.md")))
#: Pages that a test of their own follows from block to block: they take a stack apart.
FOLLOWED_ELSEWHERE = {"runbooks/move-to-postgres.md": "e2e/test_move_script.py"}

#: Too much for a shared stack: commands that a test of their own runs.
ELSEWHERE = {
    "./scripts/up.sh --install-engine": "e2e/test_up_script.py",
    "./scripts/up.sh --shape ha": "e2e/test_shapes.py",
    "docker compose up --detach --scale scheduler=3 --scale web=3 --scale worker=3": "e2e/test_shapes.py",
    "./scripts/test.sh": "whoever reads this result",
    "./scripts/prove_once.sh --yes --minutes 5": "e2e/test_prove_once.py",
    "./scripts/reset_jobstore.sh --yes": "e2e/test_backup_reset.py",
    "./scripts/rolling_restart.sh": "e2e/test_rolling_restart.py",
}


def blocks() -> list[tuple[str, str]]:
    found = []
    for page in (page for page in PAGES if page not in FOLLOWED_ELSEWHERE):
        for body in BLOCK.findall((ROOT / page).read_text(encoding="utf-8")):
            if body.strip() not in ELSEWHERE:
                found.append((page, body))
    return found


def as_on_this_stack(body: str, stack: Stack, folder: Path) -> str:
    """The block with the address, the secrets and the folder of the test's stack in the place of the user's."""
    body = body.replace("http://localhost", stack.base_url).replace(".secrets/", f"{stack.folder}/secrets/")
    return body.replace("off-volume", str(folder))


@pytest.mark.parametrize(("page", "body"), blocks(), ids=lambda value: value.strip().splitlines()[0][:60])
def test_block_works_as_it_stands(stack: Stack, tmp_path: Path, page: str, body: str) -> None:
    if "apply-export latest" in body:
        stack.execute("flask", "jobs", "export")  # what a reset leaves behind
    if "verify latest" in body:
        stack.execute("flask", "jobs", "backup")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", as_on_this_stack(body, stack, tmp_path)],
        cwd=ROOT,
        env=environment_of(stack),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, f"{page}:\n{body}\n{done.stdout}\n{done.stderr}"
    assert done.stdout.strip(), f"{page}:\n{body}\nsays nothing\n{done.stderr}"
