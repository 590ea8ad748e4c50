"""Start from a pretrained model: to classify with a fresh head, to generate with its own."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from distillctl.models import model_source
from distillctl.recipe import PretrainedStudent, Recipe, TruncatedStudent
from distillctl.students import loading, tokenization
from distillctl.students.finalize import assemble
from distillctl.students.student import Corpus, Student


def build(spec: PretrainedStudent, recipe: Recipe, corpus: Corpus) -> Student:
    """Build the student before training. Torch's generator draws a fresh head."""
    model, tokenizer = load(spec, recipe)
    return assemble(model, tokenizer, recipe, corpus, max_length=spec.max_length, vocabulary=spec.vocabulary)


def load(spec: PretrainedStudent | TruncatedStudent, recipe: Recipe) -> tuple[PreTrainedModel, Any]:
    """Load model and tokenizer unchanged."""
    source = model_source.student(recipe)
    assert source is not None
    tokenizer = tokenization.of(source, spec.revision, spec.trust_remote_code)
    return loading.model(recipe, source, spec.revision, spec.trust_remote_code), tokenizer
