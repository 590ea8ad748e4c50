"""Compare the longest rows with what teacher and student can read, and show sample views, for --dry-run. No torch."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from distillctl.data.rows import Dataset, Example
from distillctl.data.truncation import Limit
from distillctl.data.views import CEILING, FLOOR, Renderer, scored_splits
from distillctl.models.preview import ModelPreview
from distillctl.recipe import FromConfigStudent, NewTokenizer, OpenAITeacher, Recipe
from distillctl.students.preflight import longest_view, view_limit

CHECKED = 2_000
"""Number of rows that are rendered and counted: those with the longest records."""
LISTED = 5
"""Number of the longest rows that are listed by id."""
SHOWN = 600
"""Number of characters of a view that are shown, half of them from its end."""
_COUNTED = 64
"""Number of rows that are always tokenized. Others are if their bytes exceed a limit: a token has at least one byte."""
_AROUND = 8
"""An upper bound on the special tokens that a tokenizer adds to a text."""
_ENCODER_DECODERS = ("t5", "mt5", "umt5", "longt5", "switch_transformers", "marian", "bart", "mbart", "pegasus")
"""Architectures with an encoder, whose responses take no room from the views."""


@dataclass(frozen=True)
class ModelSide:
    """Teacher or student: its tokenizer, its limit (None if unknown or unlimited), and a note for the user."""

    preview: ModelPreview
    limit: Limit | None
    note: str | None = None


def teacher(recipe: Recipe, preview: ModelPreview) -> ModelSide:
    """Return the recipe's teacher, with room for its answer."""
    if isinstance(recipe.teacher, OpenAITeacher):
        return ModelSide(preview, None, "only the server knows how long a view may be")
    if preview.positions is None:
        return ModelSide(preview, None, preview.unknown or "its config names no longest input")
    scored = (preview.tokens(f" {words}", special=False) for words in recipe.task.answers.values())
    room = max(scored, default=recipe.task.response_tokens)
    takes = preview.positions - room
    return ModelSide(preview, Limit("the teacher", takes, f"the teacher takes {takes:,}, not counting its answer"))


def student(recipe: Recipe, preview: ModelPreview) -> ModelSide:
    """Return the recipe's student. A decoder that generates has room for the response."""
    spec, config, limits = recipe.student, preview.config, preview.tokenizer_limit
    if isinstance(spec, FromConfigStudent):
        config = {"is_encoder_decoder": spec.model_type in _ENCODER_DECODERS, **spec.config}
        config["model_type"] = spec.model_type
    known = SimpleNamespace(
        model_type=config.get("model_type"),
        max_position_embeddings=preview.positions
        if not isinstance(spec, FromConfigStudent)
        else config.get("max_position_embeddings"),
    )
    tokenizer = SimpleNamespace(model_max_length=limits, pad_token_id=config.get("pad_token_id") or 1)
    response = 0 if config.get("is_encoder_decoder") else recipe.task.response_tokens
    longest = longest_view(known, tokenizer, spec.max_length, response)
    if longest >= 2**31:
        return ModelSide(preview, None, _unknown(recipe, preview))
    limit = view_limit(longest, response)
    if isinstance(spec, FromConfigStudent) and isinstance(spec.tokenizer, NewTokenizer):
        note = "its tokenizer is trained in train, which refuses a view that is too long then; tokens are estimated"
        return ModelSide(preview, limit, note)
    return ModelSide(preview, limit, preview.unknown)


def _unknown(recipe: Recipe, preview: ModelPreview) -> str:
    if isinstance(recipe.student, FromConfigStudent):
        return "the architecture's own limit is known once it is built, in train; student.max_length would set one"
    return preview.unknown or "neither its config nor its tokenizer names a longest input"


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _RowLengths:
    id: str
    split: str
    tokens: dict[str, int]
    """Context → tokens of the teacher's view; "student" → of the student's."""
    too_long: tuple[str, ...]

    @property
    def longest(self) -> tuple[int, int, str]:
        return self.tokens["student"], max(self.tokens.values()), self.id


def check_lengths(
    recipe: Recipe, dataset: Dataset, contexts: Mapping[str, Renderer], reads: ModelSide, takes: ModelSide
) -> dict[str, Any]:
    """Return the part of the plan about lengths. reads, takes: the teacher and the student."""
    total = len(dataset.train) + len(dataset.eval)
    listed: list[tuple[tuple[int, int, str], int, _RowLengths]] = []
    too_long = {"teacher": 0, "student": 0, "rows": 0}
    for number, row in enumerate(_rows(recipe, dataset, contexts, reads, takes)):
        for side in row.too_long:
            too_long[side] += 1
        too_long["rows"] += bool(row.too_long)
        heapq.heappush(listed, (row.longest, number, row))
        if len(listed) > LISTED:
            heapq.heappop(listed)
    longest = [row for _, _, row in sorted(listed, reverse=True)]
    return {
        "teacher": _side(reads),
        "student": _side(takes),
        "longest": [{"id": row.id, "split": row.split, "tokens": row.tokens} for row in longest],
        "too_long": too_long,
        "checked": min(total, CHECKED),
        "rows": total,
        "then": _then(recipe, too_long["rows"]),
    }


def _side(side: ModelSide) -> dict[str, Any]:
    return {
        "limit": None if side.limit is None else side.limit.tokens,
        "told": None if side.limit is None else side.limit.description,
        "counted": side.preview.counts,
        "note": side.note,
    }


def _then(recipe: Recipe, too_long: int) -> str:
    """Return what happens to rows that are too long."""
    if not too_long:
        return "no row is too long"
    if recipe.contexts.truncate == "input":
        return "the ends of their inputs are cut in collect, for all contexts and the student alike"
    return (
        "collect ends with an error before the teacher is asked; shorten the context, leave these rows out, or set "
        "contexts.truncate: input"
    )


def _rows(
    recipe: Recipe, dataset: Dataset, contexts: Mapping[str, Renderer], reads: ModelSide, takes: ModelSide
) -> Iterator[_RowLengths]:
    """Yield the rows with the longest records, longest first, without those that are certainly short enough."""
    sizes = ((size, split, place) for split, rows in dataset.splits.items() for place, size in enumerate(rows.sizes))
    for number, (_, split, place) in enumerate(heapq.nlargest(CHECKED, sizes)):
        example = dataset.splits[split][place]
        names = list(contexts) if split == "eval" else [CEILING, FLOOR]
        views = {name: render(contexts[name], example, reads.preview) for name in names}
        doubtful = _may_be_long(takes, views[FLOOR]) or any(_may_be_long(reads, view) for view in views.values())
        if number >= _COUNTED and not doubtful:
            continue
        has_special = {name: contexts[name].is_chat and reads.preview.chat is not None for name in names}
        tokens = {name: reads.preview.tokens(views[name], special=not has_special[name]) for name in names}
        student_tokens = takes.preview.tokens(views[FLOOR])
        most = max(tokens[name] for name in names if split in scored_splits(recipe, name))
        sides = (("teacher", reads, most), ("student", takes, student_tokens))
        too_long = [name for name, side, long in sides if side.limit is not None and long > side.limit.tokens]
        yield _RowLengths(example.id, split, {**tokens, "student": student_tokens}, tuple(too_long))


def _may_be_long(side: ModelSide, view: str) -> bool:
    return side.limit is not None and len(view.encode()) + _AROUND > side.limit.tokens


def render(renderer: Renderer, example: Example, preview: ModelPreview) -> str:
    """Render the view as the teacher reads it. Without the chat template, messages are reduced to their contents."""
    if renderer.is_chat and (chat := preview.chat) is not None:
        return renderer.render(example, chat)
    return renderer.preview(example)


def samples(dataset: Dataset, contexts: Mapping[str, Renderer], preview: ModelPreview) -> dict[str, str]:
    """Return context → the first eval row's view, with the middle of a long one left out."""
    return {name: shortened(render(context, dataset.eval[0], preview)) for name, context in contexts.items()}


def shortened(text: str) -> str:
    """Shorten a text to about `SHOWN` characters from its beginning and its end."""
    left_out = len(text) - SHOWN
    if left_out < SHOWN // 10:
        return text
    half = SHOWN // 2
    return f"{text[:half]} … ({left_out:,} characters) … {text[-half:]}"
