"""Tables at any width: a number that is shown is whole."""

from __future__ import annotations

import io
import re

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from distillctl.terminal.text_table import TextTable, wrap

NUMBER = re.compile(r"\d[\d.,]*\d|\d")


def shown(table: TextTable, width: int) -> list[str]:
    printed = io.StringIO()
    Console(file=printed, width=width).print(table)
    return printed.getvalue().splitlines()


numbers = st.floats(-1e9, 1e9, allow_nan=False).map(lambda value: f"{value:,.3f}") | st.integers(0, 10**12).map(str)
units = st.sampled_from(["", " ms", " kB", "×", "%", "  (0.242 … 0.530)"])
figures = st.tuples(numbers, units).map("".join)
names = st.text(alphabet="abc_-/ 0123456789漢é", min_size=1, max_size=60).filter(
    lambda name: name.strip() and not re.search(r"\d{20}", name)
)


@st.composite
def tables(draw: st.DrawFn) -> TextTable:
    columns = draw(st.lists(names, min_size=1, max_size=8))
    at = draw(st.integers(0, len(columns) - 1))
    table = TextTable(columns, text=(at,), gap=draw(st.sampled_from([1, 2])))
    for _ in range(draw(st.integers(0, 4))):
        table.add_row(*(draw(names if index == at else figures) for index in range(len(columns))))
    return table


@given(tables(), st.integers(30, 200))
def test_every_number_is_whole_at_any_width(table: TextTable, width: int) -> None:
    lines = shown(table, width)
    assert all(cell_len(line) <= width for line in lines)
    seen = NUMBER.findall("\n".join(lines))
    for cells in table.rows:
        for cell in cells:
            for number in NUMBER.findall(cell.plain):
                assert number in seen, lines
    assert "…" not in "".join(lines).replace(" … ", "")


@given(st.text(max_size=200), st.integers(8, 100))
def test_wrapping_loses_no_character_but_spaces(text: str, width: int) -> None:
    assert re.sub(r"\s", "", "".join(wrap(text, width))) == re.sub(r"\s", "", text)


def test_what_fits_is_one_line_a_row_and_what_does_not_becomes_lines_of_its_own() -> None:
    table = TextTable(("model", "p50 ms", "memory"))
    table.add_row("teacher_cached", "1,234.40", "423.5 MB")
    assert shown(table, 80) == ["model             p50 ms    memory", "teacher_cached  1,234.40  423.5 MB"]
    assert shown(table, 30) == ["teacher_cached", "  p50 ms: 1,234.40", "  memory: 423.5 MB"]


def test_a_text_column_wraps_before_the_table_gives_up() -> None:
    table = TextTable(("stage", "state", "why"), text=(0, 1, 2))
    table.add_row("train", "stale", "train.epochs changed from 10 to 200")
    assert shown(table, 40) == [
        "stage  state  why",
        "train  stale  train.epochs changed from",
        "              10 to 200",
    ]


def test_a_cell_gives_the_terminal_no_orders() -> None:
    table = TextTable(("file", "size"))
    table.add_row("a\x1b[31m\nb\r", "1 kB")
    assert shown(table, 80)[1] == r"a\x1b[31m\nb\r  1 kB"
