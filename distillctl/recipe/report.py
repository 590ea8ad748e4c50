"""The section about the report."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from distillctl.recipe.base import Section


class Report(Section):
    """The content of the report."""

    title: Annotated[str | None, Field(examples=["Question router"])] = None
    """Title of the page. Without it, the recipe's name."""
    disagreements: Annotated[int, Field(ge=0)] = 12
    """Number of rows to show where teacher and deployed student differ most."""
    answers: Annotated[int, Field(ge=0)] = 12
    """For `generate`: number of rows to show with the answers of teacher and student side by side."""
