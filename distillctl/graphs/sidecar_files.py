"""Copy and validate an exported graph's config, tokenizer and external weights."""

from __future__ import annotations

import json
import math
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, uses_external_data
from onnx.helper import tensor_dtype_to_np_dtype

from distillctl.errors import UpstreamError, first_line
from distillctl.runtimes import drafts, onnxruntime, trial
from distillctl.untrusted import limits

_COPIED = ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", drafts.FILE)
_TOKENIZER_KEYS = (
    "model_max_length",
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)

GENAI_CONFIG = "genai_config.json"
_GENAI_BYTES = 1 << 20
_PROVIDERS = ("provider_options", "providers")
"""Keys that name execution providers other than the CPU's. Some load files that their options name."""


def copy(source: Path, target: Path, inputs: Sequence[str], *, max_length: int | None = None) -> None:
    """Copy config and tokenizer from the model folder ``source``, and write a tokenizer_config.json that other tools
    can read.

    inputs: the graph's inputs. max_length: maximal number of tokens, if the tokenizer's own figure is wrong.
    """
    for name in _COPIED:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    written = limits.read_json(source / "tokenizer_config.json", limits.TEXT_BYTES)
    # transformers 4 does not know the class that version 5 names; tokenizer.json holds the tokenizer itself.
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": list(inputs),
        "padding_side": "right",
    }
    config |= {key: written[key] for key in _TOKENIZER_KEYS if key in written}
    config |= {} if max_length is None else {"model_max_length": max_length}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (target / "tokenizer_config.json").write_text(text, encoding="utf-8")


# ── validation ───────────────────────────────────────────────────────────────────────────────────

_ENDLESS = ("Loop", "Scan", "SequenceMap", "BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch")
"""Operators that repeat a subgraph, perhaps endlessly."""


def check_folder(folder: Path, next: str) -> None:
    """Raise UpstreamError unless every graph of a folder is valid and reads only regular files of the folder.

    next: the command that builds the folder again.
    """
    if problem := _foreign_settings(folder):
        raise UpstreamError(problem, where=str(folder / GENAI_CONFIG), next=next)
    for path in sorted(folder.glob("*.onnx")):
        try:
            problem = problem_of(path)
            if problem is None:
                onnx.checker.check_model(str(path))
        except Exception as error:  # protobuf's, onnx's or Python's
            # ONNX Runtime has operators of its own under the standard's name. It checks them when it opens the graph.
            foreign = isinstance(error, onnx.checker.ValidationError) and "No Op registered for" in str(error)
            problem = None if foreign else f"the file is not an ONNX graph: {first_line(error)}"
        if problem:
            raise UpstreamError(problem, where=str(path), next=next)


def try_out(folder: Path, runtime: str, next: str) -> None:
    """Call `check_folder`, and raise UpstreamError if the graphs do not answer a short text in a process with limits.

    runtime: "onnx" for a classifier, "onnx_text" for a generating model.
    """
    check_folder(folder, next)
    trial.check_runs(folder, runtime, next)


@contextmanager
def sound(folder: Path, runtime: str, next: str) -> Iterator[None]:
    """Call `try_out`, and raise UpstreamError if a graph does not run within the block."""
    try_out(folder, runtime, next)
    try:
        yield
    except onnxruntime.ERRORS as error:
        raise UpstreamError(f"the graph does not run: {first_line(error)}", where=str(folder), next=next) from error


def problem_of(path: Path) -> str | None:
    """Return what is unsafe about a graph, or None. Raise any exception if the file is not a graph."""
    model = onnx.load(path, load_external_data=False)
    for tensor in _get_all_tensors(model):
        if uses_external_data(tensor):
            problem = _outside(tensor, path.parent)
        else:
            problem = _size_mismatch(tensor, len(tensor.raw_data)) if tensor.HasField("raw_data") else None
        if problem:
            return f"the weights {tensor.name!r}: {problem}"
    if endless := next((node.op_type for node in _nodes(model) if node.op_type in _ENDLESS), None):
        return f"it has a {endless}, which need not end; graphs that distillctl exports have none"
    return None


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield every node of a model: in its graph, its functions, and the graphs within their nodes."""
    left: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while left:
        for node in left.pop().node:
            yield node
            for attribute in node.attribute:
                left.extend([attribute.g, *attribute.graphs])


def _foreign_settings(folder: Path) -> str | None:
    """Return the programs or other files that genai_config.json makes onnxruntime-genai load next to the graph."""
    if not (folder / GENAI_CONFIG).exists():
        return None
    try:
        left: list[Any] = [limits.read_json(folder / GENAI_CONFIG, _GENAI_BYTES)]
    except (OSError, ValueError) as error:
        return f"the file is not valid JSON: {first_line(error)}"
    while left:
        value = left.pop()
        if isinstance(value, dict):
            for key, inner in value.items():
                if key.endswith("filename") and not _is_regular_file(folder, inner):
                    return f"it reads {str(inner)[:200]!r}, which is none of the folder's files"
                if ("library" in key or key.endswith("_path") or key in _PROVIDERS) and inner:
                    return f"it sets {key[:100]}, which distillctl never does"
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    return None


def _is_regular_file(folder: Path, name: Any) -> bool:
    try:
        return name == Path(name).name and stat.S_ISREG((folder / name).lstat().st_mode)
    except (OSError, TypeError, ValueError):
        return False


def _outside(tensor: onnx.TensorProto, folder: Path) -> str | None:
    info = ExternalDataInfo(tensor)
    name = info.location
    if not name or name != Path(name).name or not name.isprintable() or "\\" in name or len(name.encode()) > 255:
        return f"it reads {name!r}, which is none of the folder's files"
    try:
        state = (folder / name).lstat()
    except FileNotFoundError:
        return f"it reads {name!r}, which is none of the folder's files"
    if not stat.S_ISREG(state.st_mode):
        return f"{name} is a link or a device, not a file"
    start = int(info.offset or 0)
    length = state.st_size - start if info.length is None else int(info.length)
    if start < 0 or length < 0 or start + length > state.st_size:
        return f"{name} is too short: its bytes {start:,} to {start + length:,} do not exist"
    return _size_mismatch(tensor, length)


_PACKED = {"INT4": 2, "UINT4": 2, "FLOAT4E2M1": 2, "INT2": 4, "UINT2": 4}
"""Number of values in a byte."""


def _size_mismatch(tensor: onnx.TensorProto, length: int) -> str | None:
    """Return the problem if a tensor's values do not match its number of bytes."""
    kind, values = onnx.TensorProto.DataType.Name(tensor.data_type), math.prod(tensor.dims)
    if kind in _PACKED:
        needed = -(-values // _PACKED[kind])
    else:
        needed = values * tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    if min(tensor.dims, default=0) < 0 or needed != length:
        return f"{length:,} bytes are stored for the shape {list(tensor.dims)} of {kind}"
    return None
