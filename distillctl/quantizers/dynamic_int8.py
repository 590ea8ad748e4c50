"""Dynamic int8: weights stored as int8, activations quantized as they come (ONNX Runtime's own quantizer)."""

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
    """Write every graph of the folder ``source`` to ``target`` under its name, with int8 weights; the same bytes each
    time.

    With ``table_bits`` the tables of embeddings become blocks first (`weight_only`), and are int8's no more.

    A model is passed in memory: given a path, the quantizer leaves its working file beside the source, in a folder
    that another stage has committed.
    """
    for path in sorted(source.glob("*.onnx")):
        model = onnx.load(path) if spec.table_bits is None else weight_only.with_small_tables(path, spec.table_bits)
        _fold_transposed(model.graph)
        with console.libraries_quiet():
            quantize_dynamic(
                model,
                target / path.name,
                per_channel=spec.per_channel,
                reduce_range=spec.reduce_range,
                weight_type=QuantType.QInt8,
                # onnx infers no types behind ONNX Runtime's own operators
                extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
            )
        written = onnx.load(target / path.name)
        _leave_out_zero_points(written.graph)
        onnx.save(written, target / path.name)


def _fold_transposed(graph: onnx.GraphProto) -> None:
    """Give a tied output layer a matrix of its own again. Export stores embedding and output layer once, one of them
    transposed in the graph; the quantizer only sees constants, and would leave the whole table in float32 beside its
    int8 copy. Two copies in int8 are half of that."""
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
    """Drop those of weights that are all zero, as int8 weights' are here. The products are the same bits; given one per
    column, ONNX Runtime would correct every product by them for nothing."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    dropped = set()
    for node in graph.node:
        name = node.input[3] if node.op_type == "MatMulInteger" and len(node.input) == 4 else None
        if name in constants and not numpy_helper.to_array(constants[name]).any():
            del node.input[3]
            dropped.add(name)
    for name in dropped - {name for node in graph.node for name in node.input}:
        graph.initializer.remove(constants[name])
