"""Render examples inside a context to views: the texts that teacher and student see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import jinja2

from distillctl.data import answer_place, template_sources
from distillctl.data.answer_place import AnswerPlace
from distillctl.data.rows import Example
from distillctl.data.template_sources import FAILURES as _FAILURES
from distillctl.data.template_sources import SANDBOX as _SANDBOX
from distillctl.data.template_sources import reason as _reason
from distillctl.errors import RecipeError
from distillctl.recipe import Context, Recipe, Shot
from distillctl.untrusted import chat_templates, limits
from distillctl.untrusted.chat_templates import ChatTokenizer
from distillctl.untrusted.templates import RowColumns

CEILING, FLOOR = "full", "simplified"
"""The contexts that every recipe has."""
CHECKED = 20
"""Views of each context that are rendered before any is paid for."""
PUBLIC = {CEILING: "ceiling", FLOOR: "floor"}
"""Context → the name of its arm in reports."""


def scored_splits(recipe: Recipe, context: str) -> tuple[str, ...]:
    """Return the splits whose views the teacher reads.

    Of the train rows, it reads the full context's; and the simplified one's, if the loss weighs tokens by what the
    context changes. Of the probes, it reads the full context's.
    """
    if context == CEILING:
        return ("train", "eval", "probe") if recipe.task.unscored_inputs else ("train", "eval")
    weighed = context == FLOOR and recipe.train.weights == "context_kl"
    return ("train", "eval") if weighed else ("eval",)


MESSAGE = "\x1e"
"""Begins each message where messages are written as one text: the record separator, which no template's text has."""


def shared_length(views: Sequence[Any]) -> int:
    """Return the length of the prefix, in characters or token ids, that all views share."""
    low, high = min(views), max(views)
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


@dataclass(frozen=True)
class Renderer:
    """Render one context. Make it once, because it compiles the templates."""

    where: str
    template: jinja2.Template | None
    messages: tuple[tuple[str, str | None, jinja2.Template], ...]
    """(role, each, content template)."""
    shots: Sequence[Shot]
    labels: tuple[str, ...]
    time: limits.TimeBudget
    """Shared by all contexts."""
    strip_newline: bool = True
    """Whether the teacher reads the view without its final newline."""
    chat_arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the chat template."""

    @property
    def is_chat(self) -> bool:
        """Tell whether the context is a list of messages."""
        return self.template is None

    def render(self, example: Example, tokenizer: ChatTokenizer | None = None) -> str:
        """Return the view's text. Messages go through the tokenizer's chat template, ready for the answer."""
        content = self._content(example)
        if isinstance(content, str):
            return content
        if tokenizer is None or not tokenizer.chat_template:
            raise RecipeError("messages need a model with a chat template; use `template`", where=self.where)
        try:
            with self.time:
                return chat_templates.text(tokenizer, content, self.chat_arguments)
        except (*_FAILURES, limits.TimeBudgetExceeded) as error:
            problem = f"the model's chat template refuses these messages: {_reason(error)}"
            raise RecipeError(problem, where=self.where) from None

    def answer_place(self, example: Example, prefix: str | None, tokenizer: ChatTokenizer | None = None) -> AnswerPlace:
        """Find where an answer follows this context's views, from one row.

        prefix: the recipe's. tokenizer: its chat template writes the messages; None if a server does.
        """
        if not self.is_chat:
            return answer_place.of_template(
                lambda text: str(self._content(replace(example, input=text))), prefix, strip_newline=self.strip_newline
            )
        if tokenizer is None or not tokenizer.chat_template:
            return AnswerPlace(prefix, chat=True)
        content = self._content(example)
        assert not isinstance(content, str)

        def conversation(more: Sequence[dict[str, str]]) -> str:
            with self.time:
                messages = [*content, *more]
                return chat_templates.text(tokenizer, messages, self.chat_arguments, generation_prompt=False)

        return answer_place.of_chat(conversation, self.render(example, tokenizer), prefix)

    def preview(self, example: Example) -> str:
        """Return the view's text without a tokenizer; for messages, their contents."""
        content = self._content(example)
        return content if isinstance(content, str) else "\n".join(message["content"] for message in content)

    def as_text(self, example: Example) -> str:
        """Return the view's text without a chat template: `MESSAGE`, role and content of each message."""
        content = self._content(example)
        if isinstance(content, str):
            return content.replace(MESSAGE, " ")
        return "".join(
            f"{MESSAGE}{message['role']}\n{message['content'].replace(MESSAGE, ' ')}\n" for message in content
        )

    def _content(self, example: Example) -> str | list[dict[str, str]]:
        """Return the rendered template, or the rendered messages."""
        variables = {
            **template_sources.by_name(example.columns),
            "row": RowColumns(example.columns),
            "input": example.input,
            "examples": [
                {**shot.row, "row": RowColumns(shot.row), "input": shot.input, "answer": shot.answer}
                for shot in self.shots
            ],
            "documents": list(example.documents),
            "labels": list(self.labels),
        }
        try:
            with self.time:
                if self.template is not None:
                    return _SANDBOX.render(self.template, variables)
                return list(self._conversation(variables))
        except (*_FAILURES, limits.TimeBudgetExceeded) as error:
            problem = f"the template fails on row {example.id} ({example.input[:40]!r} …): {_reason(error)}"
            raise RecipeError(problem, where=self.where, next=_next(error)) from None

    def _conversation(self, variables: dict[str, Any]) -> Iterable[dict[str, str]]:
        for each, group in groupby(self.messages, key=lambda message: message[1]):
            block = list(group)
            for item in variables[f"{each}s"] if each else [None]:
                scope = {**variables, each: item} if each else variables
                for role, _, content in block:
                    yield {"role": role, "content": _SANDBOX.render(content, scope)}


def renderers(recipe: Recipe, shots: dict[str, list[Shot]]) -> dict[str, Renderer]:
    """Return one renderer per context: full, simplified, and the recipe's other arms."""
    time = limits.TimeBudget()
    return {
        name: _renderer(recipe, where, context, shots.get(name, []), time)
        for name, (where, context) in template_sources.contexts(recipe).items()
    }


def check(contexts: Mapping[str, Renderer], examples: Sequence[Example]) -> None:
    """Render some views of every context.

    Raise RecipeError if a template fails, or if the teacher or the student would read the same text for every row.
    """
    for name, renderer in contexts.items():
        texts, inputs = {renderer.preview(example) for example in examples}, {example.input for example in examples}
        if name in (CEILING, FLOOR) and len(texts) == 1 and len(inputs) > 1:
            raise RecipeError(
                "every row has the same view, because the context does not show the row's text",
                where=renderer.where,
                next="write {{ input }} where that text belongs",
            )


def _renderer(recipe: Recipe, where: str, context: Context, shots: Sequence[Shot], time: limits.TimeBudget) -> Renderer:
    compiled = [(source, _compile(source, time)) for source in template_sources.sources(recipe, where, context)]
    template = compiled[0][1] if context.messages is None else None
    messages = tuple(
        (message.role, message.each, compiled_template)
        for message, (_, compiled_template) in zip(
            context.messages or (), compiled, strict=context.messages is not None
        )
    )
    return Renderer(
        where,
        template,
        messages,
        shots,
        tuple(recipe.task.names),
        time,
        strip_newline=context.final_newline == "strip",
        chat_arguments=recipe.teacher.chat_template_kwargs,
    )


def _compile(source: template_sources.Source, time: limits.TimeBudget) -> jinja2.Template:
    try:
        with time:
            return _SANDBOX.compiled(source.text)
    except (*_FAILURES, limits.TimeBudgetExceeded) as error:
        raise template_sources.refused(error, source) from None


def _next(error: BaseException) -> str | None:
    if isinstance(error, jinja2.UndefinedError):
        return 'where a row may lack a column, write {{ title | default("") }} in place of {{ title }}'
    return None
