"""float16: half the bytes and nothing to choose (ONNX Runtime's own converter); inputs and outputs stay float32.

On a processor without float16 arithmetic ONNX Runtime casts the weights back while loading: as fast as fp32, no
smaller in memory. GPUs and NPUs take it as it is.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from distillctl import console
from distillctl.quantizers.sensitivity import Calibration
from distillctl.recipe import Float16


def quantize(spec: Float16, source: Path, target: Path, calibration: Calibration | None = None) -> None:
    """Write every graph of the folder ``source`` to ``target`` under its name; the same bytes each time."""
    for path in sorted(source.glob("*.onnx")):
        with console.libraries_quiet():
            model = convert_float_to_float16(onnx.load(path), keep_io_types=True)
        beside = f"{path.name}.data"
        if (source / beside).exists():
            onnx.save(model, target / path.name, save_as_external_data=True, location=beside)
        else:
            onnx.save(model, target / path.name)
