"""--dry-run: what a run would do and what it would cost, worked out from recipe and data alone (no torch)."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from distillctl import pipeline, references
from distillctl.data import examples, views
from distillctl.data.views import Renderer
from distillctl.errors import Unavailable, first_line
from distillctl.recipe import Recipe
from distillctl.workspace import Workspace

CHARACTERS_PER_TOKEN = 4.0
"""English text under common 32k–150k vocabularies; used only where no tokenizer.json is at hand."""
SAMPLE = 64
"""Rows whose views are tokenized to estimate the mean."""


def plan(recipe: Recipe, workspace: Workspace, stages: list[str]) -> dict[str, Any]:
    """Rows, tokens, bytes on disk and floating-point work of the named stages; fails as the stages would."""
    states = [s for s in pipeline.status(recipe, workspace) if s.stage in stages]
    dataset = examples.load(recipe)
    source = references.teacher(recipe)
    count, counted = _token_counter(source)
    arms = {}
    for name, renderer in views.renderers(recipe, dataset.shots).items():
        rows = len(dataset.eval) + (len(dataset.train) if name == "full" else 0)
        tokens, shared = _tokens(renderer, dataset.eval[:SAMPLE], count)
        arms[name] = {"rows": rows, "tokens_per_row": round(tokens), "shared_tokens": round(shared)}
    parameters = _parameters(source)
    forward = sum(a["rows"] * (a["tokens_per_row"] - a["shared_tokens"]) + a["shared_tokens"] for a in arms.values())
    train_tokens = len(dataset.train) * arms["simplified"]["tokens_per_row"] * recipe.train.epochs
    student = _parameters(references.student(recipe))
    steps = (
        math.ceil(len(dataset.train) * (1 - recipe.train.validation) / recipe.train.batch_rows) * recipe.train.epochs
    )
    return {
        "recipe": recipe.model_dump(mode="json"),
        "run_dir": str(workspace.root),
        "stages": [{"stage": s.stage, "state": s.state, "why": list(s.why)} for s in states],
        "rows": dataset.counts,
        "arms": arms,
        "tokens": "counted with the teacher's tokenizer.json" if counted else "estimated from characters",
        "collect": {
            "teacher_parameters": parameters,
            "forward_tokens": forward,
            "flop": None if parameters is None else 2 * parameters * forward,
            "soft_label_bytes": sum(a["rows"] for a in arms.values()) * (4 * len(recipe.task.labels) + 24),
        },
        "train": {
            "student_parameters": student,
            "steps": steps,
            "tokens": train_tokens,
            "flop": None if student is None else 6 * student * train_tokens * (1 + recipe.train.control),
            "checkpoint_bytes": None if student is None else 16 * student,
        },
        "graph_bytes": None if student is None else {"fp32": 4 * student, "int8": student},
    }


def _tokens(renderer: Renderer, rows: list[examples.Example], count: Any) -> tuple[float, float]:
    """Mean tokens per view and tokens that all views share; chat views are counted by their messages' text."""
    texts = [renderer.preview(row) for row in rows]
    shared = count(texts[0][: views.shared_length(texts)])
    return sum(map(count, texts)) / len(texts), shared if shared >= 16 else 0


def _token_counter(source: references.ModelSource) -> tuple[Any, bool]:
    if source.path is not None and (file := source.path / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
        return lambda text: len(tokenizer.encode(text).ids), True
    return lambda text: len(text) / CHARACTERS_PER_TOKEN, False


def _parameters(source: references.ModelSource) -> int | None:
    """Weights in the files' headers; None when no file is at hand."""
    if source.path is None:
        return None
    try:
        if source.is_gguf:
            from gguf import GGUFReader

            return sum(int(tensor.n_elements) for tensor in GGUFReader(source.path).tensors)
        return sum(map(_safetensors_parameters, source.path.glob("*.safetensors"))) or None
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error) as error:
        raise Unavailable(f"the weights cannot be read: {first_line(error)}", where=str(source.path)) from error


def _safetensors_parameters(path: Path) -> int:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(min(length, path.stat().st_size)))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
