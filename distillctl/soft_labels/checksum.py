"""Store the checksum of a whole Parquet file in its own footer.

Parquet's page checksums do not cover page headers and the footer, where a flipped bit can change what is read
unnoticed. The checksum is a metadata entry named "seal". It is written as zeros first, and then replaced by the SHA-256
of the file with the zeros.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from distillctl.untrusted import regular_files

_MARK = b"sha256:"
_ZEROS = b"0" * 64
METADATA = {"seal": (_MARK + _ZEROS).decode()}
"""Metadata of a file that will get a checksum."""


def write_checksum(path: Path) -> None:
    """Write the checksum into the file."""
    with path.open("r+b") as file:
        whole = file.read()
        start, digest = _digest(whole)
        file.seek(start)
        file.write(digest)


def read_checked(path: Path, *, required: bool = True) -> bytes:
    """Return the file's bytes. Raise ValueError if any byte differs from the file whose checksum was written.

    required: False accepts files without a checksum, which older versions wrote; only their pages are verified.
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
    """Return the offset of the checksum and its right value. The footer is last, so the last mark is the checksum's."""
    mark = whole.rfind(_MARK)
    if mark < 0:
        raise ValueError("it has no checksum")
    start = mark + len(_MARK)
    view = memoryview(whole)
    sha256 = hashlib.sha256(view[:start])
    sha256.update(_ZEROS)
    sha256.update(view[start + len(_ZEROS) :])
    return start, sha256.hexdigest().encode()
