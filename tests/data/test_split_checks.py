"""What is said of splits that are small, one-sided, without references, or told their answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from distillctl import cautions
from distillctl import recipe as recipes
from distillctl.data import examples, split_checks
from distillctl.errors import DataError
from tests.recipe.test_recipe import BASE

Row = dict[str, Any]
ROWS: list[Row] = [{"text": f"row number {i}", "label": ("yes", "no")[i % 2]} for i in range(300)]


def doubts(folder: Path, rows: list[Row], contexts: Row | None = None, task: Row | None = None, **data: Any) -> Row:
    """Code → text of the cautions about these rows."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = {**BASE, "data": {"source": "rows.jsonl", "input": "text", "eval_rows": 100, **data}}
    sections |= {key: value for key, value in (("contexts", contexts), ("task", task)) if value}
    (folder / "r.yaml").write_text(yaml.safe_dump(sections))
    recipe = recipes.load(folder / "r.yaml")
    with cautions.collected() as found:
        split_checks.check_splits(recipe, examples.load(recipe))
    return {one["code"]: one["text"] for one in found}


def test_nothing_is_said_of_enough_rows_with_references(tmp_path: Path) -> None:
    assert doubts(tmp_path, ROWS, reference="label") == {}


def test_few_rows(tmp_path: Path) -> None:
    found = doubts(tmp_path, ROWS[:148], reference="label", eval_rows=99)
    assert list(found) == ["few-train-rows", "few-eval-rows"]
    assert "49 train rows" in found["few-train-rows"]
    assert "99 eval rows" in found["few-eval-rows"]


@pytest.mark.parametrize(
    ("rows", "validation", "left"), [(1, 0.1, 0), (2, 0.1, 1), (2, 0.9, 0), (20, 0.99, 0), (20, 0.95, 1)]
)
def test_no_row_to_train_on(tmp_path: Path, rows: int, validation: float, left: int) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**BASE, "train": {"validation": validation}}))
    recipe = recipes.load(tmp_path / "r.yaml")
    assert rows - recipe.train.held_out(rows) == left
    if left:
        split_checks.check_train_rows(recipe, rows)
        return
    with pytest.raises(DataError, match="nothing is left to train on") as error:
        split_checks.check_train_rows(recipe, rows)
    assert error.value.exit_code == 3


def test_few_steps() -> None:
    with cautions.collected() as found:
        split_checks.check_steps(30)
        split_checks.check_steps(4)
    assert [one["code"] for one in found] == ["few-steps"]
    assert "4 optimizer steps" in found[0]["text"]


def test_labels_that_a_split_lacks(tmp_path: Path) -> None:
    rows = [{**row, "label": "no"} for row in ROWS]
    found = doubts(tmp_path, rows, reference="label")
    assert list(found) == ["labels-missing-from-train", "labels-missing-from-eval"]
    assert "No train row has the reference 'yes' (there are: no 200)." in found["labels-missing-from-train"]


@pytest.mark.parametrize(
    ("column", "named"),
    [
        ({"label": "yes"}, "set data.reference: label"),
        ({"meta": {"gold": "no "}}, "set data.reference: meta.gold"),
        ({"colour": "red", "size": 3}, "one of the columns 'colour', 'size' holds them"),
    ],
)
def test_no_reference_at_all_names_the_column_it_may_be_in(tmp_path: Path, column: Row, named: str) -> None:
    found = doubts(tmp_path, [{"text": row["text"], **column} for row in ROWS])
    assert list(found) == ["no-references"]
    assert "1 by construction" in found["no-references"]
    assert named in found["no-references"]


def test_mapped_values_and_booleans_are_label_names_too(tmp_path: Path) -> None:
    rows = [{"text": row["text"], "ok": row["label"] == "yes"} for row in ROWS]
    found = doubts(tmp_path, rows, label_map={"true": "yes", "false": "no"})
    assert "set data.reference: ok" in found["no-references"]
    assert doubts(tmp_path, rows, label_map={"true": "yes", "false": "no"}, reference="ok") == {}


def test_texts_without_references_are_told_of_too(tmp_path: Path) -> None:
    found = doubts(tmp_path, ROWS, task={"kind": "generate"})
    assert "'label'" in found["no-references"]


def test_eval_rows_that_were_selected_for_their_references(tmp_path: Path) -> None:
    labels = [None if row % 10 == 0 else ("yes", "no")[row % 2] for row in range(300)]
    rows = [{"text": f"row {row}", "reference": label} for row, label in enumerate(labels)]
    assert "30 of 200 train rows have no reference" in doubts(tmp_path, rows, eval_rows=100)["eval-rows-selected"]
    assert "eval-rows-selected" not in doubts(tmp_path, rows, eval_rows=100, unreferenced="drop")


def test_contradictory_references(tmp_path: Path) -> None:
    found = doubts(tmp_path, [*ROWS, {"text": "row  number 3", "label": "yes"}], reference="label")
    assert list(found) == ["contradictory-references"]
    assert found["contradictory-references"].startswith("1 input has")


def test_a_context_that_shows_the_reference(tmp_path: Path) -> None:
    for template in ("{{ text }} {{ label }}", "{{ row.label }}", "{{ row }}"):
        found = doubts(tmp_path, ROWS, {"full": {"template": template}}, reference="label")
        assert list(found) == ["reference-in-context"], template
        assert "contexts.full shows the column 'label'" in found["reference-in-context"]
    shots = {"examples": {"train": 2}, "template": "{% for e in examples %}{{ e.label }}{% endfor %}{{ input }}"}
    assert doubts(tmp_path, ROWS, {"full": shots}, reference="label") == {}


def test_eval_rows_that_stand_in_a_template(tmp_path: Path) -> None:
    rows = [{**row, "text": f"{row['text']} of a long list of messages"} for row in ROWS]
    every = "\n".join(row["text"] for row in rows)
    found = doubts(tmp_path, rows, {"full": {"template": every + "{{ input }}"}}, reference="label")
    assert "The text of contexts.full contains 100 eval rows word for word" in found["eval-rows-in-context"]
