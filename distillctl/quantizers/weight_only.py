"""Weight-only: matrices in blocks of 4 or 8 bits (`blocks`), activations in float.

Every product with a constant matrix becomes a MatMulNBits, every look-up in one a GatherBlockQuantized. A table that is
embedding and output layer at once is stored once. It works on the exported graph, whoever built it: what was checked
against PyTorch is what is made smaller. ONNX Runtime's MatMulNBitsQuantizer looks at one node at a time: of SmolLM2's
fp32 graph it leaves the embedding in float, 200 MB instead of 86.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from distillctl.quantizers import blocks, sensitivity
from distillctl.quantizers.blocks import Blocks
from distillctl.quantizers.sensitivity import Calibration
from distillctl.recipe import WeightOnly

_DOMAIN = "com.microsoft"
_ROUND = {"rtn": blocks.rtn, "k_quant": blocks.k_quant, "k_quant_mixed": blocks.k_quant}
_IDENTITY = {"alpha": 1.0, "beta": 1.0, "transA": 0}
"""What a Gemm must be to be a product and a bias."""


def quantize(spec: WeightOnly, source: Path, target: Path, calibration: Calibration | None = None) -> None:
    """Write every graph of the folder ``source`` to ``target`` under its name; the same bytes each time.

    calibration: what ``spec.sensitive`` is measured with.
    What has fewer columns than a block, or a look-up whose columns are no whole number of them, stays in float.
    """
    for path in sorted(source.glob("*.onnx")):
        model = ir.load(path)
        kept = _kept(spec, path, model.graph, calibration) if spec.sensitive else set()
        _quantize_graph(spec, model.graph, kept)
        RemoveUnusedNodesPass()(model)
        model.opset_imports.setdefault(_DOMAIN, 1)
        beside = f"{path.name}.data"
        ir.save(model, target / path.name, external_data=beside if (source / beside).exists() else None)


def with_small_tables(path: Path, bits: Literal[4, 8]) -> onnx.ModelProto:
    """A graph whose look-ups alone are quantized, in blocks of 32, scales and zero points of the least error."""
    spec, model = WeightOnly(bits=bits), ir.load(path)
    for node, matrix in _lookups(model.graph).items():
        if all(user.op_type == "Gather" for user, _ in matrix.value.uses()):  # a tied output layer needs it whole
            _put(model.graph, node, _lookup(node, matrix, _store(spec, model.graph, matrix, bits, joined=True)))
    RemoveUnusedNodesPass()(model)
    model.opset_imports.setdefault(_DOMAIN, 1)
    return ir.to_proto(model)


# ── what there is to quantize ────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Matrix:
    """A constant [N, K], as MatMulNBits has it; ``transposed``: the graph holds [K, N]."""

    value: ir.Value
    transposed: bool

    @property
    def shape(self) -> tuple[int, int]:
        assert self.value.const_value is not None
        rows, columns = (int(size) for size in self.value.const_value.shape.numpy())
        return (columns, rows) if self.transposed else (rows, columns)

    def array(self) -> np.ndarray:
        assert self.value.const_value is not None
        stored = self.value.const_value.numpy()
        return stored.T if self.transposed else stored


def _products(graph: ir.Graph) -> dict[ir.Node, _Matrix]:
    return {node: matrix for node in graph if (matrix := _factor(node))}


def _lookups(graph: ir.Graph) -> dict[ir.Node, _Matrix]:
    """Those whose rows are whole blocks."""
    return {node: matrix for node in graph if (matrix := _table(node)) and matrix.shape[1] % blocks.SMALLEST == 0}


def _factor(node: ir.Node) -> _Matrix | None:
    """What a MatMul, or a Gemm that only adds a bias, multiplies with."""
    if node.op_type not in ("MatMul", "Gemm") or node.domain:
        return None
    transposed = False
    if node.op_type == "Gemm":
        if any(node.attributes[name].value != value for name, value in _IDENTITY.items() if name in node.attributes):
            return None
        if len(node.inputs) > 2 and node.inputs[2] is not None and len(node.inputs[2].shape or (1, 1)) != 1:
            return None
        transposed = node.attributes.get_int("transB", 0) == 1
    return _matrix(node.inputs[1], transposed=not transposed)


def _table(node: ir.Node) -> _Matrix | None:
    """What a Gather takes rows of."""
    if node.op_type != "Gather" or node.domain or node.attributes.get_int("axis", 0) != 0:
        return None
    return _matrix(node.inputs[0], transposed=False)


def _matrix(value: ir.Value | None, *, transposed: bool) -> _Matrix | None:
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Transpose":
        return _matrix(producer.inputs[0], transposed=not transposed)
    constant = value.const_value if value is not None and value.is_initializer() else None
    if value is None or constant is None or len(constant.shape) != 2 or constant.dtype != ir.DataType.FLOAT:
        return None
    found = _Matrix(value, transposed)
    return found if found.shape[1] >= blocks.SMALLEST else None


def _costly(products: dict[ir.Node, _Matrix]) -> set[ir.Node]:
    """The products that llama.cpp keeps at more bits (`use_more_bits`): values and second feed-forward matrices of the
    first and the last eighth of the layers, and of every third between.

    Told by their shapes, for traced graphs have no names: the second feed-forward matrix is the one with most columns,
    and the first products of a layer, which share their input, are queries, keys, values, or all of them in one.
    """
    nodes, most = list(products), max((matrix.shape[1] for matrix in products.values()), default=0)
    ends = [place for place, node in enumerate(nodes) if products[node].shape[1] == most]
    count, found = len(ends), set()
    for layer, (start, end) in enumerate(pairwise([-1, *ends])):
        if layer < count // 8 or layer >= 7 * count // 8 or (layer - count // 8) % 3 == 2:
            first = nodes[start + 1].inputs[0]
            found |= {[node for node in nodes[start + 1 : end + 1] if node.inputs[0] is first][-1], nodes[end]}
    return found


# ── what becomes of it ───────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Stored:
    """A matrix in blocks; packed, scales, zero points: the graph's constants that hold them."""

    blocks: Blocks
    values: list[ir.Value]

    @property
    def attributes(self) -> dict[str, int]:
        return {"bits": self.blocks.bits, "block_size": self.blocks.block_size}


def _quantize_graph(spec: WeightOnly, graph: ir.Graph, kept: Set[str]) -> None:
    products, lookups = _products(graph), _lookups(graph)
    tables = {*lookups.values(), *(matrix for node, matrix in products.items() if node.outputs[0] in graph.outputs)}
    inner = {node: matrix for node, matrix in products.items() if matrix not in tables}
    mixed = spec.algorithm == "k_quant_mixed"
    costly = {inner[node] for node in _costly(inner)} if mixed else set()
    costly |= {matrix for matrix in inner.values() if matrix.value.name in kept}
    bits = dict.fromkeys(tables, spec.table_bits or (8 if mixed else spec.bits)) | dict.fromkeys(costly, 8)
    stored: dict[_Matrix, _Stored] = {}
    for node, matrix in [*products.items(), *lookups.items()]:
        if matrix not in stored:
            joined = matrix not in products.values()
            stored[matrix] = _store(spec, graph, matrix, bits.get(matrix, spec.bits), joined=joined)
        found = stored[matrix]
        _put(graph, node, _product(spec, node, matrix, found) if node in products else _lookup(node, matrix, found))


def _kept(spec: WeightOnly, path: Path, graph: ir.Graph, calibration: Calibration | None) -> Set[str]:
    """The inner matrices that keep 8 bits."""
    assert calibration is not None, "sensitive matrices are found by measuring"
    looked_up = set(_lookups(graph).values())
    inner = {
        matrix
        for node, matrix in _products(graph).items()
        if matrix not in looked_up and node.outputs[0] not in graph.outputs
    }

    def rounded(matrix: _Matrix) -> np.ndarray:
        restored = blocks.dequantize(_round(spec, matrix, spec.bits), matrix.shape[1])
        return restored.T if matrix.transposed else restored

    what = f"{path.name} {spec.algorithm} {spec.block_size}"
    trials = {str(matrix.value.name): (lambda matrix=matrix: rounded(matrix)) for matrix in inner}
    return sensitivity.costliest(calibration.costs(what, path, trials), spec.sensitive)


def _put(graph: ir.Graph, node: ir.Node, new: Sequence[ir.Node]) -> None:
    graph.insert_before(node, new)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [], node.outputs, new[-1].outputs)


def _store(spec: WeightOnly, graph: ir.Graph, matrix: _Matrix, bits: int, *, joined: bool) -> _Stored:
    """joined: a row's blocks in one axis, as look-ups want them; products have an axis of blocks."""
    found = _round(spec, matrix, bits)
    packed = found.packed.reshape(len(found.packed), -1) if joined else found.packed
    parts = {f"q{bits}": packed, "scales": found.scales, "zero_points": found.zero_points}
    values = [_constant(graph, f"{matrix.value.name}_{name}", part) for name, part in parts.items() if part is not None]
    return _Stored(found, values)


def _round(spec: WeightOnly, matrix: _Matrix, bits: int) -> Blocks:
    return _ROUND[spec.algorithm](matrix.array(), bits, blocks.fitting(spec.block_size, matrix.shape[1]))


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def _product(spec: WeightOnly, node: ir.Node, matrix: _Matrix, stored: _Stored) -> Sequence[ir.Node]:
    n, k = matrix.shape
    packed, scales, *zeros = stored.values
    inputs = [node.inputs[0], packed, scales, *zeros]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        inputs += [None] * (5 - len(inputs)) + [node.inputs[2]]  # the fifth is for reordered columns
    attributes = {"K": k, "N": n, "accuracy_level": spec.accuracy_level, **stored.attributes}
    return [ir.node("MatMulNBits", inputs, attributes, domain=_DOMAIN, name=node.name)]


def _lookup(node: ir.Node, matrix: _Matrix, stored: _Stored) -> Sequence[ir.Node]:
    """A table that MatMulNBits reads too has its blocks in an axis of their own: a look-up joins them, as
    onnxruntime-genai's builder does."""
    packed, *scales = stored.values
    attributes = {"gather_axis": 0, "quantize_axis": 1, **stored.attributes}
    if packed.shape is not None and len(packed.shape) == 2:
        inputs = [packed, node.inputs[1], *scales]
        return [ir.node("GatherBlockQuantized", inputs, attributes, domain=_DOMAIN, name=node.name)]
    shape = ir.tensor(np.array([matrix.shape[0], stored.blocks.packed[0].size]))
    whole = ir.node("Constant", [], {"value": shape}, name=f"{node.outputs[0].name}_shape")
    joined = ir.node("Reshape", [packed, whole.outputs[0]], name=f"{node.outputs[0].name}_joined")
    for made in (whole, joined):
        made.outputs[0].name = made.name
    inputs = [joined.outputs[0], node.inputs[1], *scales]
    return [whole, joined, ir.node("GatherBlockQuantized", inputs, attributes, domain=_DOMAIN, name=node.name)]
