"""A JSON object's own checksum, as its last key: no byte of the text can change without being noticed.

The SHA-256 is over every byte before the key; the bytes from there on follow from it. A text without the key was
written by an older version. One changed byte cannot turn a text with a checksum into one without: the key would have
another name, which whoever reads the object must refuse.
"""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic_core import from_json

KEY = "checksum"


def put(text: str) -> str:
    """The text of a JSON object, which has other keys, with its checksum as a last key; it ends in a newline."""
    body = text.rstrip().removesuffix("}").rstrip()
    return body + _ending(body.encode())


def of(text: str) -> str:
    """The checksum that `put` has put there."""
    return text[-len('"}\n') - 64 : -len('"}\n')]


def read(raw: bytes, *, allow_inf_nan: bool = False) -> tuple[dict[str, Any], str | None]:
    """The object without its checksum, and the checksum; None where an older version wrote it without one.

    ValueError where ``raw`` is no JSON object, or any byte of it is not as it was written.
    """
    document = from_json(raw, allow_inf_nan=allow_inf_nan)
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    checksum = document.pop(KEY, None)
    if checksum is not None:
        body = raw[: -len(_ending(b""))]
        if raw != body + _ending(body).encode():
            raise ValueError("its checksum is not that of its bytes")
    return document, checksum


def _ending(body: bytes) -> str:
    """Always as long."""
    return f', "{KEY}": "{hashlib.sha256(body).hexdigest()}"}}\n'
