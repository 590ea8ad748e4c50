"""Whole projects with finished runs: what the hostile files are put into.

collect and train are real; what comes after is made by hand (a graph of one product, figures of nothing), as real
stages would commit it.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import yaml

from tests.fixtures import manifests, project, report_run, tiny_generate

SMALL = {"epochs": 1, "batch_rows": 8, "checkpoint_every": 2, "patience": 99, "threads": 1}
ROWS = 24
"""With the ids row-0 …, of which hostile tables know."""
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


def make(folder: Path) -> None:
    """folder/labels with all stages up to the report's, and folder/texts with collect. The checkpoints stay, as
    if train had been killed before it removed them."""
    from distillctl.run_dir.workspace import Workspace

    with mock.patch.object(Workspace, "_discard"):
        _make(folder)


def _make(folder: Path) -> None:
    for name in ("labels", "texts"):
        (folder / name).mkdir(parents=True)
    gate = {"max_kl": 99, "min_same_top": 0, "max_score_drop": 1}
    quantizer = {"candidates": [{"kind": "dynamic_int8"}], "gate": gate}
    data = {"eval_rows": 8, "id": "id"}
    project.make(folder / "labels", rows=ROWS, data=data, train=SMALL, quantize=quantizer, shard_rows=ROWS)
    rows = [json.loads(line) for line in (folder / "labels" / "rows.jsonl").read_text().splitlines()]
    (folder / "labels" / "rows.jsonl").write_text(
        "".join(json.dumps({**row, "id": f"row-{number}"}) + "\n" for number, row in enumerate(rows))
    )
    _texts(folder / "texts")
    for name, stages in {"labels": ("collect", "train"), "texts": ("collect",)}.items():
        os.chdir(folder / name)
        for stage in stages:
            _run(stage)
    os.chdir(folder / "labels")
    _finish()


def _run(stage: str) -> None:
    from distillctl.cli import app

    try:
        app([stage, "recipe.yaml", "--run-dir", "run", "-q"])
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{stage} ended with {end.code}") from None


def _texts(folder: Path) -> None:
    tiny_generate.decoder().save_pretrained(folder / "teacher")
    tiny_generate.bpe_tokenizer().save_pretrained(folder / "teacher")
    texts = tiny_generate.texts(16)
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
        "train": SMALL,
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


# ── the stages after train ───────────────────────────────────────────────────────────────────────


def _finish() -> None:
    from distillctl.graphs import sidecar_files
    from distillctl.run_dir.workspace import Workspace
    from tests.hostile import make_bundles

    space = Workspace(Path("run"))
    ids = pq.read_table("run/train/eval.parquet")["id"].to_pylist()
    for stage in ("export", "quantize"):
        space.folder(stage).mkdir()
        (space.folder(stage) / "model.onnx").write_bytes(make_bundles.graph())
        sidecar_files.copy(Path("run/train/model"), space.folder(stage), INPUTS)
    measured = {"bytes": 1000, "max_logit_difference": 0.0, "same_top": 1.0, "rows": 8, "opset": 18, "inputs": INPUTS}
    report_run.commit(space, "export", ["model.onnx", "config.json", "tokenizer.json"], measured)
    report_run.table(space.folder("quantize") / "eval.parquet", id=ids, deployed=[[-1.0, -1.1, -1.2]] * len(ids))
    candidate = report_run.candidate("dynamic_int8", 1000, 0.01, 3.0) | {"chosen": True}
    chosen = {"chosen": "dynamic_int8", "bytes": 1000, "kl": 0.01, "same_top": 1.0, "score": 0.5, "metric": "accuracy"}
    chosen |= {"fp32": {"bytes": 1000, "score": 0.5, "p50_ms": 3.0}, "candidates": [candidate], "not_tried": []}
    report_run.commit(space, "quantize", ["model.onnx", "config.json", "tokenizer.json", "eval.parquet"], chosen)
    report_run.bench(space, np.random.default_rng(0))
    for stage in ("export", "quantize", "bench"):
        freshen(Path(), stage)
    shutil.rmtree("run/report", ignore_errors=True)


def freshen(work: Path, stage: str) -> None:
    """The stage's manifest is made one of the recipe and the stages before as they are now."""
    from distillctl import pipeline, recipe
    from distillctl.run_dir.workspace import Workspace

    loaded, space = recipe.load(work / "recipe.yaml"), Workspace(work / "run")
    path = space.folder(stage) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["recipe"] = pipeline.part(loaded, pipeline.STAGES[stage])
    manifest["inputs"] = pipeline.inputs(loaded, space, pipeline.STAGES[stage])
    manifests.write(path, manifest)
