"""A run that answers with text, made by the real stages: a tiny Llama that learns to do without its own prompt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from distillctl import pipeline
from distillctl import recipe as recipes
from distillctl.data import view_table
from distillctl.data.responses import clean
from distillctl.recipe import Recipe
from distillctl.runtimes.onnx_generator import open_generator
from distillctl.workspace import Outcome, Workspace
from tests import tiny, tiny_text

CONTEXT = "the old king sees a river and reads of the sea in a book but never runs far "
MAX_NEW_TOKENS = 12
ROWS = 10


def recipe(root: Path, **sections: Any) -> Recipe:
    """With its teacher and its rows below ``root``."""
    tiny_text.decoder(tie_word_embeddings=True).save_pretrained(root / "teacher")
    tiny_text.bpe_tokenizer().save_pretrained(root / "teacher")
    rows = [{"input": text, "reference": other} for text, other in zip(tiny_text.texts(40), tiny_text.texts(40, seed=1), strict=True)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = {
        "name": "texts",
        "task": {"kind": "generate", "stop": ["e"], "max_new_tokens": MAX_NEW_TOKENS, "metrics": ["chrf", "exact"]},
        "data": {"source": "rows.jsonl", "reference": "reference", "eval_rows": ROWS, "train_rows": 24},
        "contexts": {"full": {"template": CONTEXT + "{{ input }}"}},
        "teacher": {"model": "teacher", "threads": 1},
        "student": {"kind": "pretrained", "model": "teacher"},
        "train": {"batch_rows": 8, "threads": 1, "epochs": 2, "control": True},
        "export": {"builder": "trace"},
        "bench": {"queries": 6, "processes": 2, "warmup": 1},
        **sections,
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(made))
    return recipes.load(root / "recipe.yaml")


def run(made: Recipe, workspace: Workspace, until: str = "report") -> None:
    for stage in pipeline.STAGES:
        pipeline.stage(stage, made, workspace)
        if stage == until:
            return
