"""Languages: Chinese, the language of the message ids, and English.

The reader's choice comes from the cookie `lang`, else from `Accept-Language`; anything else reads Chinese.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from babel.support import Translations
from flask import Flask, has_request_context, request
from flask_babel import Babel, get_locale, gettext

from app.errors import DomainError

LANGUAGES = ("zh", "en")
LANGUAGE_COOKIE = "lang"
TRANSLATIONS_FOLDER = Path(__file__).parent / "translations"


def init_i18n(app: Flask) -> None:
    """Bind Flask-Babel, which chooses the language once a request."""
    app.config["BABEL_TRANSLATION_DIRECTORIES"] = str(TRANSLATIONS_FOLDER)
    Babel(app, default_locale=LANGUAGES[0], locale_selector=chosen_language)


def chosen_language() -> str:
    """`zh` or `en` for the reader of this request; `zh` outside one."""
    if not has_request_context():
        return LANGUAGES[0]
    cookie = request.cookies.get(LANGUAGE_COOKIE)
    if cookie in LANGUAGES:
        return cookie
    # In the reader's order; Werkzeug's best_match would take a lower-ranked exact `zh` before `en-US`.
    for tag, quality in request.accept_languages:
        language = re.split("[-_]", tag)[0].lower()
        if quality > 0 and language in LANGUAGES:
            return language
    return LANGUAGES[0]


def current_language() -> str:
    """The language that texts are rendered in now: `zh` or `en`."""
    locale = get_locale()
    return locale.language if locale is not None and locale.language in LANGUAGES else LANGUAGES[0]


def translate(message: str, params: Mapping[str, Any] | None = None) -> str:
    """A message id in the reader's language, its `%(name)s` placeholders filled."""
    text: str = gettext(message)
    return text % params if params else text


def english(message: str, params: Mapping[str, Any] | None = None) -> str:
    """A message id in English: for command lines and start errors, which are English whoever reads them."""
    text: str = Translations.load(str(TRANSLATIONS_FOLDER), ["en"]).gettext(message)
    return text % params if params else text


def translate_error(error: DomainError) -> str:
    """What the reader is told about an error."""
    return translate(error.message, error.params)


def translate_context(error: DomainError) -> dict[str, Any]:
    """The error's details for the envelope; `accepted` is in the reader's language where it is words."""
    context = dict(error.context)
    accepted = context.get("accepted")
    if isinstance(accepted, str):
        context["accepted"] = translate(accepted)
    return context
