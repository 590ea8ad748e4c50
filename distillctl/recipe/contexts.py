"""What is put around the input."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import model_validator

from distillctl.recipe.base import Closed, Count, Seed


class Shot(Closed):
    """One few-shot example."""

    input: str
    answer: str
    row: dict[str, Any] = {}
    """Further columns, which a template reads as `example.row.title` or `example.title`."""


class Shots(Closed):
    """Few-shot examples for a context: inline rows, a file with `input` and `answer`, or rows of the train split."""

    rows: tuple[Shot, ...] = ()
    file: str | None = None
    train: Count | None = None
    """So many train rows with a reference, the labels in turn; they leave the train split."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _one_source(self) -> Shots:
        if sum((bool(self.rows), self.file is not None, self.train is not None)) != 1:
            raise ValueError("give exactly one of rows, file, train")
        return self


class Message(Closed):
    """One chat message; its content is a template."""

    role: Literal["system", "user", "assistant"]
    content: str
    each: Literal["example", "document"] | None = None
    """Repeat the message for every example or document; neighbours with the same `each` repeat together."""


class Context(Closed):
    """What is put around the input: a sandboxed Jinja template (inline or a file), or chat messages.

    Variables: `input`, `examples` (each with `input`, `answer`), `documents`, `labels`, and the columns of the data:
    each by its own name, unless that is one of these, and all of them in `row` (`row.title`, `row["Order number"]`).
    """

    template: str | None = None
    template_file: str | None = None
    messages: tuple[Message, ...] | None = None
    examples: Shots | None = None
    final_newline: Literal["strip", "keep"] = "strip"
    """A template's own last newline, when the teacher answers: editors and YAML's `|` leave one that is not meant. It
    stays in any case where the context's examples have their answers on a line of their own."""

    @model_validator(mode="after")
    def _one_form(self) -> Context:
        if sum(v is not None for v in (self.template, self.template_file, self.messages)) != 1:
            raise ValueError("give exactly one of template, template_file, messages")
        return self


TAKEN = {
    *("full", "simplified", "ceiling", "floor", "student", "deployed", "control"),
    *("majority", "bag_of_words", "most_frequent", "nearest_row", "recovered"),
}
"""Names of the report's own arms and figures."""


class Contexts(Closed):
    full: Context
    """What the teacher sees."""
    simplified: Context = Context(template="{{ input }}")
    """What the student sees, and the teacher for the floor."""
    arms: dict[str, Context] = {}
    """Further contexts for the teacher, scored beside the floor."""
    truncate: Literal["never", "input"] = "never"
    """A view that is too long for the teacher or the student: an error in collect that names the row, or the end of its
    input is cut, for all contexts and the student alike."""

    @model_validator(mode="after")
    def _names(self) -> Contexts:
        taken = TAKEN & set(self.arms)
        if taken:
            raise ValueError(f"arms: the name {sorted(taken)[0]} is taken")
        if bad := [name for name in self.arms if not re.fullmatch(r"[A-Za-z0-9_]+", name)]:
            raise ValueError(f"arms: {bad[0]!r} is not a plain name (letters, digits, _)")
        return self
