"""The report's facts: what `report --format json` prints, drawn from manifests and from every arm's answer per row.

Teacher arms come from collect's manifest as they stand there; what needs paired rows (student, deployed, control,
recovered) is computed from the eval.parquet files that the manifests vouch for. What only one kind of task has to say
comes from `tasks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from distillctl import tasks
from distillctl.data import view_table
from distillctl.errors import UpstreamError, first_line
from distillctl.metrics import comparison, doubts, names
from distillctl.metrics.statistics import difference_interval, recovered_interval
from distillctl.recipe import Recipe
from distillctl.report import devices, formatting, speed, use, verdict
from distillctl.run_dir import attempts
from distillctl.run_dir.workspace import Manifest, Workspace
from distillctl.training import metrics_log
from distillctl.untrusted import parquet

UPSTREAM = ("collect", "train", "export", "quantize", "bench")
OWN = ("deployed", "student", "control")
"""The arms of the student."""


@dataclass(frozen=True)
class Series:
    """Series and texts for the page, besides the facts."""

    context: str
    """Text that all the teacher's views share."""
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
    failed = attempts.current(workspace, "quantize", recipe.model_dump(mode="json", include={"quantize"}))
    if failed:  # what was deployed before, and timed, is none of this run
        manifests = {stage: manifests[stage] for stage in ("collect", "train", "export")}
    collect, train = manifests["collect"].facts, manifests["train"].facts
    quantize = failed.facts if failed else manifests["quantize"].facts
    controls = recipe.task.controls
    views = view_table.read(workspace.folder("collect") / "views.parquet", "eval")
    # scores: arm → one per held-out row, float64 [N]; of this task alone: what the contract has besides
    scores, of_this_task = tasks.of(recipe, workspace).compare(views, {name: m.facts for name, m in manifests.items()})
    own = [arm for arm in (*OWN, *controls) if arm in scores]
    arms, gaps = comparison.compare({arm: scores[arm] for arm in ("ceiling", *own)}, collect["metric"])
    content = names.measures_content(collect["metric"])
    arms = {arm: arms[arm] for arm in own} | collect["arms"]
    facts = {
        "name": recipe.name,
        "title": recipe.report.title or recipe.name,
        "task": recipe.task.kind,
        "metric": collect["metric"],
        "ceiling_by_construction": names.is_vs_ceiling(collect["metric"]),
        "counts": collect["counts"],
        "arms": {arm: arms[arm] for arm in sorted(arms, key=partial(_place, controls))},
        "gaps": collect["gaps"] | {arm: gaps[arm] for arm in own},
        "recovered": {arm: _recovered(scores, arm) if content else None for arm in own},
        "context_effects": collect["context_effects"],
        "controls": {**train["controls"], "leads": _leads(scores, controls)},
        **(_timed(manifests["bench"].facts) if "bench" in manifests else UNTIMED),
        "failed_gate": failed and {"stage": "quantize", **{key: failed.facts[key] for key in ("nearest", "why")}},
        "devices": devices.measured(workspace),
        "context_tokens": collect["context_tokens"],
        "shared_tokens": collect["shared_tokens"],
        "teacher": collect["teacher"],
        "student": {key: value for key, value in train.items() if key != "control"},
        "control": train["control"],
        "soft_labels_bought": _bought(scores),
        "fp32": quantize["fp32"],
        "candidates": quantize["candidates"],
        "not_tried": quantize["not_tried"],
        "gate": recipe.quantize.gate.model_dump(),
        "objective": recipe.quantize.objective,
        **({} if failed else use.usage_facts(recipe, workspace, views, train)),
        "provenance": {
            stage: {"fingerprint": m.fingerprint, "created": m.created, "seconds": m.seconds}
            for stage, m in manifests.items()
        },
        "versions": manifests["export" if failed else "bench"].versions,
        **of_this_task,
    }
    facts |= {"subject": verdict.subject(facts), "cautions": _cautions(manifests, failed) + verdict.cautions(facts)}
    facts["cautions"] += _no_better_than_controls(facts, controls)
    return facts | {"headline": headline(facts)}


OPTIONAL = ("profile", "loadgen", "sustained", "memory_bytes_per_second", "headline_peer")
UNTIMED: dict[str, Any] = dict.fromkeys(OPTIONAL)
UNTIMED |= {"models": {}, "ratios": {}, "machine": {}, "threads": None, "timed_agreement": {}}
"""In place of what bench found, where there is nothing to time."""


def _timed(bench: dict[str, Any]) -> dict[str, Any]:
    return {
        **{key: bench[key] for key in ("models", "ratios", "machine", "threads")},
        **{
            key: bench.get(key)
            for key in ("profile", "loadgen", "sustained", "memory_bytes_per_second", "headline_peer")
        },
        "timed_agreement": bench["agreement"],
    }


def _leads(scores: dict[str, np.ndarray], controls: Mapping[str, str]) -> dict[str, dict[str, dict[str, float]]]:
    """Control → arm → arm − control, paired."""
    return {
        control: {
            arm: asdict(difference_interval(scores[arm], scores[control]))
            for arm in ("deployed", "student")
            if arm in scores
        }
        for control in controls
        if control in scores
    }


def _no_better_than_controls(facts: dict[str, Any], controls: Mapping[str, str]) -> list[dict[str, str]]:
    """Of the deployed model; train has said it of the student."""
    if facts["subject"] != "deployed" or not names.measures_content(facts["metric"]):
        return []
    scores = {arm: figure["score"] for arm, figure in facts["arms"].items()}
    return [
        {
            "stage": "report",
            "code": doubts.NO_BETTER,
            "text": doubts.no_better(
                "deployed",
                scores["deployed"],
                controls[control],
                scores[control],
                lead["deployed"],
                facts["metric"],
            ),
        }
        for control, lead in facts["controls"]["leads"].items()
        if lead["deployed"]["low"] <= 0
    ]


def series(workspace: Workspace) -> Series:
    """The curves, samples and text that the page draws; the files are those the manifests name."""
    manifests = _manifests(workspace)
    lines = (workspace.folder("train") / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    samples = workspace.folder("bench") / "samples"
    timed = manifests["bench"].facts["models"] if "bench" in manifests else ()
    return Series(
        context=manifests["collect"].facts["context_text"],
        training=[line for text in lines if (line := metrics_log.parsed(text)) is not None],
        latencies={model: _milliseconds(samples / f"{model}.parquet") for model in timed},
        run_dir=workspace.root,
    )


def _milliseconds(path: Path) -> np.ndarray:
    try:
        found: np.ndarray = parquet.read(path, ["milliseconds"])["milliseconds"].to_numpy()
        if not len(found) or not np.isfinite(found).all() or not (found > 0).all():
            raise ValueError("it holds no times")
        return found
    except (*parquet.ERRORS, TypeError) as error:
        raise UpstreamError(f"damaged: {first_line(error)}", where=str(path), next="distillctl bench RECIPE") from None


def headline(facts: dict[str, Any]) -> str:
    """Summarise the whole run in one sentence, good or bad."""
    tokens, useless = f"{facts['context_tokens']['teacher']:,} tokens", verdict.without_effect(facts)
    if useless and facts["failed_gate"]:
        return f"No smaller model passed the gate. The prompt of {tokens} {useless}"
    if facts["failed_gate"]:
        kept = verdict.kept(facts)
        return f"No smaller model passed the gate. The student does without a prompt of {tokens}: {kept}"
    model = formatting.size(facts["models"]["deployed"]["bytes"])
    if useless:
        there = f"The deployed model: {model}, {speed.words(facts)}"
        return f"A prompt of {tokens} {useless}, so there is nothing for a smaller model to keep. {there}"
    return f"A prompt of {tokens} now lives in a {model} model: {verdict.kept(facts)}, {speed.words(facts)}"


def _manifests(workspace: Workspace) -> dict[str, Manifest]:
    """Present and verified before the stage runs."""
    found = {stage: workspace.manifest(stage) for stage in UPSTREAM}
    return {stage: manifest for stage, manifest in found.items() if manifest is not None}


def _cautions(manifests: dict[str, Manifest], failed: Manifest | None) -> list[dict[str, str]]:
    """Return every stage's cautions, in the stages' order."""
    manifests = manifests | ({"quantize": failed} if failed else {})
    return [{"stage": name, **one} for name, m in manifests.items() for one in m.facts.get("cautions", ())]


def _place(controls: Mapping[str, str], arm: str) -> int:
    """Order the arms: the ceiling first, the recipe's own arms before the floor."""
    order = ("ceiling", *OWN, *controls)
    return order.index(arm) if arm in order else len(order) + (arm == "floor")


def _recovered(scores: dict[str, np.ndarray], arm: str) -> dict[str, float] | None:
    found = recovered_interval(scores[arm], scores["floor"], scores["ceiling"])
    return None if found is None else asdict(found)


def _bought(scores: dict[str, np.ndarray]) -> dict[str, float] | None:
    """Student − control: what the teacher's probabilities gave beyond its bare answers."""
    return asdict(difference_interval(scores["student"], scores["control"])) if "control" in scores else None
