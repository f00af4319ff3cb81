"""After a login, readers go back to this site and to no other."""

from __future__ import annotations

import pytest

from app.pages.return_address import HOME, safe_return_address


@pytest.mark.parametrize(
    "given", ["/dashboard", "/scheduler?q=a&state=idle", "/scheduler/jobs/%E4%BB%BB%E5%8A%A1", "/a?next=//evil"]
)
def test_own_addresses_are_kept(given: str) -> None:
    assert safe_return_address(given) == given


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "dashboard",
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example/",
        "\\\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "javascript:alert(1)",
        "/login",
        "/login?next=/login",
    ],
)
def test_anything_else_goes_home(given: str | None) -> None:
    assert safe_return_address(given) == HOME
