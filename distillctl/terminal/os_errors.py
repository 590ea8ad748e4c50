"""Turn errors of the operating system into messages that the user can act on."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from distillctl.errors import UnavailableError, UsageError

_NEXT = {
    errno.EACCES: "check its permissions and those of the folders above it",
    errno.EPERM: "check its permissions and those of the folders above it",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "replace the link, which leads back to itself",
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or ask for a larger quota",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EROFS: "choose a place that can be written",
    errno.EIO: "check the disk",
    errno.ENXIO: "choose a path that is a regular file or a folder",
    errno.ENODEV: "choose a path that is a regular file or a folder",
    errno.ESTALE: "mount the network file system again",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs: the machine has too many files open",
    errno.ENOMEM: "free some memory",
    errno.EAGAIN: "raise the limit of processes and threads (ulimit -u)",
}
"""Error number → what the user can do. Other errors, such as a missing file, may be bugs of distillctl."""


def explained(error: Exception) -> UnavailableError | None:
    """Return the message to show instead of a traceback, or None if ``error`` may be a bug."""
    if not _has_working_directory():
        return UnavailableError(
            "the working directory was removed", next="change to a folder that exists; what was committed is kept"
        )
    if isinstance(error, UnicodeEncodeError) and error.encoding == sys.getfilesystemencoding():
        return UnavailableError(
            f"the locale's encoding ({error.encoding}) cannot express this path",
            where=error.object,
            next="set PYTHONUTF8=1, or a locale in UTF-8, such as LC_ALL=C.UTF-8",
        )
    if isinstance(error, OSError) and error.errno in _NEXT:
        where = error.filename
        shown = os.fsdecode(where) if isinstance(where, str | bytes) else None
        return UnavailableError(
            f"{error.strerror or error}", where=shown, next=f"{_NEXT[error.errno]}; what was committed is kept"
        )
    return None


def _has_working_directory() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def check_paths(given: Iterable[object]) -> None:
    """Raise UsageError for a path on the command line that is not valid text."""
    for path in given:
        if isinstance(path, Path):
            try:
                str(path).encode()
            except UnicodeEncodeError:
                raise UsageError(
                    "the path is not valid in the file system's encoding",
                    where=str(path),
                    next="choose a path that is valid UTF-8, or set PYTHONUTF8=1 where the locale is another",
                ) from None
