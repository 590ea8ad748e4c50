"""What the report shows."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from distillctl.recipe.base import Section


class Report(Section):
    """What the report shows."""

    title: Annotated[str | None, Field(examples=["Question router"])] = None
    """Title of the page. Without it, the recipe's name."""
    disagreements: Annotated[int, Field(ge=0)] = 12
    """How many rows to show where teacher and deployed student differ most."""
    answers: Annotated[int, Field(ge=0)] = 12
    """For texts: how many rows to show with the answers of teacher and student side by side."""
