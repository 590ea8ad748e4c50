"""Store the checksum of a JSON object in the object itself, as its last key, so that every changed byte is noticed.

The SHA-256 covers every byte before the key; the remaining bytes follow from it. A text without the key comes from an
older version. One changed byte cannot hide the checksum: the key would get another name, and readers refuse unknown
keys.
"""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic_core import from_json

KEY = "checksum"


def put(text: str) -> str:
    """Append the checksum to the text of a JSON object, which must have other keys. The result ends in a newline."""
    body = text.rstrip().removesuffix("}").rstrip()
    return body + _ending(body.encode())


def of(text: str) -> str:
    """Return the checksum that `put` appended."""
    return text[-len('"}\n') - 64 : -len('"}\n')]


def read(raw: bytes, *, allow_inf_nan: bool = False) -> tuple[dict[str, Any], str | None]:
    """Return the object without its checksum, and the checksum, which is None if an older version wrote the object.

    Raise ValueError if ``raw`` is no JSON object or if any byte of it changed.
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
    """Return the checksum's key and value and the closing brace; the length is always the same."""
    return f', "{KEY}": "{hashlib.sha256(body).hexdigest()}"}}\n'
