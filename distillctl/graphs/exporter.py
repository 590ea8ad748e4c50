"""A PyTorch sequence classifier as an ONNX graph under optimum's names: `model.onnx`, `input_ids` …, `logits`."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from optimum.exporters.tasks import TasksManager
from optimum.utils import DummyTextInputGenerator, NormalizedConfigManager, NormalizedTextConfig
from torch import Tensor
from transformers import PreTrainedModel
from transformers.exporters import OnnxConfig, OnnxExporter

from distillctl import console
from distillctl.errors import RecipeError

GRAPH = "model.onnx"
AXES = ("batch", "sequence")
MAX_EMBEDDED_BYTES = 2_000_000_000
"""Of weights inside model.onnx; a protobuf message ends at 2 GiB, and the nodes need room too."""


@dataclass(frozen=True)
class ExportedGraph:
    """What was written. bytes: the graph and its weights, in however many files."""

    inputs: list[str]
    opset: int
    bytes: int


def export(model: PreTrainedModel, folder: Path, opset: int | None = None) -> ExportedGraph:
    """Write ``folder``/model.onnx: int64 inputs [batch, sequence], float32 `logits` [batch, K].

    Weights of more than 2 GB go to model.onnx.data beside it. RecipeError when the opset cannot be had.
    """
    with console.libraries_quiet():
        config = OnnxConfig(dynamic=True, opset_version=opset)
        program = OnnxExporter().export(model.eval(), dict(sample_inputs(model)), config).program
    written = program.opset_imports[""]
    if opset is not None and written != opset:
        raise RecipeError(
            f"opset {opset} is out of the exporter's reach (it made {written})",
            where="export.opset",
            next=f"--set export.opset={written}, or leave it out",
        )
    _keep_logits(program)
    _tidy(program.graph)
    weights = sum(value.const_value.nbytes for value in program.graph.initializers.values() if value.const_value)
    external = f"{GRAPH}.data" if weights > MAX_EMBEDDED_BYTES else None
    onnx_ir.save(program, folder / GRAPH, external_data=external)
    onnx.checker.check_model(folder / GRAPH)
    return ExportedGraph([str(value.name) for value in program.graph.inputs], written, graph_bytes(folder))


def graph_bytes(folder: Path) -> int:
    """Size of the folder's graph with its external weights, if any."""
    return sum(path.stat().st_size for path in folder.glob(f"{GRAPH}*"))


def sample_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Inputs to trace with, int64 [2, 8]: sizes of 0 or 1 would be frozen, and equal ones taken for one another."""
    task = TasksManager.infer_task_from_model(model)
    try:
        normalized = NormalizedConfigManager.get_normalized_config_class(model.config.model_type)
    except KeyError:  # newer than optimum: the config's own names
        normalized = NormalizedTextConfig
    generator = DummyTextInputGenerator(task, normalized(model.config), batch_size=2, sequence_length=8)
    names = ["input_ids", "attention_mask"]
    segments = getattr(model.config, "type_vocab_size", 0)
    if segments > 1 and "token_type_ids" in inspect.signature(model.forward).parameters:
        names.append("token_type_ids")  # with a single segment, optimum's configurations leave them out too
    return {name: generator.generate(name) for name in names}


def _keep_logits(program: onnx_ir.Model) -> None:
    """Decoders also return their keys and values, which a classifier has no use for."""
    outputs = program.graph.outputs
    outputs[:] = [value for value in outputs if value.name == "logits"]
    RemoveUnusedNodesPass()(program)


def _tidy(graph: onnx_ir.Graph) -> None:
    """Name the axes everywhere, and drop the tracer's notes (stack traces, with this machine's paths).

    The tracer calls an axis s18 or s43, and may give each input symbols of its own though the sizes are the same.
    """
    names = {
        str(symbol): axis
        for value in graph.inputs
        for symbol, axis in zip(value.shape or (), AXES, strict=True)
        if not isinstance(symbol, int)
    }
    graph.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
    values = [*graph.inputs, *(value for node in graph.all_nodes() for value in node.outputs)]
    for value in values:
        value.metadata_props.clear()
        if value.shape is not None:
            value.shape = onnx_ir.Shape([_rename(size, names) for size in value.shape])


def _rename(size: int | onnx_ir.SymbolicDim, names: dict[str, str]) -> int | str | None:
    """`2*s43` → `2*batch`."""
    if isinstance(size, int) or size.value is None:
        return size if isinstance(size, int) else None
    return re.sub(r"\w+", lambda match: names.get(match[0], match[0]), str(size.value))
