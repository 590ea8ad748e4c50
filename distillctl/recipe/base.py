"""The base classes and types of a recipe's sections."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""A seed that NumPy's, Python's and torch's generators all accept."""


class NotText(ValueError):
    """A value is not text: the one at ``path`` below the section whose validator raises it."""

    def __init__(self, value: object, *path: str | int) -> None:
        super().__init__(f"{value!r} is no text")
        self.value, self.path = value, path


class Section(BaseModel):
    """A recipe section: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Spec(Section):
    """A section whose ``kind`` chooses an implementation."""

    target: ClassVar[str]


def implementation(spec: Spec) -> Callable[..., Any]:
    """Return the callable that ``spec.target`` names, and import it."""
    module, _, name = spec.target.partition(":")
    resolved: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return resolved


def specs(root: type[BaseModel] = Section) -> Iterator[type[BaseModel]]:
    """Yield every section's class."""
    for cls in root.__subclasses__():
        yield cls
        yield from specs(cls)
