"""A stack with one more compose file laid over: what a test changes in it that no variable changes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from e2e.harness.stack import Stack


@contextmanager
def overlaid_stack(
    folder: Path,
    name: str,
    overlay: str,
    environment: Mapping[str, str] | None = None,
    *,
    prepare: Callable[[Stack], None] = lambda _stack: None,
    may_never_be_ready: bool = False,
) -> Iterator[Stack]:
    """A started one-container stack with the compose file `overlay` laid over it; removed in the end.

    `folder` is the test's own; `environment` as a user would set it in `.env`; `prepare` is called before its start.
    One that `may_never_be_ready` is not waited for.
    """
    stack = Stack(f"whalefall-e2e-{os.getpid()}-{name}", folder / "stack", environment)
    file = folder / "overlay.yml"
    file.write_text(overlay)
    stack.compose_files = (*stack.compose_files, str(file))
    prepare(stack)
    try:
        if may_never_be_ready:
            Stack.alive.append(stack)
            stack.up()
        else:
            stack.start()
        yield stack
    finally:
        stack.remove()
