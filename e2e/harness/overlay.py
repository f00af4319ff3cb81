"""A stack with one more compose file laid over: what a test changes in it that no variable changes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest

from e2e.harness.stack import Stack


@contextmanager
def overlaid_stack(
    factory: pytest.TempPathFactory,
    name: str,
    overlay: str,
    environment: Mapping[str, str] | None = None,
    *,
    prepare: Callable[[Stack], None] = lambda _stack: None,
) -> Iterator[Stack]:
    """A started one-container stack with the compose file `overlay` laid over it; removed in the end.

    `prepare` is called before its start; `environment` as a user would set it in `.env`.
    """
    name = f"whalefall-e2e-{os.getpid()}-{name}"
    folder = factory.mktemp(name, numbered=False)
    stack = Stack(name, folder, environment)
    file = folder / "overlay.yml"
    file.write_text(overlay)
    stack.compose_files = (*stack.compose_files, str(file))
    prepare(stack)
    try:
        stack.start()
        yield stack
    finally:
        stack.remove()
