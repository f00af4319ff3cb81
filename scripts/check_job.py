#!/usr/bin/env python3
"""Checks one job for a monitoring system (Nagios, Icinga, Zabbix, a cron mail): one line, and an exit status.

Needs nothing but Python 3.9 and the stack's address; the API token is read from a file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
OK, WARNING, CRITICAL, UNKNOWN = range(4)
STATUSES = {"ok": OK, "warning": WARNING, "critical": CRITICAL, "unknown": UNKNOWN}
FAILED = ("failed", "lost", "missed")
UNFINISHED = ("pending", "running")
SIGNED_BY_A_STRANGER = (18, 19, 20, 21)  # OpenSSL's codes for chains that end in nobody who is known
EPILOG = """\
exit status, as monitoring plugins have it:
  0 OK        the last run that ended succeeded, and none is late (also: it has not run yet, and none is due)
  1 WARNING   late: a run is due or waits, or the last one began, more than --late-after ago or late; or the last moment
              was skipped or cancelled
  2 CRITICAL  failed: the last run failed, was lost, or was missed; or the job's row cannot be read
  3 UNKNOWN   paused, disabled (see --paused-is); no such job; the stack cannot be asked

The token is in .secrets/api_token of the stack's checkout; a copy that only the monitoring user can read will do.
Behind https with a certificate of your own, name its CA with --ca-file.
"""


class Unknown(Exception):
    """Why the job's state cannot be told."""


@dataclass
class Verdict:
    """What is printed. `state` is ok, late, failed, paused or unknown; times are ISO 8601."""

    status: int
    state: str
    job_id: str
    message: str
    last_outcome: str | None = None
    last_run_time: str | None = None
    next_run_time: str | None = None
    lateness_s: float | None = None
    duration_s: float | None = None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The token is for the address that was given, and for no other."""

    def redirect_request(self, *_arguments: Any, **_options: Any) -> None:
        return None


class Api:
    """The scheduler API of one stack."""

    def __init__(self, url: str, token: str, *, timeout_s: float, ca_file: str | None) -> None:
        import ssl

        self._url, self._token, self._timeout_s = url.rstrip("/"), token, timeout_s
        try:
            context = ssl.create_default_context(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise Unknown(f"the CA file {ca_file} cannot be read: {error}") from error
        handlers = [_NoRedirects(), urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
        self._opener = urllib.request.build_opener(*handlers)

    def get(self, path: str) -> tuple[Any, datetime]:
        """`data` of an answer, and the stack's clock at that moment."""
        request = urllib.request.Request(  # noqa: S310 - the address is checked to be http or https
            f"{self._url}/api/v1/scheduler/{path}",
            headers={"Authorization": f"Bearer {self._token}", "Accept-Language": "en"},
        )
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                body = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise Unknown(_refusal(error, self._url)) from error
        except (urllib.error.URLError, OSError) as error:
            reason = getattr(error, "reason", None) or error
            raise Unknown(_distrust(reason, self._url) or f"{self._url} cannot be asked: {reason}") from error
        except ValueError as error:
            raise Unknown(f"{self._url} does not answer like this stack: {error}") from error
        if not isinstance(body, dict) or "data" not in body or "timestamp" not in body:
            raise Unknown(f"{self._url} does not answer like this stack")
        return body["data"], moment(body["timestamp"])


def _refusal(error: urllib.error.HTTPError, url: str) -> str:
    if error.code in (301, 302, 303, 307, 308):
        return (
            f"{url} answers {error.code}, which leads to {error.headers.get('Location')}; name that address with --url"
        )
    if error.code in (401, 403):
        return f"{url} answers {error.code}: the token is not the stack's; see --token-file"
    try:
        told = json.loads(error.read()).get("message", "")
    except (ValueError, OSError, AttributeError):
        told = ""
    return f"{url} answers {error.code}{': ' if told else ''}{told}"


def _distrust(reason: Any, url: str) -> str | None:
    """Why the certificate that is shown there is not trusted; None where that is not what went wrong."""
    words = getattr(reason, "verify_message", None)
    if words is None:
        return None
    what = f"the certificate of {url} is not trusted: {words.rstrip('.')}"
    return f"{what}; name its CA with --ca-file" if reason.verify_code in SIGNED_BY_A_STRANGER else what


def moment(text: str) -> datetime:
    return datetime.fromisoformat(re.sub(r"Z$", "+00:00", text))


def seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds / 1000, 3)


def judge(
    job: dict[str, Any], history: list[dict[str, Any]], now: datetime, *, late_after_s: float, paused_is: int
) -> Verdict:
    """The verdict on a job as the API tells of it; `history` is newest first."""
    ended = next((run for run in history if run["outcome"] not in (*UNFINISHED, "coalesced")), None)
    status, state, message = next(findings(job, history, ended, now, late_after_s=late_after_s, paused_is=paused_is))
    verdict = Verdict(status, state, job["id"], message, next_run_time=job["next_run_time"])
    if ended is not None:
        verdict.last_outcome = ended["outcome"]
        verdict.last_run_time = ended["started_at"] or ended["scheduled_for"]
        verdict.lateness_s = seconds(ended["lateness_ms"])
        verdict.duration_s = seconds(ended["duration_ms"])
    return verdict


def findings(
    job: dict[str, Any],
    history: list[dict[str, Any]],
    ended: dict[str, Any] | None,
    now: datetime,
    *,
    late_after_s: float,
    paused_is: int,
) -> Iterator[tuple[int, str, str]]:
    """(exit status, state, words), the gravest first; the last one is that all is well."""
    what = (
        "it has not run yet"
        if ended is None
        else f"{ended['outcome']} at {ended['started_at'] or ended['scheduled_for']}"
    )
    upcoming = f"next {job['next_run_time']}" if job["next_run_time"] else "no next run"
    if job.get("problem"):
        yield CRITICAL, "failed", f"its row cannot be read: {job['problem']}"
    if job.get("is_enabled") is False or job.get("is_paused"):
        state = "paused" if job.get("is_paused") else "disabled"
        yield paused_is, "paused", f"{state} (last changed {job['updated_at']} by {job['updated_by']}); {what}"
    if ended is not None and ended["outcome"] in FAILED:
        why = str(ended["error"] or ended["reason"] or "").strip().splitlines()
        yield CRITICAL, "failed", f"{what}{': ' + why[-1] if why else ''}; {upcoming}"
    due_s = (now - moment(job["next_run_time"])).total_seconds() if job["next_run_time"] else 0.0
    if due_s > late_after_s:
        yield WARNING, "late", f"due since {job['next_run_time']}, {due_s:.0f} s ago, and not begun; last: {what}"
    for run in history:
        waits_s = (now - moment(run.get("not_before") or run["scheduled_for"])).total_seconds()
        if run["outcome"] == "pending" and waits_s > late_after_s:
            yield WARNING, "late", f"the run of {run['scheduled_for']} has been waiting for {waits_s:.0f} s"
    if ended is not None and ended["outcome"] in ("skipped", "cancelled"):
        yield WARNING, "late", f"{what}: {ended['reason'] or 'no reason on record'}; {upcoming}"
    lateness_s = None if ended is None or ended["kind"] == "manual" else seconds(ended["lateness_ms"])
    if lateness_s is not None and lateness_s > late_after_s:
        yield WARNING, "late", f"{what}, but it began {lateness_s:.0f} s late; {upcoming}"
    yield OK, "ok", f"{what}; {upcoming}"


def line_of(verdict: Verdict, late_after_s: float) -> str:
    """STATUS - text | performance data."""
    name = next(name for name, status in STATUSES.items() if status == verdict.status).upper()
    figures = []
    if verdict.lateness_s is not None:
        figures.append(f"lateness={verdict.lateness_s}s;{late_after_s:g}")
    if verdict.duration_s is not None:
        figures.append(f"duration={verdict.duration_s}s")
    # The bar begins the performance data; a line feed would begin what monitoring systems call long output.
    message = "".join(each if each.isprintable() else " " for each in verdict.message.replace("|", "/"))
    text = " ".join(message.split())
    state = "" if verdict.state in ("ok", "unknown") else f"{verdict.state}: "
    return f"{name} - {verdict.job_id}: {state}{text}{' | ' if figures else ''}{' '.join(figures)}"


def setting(name: str) -> str:
    """A setting of the stack as Compose finds it: the environment, then .env of the checkout."""
    if name in os.environ:
        return os.environ[name]
    try:
        lines = (ROOT / ".env").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    values = [line.partition("=")[2].strip("\"'") for line in lines if line.startswith(f"{name}=")]
    return values[-1] if values else ""


def read_token(file: str) -> str:
    try:
        token = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Unknown(f"the token cannot be read from {file}: {error}") from error
    if not re.fullmatch(r"[!-~]+", token):
        raise Unknown(f"the file {file} holds no token: one line of visible characters")
    return token


def checked_url(text: str) -> str:
    try:
        parts = urllib.parse.urlsplit(text)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise argparse.ArgumentTypeError(f"{text!r} is no address; accepted: http://HOST:PORT or https://HOST:PORT")
    return text


def positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return number


class _Parser(argparse.ArgumentParser):
    """Wrong usage is UNKNOWN to a monitoring system, whose 2 would be CRITICAL; one line says what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(UNKNOWN, f"{self.prog}: {message} (--help tells more)\n")


def parser() -> argparse.ArgumentParser:
    made = _Parser(
        prog=Path(__file__).name,
        description="Checks one job for a monitoring system: one line, and an exit status.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="scripts/check_job.py --job-id ID [options]",
        allow_abbrev=False,
    )
    url = os.environ.get("WHALEFALL_URL") or f"http://127.0.0.1:{setting('HTTP_PORT') or '80'}"
    made.add_argument("--job-id", required=True, metavar="ID", help="the job")
    made.add_argument("--url", default=url, type=checked_url, help="of the stack; WHALEFALL_URL, else %(default)s")
    made.add_argument(
        "--token-file",
        default=str(ROOT / ".secrets" / "api_token"),
        metavar="FILE",
        help="with the API token; %(default)s",
    )
    made.add_argument(
        "--late-after", default=60.0, type=positive, metavar="SECONDS", help="what is called late; %(default)g"
    )
    made.add_argument(
        "--paused-is",
        default="unknown",
        choices=STATUSES,
        help="what a paused or disabled job is; %(default)s",
    )
    made.add_argument("--timeout", default=10.0, type=positive, metavar="SECONDS", help="of a request; %(default)g")
    made.add_argument("--ca-file", metavar="FILE", help="certificates to trust, for https")
    made.add_argument("--json", action="store_true", help="one line of JSON instead")
    return made


def main(arguments: list[str]) -> int:
    asked = parser().parse_args(arguments)
    try:
        api = Api(asked.url, read_token(asked.token_file), timeout_s=asked.timeout, ca_file=asked.ca_file)
        path = f"jobs/{urllib.parse.quote(asked.job_id, safe='')}"
        job, _ = api.get(path)
        history, now = api.get(f"{path}/history?limit=50")
        verdict = judge(job, history, now, late_after_s=asked.late_after, paused_is=STATUSES[asked.paused_is])
    except Unknown as error:
        verdict = Verdict(UNKNOWN, "unknown", asked.job_id, str(error))
    except (KeyError, TypeError, ValueError) as error:
        verdict = Verdict(UNKNOWN, "unknown", asked.job_id, f"the stack's answer is not understood: {error!r}")
    print(json.dumps(asdict(verdict)) if asked.json else line_of(verdict, asked.late_after))
    return verdict.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
