"""Run directories as bundle finds them: a tiny graph around any tokenizer, made without training."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from transformers import PreTrainedTokenizerFast

from distillctl.bundle import contents
from distillctl.bundle.manifest import NAME, BundleManifest
from distillctl.data import view_table
from distillctl.graphs import sidecar_files
from distillctl.recipe import Recipe
from distillctl.run_dir.workspace import StageOutput, Workspace
from distillctl.stages import bundle
from tests import tiny, tokenizers_of_kind

LABELS = tiny.LABELS
MAX_LENGTH = 12
ROWS = 20
INPUTS = ("input_ids", "attention_mask", "token_type_ids")

_folders = tempfile.TemporaryDirectory()


def recipe(**sections: Any) -> Recipe:
    return tiny.recipe(name="tiny", **sections)


def word_piece() -> PreTrainedTokenizerFast:
    return tokenizers_of_kind.word_piece()


def texts(count: int = ROWS) -> list[str]:
    """Sentences short enough for every tokenizer here."""
    return [" ".join(text.split()[:3]) for text in tokenizers_of_kind.texts(count)]


def graph(folder: Path, tokens: int, seed: int = 0) -> None:
    """model.onnx: the mean of its tokens' embeddings, and what a mask and types add to it; then a linear layer."""
    random = np.random.default_rng(seed)
    weights = [
        numpy_helper.from_array(random.normal(size=(tokens, 8)).astype(np.float32), "embedding"),
        numpy_helper.from_array(random.normal(size=(8, len(LABELS))).astype(np.float32), "head"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "axes"),
        numpy_helper.from_array(np.array([2], dtype=np.int64), "last"),
    ]
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["embedded"]),
        helper.make_node("Sub", ["attention_mask", "token_type_ids"], ["counted"]),
        helper.make_node("Cast", ["counted"], ["factor"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["factor", "last"], ["column"]),
        helper.make_node("Mul", ["embedded", "column"], ["masked"]),
        helper.make_node("ReduceMean", ["masked", "axes"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "head"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in INPUTS]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)])
    made = helper.make_graph(nodes, "tiny", inputs, [output], weights)
    onnx.save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "model.onnx"
    )


def workspace(
    root: Path,
    make: Callable[[], PreTrainedTokenizerFast] = word_piece,
    rows: Sequence[str] | None = None,
    simplified: Sequence[str] | None = None,
) -> Workspace:
    """collect to quantize as committed; ``rows`` are the held-out inputs, ``simplified`` their views."""
    space, rows = Workspace(root), list(rows or texts())
    ids = [f"row-{index}" for index in range(len(rows))]
    table = view_table.ViewTable(ids, rows, [None] * len(rows), rows, list(simplified or rows))
    view_table.write(space.folder("collect") / "views.parquet", {"eval": table})
    facts = {
        "counts": {"train": 100, "eval": len(rows)},
        "context_tokens": {"teacher": 50, "student": 8},
        "teacher": {"reference": "teacher"},
    }
    tiny.commit(space, "collect", StageOutput(["views.parquet"], facts))
    tiny.commit(space, "train", StageOutput([], {"kl": 0.1, "agreement": 0.9, "max_length": MAX_LENGTH}))
    tiny.commit(space, "export", StageOutput([], {"inputs": list(INPUTS)}))
    deployed, tokenizer = space.folder("quantize"), make()
    deployed.mkdir()
    tokenizer.save_pretrained(root / "tokenizer")
    (root / "tokenizer" / "config.json").write_text(
        json.dumps({"id2label": dict(enumerate(LABELS)), "pad_token_id": tokenizer.pad_token_id})
    )
    sidecar_files.copy(root / "tokenizer", deployed, INPUTS)
    graph(deployed, len(tokenizer))
    for name in ("README.md", "candidates.json", "eval.parquet"):
        (deployed / name).write_text("quantize's own")
    outputs = sorted(path.name for path in deployed.iterdir())
    quantized = {"chosen": "small", "bytes": 1000, "kl": 0.01, "same_top": 0.98, "score": 0.75, "metric": "accuracy"}
    tiny.commit(space, "quantize", StageOutput(outputs, quantized | {"fp32": {"bytes": 4000, "score": 0.76}}))
    return space


@functools.cache
def finished() -> Workspace:
    """With a bundle, the text-in graph in it; made once per test run, and read only."""
    space = workspace(Path(_folders.name) / "run")
    tiny.commit(space, "bundle", bundle.run(recipe(bundle={"text_in": True}), space))
    return space


def reseal(folder: Path, **changes: Any) -> None:
    """bundle.json as it would be, had the folder been made as it is now."""
    manifest = BundleManifest.model_validate_json((folder / NAME).read_bytes())
    changed = manifest.model_copy(update={"files": contents.files(folder), **changes}).with_checksum()
    (folder / NAME).write_bytes(changed.dumps())
