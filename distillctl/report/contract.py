"""The report's facts: what `report --format json` prints, drawn from manifests and from every arm's prediction per row.

Teacher arms come from collect's manifest as they stand there; what needs paired rows (student, deployed, control,
recovered) is computed from the eval.parquet files that the manifests vouch for.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from distillctl.data import view_table
from distillctl.data.view_table import ViewTable
from distillctl.metrics.scores import row_scores
from distillctl.metrics.statistics import difference_interval, mean_interval, recovered_interval
from distillctl.recipe import Recipe
from distillctl.report import numbers
from distillctl.soft_labels import store
from distillctl.soft_labels.labels import calibrate
from distillctl.workspace import Manifest, Workspace

UPSTREAM = ("collect", "train", "export", "quantize", "bench")


@dataclass(frozen=True)
class Series:
    """What the page draws beside the facts."""

    context: str
    """The text that all the teacher's views share."""
    training: list[dict[str, Any]]
    """The lines of train/metrics.jsonl."""
    latencies: dict[str, np.ndarray]
    """Model → milliseconds of every timed query."""


def build(recipe: Recipe, workspace: Workspace) -> dict[str, Any]:
    """The contract of the design's section 3, and what the page shows besides. Every stage before must be committed."""
    manifests = _manifests(workspace)
    collect, train, export, quantize, bench = (manifests[stage].facts for stage in UPSTREAM)
    views = view_table.read(workspace.folder("collect") / "views.parquet", "eval")
    log_probs = _predictions(workspace, views.id, collect["log_prior"])
    right = {
        arm: row_scores(found, recipe.task.names, views.reference, log_probs["ceiling"])[0]
        for arm, found in log_probs.items()
    }
    own = [arm for arm in ("deployed", "student", "control") if arm in right]
    arms = collect["arms"] | {arm: _score(right[arm], collect["metric"], recipe.seed) for arm in own}
    gaps = {arm: asdict(difference_interval(right["ceiling"], right[arm], recipe.seed)) for arm in own}
    facts = {
        "name": recipe.name,
        "title": recipe.report.title or recipe.name,
        "metric": collect["metric"],
        "labels": recipe.task.names,
        "counts": collect["counts"],
        "arms": {arm: arms[arm] for arm in sorted(arms, key=_place)},
        "gaps": collect["gaps"] | gaps,
        "recovered": {arm: _recovered(right, arm, recipe.seed) for arm in own},
        "models": bench["models"],
        "ratios": bench["ratios"],
        "machine": bench["machine"],
        "threads": bench["threads"],
        "context_tokens": collect["context_tokens"],
        "shared_tokens": collect["shared_tokens"],
        "artifact": str(workspace.folder("quantize") / "model.onnx"),
        "inputs": export["inputs"],
        "teacher": collect["teacher"],
        "student": {key: value for key, value in train.items() if key != "control"},
        "control": train["control"],
        "soft_labels_bought": _bought(right, recipe.seed),
        "parity": {key: export[key] for key in ("max_logit_difference", "same_top", "rows")},
        "fp32": quantize["fp32"],
        "candidates": quantize["candidates"],
        "gate": recipe.quantize.gate.model_dump(),
        "verdicts": _verdicts(log_probs, right),
        "disagreements": _disagreements(recipe, views, log_probs),
        "sample": views.simplified[0],
        "provenance": {
            stage: {"fingerprint": m.fingerprint, "created": m.created, "seconds": m.seconds}
            for stage, m in manifests.items()
        },
        "versions": manifests["bench"].versions,
    }
    return facts | {"headline": headline(facts)}


def series(workspace: Workspace) -> Series:
    """The curves, samples and text that the page draws; the files are those the manifests name."""
    collect, bench = (_manifests(workspace)[stage].facts for stage in ("collect", "bench"))
    lines = (workspace.folder("train") / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    samples = workspace.folder("bench") / "samples"
    return Series(
        context=collect["context_text"],
        training=[json.loads(line) for line in lines],
        latencies={
            model: pq.read_table(samples / f"{model}.parquet", columns=["milliseconds"])["milliseconds"].to_numpy()
            for model in bench["models"]
        },
    )


def headline(facts: dict[str, Any]) -> str:
    """The whole run in one sentence, good or bad."""
    tokens, model = facts["context_tokens"]["teacher"], numbers.size(facts["models"]["deployed"]["bytes"])
    recovered, ratio = facts["recovered"]["deployed"], facts["ratios"]["teacher"]
    if recovered is None:
        kept = "the prompt made no difference that could be measured"
    elif recovered["value"] <= 0:
        kept = "nothing of what the context did survives"
    else:
        share = numbers.percent(recovered["value"], 0)
        kept = f"{share} of what the context did survives"
        if recovered["value"] > 1:
            kept = f"all of what the context did survives ({share})"
    speed = f"{numbers.times(ratio)} faster" if ratio >= 1 else f"{numbers.times(1 / ratio)} slower"
    return f"A prompt of {tokens:,} tokens now lives in a {model} model: {kept}, {speed}"


# ── rows ─────────────────────────────────────────────────────────────────────────────────────────


def _manifests(workspace: Workspace) -> dict[str, Manifest]:
    """Present and verified before the stage runs."""
    found = {stage: workspace.manifest(stage) for stage in UPSTREAM}
    return {stage: manifest for stage, manifest in found.items() if manifest is not None}


def _predictions(workspace: Workspace, ids: list[str], log_prior: list[float] | None) -> dict[str, np.ndarray]:
    """Arm → normalised label log-probabilities [N, K] of the held-out rows, in the order of ``ids``."""
    found = {
        arm: calibrate(store.read(workspace, context, "eval").log_probs, log_prior)
        for arm, context in (("ceiling", "full"), ("floor", "simplified"))
    }
    for stage in ("train", "quantize"):
        table = pq.read_table(workspace.folder(stage) / "eval.parquet").to_pydict()
        for arm in {"student", "control", "deployed"} & table.keys():
            if None not in table[arm]:
                row = dict(zip(table["id"], table[arm], strict=True))
                found[arm] = np.array([row[id] for id in ids], dtype=np.float32)
    return found


def _place(arm: str) -> int:
    """From the ceiling down, the recipe's own arms before the floor."""
    order = ("ceiling", "deployed", "student", "control")
    return order.index(arm) if arm in order else len(order) + (arm == "floor")


def _score(right: np.ndarray, metric: str, seed: int) -> dict[str, Any]:
    found = mean_interval(right, seed)
    return {"score": found.value, "low": found.low, "high": found.high, "n": len(right), "metric": metric}


def _recovered(right: dict[str, np.ndarray], arm: str, seed: int) -> dict[str, float] | None:
    found = recovered_interval(right[arm], right["floor"], right["ceiling"], seed)
    return None if found is None else asdict(found)


def _bought(right: dict[str, np.ndarray], seed: int) -> dict[str, float] | None:
    """Student − control: what the teacher's probabilities gave beyond its bare answers."""
    return asdict(difference_interval(right["student"], right["control"], seed)) if "control" in right else None


# ── teacher against deployed ─────────────────────────────────────────────────────────────────────


def _verdicts(log_probs: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> dict[str, int]:
    """How often the top labels of ceiling and deployed differ, and which of the two was right when one was."""
    ceiling, deployed = right["ceiling"] > 0, right["deployed"] > 0
    return {
        "rows": len(ceiling),
        "different": int((log_probs["ceiling"].argmax(-1) != log_probs["deployed"].argmax(-1)).sum()),
        "only_teacher_right": int((ceiling & ~deployed).sum()),
        "only_deployed_right": int((deployed & ~ceiling).sum()),
    }


def _disagreements(recipe: Recipe, views: ViewTable, log_probs: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """The rows where the two distributions lie furthest apart in total variation, ½ Σ|P − Q|, the furthest first."""
    teacher, deployed = (np.exp(log_probs[arm]) for arm in ("ceiling", "deployed"))
    distance = np.abs(teacher - deployed).sum(axis=1) / 2
    furthest = np.argsort(-distance, kind="stable")[: recipe.report.disagreements]
    return [
        {
            "input": views.input[row],
            "reference": views.reference[row],
            "distance": float(distance[row]),
            "teacher": _top(recipe.task.names, teacher[row]),
            "deployed": _top(recipe.task.names, deployed[row]),
        }
        for row in furthest.tolist()
    ]


def _top(names: list[str], probabilities: np.ndarray) -> dict[str, Any]:
    return {"label": names[int(probabilities.argmax())], "probability": float(probabilities.max())}
