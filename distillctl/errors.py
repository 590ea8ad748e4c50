"""The errors that users see; each class has an exit code."""

from __future__ import annotations

import re
from collections.abc import Mapping


class UserFacingError(BaseException):
    """An error with what happened, where, and what to do next."""

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        next: str | None = None,
        facts: Mapping[str, object] | None = None,
    ) -> None:
        """Store the parts. facts: findings to print nevertheless, with ``--json``."""
        super().__init__(what)
        self.what = what
        self.where = where
        self.next = next
        self.facts = facts or {}

    def __str__(self) -> str:
        # After a line break in a name, the rest would look like another message.
        return "{}: {}".format(self.where.replace("\n", "\\n"), self.what) if self.where else self.what


class DistillctlError(UserFacingError, Exception):
    """An error that the user can act on."""


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
    """A check that the recipe asks for failed."""

    exit_code = 6


class Interrupted(UserFacingError):
    """SIGINT (130) or SIGTERM (143) ended the command. It is not an Exception, so that no handler takes it for a
    failure.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__("interrupted; run the same command again to continue from here")
        self.exit_code = 128 + signal_number


def is_of_tokenizers(error: BaseException) -> bool:
    """Tell whether the tokenizers library raised the error: a bare Exception, or a panic, which is not one."""
    return type(error) is Exception or type(error).__name__ == "PanicException"


def first_line(error: BaseException) -> str:
    """Return a library's message in one line, or its type.

    Advice to install a package is removed: transformers takes the name from a model's code, datasets from a file.
    """
    line = next(iter(str(error).strip().splitlines()), "")
    if advice := re.search(r"\bpip3? install\b", line):
        before = line[: advice.start()]
        line = before[: 1 + max(before.rfind(end) for end in ".:;,(")]  # without the whole sentence
    return line.rstrip(" ,;:(") or type(error).__name__
