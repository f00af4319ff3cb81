"""Lines of all containers, in the order of time: those of a run, a job or a request, or all.

    docker compose logs --timestamps --no-color | python -m app.services.operations.container_logs --run ID

scripts/logs.sh runs it in a container of its own: logs are wanted most when the stack is down. It needs no store, no
settings and no secret.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

from app.log_lines import IDS, as_details, printable

# Compose clears the line even where it is to use no colours.
_COMPOSE = re.compile(
    r"(?:\x1b\[[\d;]*[A-Za-z]|\r)*(?P<container>\S+) +\| (?P<at>\d{4}-\d\d-\d\dT[\d:.]+Z) ?(?P<text>.*)"
)
_SHOWN_FIRST = frozenset({"time", "level", "program", "node", "message", "logger", "exception"})
_LINKS = ("request_id", "run_id")
"""What leads from a line that was asked for to others: from a run to the request that asked for it, and back."""


@dataclass(frozen=True)
class Line:
    """A line of a container: when Docker took it (UTC, fixed width), as it is, and its values if it is JSON."""

    container: str
    at: str
    text: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """What is looked for: the field and its value, such as `run_id`. A message that only mentions a run or a request
    counts as well; the id of a job may be any word."""

    field: str
    value: str

    def is_in(self, line: Line) -> bool:
        """Whether the line is of it."""
        return line.values.get(self.field) == self.value or (self.field != "job_id" and self.value in line.text)


def read_lines(stream: Iterable[str]) -> Iterator[Line]:
    """The lines that `docker compose logs --timestamps --no-color` writes; what is in no such form is left out."""
    for written in stream:
        match = _COMPOSE.match(written.rstrip("\n"))
        if match is None:
            continue
        values: Any = None
        with suppress(ValueError):
            values = json.loads(match["text"])
        yield Line(match["container"], match["at"], match["text"], values if isinstance(values, dict) else {})


def links_of(line: Line) -> set[str]:
    """The ids by which other lines are found from this one."""
    return {str(line.values[name]) for name in _LINKS if line.values.get(name)}


def is_linked(line: Line, links: Collection[str]) -> bool:
    """Whether the line has one of these ids."""
    return any(str(line.values.get(name)) in links for name in _LINKS)


def select_lines(stream: IO[str], wanted: Wanted | None) -> list[Line]:
    """The lines of what is wanted, and those that belong to the same request or run, in the order of time."""
    if wanted is None:
        return sorted(read_lines(stream), key=lambda line: line.at)
    # Twice through: the line that links may come after those that it links. On disk, because a log may be large.
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogateescape") as kept:
        links: set[str] = set()
        for written in stream:
            kept.write(written)
            for line in read_lines([written]):
                if wanted.is_in(line):
                    links |= links_of(line)
        kept.seek(0)
        found = [line for line in read_lines(kept) if wanted.is_in(line) or is_linked(line, links)]
    return sorted(found, key=lambda line: line.at)


def follow_lines(stream: Iterable[str], wanted: Wanted | None) -> Iterator[Line]:
    """The same of lines that are still to come, each as it comes; links count from the line on that makes them."""
    links: set[str] = set()
    for line in read_lines(stream):
        if wanted is None:
            yield line
        elif wanted.is_in(line) or is_linked(line, links):
            if wanted.is_in(line):
                links |= links_of(line)
            yield line


def as_text(line: Line, wanted: Wanted | None) -> str:
    """The line for eyes; a traceback follows it, indented."""
    if "message" not in line.values:
        return f"{line.at[:23].replace('T', ' ')}  {line.container}  {printable(line.text)}"
    values = line.values
    moment = str(values.get("time", line.at))[:23].replace("T", " ")
    asked_for = wanted.value if wanted is not None else None
    details = {
        name: value
        for name, value in values.items()
        if name not in _SHOWN_FIRST and value != "" and not (name in IDS and value == asked_for)
    }
    level = str(values.get("level", "")).upper()
    who = f"{values.get('program', '?')} {line.container}"
    shown = [f"{moment}  {level:<8}  {who}  {printable(str(values['message']))}{printable(as_details(details))}"]
    shown += [f"    {printable(trace)}" for trace in str(values.get("exception", "")).splitlines()]
    return "\n".join(shown)


def as_json(line: Line) -> str:
    """The line for programs: its values, and the container it is from."""
    values = line.values or {"time": line.at, "message": line.text}
    return json.dumps({**values, "container": line.container}, ensure_ascii=False)


def main(arguments: list[str] | None = None) -> int:
    """Reads standard input, writes standard output; 1 when nothing is found of what was asked for."""
    parser = argparse.ArgumentParser()
    asked = parser.add_mutually_exclusive_group()
    for field in IDS:
        asked.add_argument(f"--{field.removesuffix('_id')}", dest=field)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--follow", action="store_true")
    given = parser.parse_args(arguments)
    wanted = next((Wanted(field, value) for field in IDS if (value := getattr(given, field)) is not None), None)
    # A log may hold bytes that are no text.
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    found = (follow_lines if given.follow else select_lines)(sys.stdin, wanted)
    some = False
    try:
        for line in found:
            some = True
            sys.stdout.write((as_json(line) if given.json else as_text(line, wanted)) + "\n")
            if given.follow:
                sys.stdout.flush()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        sys.stderr.close()
        return 0
    if wanted is not None and not some:
        what = f"{wanted.field.removesuffix('_id')} {wanted.value}"
        sys.stderr.write(f"no line of {what} in the logs that are kept\n")
        return 1
    return 0


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main())
