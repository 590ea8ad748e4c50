"""What foreign input may cost: bytes of a file, and processor time for work whose length a stranger decides.

Real recipes, templates and patterns are far below every limit here.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Literal

from distillctl.untrusted import regular_files

TEXT_BYTES = 16 << 20
"""Of a template, or of one line of data: a context of a million tokens has some 4 MB."""
PATTERN_CHARACTERS = 4096
JSON_BYTES = 4 << 20
"""Of a model's configuration."""


def read_bytes(path: Path, most: int) -> bytes:
    """A whole file; ValueError when it has more than ``most`` bytes, which are never held at once; OSError when it
    cannot be read, or is no regular file."""
    with regular_files.opened(path) as file:
        found = file.read(most + 1)
    if len(found) > most:
        raise ValueError(f"has more than {most:,} bytes")
    return found


def read_json(path: Path, most: int = JSON_BYTES) -> Any:
    """What a JSON file holds; ValueError where it is none, is larger than ``most`` bytes or nested too deeply."""
    return parse_json(read_bytes(path, most))


def parse_json(data: bytes) -> Any:
    """What JSON in UTF-8 says; ValueError where it is none, or nested too deeply."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def machine_bytes() -> int:
    """The machine's memory, or what this container may take of it."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        allowed = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):  # none, or "max"
        return there
    return min(there, allowed)


class TimeBudgetExceeded(BaseException):
    """Raised wherever the work is when its time is over; no `except Exception` on the way may take it."""


class TimeBudget:
    """Processor time for many pieces of foreign work, such as rendering a template for one row after the other.

    It begins with ``seconds`` and gets ``each`` more with every piece, so that a few slow pieces and any number of
    fast ones are well. The piece that uses it up is ended with `TimeBudgetExceeded`, even within a regular expression:

        with allowance:
            template.render(row)

    Signals reach the main thread alone: in another one nothing is bounded.
    """

    def __init__(self, seconds: float = 1.5, each: float = 0.005) -> None:
        self._most, self._left, self._each = seconds, seconds, each

    def __enter__(self) -> None:
        self._bounded = threading.current_thread() is threading.main_thread()
        if self._bounded:
            self._before = signal.signal(signal.SIGPROF, _over)
            signal.setitimer(signal.ITIMER_PROF, max(self._left, 1e-3), 0.1)  # again, if it was raised in a destructor

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        if self._bounded:
            left, _ = signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, self._before)
            self._left = 0.0 if kind is TimeBudgetExceeded else min(self._most, left + self._each)
        return False


def _over(number: int, frame: FrameType | None) -> None:
    raise TimeBudgetExceeded


def pattern(source: str, flags: int = 0) -> re.Pattern[str]:
    """A regular expression from a recipe; ValueError says what is wrong with it."""
    if len(source) > PATTERN_CHARACTERS:
        raise ValueError(f"has {len(source):,} characters, {PATTERN_CHARACTERS:,} are allowed")
    try:
        with TimeBudget():
            return re.compile(source, flags)
    except (re.error, OverflowError) as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except TimeBudgetExceeded:
        raise ValueError("it takes too long to compile") from None
