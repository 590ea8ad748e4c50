"""Tiny models that write, exported, and run directories as export finds them."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from distillctl.data import view_table
from distillctl.data.responses import Response
from distillctl.graphs import decoder_trace, genai_builder, seq2seq, sidecar_files
from distillctl.graphs.tracing import ExportedGraph
from distillctl.recipe import Recipe, Text
from distillctl.run_dir.workspace import StageOutput, Workspace
from distillctl.runtimes.onnx_generator import OnnxGenerator, open_generator
from distillctl.soft_labels import response_shards
from distillctl.soft_labels.shards import Shard
from distillctl.soft_labels.text import TextLabels
from distillctl.tasks.generate.objective import greedy_config
from tests import shared, tiny, tiny_text

BUILDERS = {"genai": None, "trace": decoder_trace, "seq2seq": seq2seq}
STOP_IDS = [tiny_text.EOS_ID, 40, 41]
"""The end token, and two that a random model comes upon now and then."""
MAX_LENGTH, MAX_NEW_TOKENS = 96, 24


@dataclass(frozen=True)
class Exported:
    """model: what was exported; source: its transformers folder; folder: graph, tokenizer and config."""

    model: PreTrainedModel
    source: Path
    folder: Path
    graph: ExportedGraph

    def open(self) -> OnnxGenerator:
        return open_generator(self.folder)


def model(kind: str, builder: str, **config: Any) -> PreTrainedModel:
    """With tied embeddings; Gemma 3 with one layer of each kind.

    Tied, random weights of Gemma 3 and Marian repeat the last token for ever: the one's table is made small, the
    other's last norm random, so that answers vary and some of them end.
    """
    make = tiny_text.seq2seq if builder == "seq2seq" else tiny_text.decoder
    more: dict[str, dict[str, Any]] = {
        "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"]},
        "marian": {"seed": 5},
    }
    made = make(kind, **{"tie_word_embeddings": True, **more.get(kind, {}), **config})
    with torch.no_grad():
        if kind == "gemma3_text":
            made.get_parameter("model.embed_tokens.weight").mul_(0.03)
        elif kind == "marian":
            norm = made.get_parameter(f"model.decoder.layers.{made.config.decoder_layers - 1}.final_layer_norm.weight")
            norm.copy_(torch.randn(norm.shape, generator=torch.Generator().manual_seed(5)))
    return made


def save(student: PreTrainedModel, folder: Path) -> None:
    """As train does."""
    student.generation_config = greedy_config(student, STOP_IDS, MAX_NEW_TOKENS)
    student.save_pretrained(folder)
    tiny_text.bpe_tokenizer(appends_eos=student.config.is_encoder_decoder).save_pretrained(folder)


@functools.cache
def exported(kind: str, builder: str) -> Exported:
    """Export the model once per test run; read only."""
    student = model(kind, builder)
    student.generation_config = greedy_config(student, STOP_IDS, MAX_NEW_TOKENS)

    def make(root: Path) -> None:
        source, folder = root / "source", root / "graph"
        folder.mkdir()
        save(student, source)
        graph = export(student, builder, source, folder)
        sidecar_files.copy(source, folder, ["input_ids", "attention_mask"], max_length=MAX_LENGTH)
        (root / "graph.json").write_text(json.dumps(asdict(graph)))

    root = shared.folder(f"{kind}-{builder}", make)
    graph = ExportedGraph(**json.loads((root / "graph.json").read_text()))
    return Exported(student, root / "source", root / "graph", graph)


def export(student: PreTrainedModel, builder: str, source: Path, folder: Path) -> ExportedGraph:
    if builder == "genai":
        return genai_builder.export(source, folder, STOP_IDS, MAX_LENGTH)
    exporter: Any = BUILDERS[builder]
    graph: ExportedGraph = exporter.export(student, folder)
    return graph


@torch.inference_mode()
def plain_answer(student: PreTrainedModel, view: list[int], limit: int = MAX_NEW_TOKENS) -> list[int]:
    """Greedy, by whole forward passes without any cache."""
    answer: list[int] = []
    while len(answer) < limit and not (answer and answer[-1] in STOP_IDS):
        if student.config.is_encoder_decoder:
            decoder_ids = torch.tensor([[student.config.decoder_start_token_id, *answer]])
            logits = student(input_ids=torch.tensor([view]), decoder_input_ids=decoder_ids, use_cache=False).logits
        else:
            logits = student(input_ids=torch.tensor([[*view, *answer]]), use_cache=False).logits
        answer.append(int(logits[0, -1].argmax()))
    return answer


def recipe(**sections: Any) -> Recipe:
    base = {
        "name": "tiny",
        "task": {"kind": "generate", "max_new_tokens": MAX_NEW_TOKENS, "soft_labels": {"kind": "text"}},
        "data": {"source": "rows.jsonl"},
        "contexts": {"full": {"template": "Go on: {{ input }}"}},
        "teacher": {"model": "teacher"},
        "student": {"kind": "from_config", "model_type": "llama", "tokenizer": "tokenizer"},
        "train": {"loss": [{"kind": "cross_entropy"}]},
        "export": {"prompts": 10},
    }
    return Recipe.model_validate(base | sections)


def workspace(root: Path, student: PreTrainedModel, rows: int = 12) -> Workspace:
    """A run directory as export finds it: collect and train committed, both splits of the same rows."""
    space, text, ids = Workspace(root), tiny_text.texts(rows), [f"row-{index}" for index in range(rows)]
    folder = space.folder("collect")
    views = view_table.ViewTable(ids, text, [None] * rows, text, text)
    view_table.write(folder / "views.parquet", {"train": views, "eval": views})
    said = list(np.random.default_rng(0).permutation(tiny_text.texts(rows, seed=1)))
    tokenizer = tiny_text.bpe_tokenizer()
    answers = [Response(tokenizer(t).input_ids, str(t), False, {}) for t in said]
    for split in ("train", "eval"):
        shard = Shard("full", split, 0, "0" * 16, ids)
        (folder / shard.file).parent.mkdir(parents=True, exist_ok=True)
        response_shards.write(folder, shard, [(i, 0, a) for i, a in zip(ids, answers, strict=True)], TextLabels(Text()))
    facts = {
        "counts": {"train": 100, "eval": rows},
        "context_tokens": {"teacher": 50, "student": 8},
        "teacher": {"reference": "teacher"},
    }
    tiny.commit(space, "collect", StageOutput(["views.parquet", "shards"], facts))
    save(student, space.folder("train") / "model")
    facts = {
        "kl": 0.1,
        "agreement": 0.9,
        "max_length": MAX_LENGTH,
        "stop_ids": STOP_IDS,
        "encoder_decoder": student.config.is_encoder_decoder,
        "vocabulary": None,
        "shared_tokenizer": True,
    }
    tiny.commit(space, "train", StageOutput(["model"], facts))
    return space
