"""A run that answers with text, made by the real stages: a tiny Llama that is to do without its own prompt."""

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
from distillctl.recipe import Recipe
from distillctl.runtimes.onnx_generator import open_generator
from distillctl.workspace import Outcome, Workspace
from tests import tiny_text

CONTEXT = "the old king sees a river and reads of the sea in a book but never runs far "
MAX_NEW_TOKENS, ROWS = 12, 10


def recipe(root: Path, **sections: Any) -> Recipe:
    """With its teacher and its rows below ``root``."""
    tiny_text.decoder(tie_word_embeddings=True).save_pretrained(root / "teacher")
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
        "bench": {"queries": 12, "processes": 1, "warmup": 1},
        **sections,
    }
    (root / "recipe.yaml").write_text(yaml.safe_dump(made))
    return recipes.load(root / "recipe.yaml")


def run(made: Recipe, workspace: Workspace, until: str) -> None:
    """All stages up to ``until``."""
    for stage in pipeline.STAGES:
        if stage == "quantize":
            _quantize(made, workspace)
        else:
            pipeline.stage(stage, made, workspace)
        if stage == until:
            return


def _quantize(made: Recipe, workspace: Workspace) -> None:
    q = workspace.folder("quantize")
    shutil.copytree(workspace.folder("export"), q)
    (q / "manifest.json").unlink()
    v = view_table.read(workspace.folder("collect") / "views.parquet", "eval")
    g = open_generator(q)
    ids = [g.generate(g.encode(t), made.generate.max_new_tokens) for t in v.simplified]
    tr = pq.read_table(workspace.folder("train") / "eval.parquet").to_pydict()
    assert ids == tr["student_ids"]
    pq.write_table(
        pa.table({"id": v.id, "deployed": tr["student"], "deployed_ids": ids}
        | {k: tr[k] for k in ("kl", "nll", "same_top")}), q / "eval.parquet"
    )  # fmt: skip
    cand = lambda n, **k: {
        "name": n, "bytes": 123456, "kl": 0.01, "kl_teacher": 0.2, "same_top": 0.99, "score": 0.5, "p50_ms": 3.0,
        "inside": True, "why": None, "chosen": False,
    } | k  # fmt: skip
    facts = {
        "chosen": "int4_rtn_block32", "bytes": 123456, "kl": 0.01, "same_top": 0.99, "score": 0.5,
        "fp32": {"bytes": 333333, "score": 0.5, "p50_ms": 4.0},
        "candidates": [cand("int4_rtn_block32", chosen=True), cand("int8_rtn_block32")],
    }  # fmt: skip
    st = pipeline.STAGES["quantize"]
    workspace.commit(
        "quantize", recipe=pipeline.part(made, st), inputs=pipeline.inputs(made, workspace, st),
        outcome=Outcome(sorted(p.name for p in q.iterdir()), facts), seed=0, seconds=1,
    )  # fmt: skip
