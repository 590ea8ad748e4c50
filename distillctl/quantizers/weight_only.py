"""Weight-only: matrices in blocks of 4 or 8 bits (`blocks`), activations in float.

Every product with a constant matrix becomes a MatMulNBits, every look-up in one a GatherBlockQuantized. A table that is
both embedding and output layer is stored once. The input is the exported graph, the one that was checked against
PyTorch. ONNX Runtime's MatMulNBitsQuantizer looks at one node at a time: it leaves the embedding of SmolLM2's fp32
graph in float, 200 MB instead of 86.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from distillctl.quantizers import blocks, sensitivity
from distillctl.quantizers.blocks import Blocks
from distillctl.quantizers.gptq import gptq
from distillctl.quantizers.sensitivity import Calibration
from distillctl.recipe import WeightOnly

_DOMAIN = "com.microsoft"
_IDENTITY = {"alpha": 1.0, "beta": 1.0, "transA": 0}
"""Attributes of a Gemm that is only a product and a bias."""


def quantize(spec: WeightOnly, source: Path, target: Path, calibration: Calibration | None = None) -> None:
    """Write every graph of the folder ``source`` to ``target`` under its name; the bytes are reproducible.

    calibration: measures the costs for ``spec.sensitive`` and the activations for ``gptq``. Matrices with fewer columns
    than a block, and looked-up tables whose columns are not whole blocks, stay in float.
    """
    for path in sorted(source.glob("*.onnx")):
        model = ir.load(path)
        moments = _moments(path, model.graph, calibration) if spec.algorithm == "gptq" else {}
        known = {} if calibration is None else calibration.rounded
        padded = {str(matrix.value.name) for matrix in _inner(model.graph).values()} if spec.pad else set()
        rounding = _Rounding(spec, path.name, moments, known, padded)
        kept = _kept(rounding, path, model.graph, calibration) if spec.sensitive else set()
        _quantize_graph(rounding, model.graph, kept)
        _halve_scales(model.graph)
        RemoveUnusedNodesPass()(model)
        model.opset_imports.setdefault(_DOMAIN, 1)
        weights = f"{path.name}.data"
        ir.save(model, target / path.name, external_data=weights if (source / weights).exists() else None)


def with_small_tables(path: Path, bits: Literal[4, 8]) -> onnx.ModelProto:
    """Load a graph and quantize only its look-ups, in blocks of 32 with the least error."""
    spec, model = WeightOnly(bits=bits), ir.load(path)
    for node, matrix in _lookups(model.graph).items():
        if all(user.op_type == "Gather" for user, _ in matrix.value.uses()):  # a tied output layer needs it whole
            stored = _store(_Rounding(spec, path.name), model.graph, matrix, bits, joined=True)
            _put(model.graph, node, _lookup(spec, node, matrix, stored))
    RemoveUnusedNodesPass()(model)
    model.opset_imports.setdefault(_DOMAIN, 1)
    return ir.to_proto(model)


# ── finding matrices ─────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Matrix:
    """A constant [N, K], as MatMulNBits has it. transposed: the graph holds [K, N]."""

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
    """Return the look-ups in tables whose rows are whole blocks."""
    return {node: matrix for node in graph if (matrix := _table(node)) and matrix.shape[1] % blocks.SMALLEST == 0}


def _inner(graph: ir.Graph) -> dict[ir.Node, _Matrix]:
    """Return the products with a matrix that is neither an embedding table nor the output layer."""
    products, lookups = _products(graph), _lookups(graph)
    outer = {*lookups.values(), *(matrix for node, matrix in products.items() if node.outputs[0] in graph.outputs)}
    return {node: matrix for node, matrix in products.items() if matrix not in outer}


def _factor(node: ir.Node) -> _Matrix | None:
    """Return the constant factor of a MatMul, or of a Gemm that only adds a bias."""
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
    """Return the constant from which a Gather takes rows."""
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
    matrix = _Matrix(value, transposed)
    return matrix if matrix.shape[1] >= blocks.SMALLEST else None


def _precise(products: dict[ir.Node, _Matrix]) -> set[ir.Node]:
    """Return the products that llama.cpp keeps at more bits (`use_more_bits`).

    These are the values and the second feed-forward matrices of the first and the last eighth of the layers, and of
    every third layer between. Traced graphs have no names, so shapes identify them: the second feed-forward matrix has
    the most columns; the first products of a layer, which share their input, are queries, keys and values, or all of
    them in one.
    """
    nodes, most = list(products), max((matrix.shape[1] for matrix in products.values()), default=0)
    ends = [place for place, node in enumerate(nodes) if products[node].shape[1] == most]
    count, kept = len(ends), set()
    for layer, (start, end) in enumerate(pairwise([-1, *ends])):
        if layer < count // 8 or layer >= 7 * count // 8 or (layer - count // 8) % 3 == 2:
            first = nodes[start + 1].inputs[0]
            kept |= {[node for node in nodes[start + 1 : end + 1] if node.inputs[0] is first][-1], nodes[end]}
    return kept


# ── replacing them ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Stored:
    """A matrix in blocks. values: the graph's constants packed, scales and zero points."""

    blocks: Blocks
    values: list[ir.Value]

    @property
    def attributes(self) -> dict[str, int]:
        return {"bits": self.blocks.bits, "block_size": self.blocks.block_size}


@dataclass(frozen=True)
class _Rounding:
    """How a candidate rounds a graph's matrices.

    moments: matrix → the mean of x·xᵀ over the inputs of its products, for `gptq`. known: what was rounded already,
    perhaps for other candidates, which differ in few matrices. padded: the matrices whose rows are filled up to whole
    blocks.
    """

    spec: WeightOnly
    graph: str
    moments: Mapping[str, np.ndarray] = field(default_factory=dict)
    known: dict[Hashable, Blocks] = field(default_factory=dict)
    padded: Set[str] = frozenset()

    def round(self, matrix: _Matrix, bits: int) -> Blocks:
        """Return the matrix, rounded in blocks."""
        name, longest = str(matrix.value.name), self.spec.block_size
        block_size = longest if name in self.padded else blocks.fitting(longest, matrix.shape[1])
        rounding = blocks.rtn if self.spec.algorithm == "rtn" else blocks.k_quant
        if (moment := self.moments.get(name)) is not None:
            rounding = functools.partial(gptq, moment=moment)
        key = (self.graph, name, bits, block_size, "gptq" if moment is not None else rounding)
        if key not in self.known:
            self.known[key] = rounding(matrix.array(), bits, block_size)
        return self.known[key]


def _quantize_graph(rounding: _Rounding, graph: ir.Graph, kept: Set[str]) -> None:
    spec, products, lookups, inner = rounding.spec, _products(graph), _lookups(graph), _inner(graph)
    tables = {*products.values(), *lookups.values()} - {*inner.values()}
    mixed = spec.algorithm == "k_quant_mixed"
    precise = {inner[node] for node in _precise(inner)} if mixed else set()
    precise |= {matrix for matrix in inner.values() if matrix.value.name in kept}
    bits = dict.fromkeys(tables, spec.table_bits or (8 if mixed else spec.bits)) | dict.fromkeys(precise, 8)
    stored: dict[_Matrix, _Stored] = {}
    for node, matrix in [*products.items(), *lookups.items()]:
        if matrix not in stored:
            joined = matrix not in products.values()
            stored[matrix] = _store(rounding, graph, matrix, bits.get(matrix, spec.bits), joined=joined)
        new = _product if node in products else _lookup
        _put(graph, node, new(spec, node, matrix, stored[matrix]))


def _moments(path: Path, graph: ir.Graph, calibration: Calibration | None) -> Mapping[str, np.ndarray]:
    """Return the second moments of what reaches each inner matrix."""
    assert calibration is not None, "activations are found by measuring"
    inputs: dict[str, list[str]] = {}
    for node, matrix in _inner(graph).items():
        if value := node.inputs[0]:
            inputs.setdefault(str(matrix.value.name), []).append(str(value.name))
    return calibration.moments(path, inputs)


def _kept(rounding: _Rounding, path: Path, graph: ir.Graph, calibration: Calibration | None) -> Set[str]:
    """Return the inner matrices that keep 8 bits."""
    assert calibration is not None, "sensitive matrices are found by measuring"
    spec = rounding.spec

    def rounded(matrix: _Matrix) -> np.ndarray:
        restored = blocks.dequantize(rounding.round(matrix, spec.bits), matrix.shape[1])
        return restored.T if matrix.transposed else restored

    key = f"{path.name} {spec.algorithm} {spec.block_size} {spec.pad}"
    trials = {str(matrix.value.name): (lambda matrix=matrix: rounded(matrix)) for matrix in _inner(graph).values()}
    return sensitivity.costliest(calibration.costs(key, path, trials), spec.sensitive)


def _put(graph: ir.Graph, node: ir.Node, new: Sequence[ir.Node]) -> None:
    graph.insert_before(node, new)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [], node.outputs, new[-1].outputs)


def _halve_scales(graph: ir.Graph) -> None:
    """Store the scales of blocks as float16, with a Cast that ONNX Runtime computes once, when it loads the graph.

    In blocks of 64, float32 scales would take a tenth of the file.
    """
    quantized = [node for node in graph if node.op_type in ("MatMulNBits", "GatherBlockQuantized")]
    for scales in dict.fromkeys(node.inputs[2] for node in quantized):
        assert scales is not None
        assert scales.const_value is not None
        stored = _half(scales.const_value.numpy())
        if stored.dtype == np.float16:
            half = _constant(graph, f"{scales.name}_half", stored)
            cast = ir.node("Cast", [half], {"to": ir.DataType.FLOAT}, name=f"{scales.name}_cast")
            cast.outputs[0].name = cast.name
            graph.insert_before(graph[0], cast)
            ir.convenience.replace_all_uses_with(scales, cast.outputs[0])
            graph.initializers.pop(str(scales.name))


def _half(scales: np.ndarray) -> np.ndarray:
    """Return the scales as float16, or as they are where float16 has too few digits for one of them."""
    sizes, limits = np.abs(scales), np.finfo(np.float16)
    fits = limits.smallest_normal <= sizes.min() and sizes.max() <= limits.max
    return scales.astype(np.float16) if fits else scales


def _store(rounding: _Rounding, graph: ir.Graph, matrix: _Matrix, bits: int, *, joined: bool) -> _Stored:
    """Round a matrix and add its constants. joined: a row's blocks share an axis (look-ups); otherwise they have one
    (products).
    """
    rounded = rounding.round(matrix, bits)
    packed = rounded.packed.reshape(len(rounded.packed), -1) if joined else rounded.packed
    parts = {f"q{bits}": packed, "scales": rounded.scales, "zero_points": rounded.zero_points}
    values = [_constant(graph, f"{matrix.value.name}_{name}", part) for name, part in parts.items() if part is not None]
    return _Stored(rounded, values)


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


def _lookup(spec: WeightOnly, node: ir.Node, matrix: _Matrix, stored: _Stored) -> Sequence[ir.Node]:
    """Return the nodes of a look-up. If the table is shared with a MatMulNBits, first join the blocks of a row.

    onnxruntime-genai's builder does the same.
    """
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
