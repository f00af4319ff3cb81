"""Hashed addresses of static files."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from app.pages import assets
from app.pages.assets import STATIC_FOLDER, plain_name, static_address


def test_address_holds_the_hash_of_the_content() -> None:
    digest = hashlib.sha256((STATIC_FOLDER / "app.css").read_bytes()).hexdigest()[:12]
    assert static_address("app.css") == f"/static/app.{digest}.css"


def test_address_keeps_the_folder() -> None:
    assert re.fullmatch(r"/static/js/http\.[0-9a-f]{12}\.js", static_address("js/http.js"))


def test_address_follows_a_change_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "STATIC_FOLDER", tmp_path)
    monkeypatch.setattr(assets, "_addresses", {})
    (tmp_path / "a.css").write_text("one")
    before = static_address("a.css")
    (tmp_path / "a.css").write_text("another")
    assert static_address("a.css") != before


def test_missing_file_has_no_address() -> None:
    with pytest.raises(FileNotFoundError):
        static_address("missing.css")


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("app.0123456789ab.css", ("app.css", True)),
        ("js/http.0123456789ab.js", ("js/http.js", True)),
        ("app.css", ("app.css", False)),
        ("app.0123456789AB.css", ("app.0123456789AB.css", False)),
        ("app.0123456789.css", ("app.0123456789.css", False)),
    ],
)
def test_plain_name(filename: str, expected: tuple[str, bool]) -> None:
    assert plain_name(filename) == expected


def test_scripts_import_only_files_that_are_there() -> None:
    for script in (STATIC_FOLDER / "js").glob("*.js"):
        for name in re.findall(r'^import .* from "\./([^"]+)";$', script.read_text(), re.MULTILINE):
            assert (script.parent / name).is_file(), f"{script.name} imports {name}"


def test_scripts_that_pages_load_are_imported_by_no_other() -> None:
    """A page loads a script by its hashed address, another script imports it by its plain one: it would run twice."""
    loaded = set()
    for template in (STATIC_FOLDER.parent / "templates").rglob("*.html"):
        loaded |= set(re.findall(r"static_address\('js/([^']+)'\)", template.read_text()))
    imported = set()
    for script in (STATIC_FOLDER / "js").glob("*.js"):
        imported |= set(re.findall(r'from "\./([^"]+)"', script.read_text()))
    assert loaded
    assert loaded & imported == set()
