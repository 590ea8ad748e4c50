"""Who asks the teacher, and where."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distillctl.recipe.base import Closed, Count, Positive


class Collect(Closed):
    """Where collect's teachers run. The soft labels are the same wherever they do, so changing this leaves all of them
    in place."""

    engine: Literal["local", "ray"] = "local"
    """local: one teacher, in this process; ray: one in each of several workers, on this machine or on a Ray cluster."""
    workers: Count = 1
    cpus: Positive = 1.0
    """Of each worker."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """Of each worker."""
    address: str | None = None
    """A running cluster's, such as `auto` or `head:6379` (default: workers are started on this machine)."""

    @model_validator(mode="after")
    def _workers_are_rays(self) -> Collect:
        alone = Collect.model_construct()
        for name in ("workers", "cpus", "gpus", "address"):
            if self.engine == "local" and getattr(self, name) != getattr(alone, name):
                raise ValueError(f"{name} is for engine: ray")
        return self
