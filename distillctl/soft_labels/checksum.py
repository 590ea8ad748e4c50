"""A checksum of a whole Parquet file, inside its own footer.

Parquet's page checksums leave page headers and the footer unguarded: a flipped bit there can change what is read
without being noticed. The seal is a metadata entry that was written as zeros, and then overwritten with the SHA-256 of
the file as it was with the zeros.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from distillctl.untrusted import regular_files

_MARK = b"sha256:"
_ZEROS = b"0" * 64
METADATA = {"seal": (_MARK + _ZEROS).decode()}
"""The entry of a file that will be sealed."""


def write_checksum(path: Path) -> None:
    """Put the checksum in."""
    with path.open("r+b") as file:
        whole = file.read()
        start, digest = _digest(whole)
        file.seek(start)
        file.write(digest)


def read_checked(path: Path, *, required: bool = True) -> bytes:
    """The file's bytes; ValueError when any of them is not what it was when it was sealed.

    required: False for files that older versions wrote without a seal: their page checksums have to do.
    """
    with regular_files.opened(path) as file:
        whole = file.read()
    if not required and _MARK not in whole:
        return whole
    start, digest = _digest(whole)
    if whole[start : start + len(digest)] != digest:
        raise ValueError("its checksum is not that of its bytes")
    return whole


def _digest(whole: bytes) -> tuple[int, bytes]:
    """Where the checksum stands (the footer is last, so the last mark is ours), and what it has to be."""
    mark = whole.rfind(_MARK)
    if mark < 0:
        raise ValueError("it has no checksum")
    start = mark + len(_MARK)
    view = memoryview(whole)
    found = hashlib.sha256(view[:start])
    found.update(_ZEROS)
    found.update(view[start + len(_ZEROS) :])
    return start, found.hexdigest().encode()
