"""Limit what untrusted input may cost: the bytes of a file, and the processor time of work on it.

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
"""Largest template or line of data. A context of a million tokens has about 4 MB."""
PATTERN_CHARACTERS = 4096
JSON_BYTES = 4 << 20
"""Largest configuration of a model."""


def read_bytes(path: Path, most: int) -> bytes:
    """Read a whole file.

    Raise ValueError if it has more than ``most`` bytes, without reading them all. Raise OSError if it cannot be read or
    is no regular file.
    """
    with regular_files.opened(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"has more than {most:,} bytes")
    return data


def read_json(path: Path, most: int = JSON_BYTES) -> Any:
    """Read a JSON file. Raise ValueError if it is not JSON, has more than ``most`` bytes or is nested too deeply."""
    return parse_json(read_bytes(path, most))


def parse_json(data: bytes) -> Any:
    """Parse JSON in UTF-8. Raise ValueError if it is not JSON or is nested too deeply."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def machine_bytes() -> int:
    """Return the machine's memory in bytes, or the part of it that this container may use."""
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        allowed = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no file, or "max"
        return installed
    return min(installed, allowed)


class TimeBudgetExceeded(BaseException):
    """The time is used up. Raised in the middle of the work; a BaseException, so that no `except Exception` catches
    it."""


class TimeBudget:
    """A budget of processor time for many pieces of untrusted work, such as rendering a template for each row.

    It starts with ``seconds`` and grows by ``each`` with every piece, so that it covers a few slow pieces and any
    number of fast ones. The piece that uses it up ends with `TimeBudgetExceeded`, even within a regular expression:

        with budget:
            template.render(row)

    Only the main thread receives signals: in other threads there is no limit.
    """

    def __init__(self, seconds: float = 1.5, each: float = 0.005) -> None:
        self._most, self._left, self._each = seconds, seconds, each

    def __enter__(self) -> None:
        self._bounded = threading.current_thread() is threading.main_thread()
        if self._bounded:
            self._before = signal.signal(signal.SIGPROF, _over)
            # repeated, because Python drops an exception in a destructor
            signal.setitimer(signal.ITIMER_PROF, max(self._left, 1e-3), 0.1)

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
    """Compile a regular expression from a recipe. Raise ValueError that says what is wrong with it."""
    if len(source) > PATTERN_CHARACTERS:
        raise ValueError(f"has {len(source):,} characters, and {PATTERN_CHARACTERS:,} are allowed")
    try:
        with TimeBudget():
            return re.compile(source, flags)
    except (re.error, OverflowError) as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except TimeBudgetExceeded:
        raise ValueError("it takes too long to compile") from None
