"""Build a decoder with onnxruntime-genai's builder: GroupQueryAttention, one buffer for past and present."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
from transformers import AutoConfig

from distillctl import console
from distillctl.errors import UnavailableError, first_line
from distillctl.graphs import rotary_tables, tracing
from distillctl.run_dir.facts import GraphFacts
from distillctl.untrusted import limits

GRAPH, CONFIG = "model.onnx", "genai_config.json"
_PACKAGE = "onnxruntime-genai"


class UnsupportedByBuilder(UnavailableError):
    """The builder is not installed, or does not support the architecture."""


def export(
    source: Path, folder: Path, stop_ids: Sequence[int], max_length: int, *, trust_remote_code: bool = False
) -> GraphFacts:
    """Write ``folder``/model.onnx (float32, for CPUs) and genai_config.json from the transformers folder ``source``.

    stop_ids and max_length (tokens of view and response) go into genai_config.json, and rotary tables end there. Raises
    UnsupportedByBuilder.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch) / "built"
        _build(source, built, "fp32", trust_remote_code)
        program = onnx_ir.load(built / GRAPH)
        config = limits.read_json(built / CONFIG)
        positions = min(max_length, config["model"]["context_length"])
        check_windows(program.graph, source, positions, trust_remote_code)
        # The builder adds the commit of the repository in which it runs.
        program.producer_version = importlib.metadata.version(_PACKAGE)
        _name_head_size(program.graph, config["model"]["decoder"]["head_size"])
        _unround_scale(program.graph, config["model"]["decoder"]["hidden_size"])
        rotary_tables.cut(program.graph, positions)
        written = tracing.write(program, folder / GRAPH)
    ids = sorted(stop_ids)
    config["model"]["eos_token_id"] = ids if len(ids) > 1 else ids[0]
    config["model"]["context_length"] = config["search"]["max_length"] = positions
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return written


def quantized(source: Path, folder: Path, *, trust_remote_code: bool = False) -> None:
    """Write a graph with int4 weights in blocks, rounded to nearest, and the tokenizer to ``folder``, for
    onnxruntime-genai.

    For a prompt it returns only the last token's logits.
    """
    _build(source, folder, "int4", trust_remote_code, "prune_lm_head=true")


def _build(source: Path, target: Path, precision: str, trust_remote_code: bool, *options: str) -> None:
    """Run the builder. Raise UnsupportedByBuilder for any error, as configs it does not know raise all kinds."""
    arguments = ("", str(source), str(target), precision, "cpu", str(target / "cache"))
    extra = ["hf_token=false", f"hf_remote={str(trust_remote_code).lower()}", *options]  # no requests to the hub
    # Buffers of a window's size would be as large as the window even for short answers, and could not be rewound.
    extra += ["windowed_kv_cache=false"]
    try:
        with _builder() as builder, console.libraries_quiet(), redirect_stderr(io.StringIO()):  # its progress bar
            parsed = builder.parse_extra_options(*arguments, extra)
            _flatten_rope(parsed["hf_details"]["hf_config"])
            builder.create_model(*arguments, **parsed)
    except Exception as error:
        raise _unsupported(first_line(error)) from error


def _unsupported(why: str) -> UnsupportedByBuilder:
    return UnsupportedByBuilder(
        f"{_PACKAGE}'s model builder cannot build it: {why}",
        where="export.builder",
        next="--set export.builder=trace",
    )


def _flatten_rope(config: Any) -> None:
    """Set Gemma 3's older names, which the builder (0.18) reads; transformers 5 keeps rotary parameters by kind of
    layer.
    """
    by_kind = getattr(config, "rope_parameters", None) or {}
    if {"full_attention", "sliding_attention"} <= by_kind.keys():
        config.rope_local_base_freq = by_kind["sliding_attention"]["rope_theta"]
        config.rope_parameters = by_kind["full_attention"]


def check_windows(graph: onnx_ir.Graph, source: Path, positions: int, trust_remote_code: bool = False) -> None:
    """Raise UnsupportedByBuilder if the graph lacks a sliding window that is shorter than ``positions``.

    The builder knows windows only from the `layer_types` of the model's config, and Mistral's has none. source: the
    model's folder.
    """
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, local_files_only=True)
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if not window or window >= positions or (kinds is not None and "sliding_attention" not in kinds):
        return
    written = [node.attributes["local_window_size"] for node in graph if "local_window_size" in node.attributes]
    if not any(attribute.as_int() == window for attribute in written):
        raise _unsupported(f"it leaves out the sliding window of {window:,} tokens")


def _name_head_size(graph: onnx_ir.Graph, size: int) -> None:
    """Set the last dimension of keys and values [batch, heads, tokens, size], which the builder leaves open."""
    for value in [*graph.inputs, *graph.outputs]:
        if str(value.name).startswith(("past_key_values.", "present.")):
            assert value.shape is not None
            value.shape = onnx_ir.Shape([*value.shape[:3], size])


def _unround_scale(graph: onnx_ir.Graph, hidden_size: int) -> None:
    """Correct Gemma's factor √D of embeddings. The builder writes √640 as 25.3, which moves logits by 3e-4 of the
    largest.
    """
    exact = hidden_size**0.5
    for node in graph:
        if node.name != "/model/embed_tokens/Mul":
            continue
        constant = node.inputs[1].producer() if node.inputs[1] is not None else None
        if constant is None or "value" not in constant.attributes:
            continue
        written = constant.attributes["value"].as_tensor().numpy()
        if written.size == 1 and abs(written.item() - exact) < 0.01:
            tensor = onnx_ir.tensor(np.full_like(written, exact))
            constant.attributes["value"] = onnx_ir.AttrTensor("value", tensor)


@contextmanager
def _builder() -> Iterator[Any]:
    """Import the builder, whose modules import each other by bare names (`builders`, `quantization`)."""
    package = importlib.util.find_spec("onnxruntime_genai")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError(f"{_PACKAGE} is not installed")
    before = sys.path.copy()
    sys.path.insert(0, str(Path(package.submodule_search_locations[0]) / "models"))
    try:
        from onnxruntime_genai.models import builder

        yield builder
    finally:
        sys.path[:] = before
