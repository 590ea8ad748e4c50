"""The contexts: the text around an input when a model reads it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distillctl.recipe.base import Count, Section, Seed


class Shot(Section):
    """One few-shot example."""

    input: Annotated[str, Field(examples=["You charged my card twice."])]
    """The example's input, which a template reads as `example.input`."""
    answer: Annotated[str, Field(examples=["billing"])]
    """The answer that the teacher should learn from, which a template reads as `example.answer`."""
    row: Annotated[dict[str, Any], Field(examples=[{"title": "Refund"}])] = {}
    """Further columns, which a template reads as `example.row.title` or `example.title`."""


class Shots(Section):
    """Few-shot examples for a context: exactly one of `rows`, `file` and `train`."""

    rows: tuple[Shot, ...] = ()
    """The examples themselves."""
    file: Annotated[str | None, Field(examples=["examples.jsonl"])] = None
    """A data file with the columns `input` and `answer`."""
    train: Annotated[Count | None, Field(examples=[48])] = None
    """Take this many train rows that have a reference, label by label in turn. They leave the train split."""
    seed: Seed = 0
    """Seed that chooses which train rows become examples."""

    @model_validator(mode="after")
    def _one_source(self) -> Shots:
        if sum((bool(self.rows), self.file is not None, self.train is not None)) != 1:
            raise ValueError("give exactly one of rows, file, train")
        return self


class ChatMessage(Section):
    """One chat message."""

    role: Literal["system", "user", "assistant"]
    """Role of the message."""
    content: Annotated[str, Field(examples=["Sort this message: {{ input }}"])]
    """The message, as a Jinja template."""
    each: Literal["example", "document"] | None = None
    """Repeat the message for every example or document. Neighbours with the same `each` repeat together."""


class Context(Section):
    """The text around the input: exactly one of `template`, `template_file` and `messages`.

    Templates are sandboxed Jinja. They may use `input`, `examples` (each with `input` and `answer`), `documents`,
    `labels`, and every column of the data: by its own name, unless that is one of these, and in `row`, as in
    `row.title` or `row["Order number"]`.
    """

    template: Annotated[str | None, Field(examples=["Message: {{ input }}\nSort:"])] = None
    """The template itself."""
    template_file: Annotated[str | None, Field(examples=["prompt.jinja"])] = None
    """A file that holds the template."""
    messages: tuple[ChatMessage, ...] | None = None
    """Chat messages, which the model's chat template joins."""
    examples: Shots | None = None
    """Few-shot examples, which the template reads as `examples`."""
    final_newline: Literal["strip", "keep"] = "strip"
    """Whether the teacher reads one final newline of the template. Editors and YAML's `|` leave one by accident. It
    always stays if the context's examples have their answers on a line of their own."""

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


class Contexts(Section):
    """The text around an input for each model."""

    full: Context
    """The teacher's context: your prompt."""
    simplified: Context = Context(template="{{ input }}")
    """The student's context. The teacher also reads it, for the floor."""
    arms: dict[str, Context] = {}
    """Further contexts by name, such as the answer cue alone. The teacher's score under each is reported, too."""
    truncate: Literal["never", "input"] = "never"
    """What to do with a row that is too long for the teacher or the student. `never`: collect stops and names the row.
    `input`: the end of its input is cut, alike for every context and the student."""

    @model_validator(mode="after")
    def _names(self) -> Contexts:
        taken = TAKEN & set(self.arms)
        if taken:
            raise ValueError(f"arms: the name {sorted(taken)[0]} is taken")
        if bad := [name for name in self.arms if not re.fullmatch(r"[A-Za-z0-9_]+", name)]:
            raise ValueError(f"arms: {bad[0]!r} is not a plain name (letters, digits, _)")
        return self
