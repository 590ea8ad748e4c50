"""The section about measuring latency and memory."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from distillctl.recipe import profiles
from distillctl.recipe.base import Count, Positive, Section


class LoadGen(Section):
    """MLPerf LoadGen's SingleStream run (pip install 'distillctl[loadgen]'). `{}` keeps MLPerf's own rules."""

    min_queries: Count = 1024
    """Smallest number of queries."""
    min_seconds: Positive = 60
    """Shortest duration in seconds."""


class Bench(Section):
    """The measurement of latency and memory on this machine."""

    threads: Annotated[Count | None, Field(examples=[2])] = None
    """Threads of every model. Without it, the profile's, or 1."""
    queries: Count = 200
    """Timed queries per model, over all its processes; proportionally fewer for a teacher that has fewer processes."""
    processes: Count = 5
    """Fresh processes per model; three at most for the teacher, because loading it takes seconds."""
    warmup: Annotated[int, Field(ge=0)] = 5
    """Untimed queries at the beginning of each process."""
    max_seconds: Annotated[Positive | None, Field(examples=[45])] = None
    """Stop timing a model after this many seconds, with at least two queries per process. Without it, no limit."""
    quantized_teacher: bool = True
    """Also time a local teacher in onnxruntime-genai with int4 weights and its prompt cached. Its graph is built once
    and kept in your cache."""
    profile: Annotated[str | None, Field(examples=["small-phone"])] = None
    """Limit threads and memory to what a device would give, on this machine: `small-phone` or `phone`."""
    sustained_seconds: Annotated[Positive | None, Field(examples=[300])] = None
    """Also run the deployed graph this long without a pause, and compare the last minute with the first."""
    batch: Annotated[int | None, Field(ge=2, examples=[8])] = None
    """Also let onnxruntime-genai decode this many texts together, as an app does that has all of them at once, and
    compare the texts per second with one at a time. For `generate`, where the deployed graph is a decoder's."""
    loadgen: LoadGen | None = None
    """Also let MLPerf LoadGen drive the deployed graph. Without it, LoadGen does not run."""

    @field_validator("profile")
    @classmethod
    def _is_there(cls, name: str | None) -> str | None:
        if name is not None and name not in profiles.names():
            raise ValueError(f"no such profile; there are {', '.join(profiles.names())}")
        return name

    @property
    def device(self) -> profiles.DeviceProfile | None:
        """Return the device profile."""
        return None if self.profile is None else profiles.profile(self.profile)

    @property
    def used_threads(self) -> int:
        """Return the number of threads of every model."""
        return self.threads or (self.device.threads if self.device else 1)
