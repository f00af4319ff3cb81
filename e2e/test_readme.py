"""Every command of the README and of the runbooks' index works, as it stands there, on a healthy stack."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.harness.runbooks import RUNBOOKS, Block, Operator, blocks_of
from e2e.harness.site import site
from e2e.harness.stack import ROOT

PAGES = (ROOT / "README.md", RUNBOOKS / "README.md")


def blocks(situation: str | None) -> list[tuple[Path, Block]]:
    """The blocks of both pages that are for that situation."""
    return [(page, block) for page in PAGES for block in blocks_of(page) if block.situation == situation]


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    with site(tmp_path_factory.mktemp("readme"), "readme") as made:
        yield Operator(made)


@pytest.mark.parametrize(
    ("page", "block"),
    [pair for pair in blocks(None) if pair[1].not_run is None],
    ids=lambda value: value.body.splitlines()[0][:60] if isinstance(value, Block) else value.parent.name,
)
def test_block_works_as_it_stands(operator: Operator, page: Path, block: Block) -> None:
    assert operator.run(block, page.name).strip(), "it says nothing"
