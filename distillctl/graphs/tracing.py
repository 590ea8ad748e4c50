"""Trace a PyTorch module to an ONNX graph, clean it, and write it with named axes and each weight once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor, nn
from transformers.exporters.configs import OnnxConfig
from transformers.exporters.exporter_onnx import OnnxExporter

from distillctl import console
from distillctl.errors import RecipeError, UnavailableError
from distillctl.graphs import last_layer_pruning
from distillctl.run_dir.facts import GraphFacts
from distillctl.runtimes.onnxruntime import graph_bytes

MAX_EMBEDDED_BYTES = 2_000_000_000
"""Largest weights inside a graph's file. A protobuf message ends at 2 GiB, and the nodes need room too."""

Axes = Mapping[str, tuple[str | None, ...]]
"""Input or output → names of its axes; None keeps the present name."""


class Part(nn.Module):
    """The part of a model that `forward` runs, for tracing. The exporter needs the config."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config


def trace(module: nn.Module, inputs: Mapping[str, object], opset: int | None) -> onnx_ir.Model:
    """Return the module's graph with all axes open. Raise RecipeError if the opset is not available.

    inputs: tensors, or lists of them, to trace with. A size of 0 or 1 would become a constant, and equal sizes of one
    input would become one axis.
    """
    with console.libraries_quiet():
        config = OnnxConfig(dynamic=True, opset_version=opset)
        exporter: Any = OnnxExporter()  # annotated for whole models, but works with any module that has a config
        program: onnx_ir.Model = exporter.export(module.eval(), dict(inputs), config).program
    check_opset(program.opset_imports[""], opset)
    return program


def keys_and_values(cache: Any) -> list[tuple[Tensor, Tensor]]:
    """Return each layer's keys and values, [B, H, T, d]. Raise UnavailableError if a layer keeps something else."""
    try:
        return [(layer.keys, layer.values) for layer in cache.layers]
    except AttributeError:
        raise UnavailableError(
            f"{type(cache).__name__} holds more than keys and values, which cannot be traced", where="export"
        ) from None


def name_past(graph: onnx_ir.Graph, names: Sequence[str]) -> None:
    """Rename the tracer's `past.<layer>.<place in the tuple>` to optimum's `past_key_values.<layer>.<name>`."""
    for value in graph.inputs:
        if (match := re.fullmatch(r"past\.(\d+)\.(\d+)", str(value.name))) is not None:
            value.name = f"past_key_values.{match[1]}.{names[int(match[2])]}"


def check_opset(written: int, requested: int | None) -> None:
    """Raise RecipeError if the opset is not the requested one."""
    if requested is not None and written != requested:
        raise RecipeError(
            f"the exporter cannot write opset {requested} (it wrote {written})",
            where="export.opset",
            next=f"--set export.opset={written}, or remove export.opset",
        )


def save(program: onnx_ir.Model, path: Path, axes: Axes) -> GraphFacts:
    """Clean and write a traced graph. Weights of more than 2 GB go to a second file, whose name ends in `.data`."""
    undo_reshapes(program.graph)
    RemoveUnusedNodesPass()(program)
    share_transposed(program.graph)
    last_layer_pruning.compute_alone(program.graph)
    keep_norms(program.graph)
    name_axes(program.graph, axes)
    drop_notes(program.graph)
    written = write(program, path)
    onnx.checker.check_model(path)
    return written


def write(program: onnx_ir.Model, path: Path) -> GraphFacts:
    """Write a graph without checking it: ONNX's checker does not know some of ONNX Runtime's own operators."""
    weights = sum(value.const_value.nbytes for value in program.graph.initializers.values() if value.const_value)
    external = f"{path.name}.data" if weights > MAX_EMBEDDED_BYTES else None
    if external is None:
        onnx_ir.external_data.load_to_model(program)  # otherwise they stay in the file they were read from
    onnx_ir.save(program, path, external_data=external)
    return GraphFacts(
        inputs=[str(value.name) for value in program.graph.inputs],
        opset=program.opset_imports[""],
        bytes=graph_bytes(path.parent),
    )


# ── cleaning ─────────────────────────────────────────────────────────────────────────────────────


def share_transposed(graph: onnx_ir.Graph) -> None:
    """Take a tied head's weight [D, V] from the embedding [V, D], of which the tracer makes a transposed copy.

    ONNX Runtime transposes it when it loads the graph.
    """
    matrices = [value for value in graph.initializers.values() if value.shape is not None and len(value.shape) == 2]
    for embedding in matrices:
        if not any(node.op_type == "Gather" and place == 0 for node, place in embedding.uses()):
            continue
        table = _numpy(embedding)
        for copy in matrices:
            if copy is not embedding and copy.shape == table.T.shape and np.array_equal(_numpy(copy), table.T):
                node = onnx_ir.node("Transpose", [embedding], {"perm": [1, 0]}, name=f"{copy.name}_transposed")
                node.outputs[0].name = f"{copy.name}_transposed"
                node.outputs[0].type, node.outputs[0].shape = copy.type, copy.shape
                graph.insert_before(graph[0], node)
                copy.replace_all_uses_with(node.outputs[0])
                del graph.initializers[str(copy.name)]


def undo_reshapes(graph: onnx_ir.Graph) -> None:
    """Drop pairs of Reshape that cancel out: heads split and merged again."""
    for second in [node for node in graph if node.op_type == "Reshape"]:
        first = _maker(second.inputs[0], "Reshape")
        source, result = first.inputs[0] if first else None, second.outputs[0]
        if source is None or result.shape is None or result.is_graph_output():
            continue
        known = all(isinstance(size, int) or size.value is not None for size in result.shape)
        if known and result.shape == source.shape:
            result.replace_all_uses_with(source)


def keep_norms(graph: onnx_ir.Graph) -> None:
    """Write the sum before a LayerNormalization as Sum instead of Add.

    ONNX Runtime fuses an Add and a norm to a SkipLayerNormalization, which on a CPU is slower than the two (31 µs
    against 13 on 13 × 384 floats, ONNX Runtime 1.32, AVX2).
    """
    for norm in graph:
        add = _maker(norm.inputs[0], "Add") if norm.op_type == "LayerNormalization" else None
        if add is not None and not any(value is None or value.is_initializer() for value in add.inputs):
            add.op_type = "Sum"


def _maker(value: onnx_ir.Value | None, op_type: str) -> onnx_ir.Node | None:
    """Return the node that computes a value, if it is of type ``op_type``."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def _numpy(value: onnx_ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return value.const_value.numpy()


def name_axes(graph: onnx_ir.Graph, axes: Axes) -> None:
    """Name the axes everywhere.

    The tracer names an axis s18 or s43, and may give inputs of equal sizes different symbols.
    """
    names: dict[str, str] = {}
    for value in graph.inputs:
        for symbol, axis in zip(value.shape or (), axes[str(value.name)], strict=True):
            if axis is not None and not isinstance(symbol, int):
                names[str(symbol)] = axis
    for value in [*graph.inputs, *(value for node in graph.all_nodes() for value in node.outputs)]:
        if value.shape is not None:
            value.shape = onnx_ir.Shape([_rename(size, names) for size in value.shape])
    for value in [*graph.inputs, *graph.outputs]:
        if value.shape is not None and (wanted := axes.get(str(value.name))):
            value.shape = onnx_ir.Shape([axis or size for size, axis in zip(value.shape, wanted, strict=True)])


def drop_notes(graph: onnx_ir.Graph) -> None:
    """Remove the tracer's stack traces, which contain this machine's paths."""
    graph.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in graph.inputs:
        value.metadata_props.clear()


def _rename(size: int | onnx_ir.SymbolicDim, names: dict[str, str]) -> int | str | None:
    """Return `2*s43` as `2*batch`, and a symbol that the tracer found to be a number, such as `16`, as that number."""
    if isinstance(size, int) or size.value is None:
        return size if isinstance(size, int) else None
    named = re.sub(r"\w+", lambda match: names.get(match[0], match[0]), str(size.value))
    return int(named) if named.isdecimal() else named
