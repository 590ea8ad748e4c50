"""Describe a timed model's runtime and weights, and choose the teacher that the headline compares with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distillctl import cautions
from distillctl.recipe import HuggingFaceTeacher, Recipe

CACHED = ("teacher_cached", "teacher_genai")
"""The teachers that the headline may compare with. Anyone who serves a prompt caches it."""
GENAI_DTYPE = "int4"
"""Weights of the teacher's graph for onnxruntime-genai."""
LEAST_QUANTIZED_AGREEMENT = 0.9
"""Below this agreement a caution is due: the teacher, quantized only for this comparison, answers differently."""
_RUNTIMES = {
    "teacher": "PyTorch",
    "teacher_cached": "PyTorch",
    "teacher_genai": "onnxruntime-genai",
    "deployed_genai": "onnxruntime-genai",
}


def described(name: str, recipe: Recipe, quantize: Mapping[str, Any]) -> dict[str, Any]:
    """Return runtime, dtype, threads and bytes_of.

    dtype: of the weights, or the quantizer's name. bytes_of: "file" or "memory", whatever the model's ``bytes``
    measure. quantize: that stage's facts.
    """
    runtime = _RUNTIMES.get(name, "ONNX Runtime")
    if name == "teacher_genai":
        dtype = GENAI_DTYPE
    elif name.startswith("teacher"):
        dtype = recipe.teacher.dtype if isinstance(recipe.teacher, HuggingFaceTeacher) else "unknown"
    elif name.startswith("deployed"):
        chosen = [candidate["name"] for candidate in quantize.get("candidates", ()) if candidate["chosen"]]
        dtype = chosen[0] if chosen else "unknown"
    else:
        dtype = "float32"
    return {
        "runtime": runtime,
        "dtype": dtype,
        "threads": recipe.bench.used_threads,
        "bytes_of": "memory" if runtime == "PyTorch" else "file",
    }


def headline_peer(
    models: Mapping[str, Mapping[str, Any]], agreement: Mapping[str, float | None]
) -> dict[str, Any] | None:
    """Return the fastest of the teachers with their prompt cached; None for a served teacher, which is not timed.

    ratio: its median query over the deployed model's. agreement: the share of its timed queries answered like collect's
    teacher.
    """
    timed = [name for name in CACHED if name in models]
    if not timed:
        return None
    fastest = min(timed, key=lambda name: float(models[name]["p50_ms"]))
    share = agreement.get(fastest)
    peer = {
        "model": fastest,
        "name": "the teacher with its prompt cached",
        **{key: models[fastest][key] for key in ("runtime", "dtype", "threads")},
        "ratio": models[fastest]["p50_ms"] / models["deployed"]["p50_ms"],
        "agreement": share,
    }
    if fastest == "teacher_genai" and share is not None and share < LEAST_QUANTIZED_AGREEMENT:
        cautions.add(
            "quantized-teacher-differs",
            f"The speed is compared with the teacher in {peer['runtime']} with {peer['dtype']} weights, the fastest "
            f"way to run it here. Quantized like that, it gives the teacher's own answer in {share:.0%} of the timed "
            "queries; in full precision it is slower (see the table).",
        )
    return peer
