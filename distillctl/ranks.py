"""The ranks of a training run: the processes that torchrun or `accelerate launch` starts.

Every rank runs the same command. Only the first one (rank 0) holds the run directory, writes files and prints; the
others compute their share. An error is reported once: by the first rank until the others have joined, then by the rank
that fails first. Nothing here imports torch; communication is in `distillctl.training.collectives`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
"""A sequence or an array."""


def count() -> int:
    """Return the number of ranks; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def number() -> int:
    """Return this process's rank, from 0."""
    return int(os.environ.get("RANK") or 0) if count() > 1 else 0


def is_first() -> bool:
    """Return whether this process is the rank that writes and prints."""
    return number() == 0


def share(rows: T) -> T:
    """Return this rank's share of ``rows``, dealt out in turn, so that all ranks get rows of similar length."""
    return rows if count() == 1 else rows[number() :: count()]  # type: ignore[index]


reports_error: Callable[[], bool] = is_first
"""Tells whether this rank reports its error. Joining the other ranks replaces this function."""
