"""Doubts about the user's data or figures: shown as they arise, stored with the stage, and repeated in the report.

A warning describes the program's behaviour; a caution says why a figure may be misleading. Any code inside a stage may
add one. The pipeline stores them among the stage's facts, under ``cautions``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from distillctl import console
from distillctl.run_dir import facts

Caution = dict[str, str]
"""``code``: a fixed name in kebab-case, for programs. ``text``: whole sentences, for people."""

_collector: ContextVar[list[Caution] | None] = ContextVar("cautions", default=None)


def add(code: str, text: str) -> None:
    """Show a caution, and store it if a stage collects them. The same caution is shown only once."""
    kept, caution = _collector.get(), {"code": code, "text": text}
    if kept is not None:
        if caution in kept:
            return
        kept.append(caution)
    console.caution(text)


def repeat(kept: Iterable[facts.Caution]) -> None:
    """Show the cautions of a fresh stage again, next to its figures."""
    for caution in kept:
        console.caution(caution.text)


@contextmanager
def collected() -> Iterator[list[Caution]]:
    """Collect the cautions added inside the block."""
    cautions: list[Caution] = []
    token = _collector.set(cautions)
    try:
        yield cautions
    finally:
        _collector.reset(token)
