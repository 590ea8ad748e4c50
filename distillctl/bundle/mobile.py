"""Run onnxruntime's own check of a graph for phones: how much of it NNAPI or CoreML could run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.tools.mobile_helpers import usability_checker
from onnxruntime.tools.onnx_model_utils import ModelProtoWithShapeInfo, optimize_model

from distillctl import console
from distillctl.errors import first_line

_Check = Callable[[onnx.ModelProto, bool], Any]
_PROVIDERS: dict[str, _Check] = {
    "NNAPI": usability_checker.check_nnapi_partitions,
    "CoreML NeuralNetwork": lambda model, fixed: usability_checker.check_coreml_partitions(
        model, fixed, "coreml_supported_neuralnetwork_ops.md"
    ),
    "CoreML MLProgram": lambda model, fixed: usability_checker.check_coreml_partitions(
        model, fixed, "coreml_supported_mlprogram_ops.md"
    ),
}


def check_usability(graph: Path) -> dict[str, Any]:
    """Return for each provider, for the graph as it is and with fixed shapes: verdict (yes, maybe, no), number of nodes
    that it can run, number of all nodes, number of pieces; and the unknown operators.

    It equals `onnxruntime.tools.check_onnx_model_mobile_usability`, after the same basic optimisation. If its shape
    inference fails, which is not the graph's fault, it warns and returns nothing.
    """
    try:
        return _check(graph)
    except Exception as error:
        console.warn(f"onnxruntime's check for phones cannot read {graph.name}: {first_line(error)}")
        return {}


def _check(graph: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch, console.libraries_quiet():
        optimised = Path(scratch) / graph.name
        optimize_model(graph, optimised, use_external_initializers=True)
        shaped = ModelProtoWithShapeInfo(optimised)
        model = shaped.model_with_shape_info
        return {
            name: {
                "as_is": _verdict(check(model, True)),
                "fixed_shapes": _verdict(check(model, False)),
                "unknown_operators": sorted(check(model, False).unsupported_ops),
            }
            for name, check in _PROVIDERS.items()
        }


def _verdict(result: Any) -> dict[str, Any]:
    return {
        "verdict": result.suitability().name.lower(),
        "nodes_taken": result.num_supported_nodes,
        "nodes": result.num_nodes,
        "pieces": result.num_partitions,
    }


def advice(verdicts: dict[str, Any]) -> str:
    """Summarise one graph's verdicts in a sentence."""
    if not verdicts:
        return "use the CPU provider; onnxruntime's check could not read the graph"
    useful = [name for name, verdict in verdicts.items() if verdict["as_is"]["verdict"] != "no"]
    fixable = [
        name for name, verdict in verdicts.items() if name not in useful and verdict["fixed_shapes"]["verdict"] != "no"
    ]
    if useful:
        return f"compare {', '.join(useful)} with the CPU provider"
    if fixable:
        return f"use the CPU provider, or fix the graph's shapes and try {', '.join(fixable)}"
    return "use the CPU provider; NNAPI and CoreML would split the graph into too many pieces"
