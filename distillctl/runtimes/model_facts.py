"""Describe a timed model's runtime and weights, and choose the teacher that the headline compares with."""

from __future__ import annotations

from collections.abc import Mapping

from distillctl import cautions
from distillctl.recipe import HuggingFaceTeacher, Recipe
from distillctl.run_dir.bench_facts import HeadlinePeer, TimedModel

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


def described(name: str, recipe: Recipe, chosen: str) -> dict[str, str | int]:
    """Return what a model ran in (`TimedModel`). chosen: the candidate that quantize took."""
    runtime = _RUNTIMES.get(name, "ONNX Runtime")
    if name == "teacher_genai":
        dtype = GENAI_DTYPE
    elif name.startswith("teacher"):
        dtype = recipe.teacher.dtype if isinstance(recipe.teacher, HuggingFaceTeacher) else "unknown"
    elif name.startswith("deployed"):
        dtype = chosen
    else:
        dtype = "float32"
    return {
        "runtime": runtime,
        "dtype": dtype,
        "threads": recipe.bench.used_threads,
        "bytes_of": "memory" if runtime == "PyTorch" else "file",
    }


def headline_peer(models: Mapping[str, TimedModel], agreement: Mapping[str, float | None]) -> HeadlinePeer | None:
    """Return the fastest of the teachers with their prompt cached; None for a served teacher, which is not timed."""
    timed = [name for name in CACHED if name in models]
    if not timed:
        return None
    fastest = min(timed, key=lambda name: models[name].p50_ms)
    timed_model, share = models[fastest], agreement.get(fastest)
    peer = HeadlinePeer(
        model=fastest,
        name="the teacher with its prompt cached",
        runtime=timed_model.runtime,
        dtype=timed_model.dtype,
        threads=timed_model.threads,
        ratio=timed_model.p50_ms / models["deployed"].p50_ms,
        agreement=share,
    )
    if fastest == "teacher_genai" and share is not None and share < LEAST_QUANTIZED_AGREEMENT:
        cautions.add(
            "quantized-teacher-differs",
            f"The speed is compared with the teacher in {peer.runtime} with {peer.dtype} weights, the fastest "
            f"way to run it here. Quantized like that, it gives the teacher's own answer in {share:.0%} of the timed "
            "queries; in full precision it is slower (see the table).",
        )
    return peer
