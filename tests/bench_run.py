"""A run directory as bench finds it: a tiny Llama as teacher, a tiny graph as student, both real."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedConfig, PreTrainedTokenizerFast

from distillctl.data import view_table
from distillctl.data.answer_place import AnswerPlace
from distillctl.models.model_source import ModelSource
from distillctl.recipe import HuggingFaceTeacher, Recipe
from distillctl.run_dir.workspace import StageOutput, Workspace
from distillctl.runtimes.onnxruntime import OnnxClassifier
from distillctl.soft_labels import label_shards
from distillctl.soft_labels.shards import Shard
from distillctl.teachers.huggingface import Teacher, load

TEXT = "which desk answers a question about the price or place of small red blue dogs cats and boats today"
WORDS = TEXT.split()
LABELS = {"animal": "good dog", "pet": "good cat", "rest": "other"}
CONTEXT = "which desk answers a question about price or place ? the question : "
CUE = " . the desk :"
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = dict.fromkeys(["[PAD]", "[UNK]", *WORDS, "good", "dog", "cat", "other", "?", ":", "."])
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")


def causal_model(folder: Path, *, sliding_window: int | None = None) -> Path:
    """A random two-layer model with its tokenizer; peaked enough that labels differ between rows."""
    words = tokenizer()
    config: PreTrainedConfig
    if sliding_window is None:
        config = LlamaConfig(vocab_size=len(words), **SIZES)
    else:
        config = MistralConfig(vocab_size=len(words), sliding_window=sliding_window, **SIZES)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def teacher(folder: Path) -> Teacher:
    return load(HuggingFaceTeacher(model=str(folder), device="cpu", threads=1), ModelSource(str(folder), folder))


def graph(folder: Path, seed: int = 0) -> Path:
    """model.onnx (mean of embeddings, then a linear layer), config.json, tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    words = tokenizer()
    random = np.random.default_rng(seed)
    weights = [
        numpy_helper.from_array(random.normal(size=(len(words), 8)).astype(np.float32), "embedding"),
        numpy_helper.from_array(random.normal(size=(8, len(LABELS))).astype(np.float32), "head"),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "axes"),
    ]
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["embedded"]),
        helper.make_node("ReduceMean", ["embedded", "axes"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "head"], ["logits"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)])
    model = helper.make_model(
        helper.make_graph(nodes, "tiny", inputs, [output], weights),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(model, folder / "model.onnx")
    config = {"id2label": {str(i): name for i, name in enumerate(LABELS)}, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    words.backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


PLACE = {"full": asdict(AnswerPlace())}


def questions(count: int) -> list[str]:
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, size=3 + n % 6)) for n in range(count)]


def prepare(root: Path, *, rows: int = 12, **bench: object) -> tuple[Recipe, Workspace]:
    """collect, train, export and quantize as committed by a run on ``rows`` eval rows."""
    model = causal_model(root / "teacher")
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "task": {"labels": LABELS, "prior": "batch"},
            "data": {"source": "rows.jsonl"},
            "contexts": {"full": {"template": CONTEXT + "{{ input }}" + CUE}},
            "teacher": {"kind": "huggingface", "model": str(model)},
            "student": {"kind": "pretrained", "model": "any"},
            "bench": {"quantized_teacher": False} | bench,
        }
    )
    workspace = Workspace(root / "run")
    texts = questions(rows)
    full = [CONTEXT + text + CUE for text in texts]
    ids = [f"row{n}" for n in range(rows)]

    collect = workspace.folder("collect")
    view_table.write(collect / "views.parquet", {"eval": view_table.ViewTable(ids, texts, [None] * rows, full, texts)})
    loaded = teacher(model)
    found = [loaded.label_tokens(text, list(LABELS.values()), AnswerPlace()) for text in full]
    scores = loaded.score([one.view for one in found], [one.answers for one in found], None)
    shard = Shard("full", "eval", 0, "0" * 64, ids)
    label_shards.write(collect, shard, label_shards.SoftLabels(ids, scores.log_probs, scores.mass))
    log_prior = scores.log_probs.mean(axis=0).tolist()  # every label is some row's top label
    _commit(workspace, "collect", ["views.parquet", "shards"], {"log_prior": log_prior, "answer_place": PLACE})

    for stage, column, folder in (("export", "student", "train"), ("quantize", "deployed", "quantize")):
        logits = OnnxClassifier(graph(workspace.folder(stage))).logits(texts)
        table = {"id": ids, column: list(logits)}
        workspace.folder(folder).mkdir(exist_ok=True)
        pq.write_table(pa.table(table), workspace.folder(folder) / "eval.parquet")
        _commit(workspace, stage, ["model.onnx"], {})
    return recipe, workspace


def _commit(workspace: Workspace, stage: str, outputs: list[str], facts: dict[str, object]) -> None:
    workspace.commit(stage, recipe={}, inputs={}, outcome=StageOutput(outputs, facts), seed=0, seconds=0)
