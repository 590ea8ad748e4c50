"""Tiny models, tokenizers and run directories, built in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy.special import log_softmax
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

from distillctl.data import view_table
from distillctl.recipe import Recipe
from distillctl.run_dir.workspace import StageOutput, Workspace
from distillctl.soft_labels import label_shards
from distillctl.soft_labels.shards import Shard
from tests import shared

LABELS = ["number", "person", "place"]
TEXT = "who wrote where is how many when did the a river king book city live old long far of in"
WORDS = TEXT.split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
VOCABULARY = len(SPECIAL) + len(WORDS)

# What each architecture calls its sizes.
_CONFIGS: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "llama": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    | {"num_key_value_heads": 1},
    "gemma3_text": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    | {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 4},
}


def tokenizer() -> PreTrainedTokenizerFast:
    """One id per word, in BERT's frame."""
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    )


def model(kind: str = "bert", seed: int = 0) -> PreTrainedModel:
    """A random classifier with weights wide enough for its labels to differ from row to row."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        kind,
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        initializer_range=0.3,
        pad_token_id=0,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
        **_CONFIGS[kind],
    )
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config).eval()
    return model


def exported(kind: str = "bert", fuse: bool = True) -> Path:
    """Return a folder with the model's graph, config and tokenizer; made once per test run, and read only."""

    def make(folder: Path) -> None:
        from distillctl.graphs import exporter

        student = model(kind)
        exporter.export(student, folder, fuse=fuse)
        student.config.save_pretrained(folder)
        tokenizer().save_pretrained(folder)

    return shared.folder(f"labels-{kind}-{'fused' if fuse else 'standard'}", make)


def texts(count: int, seed: int = 0) -> list[str]:
    """Distinct questions of 1 to 16 words."""
    generator = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(generator.choice(WORDS, generator.integers(1, 17)))] = None
    return list(found)


def recipe(**sections: Any) -> Recipe:
    base: dict[str, Any] = {
        "name": "tiny",
        "task": {"labels": LABELS},
        "data": {"source": "rows.jsonl"},
        "contexts": {"full": {"template": "Say what is asked for: {{ input }}"}},
        "teacher": {"model": "teacher"},
        "student": {"kind": "from_config", "model_type": "bert", "tokenizer": "tokenizer"},
    }
    return Recipe.model_validate(base | sections)


@torch.inference_mode()
def log_probs(student: PreTrainedModel, rows: list[str]) -> np.ndarray:
    """Normalised label log-probabilities of the PyTorch model, float32 [N, K], one row at a time."""
    ids = tokenizer()(rows).input_ids
    logits = [student(input_ids=torch.tensor([row])).logits.numpy() for row in ids]
    return np.asarray(log_softmax(np.concatenate(logits), axis=-1))


def workspace(root: Path, student: PreTrainedModel | None = None, rows: int = 40, references: bool = True) -> Workspace:
    """A run directory as export finds it: collect and train committed, the eval split alone, a teacher that is near the
    student and right on about four rows of five."""
    student = model() if student is None else student
    space, text, ids = Workspace(root), texts(rows), [f"row-{index}" for index in range(rows)]
    predicted = log_probs(student, text)
    generator = np.random.default_rng(1)
    teacher = log_softmax(predicted + generator.normal(0, 0.5, predicted.shape), axis=-1).astype(np.float32)
    truth = np.where(generator.random(rows) < 0.8, predicted.argmax(-1), generator.integers(0, len(LABELS), rows))
    known = [LABELS[index] if references else None for index in truth]
    _commit_collect(space, view_table.ViewTable(ids, text, known, text, text), teacher)
    folder = space.folder("train")
    student.save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    column = pa.array(list(predicted), pa.list_(pa.float32()))
    table = pa.table({"id": ids, "student": column, "control": pa.nulls(rows, column.type)})
    pq.write_table(table, folder / "eval.parquet")
    commit(space, "train", StageOutput(["model", "eval.parquet"], {"kl": 0.1, "agreement": 0.9, "max_length": 64}))
    return space


def _commit_collect(space: Workspace, views: view_table.ViewTable, teacher: np.ndarray) -> None:
    folder = space.folder("collect")
    view_table.write(folder / "views.parquet", {"train": views, "eval": views})
    labels = label_shards.SoftLabels(views.id, teacher - 1, np.full(len(teacher), np.exp(-1), np.float32))
    label_shards.write(folder, Shard("full", "eval", 0, "0" * 16, views.id), labels)
    facts = {
        "metric": "accuracy" if views.has_references else "agreement",
        "labels": LABELS,
        "log_prior": None,
        "counts": {"train": 100, "eval": len(teacher)},
        "context_tokens": {"teacher": 50, "student": 8},
        "teacher": {"reference": "teacher"},
    }
    commit(space, "collect", StageOutput(["views.parquet", "shards"], facts))


def commit(space: Workspace, stage: str, outcome: StageOutput) -> None:
    """As the pipeline does after a stage has run."""
    space.commit(stage, recipe={}, inputs={}, outcome=outcome, seed=0, seconds=0.0)
