"""Static int8: weights and activations in int8, with the activations' ranges fixed on rows of the train split.

It uses ONNX Runtime's own quantizer (QDQ: QuantizeLinear and DequantizeLinear around each int8 operator).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
from onnxruntime.quantization.calibrate import CalibraterBase, create_calibrator, save_tensors_data

from distillctl import console
from distillctl.quantizers.sensitivity import Calibration
from distillctl.recipe import StaticInt8

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
_OPERATORS = ["MatMul", "Gemm", "Gather"]
_OPTIONS = {
    # products stay float: normalisation and attention would convert them back at once
    "OpTypesToExcludeOutputQuantization": _OPERATORS,
    "DefaultTensorType": onnx.TensorProto.FLOAT,
}


def quantize(spec: StaticInt8, source: Path, target: Path, calibration: Calibration | None = None) -> None:
    """Write the graph of the folder ``source`` to ``target`` under its name; the bytes are reproducible.

    calibration: provides the rows (`Calibration.feeds`) that determine the ranges.
    """
    assert calibration is not None, "the ranges of activations are found by measuring"
    for path in sorted(source.glob("*.onnx")):
        model = _typed(onnx.load(path))
        with tempfile.TemporaryDirectory() as scratch, console.libraries_quiet():
            ranges = Path(scratch) / "ranges.json"
            _calibrate(spec, model, calibration.feeds(path), ranges)
            quantize_static(
                model,
                target / path.name,
                op_types_to_quantize=_OPERATORS,
                per_channel=spec.per_channel,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=_METHODS[spec.method],
                calibration_cache_path=ranges,
                extra_options=_OPTIONS,
            )


def _typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Add the types that onnx does not infer after ONNX Runtime's own operators.

    Tensors of unknown type are silently neither calibrated nor quantized. All our graphs' own operators return floats.
    """
    for node in model.graph.node:
        if node.domain:
            for name in filter(None, node.output):
                model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return onnx.shape_inference.infer_shapes(model)


def _calibrate(
    spec: StaticInt8, model: onnx.ModelProto, feeds: Iterable[Mapping[str, np.ndarray]], ranges: Path
) -> None:
    """Write every activation's range to ``ranges``, calibrating row by row.

    ONNX Runtime's histograms do not take rows of different lengths at once, and a phone sees no padding.
    """
    plain = ranges.with_name("model.onnx")
    onnx.save(model, plain)
    calibrator: CalibraterBase = create_calibrator(
        plain, _OPERATORS, str(ranges.with_name("augmented.onnx")), _METHODS[spec.method]
    )
    for feed in feeds:
        calibrator.collect_data(_OneRow(feed))
    save_tensors_data(calibrator.compute_data(), ranges)


class _OneRow(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, feed: Mapping[str, np.ndarray]) -> None:
        self._rows = iter([dict(feed)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rows, None)
