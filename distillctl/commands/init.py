"""Write the files of `init`: a commented recipe, data to try it on, and the schema for editors."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from distillctl import recipe
from distillctl.errors import UsageError
from distillctl.run_dir.workspace import writable, write_text

FILES = ("recipe.yaml", "messages.jsonl")
SCHEMA = "recipe.schema.json"


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "distillctl recipe"} | recipe.schema()


def write(directory: Path) -> list[Path]:
    """Write the starter's files to ``directory``, without overwriting any."""
    if existing := [name for name in (*FILES, SCHEMA) if (directory / name).exists()]:
        raise UsageError(f"{directory / existing[0]} already exists", next="distillctl init another-folder")
    with writable(directory):
        directory.mkdir(parents=True, exist_ok=True)
    source = resources.files("distillctl.commands") / "init_files"
    for name in FILES:
        write_text(directory / name, (source / name).read_text(encoding="utf-8"))
    write_text(directory / SCHEMA, json.dumps(schema(), indent=1, ensure_ascii=False) + "\n")
    return [directory / name for name in (*FILES, SCHEMA)]
