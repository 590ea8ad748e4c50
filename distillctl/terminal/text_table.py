"""Draw tables in a terminal of any width without ever cutting a number.

A table that fits is drawn as a table. Otherwise its text columns wrap. If that is not enough, every row becomes a few
lines: its name, and then each value after the name of its column.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.text import Text

from distillctl.untrusted.printable import printable

_NARROWEST_TEXT = 12
"""Smallest width of a text column, in cells. Narrower tables become lines."""
_NARROWEST = 8
"""Narrower terminals are treated as if they had this width, in cells."""
_PIECES = re.compile(r"[-+−]?\d[\d.,]*(?:e[-+]?\d+)?[^\W\d_]*|\w|\W")
"""Pieces of a long word, between which it may be broken: a number with its unit stays whole."""


@dataclass
class TextTable:
    """Rows of cells under column names. Columns in ``text`` are aligned left and may wrap; all others hold figures and
    are aligned right."""

    columns: Sequence[str]
    text: Collection[int] = (0,)
    gap: int = 2
    rows: list[list[Text]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.columns = [printable(name) for name in self.columns]

    def add_row(self, *cells: str | Text, style: str = "") -> None:
        """Add cells from left to right. ``style`` applies to plain strings."""
        self.rows.append([cell if isinstance(cell, Text) else Text(printable(cell), style) for cell in cells])

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        width = max(options.max_width, _NARROWEST)
        widths = self._widths(width)
        if widths is None:
            yield from self._stacked(width)
            return
        for cells in ([Text(name, "bold") for name in self.columns], *self.rows):
            yield from self._row(cells, widths)

    def _widths(self, width: int) -> list[int] | None:
        """Return the width of each column in cells, or None if even the narrowest table is too wide."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.columns)
        most = [max((cell.cell_len for cell in cells), default=0) for cells in columns]
        widths = [max(cell_len(name), cells) for name, cells in zip(self.columns, most, strict=True)]
        room = width - self.gap * (len(widths) - 1)
        if sum(widths) <= room:
            return widths
        for index, name in enumerate(self.columns):  # names of figures may wrap between words; the figures stay whole
            longest = max(map(cell_len, name.split()), default=0)
            widths[index] = min(widths[index], width) if index in self.text else max(longest, most[index])
        while sum(widths) > room:
            widest = max(self.text, key=widths.__getitem__)
            if widths[widest] <= _NARROWEST_TEXT:
                return None
            widths[widest] -= 1
        return widths

    def _row(self, cells: Sequence[Text], widths: Sequence[int]) -> Iterator[Text]:
        for parts in zip_longest(*(wrap(cell.plain, width) for cell, width in zip(cells, widths, strict=True))):
            line = Text(no_wrap=True, overflow="ignore")
            for index, (part, cell, width) in enumerate(zip(parts, cells, widths, strict=True)):
                space = " " * (width - cell_len(part or ""))
                line.append(" " * self.gap if index else "")
                line.append("" if index in self.text else space)
                line.append(part or "", cell.style)
                line.append(space if index in self.text else "")
            line.rstrip()
            yield line

    def _stacked(self, width: int) -> Iterator[Text]:
        first = min(self.text)
        for cells in self.rows:
            for line in wrap(cells[first].plain, width):
                yield Text(line, "bold", no_wrap=True, overflow="ignore")
            for index, (name, cell) in enumerate(zip(self.columns, cells, strict=True)):
                for line in wrap(f"{name}: {cell.plain}", width - 2) if index != first and cell.plain else ():
                    yield Text(f"  {line}", cell.style, no_wrap=True, overflow="ignore")


def wrap(text: str, width: int) -> list[str]:
    """Break text into lines of at most ``width`` cells: at spaces, within longer words, but never within a number."""
    lines = [""]
    for word in re.findall(r"\s*\S+", text):
        if cell_len(lines[-1] + word) <= width:
            lines[-1] += word
            continue
        word = word.lstrip()
        if cell_len(word) <= width:
            lines.append(word)
            continue
        if lines[-1]:
            lines.append("")
        for piece in _PIECES.findall(word):
            if lines[-1] and cell_len(lines[-1] + piece) > width:
                lines.append("")
            lines[-1] += piece
    return lines if lines[0] or len(lines) == 1 else lines[1:]
