"""Measure a student's views with its tokenizer and sizes, without its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig

from distillctl import cautions, console
from distillctl.data.truncation import Length, Limit
from distillctl.errors import UnavailableError
from distillctl.models import checkpoint_files, model_source
from distillctl.models.from_pretrained import folder, options
from distillctl.models.model_source import ModelSource
from distillctl.recipe import FromConfigStudent, Recipe
from distillctl.students import loading, tokenization
from distillctl.students.load_trained import trusted
from distillctl.students.preflight import check_sizes, longest_view, view_limit


@dataclass(frozen=True)
class StudentReader:
    """A student without its weights, which measures simplified views before training."""

    tokenizer: Any
    limit: Limit

    def length(self, text: str) -> Length:
        """Return the tokens of a simplified view as training counts them. Trimming the vocabulary does not change
        them."""
        tokens = len(self.tokenizer(text).input_ids)
        return Length(tokens, self.limit, "contexts.simplified", "simplified view")


def read(recipe: Recipe) -> StudentReader | None:
    """Return the recipe's student, or None if its tokenizer will only exist after train.

    Raises UnavailableError if tokenizer or sizes cannot be loaded, RecipeError if the response leaves no room for a
    view.
    """
    spec, source = recipe.student, model_source.student(recipe)
    if source is None:
        return None
    trust = trusted(recipe)
    if trust:
        loading.warn_of_code(source)
    tokenizer = tokenization.of(source, spec.revision, trust)
    config = _config(recipe, source, trust)
    tokenization.pad(tokenizer)
    if response_length := loading.response_room(recipe, config):
        tokenizer = tokenization.for_writing_on(tokenizer, chat=recipe.contexts.simplified.messages is not None)
    longest = longest_view(config, tokenizer, spec.max_length, response_length)
    return StudentReader(tokenizer, view_limit(longest, response_length))


def measure(recipe: Recipe) -> Callable[[str], Length] | None:
    """Return the function that measures collect's simplified views, or None if the student's tokenizer does not exist
    yet.

    If it cannot be loaded, collect cautions and goes on, unless inputs are also cut for the student.
    """
    try:
        reader = read(recipe)
    except UnavailableError as error:
        if recipe.contexts.truncate == "input":
            raise
        cautions.add(
            "student-limit-unknown",
            f"It is unknown whether the views fit the student, because its tokenizer cannot be loaded: {error.what}.",
        )
        return None
    return None if reader is None else reader.length


def _config(recipe: Recipe, source: ModelSource, trust: bool) -> Any:
    spec = recipe.student
    with checkpoint_files.loading(lambda error: loading.unavailable(source, error)), console.libraries_quiet():
        if isinstance(spec, FromConfigStudent):
            check_sizes(spec)
            return AutoConfig.for_model(spec.model_type, **spec.config)
        return AutoConfig.from_pretrained(folder(source), **options(source, spec.revision, trust))
