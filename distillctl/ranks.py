"""Ranks: the processes of one training run, as torchrun and `accelerate launch` start them.

Every rank runs the same command. The first one (rank 0) alone holds the run directory, writes and speaks; the others
compute their share. An error is told once: by the first rank until the others have joined it, then by whichever rank
fails first. Nothing here imports torch; what ranks tell each other is in `distillctl.training.collectives`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
"""A sequence or an array."""


def count() -> int:
    """How many there are: 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def number() -> int:
    """Which of them this process is, from 0."""
    return int(os.environ.get("RANK") or 0) if count() > 1 else 0


def is_first() -> bool:
    return number() == 0


def share(rows: T) -> T:
    """What of ``rows`` is this rank's: each in turn, so that of rows in order of length all ranks get like ones."""
    return rows if count() == 1 else rows[number() :: count()]  # type: ignore[index]


tells: Callable[[], bool] = is_first
"""Whether this rank says that it failed. Joining the others replaces it."""
