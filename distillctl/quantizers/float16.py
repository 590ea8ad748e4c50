"""float16: half the bytes, no options (ONNX Runtime's own converter). Inputs and outputs stay float32.

On a processor without float16 arithmetic ONNX Runtime casts the weights back while loading: then the graph is as fast
as fp32 and takes as much memory. GPUs and NPUs use it directly.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

from distillctl import console
from distillctl.quantizers.sensitivity import Calibration
from distillctl.recipe import Float16


def quantize(spec: Float16, source: Path, target: Path, calibration: Calibration | None = None) -> None:
    """Write every graph of the folder ``source`` to ``target`` under its name; the bytes are reproducible."""
    for path in sorted(source.glob("*.onnx")):
        with console.libraries_quiet():
            model = convert_float_to_float16(onnx.load(path), keep_io_types=True)
        weights_name = f"{path.name}.data"
        if (source / weights_name).exists():
            onnx.save(model, target / path.name, save_as_external_data=True, location=weights_name)
        else:
            onnx.save(model, target / path.name)
