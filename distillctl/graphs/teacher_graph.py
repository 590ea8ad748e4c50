"""Build the teacher's int4 graph for onnxruntime-genai once, and keep it in the user's cache."""

from __future__ import annotations

import importlib.metadata
import math
import shutil
from pathlib import Path

import onnx_ir
import psutil
import transformers

from distillctl import console
from distillctl.errors import DistillctlError, UnavailableError, first_line
from distillctl.graphs import genai_builder, sidecar_files
from distillctl.models import cached_folders, checkpoint_files, from_pretrained
from distillctl.models.model_source import ModelSource
from distillctl.recipe import HuggingFaceTeacher
from distillctl.run_dir.workspace import digest
from distillctl.runtimes.model_facts import GENAI_DTYPE

_BUILD_BYTES, _KEPT_BYTES = 8, 2
"""Bytes per parameter: memory of the builder, with the float32 weights that it reads; and disk space."""


def build(spec: HuggingFaceTeacher, source: ModelSource, positions: int) -> Path | None:
    """Return the folder with the graph, cached by the teacher's content and the builder's version.

    positions: number of tokens of the longest view and its answer. Returns None, and prints a note, if it cannot be
    built.
    """
    try:
        builder = importlib.metadata.version("onnxruntime-genai")
        key = digest([source.fingerprint(), transformers.__version__, builder, GENAI_DTYPE, spec.trust_remote_code])[
            :24
        ]
        cache = cached_folders.place("genai", key)
        if not _is_whole(cache):
            _build(spec, source, cache)
        graph = onnx_ir.load(cache / genai_builder.GRAPH).graph
        genai_builder.check_windows(graph, _folder(source), positions, spec.trust_remote_code)
    except (DistillctlError, OSError, importlib.metadata.PackageNotFoundError) as error:
        console.note(f"bench: the teacher is timed in PyTorch only: {first_line(error)}")
        return None
    return cache


def _build(spec: HuggingFaceTeacher, source: ModelSource, cache: Path) -> None:
    folder = _folder(source)
    parameters = sum(math.prod(shape) for _, shape in checkpoint_files.shapes(folder))
    cache.parent.mkdir(parents=True, exist_ok=True)
    memory, disk = psutil.virtual_memory().available, shutil.disk_usage(cache.parent).free
    for resource, needed, free in (("memory", _BUILD_BYTES, memory), ("disk", _KEPT_BYTES, disk)):
        if needed * parameters > free:
            raise UnavailableError(
                f"building its {GENAI_DTYPE} graph takes {needed * parameters / 1e9:.1f} GB of {resource}, "
                f"and {free / 1e9:.1f} GB are free"
            )
    console.note(f"bench: building the teacher's {GENAI_DTYPE} graph once (kept in {cache})")
    with cached_folders.filling(cache) as staged:
        genai_builder.quantized(folder, staged, trust_remote_code=spec.trust_remote_code)


def _folder(source: ModelSource) -> Path:
    """Return the folder with its weights as safetensors."""
    if source.path is not None:
        return Path(from_pretrained.folder(source))
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source.reference, revision=source.revision, local_files_only=True))


def _is_whole(cache: Path) -> bool:
    if not cached_folders.is_whole(cache):
        return False
    try:
        sidecar_files.check_folder(cache, "distillctl bench RECIPE")
    except DistillctlError:
        return False
    return True
