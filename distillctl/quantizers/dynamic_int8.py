"""Dynamic int8: weights stored as int8, activations quantized while the graph runs (ONNX Runtime's own quantizer)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from distillctl import console
from distillctl.quantizers import weight_only
from distillctl.quantizers.sensitivity import Calibration
from distillctl.recipe import DynamicInt8


def quantize(spec: DynamicInt8, source: Path, target: Path, calibration: Calibration | None = None) -> None:
    """Write every graph of the folder ``source`` to ``target`` under its name, with int8 weights; the bytes are
    reproducible.

    With ``table_bits`` the embedding tables become blocks first (`weight_only`) instead of int8.
    """
    for path in sorted(source.glob("*.onnx")):
        # Given a path, the quantizer leaves its working file in ``source``, which another stage has committed.
        model = onnx.load(path) if spec.table_bits is None else weight_only.with_small_tables(path, spec.table_bits)
        _fold_transposed(model.graph)
        with console.libraries_quiet():
            quantize_dynamic(
                model,
                target / path.name,
                per_channel=spec.per_channel,
                reduce_range=spec.reduce_range,
                weight_type=QuantType.QInt8,
                # onnx infers no types after ONNX Runtime's own operators
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )
        written = onnx.load(target / path.name)
        _leave_out_zero_points(written.graph)
        onnx.save(written, target / path.name)


def _fold_transposed(graph: onnx.GraphProto) -> None:
    """Give a tied output layer its own matrix.

    Export stores embedding and output layer once, one of them transposed in the graph. The quantizer only sees
    constants: it would keep the whole table in float32 next to an int8 copy. Two int8 copies take half of that.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    folded = [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in constants]
    for node in folded:
        array = numpy_helper.to_array(constants[node.input[0]])
        order = next((attribute.ints for attribute in node.attribute if attribute.name == "perm"), None)
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array.transpose(order)), node.output[0]))
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for name in {node.input[0] for node in folded} - used:
        graph.initializer.remove(constants[name])


def _leave_out_zero_points(graph: onnx.GraphProto) -> None:
    """Drop zero points of weights that are all zero, as int8 weights' are here.

    The products stay the same bits. With one zero point per column, ONNX Runtime would correct every product in vain.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    dropped = set()
    for node in graph.node:
        name = node.input[3] if node.op_type == "MatMulInteger" and len(node.input) == 4 else None
        if name in constants and not numpy_helper.to_array(constants[name]).any():
            del node.input[3]
            dropped.add(name)
    for name in dropped - {name for node in graph.node for name in node.input}:
        graph.initializer.remove(constants[name])
