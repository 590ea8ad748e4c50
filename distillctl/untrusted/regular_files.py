"""Open what has to be a regular file. A FIFO, a socket or a device is refused at once: opening one could wait for ever,
and reading one could never end."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
}


class NotRegular(OSError):
    """The path names something else than a regular file."""

    def __init__(self, mode: int, path: Path) -> None:
        super().__init__(errno.EINVAL, f"it is {kind(mode)}, not a regular file", str(path))

    def __str__(self) -> str:
        return str(self.strerror)


def kind(mode: int) -> str:
    """What a mode of `os.stat` says, in words."""
    return _KINDS.get(stat.S_IFMT(mode), "a regular file" if stat.S_ISREG(mode) else "of an unknown kind")


def check_regular(path: Path) -> None:
    """NotRegular where ``path`` is there and neither a regular file nor a folder. Links are followed."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise NotRegular(mode, path)


def check_folder(folder: Path) -> None:
    """NotRegular where anything below a folder is neither a regular file nor a folder. Links are followed, but not to
    folders."""
    for root, _, names in os.walk(folder):
        for name in names:
            check_regular(Path(root, name))


def opened(path: Path) -> io.BufferedReader:
    """The file, open for reading. OSError where it cannot be opened, NotRegular where it is none."""
    before = os.stat(path).st_mode
    if not stat.S_ISREG(before):  # opening a device can already do something
        raise NotRegular(before, path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise NotRegular(mode, path)
    return os.fdopen(descriptor, "rb")


def opened_in_place(path: str | Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """A descriptor of a file that is changed where it is. OSError (ELOOP) where the path is a link, NotRegular where it
    is no regular file."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, 0o666)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise NotRegular(mode, Path(path))
    return descriptor
