"""The section about the student's ONNX graph."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distillctl.recipe.base import Count, Positive, Section


class Export(Section):
    """The student's ONNX graph, and how closely ONNX Runtime must agree with PyTorch."""

    opset: Annotated[Count | None, Field(examples=[20])] = None
    """ONNX opset. Without it, the exporter's own choice."""
    max_logit_difference: Positive = 1e-4
    """Largest allowed |Δlogit| between ONNX Runtime and PyTorch over the eval rows; for `generate`, relative to the
    largest |logit|."""
    fuse: bool = True
    """For `classify`: write attention as ONNX Runtime's own operator. Without it, the graph has only standard ONNX
    operators, for accelerators and other runtimes, and is slower."""
    builder: Literal["auto", "genai", "trace"] = "auto"
    """For decoders: `genai` builds the graph with onnxruntime-genai's builder, `trace` traces the model, `auto` traces
    only if the builder does not know the architecture."""
    prompts: Count = 50
    """For `generate`: number of eval rows that must get the same greedy answer as in PyTorch, token for token."""
