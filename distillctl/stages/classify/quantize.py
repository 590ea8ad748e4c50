"""quantize: smaller graphs, scored on every held-out row; the smallest inside the recipe's gate is kept."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distillctl import console
from distillctl.data import view_table
from distillctl.errors import GateFailed
from distillctl.graphs import card
from distillctl.graphs.exporter import GRAPH
from distillctl.graphs.tracing import graph_bytes
from distillctl.quantizers import search
from distillctl.quantizers.search import Answers, Candidate, HeldOut
from distillctl.recipe import Recipe, implementation
from distillctl.runtimes.onnxruntime import OnnxClassifier
from distillctl.soft_labels import store
from distillctl.soft_labels.labels import calibrate
from distillctl.workspace import Outcome, Workspace, replacing_folder

_BESIDE = ("config.json", "tokenizer.json", "tokenizer_config.json")


def run(recipe: Recipe, workspace: Workspace) -> Outcome:
    """None inside the gate: GateFailed with every candidate's figures, and what was committed before stays."""
    collect, train = (m.facts for name in ("collect", "train") if (m := workspace.manifest(name)))
    ids, rows = _held_out(recipe, workspace, collect["log_prior"])
    exported = workspace.folder("export")
    with replacing_folder(workspace.folder("quantize")) as staged:
        for name in _BESIDE:
            shutil.copyfile(exported / name, staged / name)
        with tempfile.TemporaryDirectory(dir=staged) as scratch:
            graphs = _build(recipe, exported / GRAPH, Path(scratch))
            answers = _measure({"fp32": exported / GRAPH, **graphs}, staged, rows.texts)
            fp32 = {"bytes": graph_bytes(exported), "score": rows.score(rows.student), "p50_ms": answers["fp32"].p50_ms}
            candidates = [
                search.judge(name, path.stat().st_size, answers[name], rows, recipe.quantize.gate)
                for name, path in graphs.items()
            ]
            chosen = search.choose(candidates)
            if chosen is None:
                raise _none_inside(candidates, fp32)
            graphs[chosen.name].replace(staged / GRAPH)
        listed = [asdict(one) | {"inside": one.inside, "chosen": one is chosen} for one in candidates]
        text = json.dumps({"gate": recipe.quantize.gate.model_dump(), "fp32": fp32, "candidates": listed}, indent=2)
        (staged / "candidates.json").write_text(text + "\n", encoding="utf-8")
        _write_eval(staged / "eval.parquet", ids, answers[chosen.name])
        text = card.render(recipe, collect, train, _measured(candidates, chosen, fp32))
        (staged / "README.md").write_text(text, encoding="utf-8")
        outputs = sorted(path.name for path in staged.iterdir())
    facts = {key: getattr(chosen, key) for key in ("bytes", "kl", "same_top", "score")}
    return Outcome(outputs, {"chosen": chosen.name, **facts, "fp32": fp32, "candidates": listed})


def _held_out(recipe: Recipe, workspace: Workspace, log_prior: list[float] | None) -> tuple[list[str], HeldOut]:
    views = view_table.read(workspace.folder("collect") / "views.parquet", "eval")
    teacher = calibrate(store.read(workspace, "full", "eval").log_probs, log_prior)
    table = pq.read_table(workspace.folder("train") / "eval.parquet", columns=["id", "student"]).to_pydict()
    student = dict(zip(table["id"], table["student"], strict=True))
    truth = None
    if views.has_references:
        truth = np.array([recipe.task.names.index(str(reference)) for reference in views.reference])
    log_probs = np.array([student[row] for row in views.id], dtype=np.float32)
    return views.id, HeldOut(views.simplified, log_probs, teacher, truth)


def _build(recipe: Recipe, source: Path, folder: Path) -> dict[str, Path]:
    """Name → graph of every candidate the recipe asks for."""
    graphs = {}
    with console.progress("quantize", len(recipe.quantize.candidates)) as bar:
        for spec in recipe.quantize.candidates:
            graphs[spec.name] = folder / f"{spec.name}.onnx"
            implementation(spec)(spec, source, graphs[spec.name])
            bar.advance()
    return graphs


def _measure(graphs: dict[str, Path], folder: Path, texts: Sequence[str]) -> dict[str, Answers]:
    """Single thread, one row at a time, as the phone runs it: dynamic quantization sees its whole batch's range."""
    classifiers = {name: OnnxClassifier(folder, graph=str(path.resolve())) for name, path in graphs.items()}
    with console.progress("score", len(texts)) as bar:
        return search.measure(classifiers, texts, bar.advance)


def _none_inside(candidates: list[Candidate], fp32: dict[str, Any]) -> GateFailed:
    lines = [
        "  " + ", ".join(f"{key} {value}" for key, value in _figures(one).items()) + f": {one.why}"
        for one in candidates
    ]
    score = "" if fp32["score"] is None else f"; the fp32 student scores {fp32['score']:.4f}"
    return GateFailed(
        "\n".join([f"no candidate is inside the gate, nothing is committed{score}", *lines]),
        where="quantize.gate",
        next="add candidates (quantize.candidates) or loosen quantize.gate",
    )


def _write_eval(path: Path, ids: list[str], answers: Answers) -> None:
    deployed = pa.array(list(answers.log_probs), pa.list_(pa.float32()))
    pq.write_table(pa.table({"id": pa.array(ids, pa.string()), "deployed": deployed}), path)


# ── figures as shown ─────────────────────────────────────────────────────────────────────────────


def _measured(candidates: list[Candidate], chosen: Candidate, fp32: dict[str, Any]) -> list[dict[str, str]]:
    """The card's table; this folder's graph in bold."""
    shown = [
        _figures(one) | {"graph": f"**{one.name}** (here)" if one is chosen else one.name, "gate": one.why or "inside"}
        for one in candidates
    ]
    reference = dict.fromkeys(shown[0], "") | {
        "graph": "fp32",
        "size": f"{fp32['bytes'] / 1e6:.2f} MB",
        "score": _number(fp32["score"], ".4f"),
        "p50, one thread": f"{fp32['p50_ms']:.2f} ms",
    }
    return [reference, *shown]


def _figures(one: Candidate) -> dict[str, str]:
    return {
        "graph": one.name,
        "size": f"{one.bytes / 1e6:.2f} MB",
        "KL from fp32": _number(one.kl, ".5f"),
        "KL from teacher": _number(one.kl_teacher, ".5f"),
        "same top label": f"{one.same_top:.2%}",
        "score": _number(one.score, ".4f"),
        "p50, one thread": f"{one.p50_ms:.2f} ms",
    }


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
