"""Prune a classifier's last layer to the one token whose row is read.

An encoder is pooled at its first token. In the last layer only that row's query, attention output, feed-forward block
and norms matter, with the keys and values of all tokens. The traced graph computes the whole layer and takes the row at
the end; here the row is taken as early as possible. No value of that row changes. The row "+ our graph" of `make
bench-peers` includes the gain.
"""

from __future__ import annotations

import numpy as np
import onnx_ir

ROW_BY_ROW = {"Add", "Sum", "Sub", "Mul", "Div", "Gelu", "Erf", "Tanh", "Relu", "Sigmoid", "Softplus", "Identity"}
"""Elementwise operators. `_places` adds others of which a row of the output only needs that row of the input."""


def compute_alone(graph: onnx_ir.Graph) -> None:
    """Move every Gather of one row of axis 1 of [B, T, D] upwards, to where other rows are needed too."""
    for gather in [node for node in graph if node.op_type == "Gather"]:
        row = _row(gather)
        if row is not None:
            _move_up(graph, gather, row)


def _row(gather: onnx_ir.Node) -> onnx_ir.Value | None:
    """Return the constant scalar index of a Gather on axis 1 of [B, T, D]."""
    data, index = gather.inputs
    axis = gather.attributes.get("axis")
    constant = index.const_value if index is not None else None
    if data is None or constant is None or constant.numpy().ndim or axis is None or axis.as_int() != 1:
        return None
    return index if _rank(data) == 3 else None


def _move_up(graph: onnx_ir.Graph, gather: onnx_ir.Node, index: onnx_ir.Value) -> None:
    above: dict[onnx_ir.Node, list[int]] = {gather: [0]}  # nodes that will get one row → the inputs to narrow
    for node in reversed(graph):
        if node not in above and (places := _places(node)) and _only_for(node, above):
            above[node] = places
    if len(above) == 1:
        return
    assert index.const_value is not None
    number = int(index.const_value.numpy())
    picked: dict[onnx_ir.Value, onnx_ir.Value] = {}
    first = next(node for node in graph if node in above)
    name = gather.outputs[0].name  # unique
    rows = _constant(graph, f"{name}_row", np.array([number], np.int64))
    for node, places in above.items():
        for place in places:
            value = node.inputs[place]
            assert value is not None
            if value.producer() in above:
                continue
            if value not in picked:
                pick = onnx_ir.node("Gather", [value, rows], {"axis": 1}, name=f"{name}_of_{value.name}")
                picked[value] = pick.outputs[0]
                pick.outputs[0].name, pick.outputs[0].type = f"{name}_of_{value.name}", value.type
                _narrow(pick.outputs[0], value)
                maker = value.producer()
                graph.insert_after(maker, pick) if maker is not None else graph.insert_before(first, pick)
            node.replace_input_with(place, picked[value])
        if node is not gather:
            _narrow(node.outputs[0], node.outputs[0])
    gather.replace_input_with(1, _constant(graph, f"{name}_only", np.array(0, np.int64)))
    if index.is_initializer() and not index.uses():
        del graph.initializers[str(index.name)]


def _places(node: onnx_ir.Node) -> list[int]:
    """Return the inputs of which a row of the node's [B, T, D] only needs that row, or none if it needs more."""
    if len(node.outputs) != 1 or node.outputs[0].is_graph_output() or _rank(node.outputs[0]) != 3:
        return []
    inputs = [(place, value) for place, value in enumerate(node.inputs) if value is not None]
    if node.op_type == "MultiHeadAttention":
        return [0]  # the query
    if node.op_type == "LayerNormalization":
        axis = node.attributes.get("axis")
        return [0] if axis is None or axis.as_int() in (-1, 2) else []
    if node.op_type == "MatMul":
        return [0] if _rank(inputs[1][1]) == 2 and _rank(inputs[0][1]) == 3 else []
    if node.op_type not in ROW_BY_ROW:
        return []
    whole = [(place, value) for place, value in inputs if _rank(value) != 0 and not _is_row(value)]
    same = all(value.shape == node.outputs[0].shape for _, value in whole)
    return [place for place, _ in whole] if same else []


def _only_for(node: onnx_ir.Node, above: dict[onnx_ir.Node, list[int]]) -> bool:
    uses = list(node.outputs[0].uses())
    return bool(uses) and all(use.node in above and use.idx in above[use.node] for use in uses)


def _is_row(value: onnx_ir.Value) -> bool:
    """Tell whether an input is a bias, equal for all rows."""
    return value.is_initializer() and _rank(value) == 1


def _rank(value: onnx_ir.Value | None) -> int | None:
    return len(value.shape) if value is not None and value.shape is not None else None


def _narrow(value: onnx_ir.Value, like: onnx_ir.Value) -> None:
    assert like.shape is not None
    batch, _, width = like.shape
    value.shape = onnx_ir.Shape([batch, 1, width])


def _constant(graph: onnx_ir.Graph, name: str, array: np.ndarray) -> onnx_ir.Value:
    value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name))
    value.shape, value.type = onnx_ir.Shape(array.shape), onnx_ir.TensorType(onnx_ir.DataType.INT64)
    graph.initializers[name] = value
    return value
