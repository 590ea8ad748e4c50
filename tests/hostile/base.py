"""Whole projects with finished runs, made once: what the hostile files are put into."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from tests import project, tiny_text

SMALLER = {"epochs": 1, "batch_rows": 8, "checkpoint_every": 2, "patience": 99, "threads": 1}
FORMATS = ("labels", "texts")


def make(folder: Path) -> None:
    """folder/labels and folder/texts: recipe, rows, models and run/."""
    for name in FORMATS:
        (folder / name).mkdir(parents=True)
    project.make(
        folder / "labels",
        rows=48,
        data={"eval_rows": 12},
        train=SMALLER,
        quantize={"candidates": [{"kind": "dynamic_int8"}]},
        bench={"queries": 4, "max_seconds": 2, "sustained_seconds": None},
    )
    _texts(folder / "texts")
    from distillctl.cli import app

    stages = {"labels": ("collect", "train", "export", "quantize", "bench", "report"), "texts": ("collect",)}
    for name, done in stages.items():
        os.chdir(folder / name)
        for stage in done:
            try:
                app([stage, "recipe.yaml", "--run-dir", "run", "-q"])
            except SystemExit as end:
                if end.code:
                    raise RuntimeError(f"{name}: {stage} ended with {end.code}") from None
        _drop(folder / name / "run")


def _drop(run: Path) -> None:
    """What no stage reads again."""
    for path in run.rglob("*.html"):
        path.unlink()


def _texts(folder: Path) -> None:
    tiny_text.decoder().save_pretrained(folder / "teacher")
    tiny_text.bpe_tokenizer().save_pretrained(folder / "teacher")
    texts = tiny_text.texts(16)
    rows = [{"input": text, "reference": texts[number - 1]} for number, text in enumerate(texts)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe: dict[str, Any] = {
        "name": "texts",
        "task": {"kind": "generate", "stop": ["e"], "max_new_tokens": 6, "metrics": ["chrf"],
                 "soft_labels": {"kind": "top_k", "k": 5}},
        "data": {"source": "rows.jsonl", "eval_rows": 4},
        "contexts": {"full": {"template": "the old king sees a river {{ input }}"}},
        "teacher": {"model": "teacher", "batch_tokens": 60, "threads": 1},
        "student": {"kind": "pretrained", "model": "teacher"},
        "shard_rows": 4,
        "train": SMALLER,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
