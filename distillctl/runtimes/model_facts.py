"""What a timed model ran in, and which teacher the headline compares with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distillctl import cautions
from distillctl.recipe import HuggingFaceTeacher, Recipe

CACHED = ("teacher_cached", "teacher_genai")
"""The teachers that the headline may compare with: whoever serves a prompt caches it."""
GENAI_DTYPE = "int4"
"""Of the weights of the teacher's graph for onnxruntime-genai."""
LEAST_QUANTIZED_AGREEMENT = 0.9
"""Below it a caution is due: the teacher was quantized for this comparison alone, and answers otherwise."""
_RUNTIMES = {
    "teacher": "PyTorch",
    "teacher_cached": "PyTorch",
    "teacher_genai": "onnxruntime-genai",
    "deployed_genai": "onnxruntime-genai",
}


def described(name: str, recipe: Recipe, quantize: Mapping[str, Any]) -> dict[str, Any]:
    """runtime; dtype: of the weights, or the quantizer that made them; threads; bytes_of: whether a model's ``bytes``
    are those of its "file" or of its weights in "memory". quantize: that stage's facts."""
    runtime = _RUNTIMES.get(name, "ONNX Runtime")
    if name == "teacher_genai":
        dtype = GENAI_DTYPE
    elif name.startswith("teacher"):
        dtype = recipe.teacher.dtype if isinstance(recipe.teacher, HuggingFaceTeacher) else "unknown"
    elif name.startswith("deployed"):
        chosen = [one["name"] for one in quantize.get("candidates", ()) if one["chosen"]]
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
    """The fastest of the teachers with their prompt cached: model, name, runtime, dtype, threads, ratio (its median
    query over the deployed model's), and agreement, the share of its timed queries answered as collect's teacher did.
    None for a served teacher, which is not timed."""
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
            f"The speed is compared with the teacher in {peer['runtime']} with {peer['dtype']} weights, which is the "
            f"fastest way of running it here. So quantized it gives the teacher's own answer in {share:.0%} of the "
            "timed queries; in its full precision it is slower, see the table.",
        )
    return peer
