"""Tokenize a cached teacher's views with its own tokenizer, for a process without transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distillctl.data.answer_place import AnswerPlace
from distillctl.models.model_source import ModelSource
from distillctl.recipe import HuggingFaceTeacher
from distillctl.teachers import reading
from distillctl.teachers.shared_context import common_prefix


def read(
    spec: HuggingFaceTeacher, source: ModelSource, texts: Sequence[str], place: AnswerPlace, words: Sequence[str] | None
) -> dict[str, Any]:
    """Return the fields of a `Prompted`, and ``vocabulary``, the number of tokens.

    words: the labels' words; None for `generate`.
    """
    reader = reading.read(spec, source)
    suffixes: dict[str, list[int]] = {}
    answers: dict[str, list[list[int]]] = {}
    for text in dict.fromkeys(texts):
        if words is None:
            suffixes[text] = reader.encode(place.before(text), chat=place.chat)
        else:
            tokens = reader.label_tokens(text, words, place)
            suffixes[text], answers[text] = list(tokens.view), [list(answer) for answer in tokens.answers]
    views = list(suffixes.values())
    shared = common_prefix(views)
    return {
        "context": views[0][:shared],
        "suffixes": {text: ids[shared:] for text, ids in suffixes.items()},
        "answers": answers,
        "vocabulary": reader.vocabulary,
    }
