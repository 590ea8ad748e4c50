"""`task.kind: classify`: choose one of several labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from distillctl.errors import DataError
from distillctl.recipe.base import NotText
from distillctl.recipe.task_section import TaskSection


class Classify(TaskSection):
    """Choose one of several labels."""

    target: ClassVar[str] = "distillctl.tasks.classify.task:ClassifyTask"
    controls: ClassVar[Mapping[str, str]] = {
        "majority": "always answering the teacher's most frequent label",
        "bag_of_words": "a bag of words, trained on the same soft labels",
    }
    scoring: ClassVar[str] = (
        "softmax of the logits, in the order of labels; apply no temperature, threshold or prior, because the student "
        "learned the teacher's distribution with any prior taken into account"
    )
    kind: Literal["classify"] = "classify"
    labels: Annotated[dict[str, str], Field(examples=[{"billing": "billing", "tech": "technical"}])]
    """Label names, each with the words that the teacher would answer with. A plain list means that the names are the
    words."""
    answer_prefix: Annotated[str | None, Field(examples=[" "])] = None
    """Text before the words when the teacher scores them, in every context. Without it, each context has its own: that
    of its examples or its chat template, else a space after a template and nothing in a chat."""
    prior: Literal["none", "batch"] = "none"
    """`batch` divides by the mean label distribution over the train rows (Batch Calibration, Zhou et al. 2023)."""

    @model_validator(mode="before")
    @classmethod
    def _labels_as_mapping(cls, values: object) -> Any:
        if isinstance(values, dict) and isinstance(values.get("labels"), list):
            names = values["labels"]
            for index, name in enumerate(names):
                if not isinstance(name, str):
                    raise NotText(name, "labels", index)
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise ValueError(f"the label {twice!r} is listed twice")
            return {**values, "labels": {name: name for name in names}}
        return values

    @model_validator(mode="after")
    def _labels_differ(self) -> Classify:
        if len(self.labels) < 2:
            raise ValueError("needs at least two labels")
        if any(not words.strip() for words in self.labels.values()):
            raise ValueError("a label has no words")
        for name, words in self.labels.items():
            if other := next((text for text in (name, words) if text != text.strip()), None):
                raise ValueError(
                    f"the label {other!r} has white space around it: leave it out (what stands before the words is "
                    "task.answer_prefix)"
                )
        if len(set(self.labels.values())) < len(self.labels):
            raise ValueError("two labels have the same words")
        return self

    @property
    def answers(self) -> Mapping[str, str]:
        """Return label → words."""
        return self.labels

    @property
    def names(self) -> list[str]:
        """Return the labels."""
        return list(self.labels)

    def reference(self, cell: object, spellings: Sequence[str], column: str, place: str) -> str:
        """Return the label that the cell names."""
        if (label := next((text for text in spellings if text in self.labels), None)) is not None:
            return label
        names = {name.casefold(): name for name in self.names}
        near = get_close_matches(spellings[0].strip().casefold(), names, n=1)
        meant = names[near[0]] if near else self.names[0]
        hint = f", did you mean {meant}?" if near else f" (labels: {', '.join(self.names)})"
        raise DataError(
            f'"{column}" is {spellings[0]!r}, which is not a label{hint}',
            where=place,
            next=f'correct the row, or set data.label_map, such as {{"{spellings[0]}": {meant}}}',
        )
