"""Dynamic int8: weights stored as int8, activations quantized as they come (ONNX Runtime's own quantizer)."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic

from distillctl import console
from distillctl.recipe import DynamicInt8


def quantize(spec: DynamicInt8, source: Path, target: Path) -> None:
    """Write the graph at ``source`` to ``target`` with int8 weights; the same bytes each time.

    The model is passed in memory: given a path, the quantizer leaves its working file beside the source, in a folder
    that another stage has committed.
    """
    with console.libraries_quiet():
        quantize_dynamic(
            onnx.load(source),
            target,
            per_channel=spec.per_channel,
            reduce_range=spec.reduce_range,
            weight_type=QuantType.QInt8,
        )
