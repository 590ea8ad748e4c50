"""onnxruntime's own check of a graph for phones: how much of it NNAPI or CoreML could take."""

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
    """Provider → for the graph as it is and with its shapes fixed: verdict (yes, maybe, no), nodes it could take of
    all, pieces the graph falls into; and the operators it does not know.

    As `onnxruntime.tools.check_onnx_model_mobile_usability` finds it, after the same basic optimisation. Empty, with a
    warning, for a graph that its shape inference does not get through: that is no fault of the graph.
    """
    try:
        return _check(graph)
    except Exception as error:
        console.warn(f"onnxruntime's check for phones does not read {graph.name}: {first_line(error)}")
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


def _verdict(found: Any) -> dict[str, Any]:
    return {
        "verdict": found.suitability().name.lower(),
        "nodes_taken": found.num_supported_nodes,
        "nodes": found.num_nodes,
        "pieces": found.num_partitions,
    }


def advice(found: dict[str, Any]) -> str:
    """One graph's verdicts in a sentence."""
    if not found:
        return "the CPU provider; onnxruntime's check could not read it"
    useful = [name for name, one in found.items() if one["as_is"]["verdict"] != "no"]
    fixable = [name for name, one in found.items() if name not in useful and one["fixed_shapes"]["verdict"] != "no"]
    if useful:
        return f"worth a try with {', '.join(useful)}, against the CPU"
    if fixable:
        return f"the CPU provider; with its shapes fixed, worth a try with {', '.join(fixable)}"
    return "the CPU provider; neither NNAPI nor CoreML takes it in few enough pieces"
