"""Draw a topic in a terminal with rich."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import Markdown, TableElement
from rich.table import Table

_WIDEST = 100
"""Longer lines of prose are hard to read."""


class _WholeTable(TableElement):
    """A table that breaks a long word where rich would cut it off."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in super().__rich_console__(console, options):
            assert isinstance(table, Table)
            for column in table.columns:
                column.overflow = "fold"
            yield table


class Page(Markdown):
    """Markdown without clickable links, at a width that reads well."""

    elements = {**Markdown.elements, "table_open": _WholeTable}

    def __init__(self, markdown: str) -> None:
        super().__init__(markdown, code_theme="ansi_dark", hyperlinks=False)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        return super().__rich_console__(console, options.update(width=min(options.max_width, _WIDEST)))
