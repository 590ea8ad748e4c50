"""The report's facts: what `report --format json` prints, drawn from manifests and from every arm's answer per row.

Teacher arms come from collect's manifest as they stand there; what needs paired rows (student, deployed, control,
recovered) is computed from the eval.parquet files that the manifests vouch for. What only one task has to say is in
`labels` and `texts`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distillctl.data import parquet, view_table
from distillctl.errors import UpstreamError, first_line
from distillctl.metrics import comparison
from distillctl.metrics.statistics import difference_interval, recovered_interval
from distillctl.recipe import Generate, Recipe
from distillctl.report import devices, labels, numbers, speed, texts, use
from distillctl.training import metrics_log
from distillctl.workspace import Manifest, Workspace

UPSTREAM = ("collect", "train", "export", "quantize", "bench")
OWN = ("deployed", "student", "control")
"""The arms that are not the teacher's."""


@dataclass(frozen=True)
class Series:
    """What the page draws beside the facts."""

    context: str
    """The text that all the teacher's views share."""
    training: list[dict[str, Any]]
    """The lines of train/metrics.jsonl."""
    latencies: dict[str, np.ndarray]
    """Model → milliseconds of every timed query."""
    run_dir: Path
    """Where the deployed graph's files are read."""


def build(recipe: Recipe, workspace: Workspace) -> dict[str, Any]:
    """The contract of the design's section 3, and what the page shows besides. Every stage before must be committed.

    ``artifact`` is a path from the run directory, which may be moved; commands print it with the run directory's own.
    """
    manifests = _manifests(workspace)
    collect, train, quantize, bench = (manifests[stage].facts for stage in ("collect", "train", "quantize", "bench"))
    views = view_table.read(workspace.folder("collect") / "views.parquet", "eval")
    task = texts if isinstance(recipe.task, Generate) else labels
    # scores: arm → one per held-out row, float64 [N]; of this task alone: what the contract has besides
    scores, of_this_task = task.compare(recipe, workspace, views, {name: m.facts for name, m in manifests.items()})
    own = [arm for arm in OWN if arm in scores]
    arms, gaps = comparison.compare({arm: scores[arm] for arm in ("ceiling", *own)}, collect["metric"], recipe.seed)
    arms = {arm: arms[arm] for arm in own} | collect["arms"]
    facts = {
        "name": recipe.name,
        "title": recipe.report.title or recipe.name,
        "task": recipe.task.kind,
        "cautions": _cautions(manifests),
        "metric": collect["metric"],
        "counts": collect["counts"],
        "arms": {arm: arms[arm] for arm in sorted(arms, key=_place)},
        "gaps": collect["gaps"] | {arm: gaps[arm] for arm in own},
        "recovered": {arm: _recovered(scores, arm, recipe.seed) for arm in own},
        "models": bench["models"],
        "ratios": bench["ratios"],
        "headline_peer": bench.get("headline_peer"),
        "devices": devices.measured(workspace),
        "machine": bench["machine"],
        "threads": bench["threads"],
        **{key: bench.get(key) for key in ("profile", "loadgen", "sustained", "memory_bytes_per_second")},
        "timed_agreement": bench["agreement"],
        "context_tokens": collect["context_tokens"],
        "shared_tokens": collect["shared_tokens"],
        "teacher": collect["teacher"],
        "student": {key: value for key, value in train.items() if key != "control"},
        "control": train["control"],
        "soft_labels_bought": _bought(scores, recipe.seed),
        "fp32": quantize["fp32"],
        "candidates": quantize["candidates"],
        "not_tried": quantize["not_tried"],
        "gate": recipe.quantize.gate.model_dump(),
        "objective": recipe.quantize.objective,
        **use.facts(recipe, workspace, views, train),
        "provenance": {
            stage: {"fingerprint": m.fingerprint, "created": m.created, "seconds": m.seconds}
            for stage, m in manifests.items()
        },
        "versions": manifests["bench"].versions,
        **of_this_task,
    }
    return facts | {"headline": headline(facts)}


def series(workspace: Workspace) -> Series:
    """The curves, samples and text that the page draws; the files are those the manifests name."""
    collect, bench = (_manifests(workspace)[stage].facts for stage in ("collect", "bench"))
    lines = (workspace.folder("train") / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    samples = workspace.folder("bench") / "samples"
    return Series(
        context=collect["context_text"],
        training=[line for text in lines if (line := metrics_log.parsed(text)) is not None],
        latencies={model: _milliseconds(samples / f"{model}.parquet") for model in bench["models"]},
        run_dir=workspace.root,
    )


def _milliseconds(path: Path) -> np.ndarray:
    try:
        found = parquet.read(path, ["milliseconds"])["milliseconds"].to_numpy()
        if not len(found) or not np.isfinite(found).all() or not (found > 0).all():
            raise ValueError("it holds no times")
        return found
    except (*parquet.ERRORS, TypeError) as error:
        raise UpstreamError(f"damaged: {first_line(error)}", where=str(path), next="distillctl bench RECIPE") from None


def headline(facts: dict[str, Any]) -> str:
    """The whole run in one sentence, good or bad."""
    tokens, model = facts["context_tokens"]["teacher"], numbers.size(facts["models"]["deployed"]["bytes"])
    recovered = facts["recovered"]["deployed"]
    if recovered is None:
        kept = "the prompt made no difference that could be measured"
    elif recovered["value"] <= 0:
        kept = "nothing of what the context did survives"
    else:
        share = numbers.percent(recovered["value"], 0)
        kept = f"{share} of what the context did survives"
        if recovered["value"] > 1:
            kept = f"all of what the context did survives ({share})"
    return f"A prompt of {tokens:,} tokens now lives in a {model} model: {kept}, {speed.words(facts)}"


def _manifests(workspace: Workspace) -> dict[str, Manifest]:
    """Present and verified before the stage runs."""
    found = {stage: workspace.manifest(stage) for stage in UPSTREAM}
    return {stage: manifest for stage, manifest in found.items() if manifest is not None}


def _cautions(manifests: dict[str, Manifest]) -> list[dict[str, str]]:
    """Every stage's doubts, in the stages' order."""
    return [{"stage": name, **one} for name, m in manifests.items() for one in m.facts.get("cautions", ())]


def _place(arm: str) -> int:
    """From the ceiling down, the recipe's own arms before the floor."""
    order = ("ceiling", *OWN)
    return order.index(arm) if arm in order else len(order) + (arm == "floor")


def _recovered(scores: dict[str, np.ndarray], arm: str, seed: int) -> dict[str, float] | None:
    found = recovered_interval(scores[arm], scores["floor"], scores["ceiling"], seed)
    return None if found is None else asdict(found)


def _bought(scores: dict[str, np.ndarray], seed: int) -> dict[str, float] | None:
    """Student − control: what the teacher's probabilities gave beyond its bare answers."""
    return asdict(difference_interval(scores["student"], scores["control"], seed)) if "control" in scores else None
