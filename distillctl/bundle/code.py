"""Render a bundle's snippets, which load exactly the files of the bundle."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from distillctl.snippets import code
from distillctl.snippets.reading import Reading

FOLDER = "snippets"


def write(folder: Path, files: Iterable[str], reading: Reading, **known: Any) -> None:
    """Render these snippets into the bundle in ``folder``. known: as for `snippets.code.render`."""
    (folder / FOLDER).mkdir(exist_ok=True)
    for file in files:
        (folder / FOLDER / file).write_text(code.render(file, reading, **known), encoding="utf-8")
