"""References for single values of JSON answers (the recipe's `task.fields`), in collect/fields.parquet."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from distillctl.data import eval_table
from distillctl.data.rows import Example
from distillctl.recipe import FieldReference, Generate
from distillctl.run_dir.workspace import replacing

FILE = "fields.parquet"
_COMPARISONS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


def text_of(cell: object) -> str | None:
    """Return the text by which a column's cell and an answer's value are compared; None for an empty cell."""
    if cell is None or cell == "" or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return cell.strip() if isinstance(cell, str) else json.dumps(cell, sort_keys=True, ensure_ascii=False)


def reference(spec: FieldReference, cell: object) -> str | None:
    """Return the expected value for a row's cell, or None if the recipe's `values` lack it."""
    if (text := text_of(cell)) is None or not spec.values:
        return text
    return next((wanted for case, wanted in spec.values.items() if _is_case(case, text)), None)


def _is_case(case: str, text: str) -> bool:
    sign = next((sign for sign in _COMPARISONS if case.lstrip().startswith(sign)), None)
    if sign is None:
        return case == text
    try:
        return bool(_COMPARISONS[sign](float(text), float(case.strip()[len(sign) :])))
    except ValueError:
        return False


def write(folder: Path, task: Generate, held_out: Sequence[Example]) -> dict[str, int]:
    """Write a column of references for each key, and return how many rows have one. folder: collect's."""
    columns = {
        key: [reference(spec, example.columns.get(spec.column)) for example in held_out]
        for key, spec in task.fields.items()
    }
    arrays = {key: pa.array(column, pa.string()) for key, column in columns.items()}
    with replacing(folder / FILE) as temporary:
        pq.write_table(pa.table({"id": [example.id for example in held_out], **arrays}), temporary)
    return {key: sum(value is not None for value in column) for key, column in columns.items()}


def read(folder: Path, ids: Sequence[str], keys: Iterable[str]) -> dict[str, list[str | None]]:
    """Return key → its references in the order of ``ids``; None if a row has none."""
    columns = eval_table.read(folder / FILE, ids)
    return {key: columns.get(key, [None] * len(ids)) for key in keys}
