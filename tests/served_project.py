"""A small project whose teacher is the stub server, or a tiny real model behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from distillctl import recipe as recipes
from distillctl.recipe import Recipe
from tests import stub_server

LABELS = {"river": "river", "king": "king", "city": "old city"}
CONTEXT = "the old king sees a river and reads of the sea in a book but never runs far "
TEACHER = {"kind": "openai", "model": stub_server.MODEL, "api": "completions", "concurrency": 16, "max_retries": 20,
           "top_logprobs": 40, "backoff_seconds": 0.001, "timeout_seconds": 20}  # fmt: skip


def rows(folder: Path, count: int) -> None:
    """Distinct inputs with references."""
    words = stub_server.WORDS
    with (folder / "rows.jsonl").open("w") as file:
        for i in range(count):
            text = " ".join(words[(i // len(words) ** place) % len(words)] for place in range(3))
            file.write(json.dumps({"input": text, "reference": list(LABELS)[i % 3]}) + "\n")


def recipe(folder: Path, url: str, *, count: int = 60, evaluated: int = 20, **sections: Any) -> Recipe:
    """Write rows and recipe; ``sections`` replace or (dicts) extend those of the recipe."""
    if not (folder / "rows.jsonl").exists():
        rows(folder, count)
    found: dict[str, Any] = {
        "name": "served",
        "task": {"labels": LABELS},
        "data": {"source": "rows.jsonl", "eval_rows": evaluated},
        "contexts": {"full": {"template": CONTEXT + "{{ input }}"}},
        "teacher": {**TEACHER, "base_url": url},
        "student": {"kind": "from_config", "model_type": "bert", "tokenizer": {"vocabulary": 320}},
        "shard_rows": 16,
    }
    for key, section in sections.items():
        if key == "task" and section.get("kind") == "generate":
            found[key] = section
        else:
            found[key] = {**found[key], **section} if isinstance(section, dict) and key in found else section
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(found, sort_keys=False))
    return recipes.load(path)


def save_teacher(folder: Path) -> stub_server.Model:
    """A tiny Llama and its tokenizer on disk, and the same as the server speaks it."""
    from tests import tiny_text  # brings torch

    model, tokenizer = tiny_text.decoder(), tiny_text.bpe_tokenizer()
    model.save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    return stub_server.Model(model, tokenizer)
