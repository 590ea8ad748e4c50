"""What every quantizer promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from distillctl.recipe import implementation
from distillctl.recipe.quantize import AnyQuantizer
from distillctl.run_dir.workspace import tree_digest
from distillctl.tasks.classify.quantization import LabelCalibration

_CODE = """
import json
import sys
from pathlib import Path
from distillctl import recipe
from distillctl.tasks.classify.quantization import LabelCalibration
spec = getattr(recipe, sys.argv[1]).model_validate_json(sys.argv[2])
source, target, texts = Path(sys.argv[3]), Path(sys.argv[4]), json.loads(sys.argv[5])
recipe.implementation(spec)(spec, source, target, LabelCalibration(source, texts) if texts else None)
"""


def same_bytes_each_time(spec: AnyQuantizer, source: Path, scratch: Path, texts: Sequence[str] = ()) -> None:
    """In this process, and in one that hashes strings in another order. texts: to calibrate with."""
    here, there = scratch / "here", scratch / "there"
    here.mkdir()
    there.mkdir()
    implementation(spec)(spec, source, here, LabelCalibration(source, texts) if texts else None)
    command = [sys.executable, "-c", _CODE, type(spec).__name__, spec.model_dump_json(), str(source), str(there)]
    subprocess.run([*command, json.dumps(list(texts))], check=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    assert list(here.iterdir())
    assert tree_digest(here) == tree_digest(there)
