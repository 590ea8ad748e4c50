"""Export a PyTorch sequence classifier to an ONNX graph with optimum's names: `model.onnx`, `input_ids`, `logits`."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from pathlib import Path

from optimum.exporters.tasks import TasksManager
from optimum.utils import DummyTextInputGenerator, NormalizedConfigManager, NormalizedTextConfig
from torch import Tensor
from transformers import PreTrainedModel

from distillctl.graphs import attention, tracing
from distillctl.run_dir.facts import GraphFacts

GRAPH = "model.onnx"


def export(model: PreTrainedModel, folder: Path, opset: int | None = None, *, fuse: bool = True) -> GraphFacts:
    """Write ``folder``/model.onnx: int64 inputs [batch, sequence], float32 `logits` [batch, K].

    fuse: use ONNX Runtime's own operator for attention if possible. Weights of more than 2 GB go to model.onnx.data.
    Raises RecipeError if the opset is not available.
    """
    inputs = sample_inputs(model)
    with attention.fused(model) if fuse else nullcontext():
        program = tracing.trace(model, inputs, opset)
    outputs = program.graph.outputs  # decoders also return their keys and values, which a classifier does not need
    outputs[:] = [value for value in outputs if value.name == "logits"]
    return tracing.save(program, folder / GRAPH, dict.fromkeys(inputs, ("batch", "sequence")))


def sample_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return inputs to trace with, int64 [2, 8]."""
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
