"""What a cached teacher reads, as token ids of its own tokenizer: for a process that has no transformers."""

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
    """The fields of a `Prompted`, and ``vocabulary``: how many tokens there are. words: the labels', of a teacher that
    chooses."""
    reader = reading.read(spec, source)
    own: dict[str, list[int]] = {}
    answers: dict[str, list[list[int]]] = {}
    for text in dict.fromkeys(texts):
        if words is None:
            own[text] = reader.encode(place.before(text), chat=place.chat)
        else:
            found = reader.label_tokens(text, words, place)
            own[text], answers[text] = list(found.view), [list(answer) for answer in found.answers]
    views = list(own.values())
    shared = common_prefix(views)
    return {
        "context": views[0][:shared],
        "own": {text: ids[shared:] for text, ids in own.items()},
        "answers": answers,
        "vocabulary": reader.vocabulary,
    }
