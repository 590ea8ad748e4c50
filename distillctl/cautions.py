"""Doubts about the user's data or numbers: shown as they arise, kept with the stage, and repeated in the report.

A warning says what the program does; a caution says why a figure may not mean what it seems to mean. Any code that runs
inside a stage may add one, and the pipeline stores all of them among the stage's facts, under ``cautions``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from distillctl import console

Caution = dict[str, str]
"""``code``: a fixed name in kebab-case, for programs to filter by; ``text``: whole sentences, for people."""

_collector: ContextVar[list[Caution] | None] = ContextVar("cautions", default=None)


def add(code: str, text: str) -> None:
    """Show a caution, and keep it where a stage collects them. The same caution is shown and kept once."""
    kept, caution = _collector.get(), {"code": code, "text": text}
    if kept is not None:
        if caution in kept:
            return
        kept.append(caution)
    console.caution(text)


def repeat(kept: Iterable[Mapping[str, str]]) -> None:
    """Show the cautions of a stage that is fresh, so that they are seen whenever its figures are."""
    for caution in kept:
        console.caution(caution["text"])


@contextmanager
def collected() -> Iterator[list[Caution]]:
    """Collect the cautions added inside the block."""
    found: list[Caution] = []
    token = _collector.set(found)
    try:
        yield found
    finally:
        _collector.reset(token)
