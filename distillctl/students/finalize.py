"""Finish every kind of student: set the tokenizer's special tokens, trim the vocabulary, and set the lengths."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedModel

from distillctl.recipe import Recipe, TrimmedVocabulary
from distillctl.students import tokenization
from distillctl.students.loading import response_room
from distillctl.students.student import Corpus, Student, finish
from distillctl.students.vocabulary import trim, vocabulary_digest


def assemble(
    model: PreTrainedModel,
    tokenizer: object,
    recipe: Recipe,
    corpus: Corpus,
    *,
    max_length: int | None,
    vocabulary: TrimmedVocabulary | None = None,
) -> Student:
    """Build the student from its parts. ``model`` is changed in place."""
    digest = vocabulary_digest(tokenizer)
    kept_ids = facts = None
    if response_length := response_room(recipe, model.config):
        tokenizer = tokenization.for_writing_on(tokenizer, chat=recipe.contexts.simplified.messages is not None)
    if vocabulary is not None:
        tokenizer, kept_ids, facts = trim(model, tokenizer, vocabulary, corpus)
    student = finish(model, tokenizer, max_length, response_length)
    return replace(student, kept_ids=kept_ids, vocabulary_facts=facts, vocabulary_digest=digest)
