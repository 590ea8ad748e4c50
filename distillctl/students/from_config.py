"""A new small model of a known architecture, weights drawn at random."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForSequenceClassification

from distillctl import references
from distillctl.errors import RecipeError
from distillctl.recipe import FromConfigStudent, Recipe
from distillctl.students.student import Student, finish, label_config, tokenizer_of


def build(spec: FromConfigStudent, recipe: Recipe) -> Student:
    """``spec.config`` may set any of the architecture's sizes; the vocabulary is the tokenizer's."""
    source = references.student(recipe)
    tokenizer = tokenizer_of(source, spec.revision)
    try:
        sizes = {"vocab_size": len(tokenizer)} | spec.config | label_config(recipe.task.names)
        known = AutoConfig.for_model(spec.model_type).to_dict()  # a config keeps any key it is given
        if unknown := sorted(set(spec.config) - set(known)):
            raise RecipeError(f"{spec.model_type} has no {unknown[0]!r}", where="student.config")
        config = AutoConfig.for_model(spec.model_type, **sizes)
        model = AutoModelForSequenceClassification.from_config(config)
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"cannot be built: {error}", where="student.config") from error
    return finish(model, tokenizer, spec.max_length)
