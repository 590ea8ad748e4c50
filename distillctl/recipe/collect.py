"""The section about the teacher's engine in collect."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distillctl.recipe.base import Count, Positive, Section


class Collect(Section):
    """The engine that runs the teacher in collect. The soft labels do not depend on it, so they stay fresh."""

    engine: Literal["local", "ray"] = "local"
    """`local` runs one teacher in this process. `ray` runs one in each of several workers, here or on a Ray cluster."""
    workers: Count = 1
    """Ray workers, each with a teacher of its own."""
    cpus: Positive = 1.0
    """Processor cores that Ray reserves for each worker."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs that Ray reserves for each worker; a fraction lets workers share one."""
    address: Annotated[str | None, Field(examples=["auto", "head:6379"])] = None
    """Address of a running Ray cluster. Without it, the workers start on this machine."""

    @model_validator(mode="after")
    def _workers_are_rays(self) -> Collect:
        alone = Collect.model_construct()
        for name in ("workers", "cpus", "gpus", "address"):
            if self.engine == "local" and getattr(self, name) != getattr(alone, name):
                raise ValueError(f"{name} is for engine: ray")
        return self
