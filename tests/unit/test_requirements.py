"""requirements/: the locked sets."""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.unit

REQUIREMENTS = Path(__file__).parents[2] / "requirements"


def locked(name: str) -> dict[str, Requirement]:
    lines = (REQUIREMENTS / name).read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line.removesuffix("\\")) for line in lines if line and not line.startswith((" ", "#"))]
    return {pin.name: pin for pin in pinned}


@pytest.mark.parametrize("lock", ["runtime.txt", "test.txt"])
def test_a_lock_names_every_extra_that_is_asked_for(lock: str) -> None:
    """Before pip 23.3 a pin of `name` does not hold for `name[extra]`: a newer release, without a hash, is chosen."""
    pins = locked(lock)
    installed = [package for package in distributions() if canonicalize_name(package.name) in pins]
    asked = [Requirement(line) for package in installed for line in package.requires or ()]
    # A dependency that is itself only wanted with an extra of its own is not asked for here.
    needed = [each for each in asked if each.extras and each.name in pins and "extra" not in str(each.marker or "")]
    assert needed, "no package asks for an extra: the packages of the lock are not installed"
    for each in needed:
        assert each.extras <= pins[each.name].extras, f"{each.name} lacks {each.extras - pins[each.name].extras}"
