"""What columns of the data say of single values of answers in JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distillctl.data import field_references
from distillctl.data.rows import Example
from distillctl.recipe import FieldReference, Generate

MOOD = {"column": "sentiment", "values": {"> 0.5": "good", "< -0.5": "bad", "none": "neutral"}}


@pytest.mark.parametrize(
    ("cell", "value"),
    [("0.9", "good"), (3, "good"), ("-0.75", "bad"), ("0.5", None), (0.0, None), ("none", "neutral"), ("", None),
     (None, None), (float("nan"), None), ("much", None)],
)  # fmt: skip
def test_a_cell_asks_for_the_first_value_whose_case_holds(cell: Any, value: str | None) -> None:
    assert field_references.reference(FieldReference.model_validate(MOOD), cell) == value


@pytest.mark.parametrize(("cell", "value"), [("bad", "bad"), (5, "5"), (5.0, "5"), (True, "true"), (["a"], '["a"]')])
def test_without_cases_the_cell_is_the_value(cell: Any, value: str) -> None:
    assert field_references.reference(FieldReference.model_validate("column"), cell) == value


def test_rows_without_a_reference_are_counted_and_stay_without_one(tmp_path: Path) -> None:
    task = Generate.model_validate(
        {"kind": "generate", "metrics": ["fields"], "fields": {"mood": MOOD, "city": "town"}}
    )
    rows = [Example(str(row), "text", columns={"sentiment": score}) for row, score in enumerate(("1.2", "0.1", "-2"))]
    assert field_references.write(tmp_path, task, rows) == {"mood": 2, "city": 0}
    found = field_references.read(tmp_path, ["2", "1", "0"], task.fields)
    assert found == {"mood": ["bad", None, "good"], "city": [None, None, None]}


def test_the_key_needs_the_metric() -> None:
    with pytest.raises(ValueError, match="needs the metric `fields`"):
        Generate.model_validate({"kind": "generate", "metrics": ["exact"], "fields": {"mood": "sentiment"}})
