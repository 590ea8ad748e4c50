"""Find what is wrong or doubtful about the splits before any work is paid for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from distillctl import cautions
from distillctl.data import row_reading, template_sources
from distillctl.data.rows import Dataset, DiskExamples
from distillctl.errors import DataError
from distillctl.recipe import Recipe

FEW_TRAIN_ROWS, FEW_EVAL_ROWS, FEW_STEPS = 50, 100, 30
"""Number of eval rows below which figures mean little."""
MAY_LACK = 0.01
"""Share of the train rows that may have no reference, where all eval rows have one, without a caution."""
_LOOKED_AT = 1000
"""Number of rows that are searched for a column of label names."""
_COPIED = 20
"""Length in characters from which an input in a template is not a coincidence."""


def check_splits(recipe: Recipe, dataset: Dataset) -> None:
    """Raise DataError if training would have no row. Caution about splits that are small, one-sided or without
    references."""
    check_train_rows(recipe, len(dataset.train))
    if len(dataset.train) < FEW_TRAIN_ROWS:
        cautions.add(
            "few-train-rows",
            f"The student learns from {len(dataset.train)} train rows. Most tasks need hundreds.",
        )
    if len(dataset.eval) < FEW_EVAL_ROWS:
        cautions.add(
            "few-eval-rows",
            f"All scores come from {len(dataset.eval)} eval rows. With fewer than {FEW_EVAL_ROWS} their intervals are "
            "too wide for a verdict.",
        )
    if (contradictory := dataset.counts.get("contradictory", 0)) > 0:
        single = contradictory == 1
        cautions.add(
            "contradictory-references",
            f"{contradictory:,} {'input has' if single else 'inputs have'} several rows with contradictory "
            "references. The first reference is kept.",
        )
    references = {name: [example.reference for example in rows] for name, rows in dataset.splits.items()}
    _check_references(recipe, references)
    _check_labels(recipe, references)
    _check_leaks(recipe, dataset.eval)


def check_train_rows(recipe: Recipe, rows: int) -> None:
    """Raise DataError if early stopping leaves no row to train on."""
    if recipe.train.held_out(rows) >= rows:
        raise no_train_rows(rows, recipe.train.validation)


def no_train_rows(rows: int, validation: float) -> DataError:
    """Return the error that early stopping takes all train rows."""
    rows_taken = "there is one train row, which" if rows == 1 else f"there are {rows} train rows, all of which"
    return DataError(
        f"nothing is left to train on: {rows_taken} early stopping holds out (train.validation: {validation:g})",
        where="data",
        next="give more rows, or lower data.eval_rows or train.validation",
    )


def check_steps(steps: int) -> None:
    """Caution if training has too few optimizer steps to change a model."""
    if steps < FEW_STEPS:
        cautions.add(
            "few-steps",
            f"Training has {steps} optimizer steps, which may be too few to learn the task. Give more train rows, "
            "raise train.epochs, or lower train.batch_rows.",
        )


# ── references ───────────────────────────────────────────────────────────────────────────────────


def _check_references(recipe: Recipe, references: dict[str, list[str | None]]) -> None:
    if any(reference is not None for reference in references["eval"]):
        _check_selection(recipe, references)
        return
    whose = "eval row" if any(reference is not None for reference in references["train"]) else "row"
    message = (
        f"No {whose} has a reference, so every arm is scored by its agreement with the prompted teacher, and the "
        "teacher's own score is 1 by construction."
    )
    if whose == "row" and recipe.data.reference is None:
        message += _likely(recipe)
    cautions.add("no-references", message)


def _check_selection(recipe: Recipe, references: dict[str, list[str | None]]) -> None:
    """Caution if the eval rows were selected for having a reference (`_SplitRows.split`), which train rows lack."""
    without = sum(reference is None for reference in references["train"])
    if recipe.data.train is None and None not in references["eval"] and without > MAY_LACK * len(references["train"]):
        cautions.add(
            "eval-rows-selected",
            f"{without:,} of {len(references['train']):,} train rows have no reference, and all eval rows were taken "
            "from the rows that have one. If the two differ, the scores do not hold for rows without a reference.",
        )


def _likely(recipe: Recipe) -> str:
    """Return a sentence that names a column which may hold the references."""
    rows = list(_first_rows(recipe))
    columns = _columns_of_labels(recipe, rows) if recipe.task.names else []
    if columns:
        other = f" (or {', '.join(columns[1:4])})" if columns[1:] else ""
        return f" The values of the column {columns[0]!r} are label names: set data.reference: {columns[0]}{other}."
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != recipe.data.input]
    return f" If one of the columns {', '.join(map(repr, names[:8]))} holds them, set data.reference." if names else ""


def _first_rows(recipe: Recipe) -> Iterator[dict[str, Any]]:
    data = recipe.data
    where, source = ("data.train", data.train) if data.train is not None else ("data.source", data.sources[0])
    return (row for _, row in islice(row_reading.raw_rows(recipe, source, where, None), _LOOKED_AT))


def _columns_of_labels(recipe: Recipe, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return columns, or paths into nested ones, whose values are all label names or keys of `data.label_map`."""
    known = {*recipe.task.names, *recipe.data.label_map}
    seen: dict[str, set[str]] = {}
    for row in rows:
        for path, cell in _leaves(row):
            written = row_reading.spellings(cell)
            if written:
                label = next((text for text in written if text in known), "")
                seen.setdefault(path, set()).add(label)
    return [path for path, labels in seen.items() if "" not in labels and path != recipe.data.input]


def _leaves(row: dict[str, object], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, cell in row.items():
        if isinstance(cell, dict) and before.count(".") < 4:
            yield from _leaves(cell, f"{before}{name}.")
        elif isinstance(cell, (str, int, float)):
            yield f"{before}{name}", cell


def _check_labels(recipe: Recipe, references: dict[str, list[str | None]]) -> None:
    """Caution about each split whose references lack a label."""
    for split, values in references.items():
        counted = Counter(reference for reference in values if reference is not None)
        missing = [name for name in recipe.task.names if name not in counted]
        if counted and missing:
            counts = ", ".join(f"{name} {count:,}" for name, count in counted.most_common(8))
            more = "" if len(missing) <= 8 else f" and {len(missing) - 8} more"
            cautions.add(
                f"labels-missing-from-{split}",
                f"No {split} row has the reference {' or '.join(map(repr, missing[:8]))}{more} (there are: {counts}).",
            )


# ── leaks ────────────────────────────────────────────────────────────────────────────────────────


def _check_leaks(recipe: Recipe, held_out: DiskExamples) -> None:
    """Caution if a context shows the reference, or if its text contains an eval row's input."""
    column = re.split(r"[.\[]", recipe.data.reference or "reference")[0]
    has_reference = any(example.reference is not None for example in held_out)
    used = template_sources.columns(recipe)
    for name, (where, context) in template_sources.contexts(recipe).items():
        if has_reference and used[name].shows(column):
            cautions.add(
                "reference-in-context",
                f"{where} shows the column {column!r}, which has the references: its reader is told the answers.",
            )
        texts = [source.text for source in template_sources.sources(recipe, where, context)]
        copied = sum(
            len(example.input) >= _COPIED and any(example.input in text for text in texts) for example in held_out
        )
        if copied:
            cautions.add(
                "eval-rows-in-context",
                f"The text of {where} contains {copied:,} eval rows word for word, and may give away their answers.",
            )
