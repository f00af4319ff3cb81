"""One request to the outside, and what its answer means.

`requests` is imported with the first request: a process that sends nothing does not pay for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

from app.alerts.letters import Letter
from app.version import VERSION
from app.web_address import origin_of

USER_AGENT = f"WhaleFall-Scheduler/{VERSION}"
CONNECT_S = 5.0
ANSWER_S = 10.0
LONGEST_S = 20.0
"""All together, for a receiver that sends its answer byte by byte: each of them would begin ANSWER_S anew."""
LONGEST_RETRY_AFTER_S = 3600.0

_NOT_NOW = frozenset({408, 425, 429})

Verdict = Literal["delivered", "not now", "refused", "no answer"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request. `error` never holds the address, which may hold a token; `retry_after_s` is how long
    the receiver asks to be left alone."""

    verdict: Verdict
    error: str = ""
    retry_after_s: float = 0.0


def send(letter: Letter) -> Answer:
    """Posts `letter`. Follows no redirect: it would carry an alert to wherever the receiver says. Never raises for
    what a receiver or a network does."""
    import requests  # noqa: PLC0415 - see above

    from app.alerts.patience import bounded_session  # noqa: PLC0415 - it imports requests

    headers = {"User-Agent": USER_AGENT, "Content-Type": letter.content_type}
    with bounded_session(LONGEST_S) as (session, is_over):
        try:
            # Of the answer only the head is read: its body may be endless.
            with session.post(
                letter.url,
                data=letter.body,
                headers=headers,
                timeout=(CONNECT_S, ANSWER_S),
                allow_redirects=False,
                stream=True,
            ) as response:
                return judge(response.status_code, response.reason, response.headers.get("Retry-After"))
        except requests.ConnectTimeout:
            return Answer("no answer", f"no connection within {CONNECT_S:g} s")
        except requests.Timeout:
            return Answer("no answer", f"no answer within {ANSWER_S:g} s")
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, UnicodeError):
            return Answer("refused", "the address cannot be used")
        except (requests.RequestException, OSError) as error:
            return Answer("no answer", f"no whole answer within {LONGEST_S:g} s" if is_over() else _cause(error))


def judge(status: int, reason: str | None, retry_after: str | None) -> Answer:
    """What an answer means: 2xx took it; 408, 425, 429 and 5xx are tried again; anything else will not take it."""
    # A receiver's words: the store takes no NUL, a log wants one line.
    words = "".join(character for character in reason or "" if character.isprintable())[:100]
    said = f"{status} {words}".strip()
    if 200 <= status < 300:
        return Answer("delivered")
    if status in _NOT_NOW or status >= 500:
        return Answer("not now", said, _retry_after_s(retry_after) if status in (429, 503) else 0.0)
    if 300 <= status < 400:
        said += ": redirects are not followed, give the final address"
    return Answer("refused", said)


def shown(url: str) -> str:
    """What a log may say of an address."""
    try:
        return origin_of(url)
    except ValueError:
        return "an unreadable address"


def _retry_after_s(value: str | None) -> float:
    """Seconds or an HTTP date, at most LONGEST_RETRY_AFTER_S; 0 for what is neither."""
    if value is None:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = parsedate_to_datetime(value)
        except ValueError:
            return 0.0
        at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        seconds = (at - datetime.now(UTC)).total_seconds()
    return min(LONGEST_RETRY_AFTER_S, max(0.0, seconds)) if math.isfinite(seconds) else 0.0


def _cause(error: BaseException) -> str:
    """The innermost operating system's or TLS error in words. The outer ones repeat the address."""
    causes = list(_chain(error))
    for cause in reversed(causes):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return type(causes[-1]).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        reason = getattr(error, "reason", None)  # urllib3's MaxRetryError
        error = reason if isinstance(reason, BaseException) else error.__cause__ or error.__context__
