"""What every kind of task tells the code that serves them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from distillctl.recipe.base import Spec


class TaskSection(Spec):
    """What the code that serves every kind of task asks of a recipe's task. ``target`` names its `tasks.base.Task`."""

    controls: ClassVar[Mapping[str, str]]
    """What train compares the student with: name of a simple method → what it is, in words."""
    scoring: ClassVar[str]
    """How an app has to read the output of the graph: words for a bundle's manifest."""

    @property
    def answers(self) -> Mapping[str, str]:
        """The answers that the teacher scores after a view, name → words. The student has one output for each.

        None where the teacher writes its answer, and so does the student."""
        return {}

    @property
    def names(self) -> list[str]:
        """The only references that rows may have, which templates see as ``labels``; none where any text may be one."""
        return []

    @property
    def response_tokens(self) -> int:
        """How many tokens an answer may have that the student writes; 0 where it scores ``answers``."""
        return 0

    def reference(self, cell: Any, spellings: Sequence[str], column: str, place: str) -> str:
        """Return a row's reference.

        cell: what the row has in ``column``. spellings: the cell as text in every way in which a file may have it, each
        translated by data.label_map. Raise DataError at ``place`` for a cell that cannot be a reference."""
        raise NotImplementedError
