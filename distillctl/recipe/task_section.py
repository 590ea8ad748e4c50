"""The part of a task's section that code for every kind uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from distillctl.recipe.base import Spec


class TaskSection(Spec):
    """A recipe's task as code for every kind sees it. ``target`` names its `tasks.base.Task`."""

    controls: ClassVar[Mapping[str, str]]
    """Controls that train compares the student with: name → description."""
    scoring: ClassVar[str]
    """How an app must read the graph's output, for a bundle's manifest."""

    @property
    def answers(self) -> Mapping[str, str]:
        """Return name → words of the answers that the teacher scores; the student has one output for each. Empty if
        both write."""
        return {}

    @property
    def names(self) -> list[str]:
        """Return the only allowed references, which templates see as ``labels``; empty if any text is allowed."""
        return []

    @property
    def response_tokens(self) -> int:
        """Return the maximal number of tokens of an answer that the student writes; 0 if it scores ``answers``."""
        return 0

    @property
    def unscored_inputs(self) -> Sequence[str]:
        """Return inputs that are answered for the report only: nothing learns from them or scores them."""
        return ()

    def reference(self, cell: object, spellings: Sequence[str], column: str, place: str) -> str:
        """Return a row's reference. Raise DataError at ``place`` for a cell that cannot be one.

        cell: the row's value in ``column``. spellings: the cell as text, in every form that a file may have, each
        translated by data.label_map.
        """
        raise NotImplementedError
