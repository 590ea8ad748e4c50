"""Cut tables of rotary position embeddings to the positions that can be reached.

A graph stores one row per position of the model's longest context, which takes 67 MB in Gemma 3 270M.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir
from torch import nn

NAMES = ("cos_cache", "sin_cache")
"""Names in onnxruntime-genai's builder, which may add `_local`, `_global`, `_small` or `_large`."""


def cut(graph: onnx_ir.Graph, rows: int) -> None:
    """Keep the first ``rows`` rows of every table [positions, size / 2] of onnxruntime-genai's builder.

    Tables are initializers, or constants in the branches that choose between a short and a long context.
    """
    for value in graph.initializers.values():
        if _is_table(value.name) and value.const_value is not None and len(value.const_value.shape) == 2:
            value.const_value = _first(value.const_value, rows)
            value.shape = value.const_value.shape
    for node in graph.all_nodes():
        if node.op_type == "Constant" and _is_table(node.outputs[0].name) and "value" in node.attributes:
            table = _first(node.attributes["value"].as_tensor(), rows)
            node.attributes["value"] = onnx_ir.AttrTensor("value", table)
            node.outputs[0].shape = table.shape


def _is_table(name: str | None) -> bool:
    return name is not None and name.startswith(NAMES)


def _first(table: Any, rows: int) -> onnx_ir.Tensor[Any]:
    return onnx_ir.Tensor(np.ascontiguousarray(table.numpy()[:rows]), name=table.name)


@contextmanager
def shortened(model: nn.Module, rows: int | None) -> Iterator[None]:
    """Cut the model's own tables to ``rows`` rows within the block (GPT-J and CodeGen keep one in each layer).

    None leaves them as they are. Trained tables stay: they are weights.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    tables = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if rows is not None and buffer.is_floating_point() and buffer.ndim == 2 and buffer.shape[0] == positions
    ]
    for module, name, buffer in tables:
        setattr(module, name, buffer[:rows].clone())
    try:
        yield
    finally:
        for module, name, buffer in tables:
            setattr(module, name, buffer)
