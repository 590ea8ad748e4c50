"""A table as spreadsheets write it, through collect and train: columns in both contexts, every row accounted for."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from distillctl.data import view_table
from tests.fixtures import project, tiny

pytestmark = pytest.mark.slow

SHOT = "how many"


def _table() -> bytes:
    """160 rows and what is left out: 3 blank ones, a repeated one with another reference, and the few-shot example."""
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\r\n")
    table.writerow(["input", "reference", "title", "", ""])
    texts = [text for text in dict.fromkeys(tiny.texts(200)) if text != SHOT][:160]
    rows = [
        [text, list(project.LABELS)[place % 3], "book" if place % 2 else "river"] for place, text in enumerate(texts)
    ]
    again = [rows[5][0], next(iter(project.LABELS)), rows[5][2]]
    for row in (*rows, *[["", "person", "book"]] * 3, again, [SHOT, "number", "book"]):
        table.writerow([*row, "", ""])
    return written.getvalue().encode("utf-8-sig")


def _json(*arguments: Any) -> dict[str, Any]:
    done = project.run(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_row_is_accounted_for_and_columns_reach_teacher_and_student(tmp_path: Path) -> None:
    full = "{% for e in examples %}{{ e.input }} {{ e.answer }} {% endfor %}{{ row.title }} {{ input }}"
    recipe = project.make(
        tmp_path,
        task={"answer_prefix": " "},
        data={"source": "rows.csv", "blank": "drop", "train_rows": 100},
        contexts={
            "full": {"template": full, "examples": {"rows": [{"input": SHOT, "answer": "many"}]}},
            "simplified": {"template": "{{ title }} {{ input }}"},
        },
    )
    (tmp_path / "rows.csv").write_bytes(_table())
    planned = _json("run", recipe, "--run-dir", tmp_path / "run", "--dry-run")
    collected = _json("collect", recipe, "--run-dir", tmp_path / "run")
    expected = {"train": 100, "eval": 40, "shots": 1, "blank": 3, "duplicates": 1, "contradictory": 1,
                "shots_in_splits": 1, "overlap": 0, "excluded": 0}  # fmt: skip
    for found in (planned["rows"], collected["counts"]):
        assert {name: found[name] for name in expected} == expected
    for found in (planned, collected):
        assert {"contradictory-references", "few-eval-rows"} <= {one["code"] for one in found["cautions"]}
    for split in ("train", "eval"):
        views = view_table.read(tmp_path / "run" / "collect" / "views.parquet", split)
        assert {text.split()[0] for text in views.simplified} == {"book", "river"}
        for teacher, student, text in zip(views.full, views.simplified, views.input, strict=True):
            assert teacher == f"{SHOT} many {student}"
            assert student.endswith(f" {text}")
    assert _json("train", recipe, "--run-dir", tmp_path / "run")["steps"] > 0
    line = project.run("collect", recipe, "--run-dir", tmp_path / "run").stdout
    assert "1 few-shot examples, 3 blank; inputs whose references contradict each other: 1" in " ".join(line.split())
