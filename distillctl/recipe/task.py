"""The kinds of tasks: which section of the recipe describes each."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Tag

from distillctl.recipe.classify import Classify
from distillctl.recipe.generate import Generate


def _task_kind(value: object) -> str:
    kind = value.get("kind", "classify") if isinstance(value, dict) else getattr(value, "kind", "classify")
    return str(kind)


Task = Annotated[Annotated[Classify, Tag("classify")] | Annotated[Generate, Tag("generate")], Discriminator(_task_kind)]
