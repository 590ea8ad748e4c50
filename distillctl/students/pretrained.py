"""A pretrained encoder or decoder with a fresh classification head."""

from __future__ import annotations

from transformers import AutoModelForSequenceClassification

from distillctl import references
from distillctl.recipe import PretrainedStudent, Recipe
from distillctl.students.student import Student, finish, label_config, load_classifier, tokenizer_of


def build(spec: PretrainedStudent, recipe: Recipe) -> Student:
    """The student as it stands before training; the head is drawn from torch's generator."""
    source = references.student(recipe)
    tokenizer = tokenizer_of(source, spec.revision, spec.trust_remote_code)
    model = load_classifier(
        AutoModelForSequenceClassification,
        source,
        spec.revision,
        spec.trust_remote_code,
        **label_config(recipe.task.names),
    )
    return finish(model, tokenizer, spec.max_length)
