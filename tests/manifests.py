"""Documents that carry their own checksum, rewritten by a test as their writer would have written them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from distillctl.run_dir import checksums


def text(document: dict[str, Any]) -> str:
    """The JSON text of the document, with a checksum that is right."""
    return checksums.put(json.dumps({key: value for key, value in document.items() if key != checksums.KEY}))


def write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(text(document), encoding="utf-8")
