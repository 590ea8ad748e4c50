"""Show how far a long loop is: a live bar in a terminal, or a line every minute in a log."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

EVERY_SECONDS = 60.0
"""Seconds between two lines of a log."""
_RECENT_SECONDS = 600.0
"""The rate covers the last ten minutes: it follows a machine that gets busy, but not every batch."""
_BAR_CELLS = 12


class Progress:
    """Count work done out of ``total``. This class shows nothing; `LiveProgress` and `LoggedProgress` do.

    Any thread may call `advance`.
    """

    def __init__(self, console: Console, label: str, total: float, unit: str) -> None:
        self._console, self._label, self._total, self._unit = console, label, total, unit
        self._done = 0.0
        self._fields: Mapping[str, str] = {}
        self._seen: deque[tuple[float, float]] = deque([(time.monotonic(), 0.0)])  # (time, work that was done by then)
        self._skipped = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def advance(self, amount: float = 1, **fields: str) -> None:
        """Add ``amount`` to the work done. ``fields`` are shown after the count as ``name value``."""
        self._done += amount
        self._fields = fields or self._fields
        now = time.monotonic()
        if len(self._seen) > 2 and now - self._seen[-2][0] < 1:  # an entry a second is enough
            self._seen.pop()
        self._seen.append((now, self._done - self._skipped))
        while len(self._seen) > 2 and now - self._seen[1][0] > _RECENT_SECONDS:
            self._seen.popleft()

    def skip(self, amount: float) -> None:
        """Add work that an earlier command did; it does not count towards the rate."""
        self._done += amount
        self._skipped += amount

    @property
    def count(self) -> str:
        """Return what is done and the total, as text."""
        return f"{self._done:,.0f}/{self._total:,.0f}"

    @property
    def rate(self) -> float | None:
        """Return the recent rate per second, or None before any work is done."""
        (since, before), (until, done) = self._seen[0], self._seen[-1]
        return (done - before) / (until - since) if done > before and until > since else None

    @property
    def seconds_left(self) -> float | None:
        """Return how long the rest takes at the present rate, if that is known."""
        return None if (rate := self.rate) is None else max(0.0, self._total - self._done) / rate


class LoggedProgress(Progress):
    """Print a line on stderr every minute: work done, rate and time left."""

    def __enter__(self) -> Self:
        self._ended = threading.Event()
        threading.Thread(target=self._print_lines, name=f"progress of {self._label}", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def _print_lines(self) -> None:
        while not self._ended.wait(EVERY_SECONDS):
            self._console.print(Text(self._line()), soft_wrap=True)

    def _line(self) -> str:
        rate, left = self.rate, self.seconds_left
        parts = [f"{self._label}: {self._done:,.0f} of {self._total:,.0f} {self._unit}"]
        if rate is not None and left is not None:
            parts += [_rate(rate, self._unit)] * (self._unit != "seconds") + [f"about {duration(left)} left"]
        return ", ".join([*parts, *(f"{name} {value}" for name, value in self._fields.items())])


class LiveProgress(Progress):
    """Redraw a bar in place. In a narrow terminal parts are left out; the count stays longest."""

    def __enter__(self) -> Self:
        plain = not (self._console.encoding or "").lower().startswith("utf")
        self._spinner = Spinner("line" if plain else "dots")
        self._live = Live(
            get_renderable=self._drawn,
            console=self._console,
            refresh_per_second=10,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def _drawn(self) -> Table:
        left = self.seconds_left
        time_left = "-:--:--" if left is None else _clock(left)
        bar = ProgressBar(total=self._total, completed=self._done, width=_BAR_CELLS)
        fields = [Text.assemble((name, "dim"), f" {value}") for name, value in self._fields.items()]
        parts = [(self._spinner, 1), (Text(self._label), len(self._label)), (bar, _BAR_CELLS)]
        parts += [(Text(self.count, "green"), len(self.count)), (Text(time_left, "cyan"), len(time_left))]
        parts += [(field, field.cell_len) for field in fields]
        room, kept = self._console.width, set()
        for place in (3, 1, 4, 0, 2, *range(5, len(parts))):  # the most important first
            if parts[place][1] <= room:
                kept.add(place)
                room -= parts[place][1] + 1
        line = Table.grid(padding=(0, 1, 0, 0))
        for place in sorted(kept):
            line.add_column(width=parts[place][1], no_wrap=True)
        line.add_row(*(parts[place][0] for place in sorted(kept)))
        return line


def _rate(per_second: float, unit: str) -> str:
    if per_second >= 10:
        return f"{per_second:,.0f} {unit}/s"
    return f"{per_second:.2f} {unit}/s" if per_second >= 0.1 else f"{per_second * 60:.2f} {unit}/min"


def duration(seconds: float) -> str:
    """Return the duration in words, as exact as an estimate is: ``40 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60:,} h {minutes % 60} min"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
