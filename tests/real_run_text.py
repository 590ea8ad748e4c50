"""A run that answers with text, made by the real stages: a tiny Llama that is to do without its own prompt."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import yaml

from distillctl import pipeline
from distillctl import recipe as recipes
from distillctl.recipe import Recipe
from distillctl.run_dir.workspace import Workspace
from tests import shared, tiny_text

CONTEXT = "the old king sees a river and reads of the sea in a book but never runs far "
MAX_NEW_TOKENS, ROWS = 12, 10


def recipe(root: Path, kind: str = "llama", **config: Any) -> Recipe:
    """With its teacher and its rows below ``root``. kind, config: of the model that is teacher and student."""
    tiny_text.decoder(kind, tie_word_embeddings=True, **config).save_pretrained(root / "teacher")
    tiny_text.bpe_tokenizer().save_pretrained(root / "teacher")
    pairs = zip(tiny_text.texts(40), tiny_text.texts(40, seed=1), strict=True)
    rows = [json.dumps({"input": text, "reference": f"{text} {other}"}) for text, other in pairs]
    (root / "rows.jsonl").write_text("\n".join(rows) + "\n")
    made = {
        "name": "texts",
        "task": {"kind": "generate", "stop": ["e"], "max_new_tokens": MAX_NEW_TOKENS, "metrics": ["chrf", "exact"]},
        "data": {"source": "rows.jsonl", "eval_rows": ROWS, "train_rows": 24},
        "contexts": {"full": {"template": CONTEXT + "{{ input }}"}},
        "teacher": {"model": "teacher", "threads": 1},
        "student": {"kind": "pretrained", "model": "teacher"},
        "train": {"batch_rows": 8, "threads": 1, "epochs": 2, "control": True},
        "export": {"builder": "genai"},
        "quantize": {
            "candidates": [{"kind": "weight_only", "bits": bits} for bits in (4, 8)],
            "gate": {"max_kl": 9.0, "min_same_top": 0.01, "max_score_drop": 0.9},
        },
        "bench": {"queries": 12, "processes": 1, "warmup": 1, "quantized_teacher": False},
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(made))
    return recipes.load(root / "recipe.yaml")


@functools.cache
def finished() -> tuple[Recipe, Workspace]:
    """Every stage, the report among them; made once per test run, and read only."""

    def make(root: Path) -> None:
        made = recipe(root)
        for stage in pipeline.STAGES:
            pipeline.stage(stage, made, Workspace(root / "run"))

    root = shared.folder("texts", make)
    return recipes.load(root / "recipe.yaml"), Workspace(root / "run")
