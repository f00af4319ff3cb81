"""Every message has an English text, and the compiled catalogue is the one that was edited."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import pytest
from babel.messages.catalog import Catalog
from babel.messages.extract import extract_from_dir
from babel.messages.mofile import read_mo
from babel.messages.pofile import read_po

from app.i18n import TRANSLATIONS_FOLDER
from app.settings import PROJECT_ROOT

ENGLISH = TRANSLATIONS_FOLDER / "en" / "LC_MESSAGES"
PLACEHOLDER = re.compile(r"%\(\w+\)[sd]|%%")


@pytest.fixture(scope="module")
def english() -> Catalog:
    with (ENGLISH / "messages.po").open("rb") as file:
        return read_po(file, locale="en")


def used_messages() -> Iterator[tuple[str, str]]:
    """Message ids in code and templates, each with the place of its first use."""
    for file, line, message, _comments, _context in extract_from_dir(
        PROJECT_ROOT / "app",
        method_map=[("**.py", "python"), ("**/templates/**.html", "jinja2")],
        options_map={"**/templates/**.html": {"trimmed": "true"}},
        keywords={"_N": None, "_": None, "gettext": None, "ngettext": (1, 2), "lazy_gettext": None},
    ):
        yield (message if isinstance(message, str) else message[0]), f"app/{file}:{line}"


def test_every_message_has_an_english_text(english: Catalog) -> None:
    missing = {text: place for text, place in used_messages() if not (found := english.get(text)) or not found.string}
    assert missing == {}


def test_the_search_finds_messages() -> None:
    places = dict(used_messages())
    assert places["调度器未启动"].startswith("app/errors.py:")
    assert any(place.startswith("app/pages/templates/") for place in places.values())


def test_no_text_is_left_that_nobody_uses(english: Catalog) -> None:
    used = {text for text, _ in used_messages()}
    assert {
        message.id
        for message in english
        if message.id and (message.id if isinstance(message.id, str) else message.id[0]) not in used
    } == set()


def test_the_english_texts_have_the_same_placeholders(english: Catalog) -> None:
    for message in english:
        if message.id and isinstance(message.id, str) and isinstance(message.string, str):
            assert sorted(PLACEHOLDER.findall(message.string)) == sorted(PLACEHOLDER.findall(message.id)), message.id


def test_no_message_is_translated_twice() -> None:
    ids = re.findall(r'^msgid "(.+)"$', (ENGLISH / "messages.po").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(ids) == len(set(ids))


def test_the_compiled_catalogue_is_the_edited_one(english: Catalog) -> None:
    compiled = read_mo(io.BytesIO((ENGLISH / "messages.mo").read_bytes()))
    edited = {message.id: message.string for message in english if message.id and message.string and not message.fuzzy}
    assert {message.id: message.string for message in compiled if message.id} == edited
