"""What every quantizer promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from distillctl.recipe import DynamicInt8, WeightOnly, implementation
from distillctl.workspace import tree_digest

_CODE = """
import sys
from pathlib import Path
from distillctl import recipe
spec = getattr(recipe, sys.argv[1]).model_validate_json(sys.argv[2])
recipe.implementation(spec)(spec, Path(sys.argv[3]), Path(sys.argv[4]))
"""


def same_bytes_each_time(spec: DynamicInt8 | WeightOnly, source: Path, scratch: Path) -> None:
    """In this process, and in one that hashes strings in another order."""
    here, there = scratch / "here", scratch / "there"
    here.mkdir()
    there.mkdir()
    implementation(spec)(spec, source, here)
    command = [sys.executable, "-c", _CODE, type(spec).__name__, spec.model_dump_json(), str(source), str(there)]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    assert list(here.iterdir())
    assert tree_digest(here) == tree_digest(there)
