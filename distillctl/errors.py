"""One family of errors; each member is one exit code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


class UserFacingError(BaseException):
    """Something to tell the user: what happened, where, and the next command to type."""

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        next: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """facts: what was found all the same, for ``--json``."""
        super().__init__(what)
        self.what = what
        self.where = where
        self.next = next
        self.facts = facts or {}

    def __str__(self) -> str:
        # A line's end in a name would begin what looks like a message of its own.
        return "{}: {}".format(self.where.replace("\n", "\\n"), self.what) if self.where else self.what


class DistillctlError(UserFacingError, Exception):
    """Something the user can act on."""


class UsageError(DistillctlError):
    """The command line itself is wrong."""

    exit_code = 2


class RecipeError(DistillctlError):
    """The recipe or a --set is wrong."""

    exit_code = 3


class DataError(DistillctlError):
    """The user's data are wrong or missing."""

    exit_code = 3


class UpstreamError(DistillctlError):
    """An upstream stage is missing, stale or damaged."""

    exit_code = 4


class UnavailableError(DistillctlError):
    """Something is not installed, reachable or writable: a package, a model, a server, the disk."""

    exit_code = 5


class GateFailed(DistillctlError):
    """A check the recipe asks for did not hold."""

    exit_code = 6


class Interrupted(UserFacingError):
    """SIGINT (130) or SIGTERM (143) ended the stage; no `except Exception` on the way may take it for a failure."""

    def __init__(self, signal_number: int) -> None:
        super().__init__("interrupted; what was done is kept, the same command goes on from there")
        self.exit_code = 128 + signal_number


def is_of_tokenizers(error: BaseException) -> bool:
    """The tokenizers library raises bare Exceptions; what it did not expect comes as a panic, which is none of them."""
    return type(error) is Exception or type(error).__name__ == "PanicException"


def first_line(error: BaseException) -> str:
    """A library's message in one line; its type where it has none.

    Advice to install a package is left out: transformers takes its name from a model's code, datasets from a file.
    """
    line = next(iter(str(error).strip().splitlines()), "")
    if advice := re.search(r"\bpip3? install\b", line):
        before = line[: advice.start()]
        line = before[: 1 + max(before.rfind(end) for end in ".:;,(")]  # without the sentence that leads to it
    return line.rstrip(" ,;:(") or type(error).__name__
