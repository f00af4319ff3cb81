"""Takes secrets out of text: those that are known, wherever they stand, and what stands where secrets usually do.

Too much is masked rather than too little: what is masked is only read by people who look for a fault.
"""

from __future__ import annotations

import base64
import html
import json
import re
import string
from collections.abc import Iterable, Mapping

MASK = "***"
SHORTEST = 4
"""A known secret that is shorter is masked only where its name stands: it would blank half of every text."""
_WORDS = frozenset({"true", "false", "null", "none"})
_ADDRESS = re.compile(r"https?://[^/?#]+(.*)", re.IGNORECASE)
_TELLING = 8
"""What is shorter in the path of an address is a word such as `hooks` or `api`."""
_PLAIN = frozenset(string.ascii_letters + string.digits + "-._~")
"""Letters that are written the same everywhere."""

_WORD = (
    r"(?:passw(?:or)?d|pwd|passphrase|secret|token|api[_-]?key|access[_-]?key|credential|private[_-]?key|webhook|"
    r"ping_url|authorization|csrf|[_-]pass(?!\w)|[_-]auth(?!\w))"
)
_IS_SECRET_NAME = re.compile(rf"[\w.-]*{_WORD}[\w.-]*", re.IGNORECASE)
_NAMES_A_FILE = re.compile(r"_file$", re.IGNORECASE)
# In an escaped JSON text the quotes have backslashes.
_QUOTE = r"""\\*["']"""
# What stands before the word in a name stays as it is; limits keep the search linear in a text without blanks.
_ASSIGNED = rf"(?P<name>{_WORD}[\w.-]{{0,40}})(?P<is>(?:{_QUOTE})?[ \t]*(?:=>|[:=])[ \t]*)"
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), MASK),
    # To the last @: a password may hold one, and a slash.
    (re.compile(r"://[^\s\"'<>]*@"), f"://{MASK}@"),
    (re.compile(r"\b(bearer|basic|digest)\s+[\w.~+/=-]{6,}", re.IGNORECASE), rf"\1 {MASK}"),
    (re.compile(rf"((?:set-)?cookie(?:{_QUOTE})?\s*[:=]\s*)[^\r\n]+", re.IGNORECASE), rf"\1{MASK}"),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"), MASK),
)
_VALUE = re.compile(
    rf"""{_ASSIGNED}(?P<value>(?P<q>{_QUOTE})(?:(?!(?P=q)).)*(?P=q)?|[^\s,;&}}\])"']+)""", re.IGNORECASE
)
# A setting on a line of its own may hold blanks.
_LINE = re.compile(
    rf"""(?m)^(?P<lead>[ \t-]{{0,80}}[\w.-]{{0,40}}?){_ASSIGNED}(?P<value>[^\s"'{{\[].*)$""", re.IGNORECASE
)


def is_secret_name(name: str) -> bool:
    """Whether a setting or parameter of this name holds a secret, and not the path of a file that does."""
    return bool(_IS_SECRET_NAME.fullmatch(name)) and not _NAMES_A_FILE.search(name)


def secrets_among(values: object) -> set[str]:
    """What stands under the name of a secret in nested mappings and lists, as text."""
    found: set[str] = set()
    if isinstance(values, Mapping):
        for name, value in values.items():
            if isinstance(value, Mapping | list | tuple):
                found |= set(_leaves(value)) if is_secret_name(str(name)) else secrets_among(value)
            elif is_secret_name(str(name)) and value is not None:
                found.add(str(value))
    elif isinstance(values, list | tuple):
        for value in values:
            found |= secrets_among(value)
    return found


def _leaves(value: object) -> Iterable[str]:
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from _leaves(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    elif value is not None:
        yield str(value)


class Masker:
    """Masks the known `secrets`, as they are and as they are written in URLs, JSON and base64, and by pattern."""

    def __init__(self, secrets: Iterable[str]) -> None:
        parts = {part for secret in secrets for part in _parts(secret)}
        longest_first = sorted(parts, key=lambda part: (-len(part), part))
        patterns = [form for part in longest_first for form in (_in_any_writing(part), _in_base64(part))]
        self._known = re.compile("|".join(patterns)) if patterns else None

    def mask(self, text: str) -> str:
        """`text` without secrets."""
        if self._known is not None:
            text = self._known.sub(MASK, text)
        for pattern, instead in _PATTERNS:
            text = pattern.sub(instead, text)
        text = _LINE.sub(_masked_line, text)
        return _VALUE.sub(_masked_value, text)


def _parts(secret: str) -> Iterable[str]:
    """Its lines; of an address that is secret as a whole also what is likely to be the secret in it."""
    for part in map(str.strip, secret.splitlines()):
        if len(part) >= SHORTEST and part.lower() not in _WORDS:
            yield part
        if address := _ADDRESS.match(part):
            yield from (piece for piece in re.split(r"[/?&=#]", address[1]) if len(piece) >= _TELLING)


def _in_any_writing(part: str) -> str:
    """A pattern for a text that may be written as it is, in a URL, in JSON (also in JSON within JSON) or in HTML."""
    return "".join(re.escape(letter) if letter in _PLAIN else _letter_in_any_writing(letter) for letter in part)


def _letter_in_any_writing(letter: str) -> str:
    percent = "".join(f"%{byte:02X}" for byte in letter.encode("utf-8", "backslashreplace"))
    json_forms = {json.dumps(letter)[1:-1], json.dumps(letter, ensure_ascii=False)[1:-1]}
    json_forms |= {json.dumps(form)[1:-1] for form in json_forms}
    forms = {letter, percent, percent.lower(), html.escape(letter), *json_forms} | ({"+"} if letter == " " else set())
    longest_first = sorted(forms, key=lambda form: (-len(form), form))
    return f"(?:{'|'.join(map(re.escape, longest_first))})"


def _in_base64(part: str) -> str:
    return re.escape(base64.b64encode(part.encode("utf-8", "backslashreplace")).decode().rstrip("="))


def _masked_line(found: re.Match[str]) -> str:
    if not is_secret_name(found["name"]):
        return found[0]
    return f"{found['lead']}{found['name']}{found['is']}{MASK}"


def _masked_value(found: re.Match[str]) -> str:
    if not is_secret_name(found["name"]):
        return found[0]
    mark = found["q"] or ""
    return f"{found['name']}{found['is']}{mark}{MASK}{mark}"
