"""The report's facts: what `report --format json` prints, drawn from manifests and from every arm's answer per row.

Figures of the teacher's arms come from collect's manifest; figures that need paired rows (student, deployed, control,
recovered) are computed from the eval.parquet files that the manifests vouch for. The part that only one kind of task
has comes from `tasks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
from distillctl.report.facts import ControlLeads, FailedGate, GateFacts, Made, ReportFacts, StageCaution, UsageFacts
from distillctl.run_dir import attempts
from distillctl.run_dir.bench_facts import AlsoMeasured, BenchFacts, MachineFacts
from distillctl.run_dir.facts import (
    CollectFacts,
    FailedSearch,
    Interval,
    SearchFacts,
    StageFacts,
    TrainedFacts,
    TrainFacts,
    ViewedFacts,
)
from distillctl.run_dir.workspace import Manifest, Workspace
from distillctl.training import metrics_log
from distillctl.untrusted import parquet

UPSTREAM = ("collect", "train", "export", "quantize", "bench")
STUDENT_ARMS = ("deployed", "student", "control")
"""The arms of the student."""


@dataclass(frozen=True)
class Series:
    """Series and texts for the page, in addition to the facts."""

    context: str
    """Text that all the teacher's views share."""
    training: list[dict[str, Any]]
    """The lines of train/metrics.jsonl."""
    latencies: dict[str, np.ndarray]
    """Model → milliseconds of every timed query."""
    run_dir: Path
    """Where the deployed graph's files are read."""


def build(recipe: Recipe, workspace: Workspace) -> ReportFacts:
    """Return the report's facts. Every earlier stage must be committed.

    ``artifact`` is a path from the run directory, which may be moved; commands print it with the run directory's own.
    """
    manifests = _manifests(workspace)
    failed = attempts.current(workspace, "quantize", recipe.model_dump(mode="json", include={"quantize"}))
    if failed:  # an earlier deployed graph and its times do not belong to this run
        manifests = {stage: manifests[stage] for stage in ("collect", "train", "export")}
    collect, train = manifests["collect"].read(CollectFacts), manifests["train"].read(TrainFacts)
    quantize = (failed or manifests["quantize"]).read(SearchFacts)
    controls = recipe.task.controls
    views = view_table.read(workspace.folder("collect") / "views.parquet", "eval")
    # scores: arm → one per held-out row, float64 [N]; of_this_task: the facts that only this kind of task has
    scores, of_this_task = tasks.of(recipe, workspace).compare(views, deployed=not failed)
    our_arms = [arm for arm in (*STUDENT_ARMS, *controls) if arm in scores]
    arms, gaps = comparison.compare({arm: scores[arm] for arm in ("ceiling", *our_arms)}, collect.metric)
    content = names.measures_content(collect.metric)
    arms = {arm: arms[arm] for arm in our_arms} | collect.arms
    bench = None if failed else manifests["bench"].read(BenchFacts)
    also: dict[str, Any] = {name: getattr(bench, name, None) for name in AlsoMeasured.model_fields}
    usage = UsageFacts() if failed else use.usage_facts(recipe, workspace, views, train)
    facts = ReportFacts(
        cautions=_cautions(manifests, failed),
        name=recipe.name,
        title=recipe.report.title or recipe.name,
        task=recipe.task.kind,
        metric=collect.metric,
        ceiling_by_construction=names.is_vs_ceiling(collect.metric),
        counts=collect.counts,
        arms={arm: arms[arm] for arm in sorted(arms, key=partial(_place, controls))},
        gaps=collect.gaps | {arm: gaps[arm] for arm in our_arms},
        recovered={
            arm: recovered_interval(scores[arm], scores["floor"], scores["ceiling"]) if content else None
            for arm in our_arms
        },
        context_effects=collect.context_effects,
        controls=ControlLeads(**train.controls.given, leads=_leads(scores, controls)),
        models=bench.models if bench else {},
        ratios=bench.ratios if bench else {},
        machine=bench.machine if bench else MachineFacts(),
        threads=bench.threads if bench else None,
        timed_agreement=bench.agreement if bench else {},
        **also,
        failed_gate=_failed_gate(failed),
        devices=devices.measured(workspace),
        context_tokens=collect.context_tokens,
        shared_tokens=collect.shared_tokens,
        teacher=collect.teacher,
        student=TrainedFacts(**{name: value for name, value in train.given.items() if name != "control"}),
        control=train.control,
        soft_labels_bought=(difference_interval(scores["student"], scores["control"]) if "control" in scores else None),
        fp32=quantize.fp32,
        candidates=quantize.candidates,
        not_tried=quantize.not_tried,
        gate=GateFacts(**recipe.quantize.gate.model_dump()),
        objective=recipe.quantize.objective,
        **usage.given,
        provenance={
            stage: Made(fingerprint=made.fingerprint, created=made.created, seconds=made.seconds)
            for stage, made in manifests.items()
        },
        versions=manifests["export" if failed else "bench"].versions,
        subject=verdict.subject(scores),
        headline="",
        **of_this_task.given,
    )
    all_cautions = [*facts.cautions, *verdict.cautions(facts), *_no_better_than_controls(facts, controls)]
    return facts.model_copy(update={"cautions": all_cautions, "headline": headline(facts)})


def _failed_gate(failed: Manifest | None) -> FailedGate | None:
    if failed is None:
        return None
    search = failed.read(FailedSearch)
    return FailedGate(stage="quantize", nearest=search.nearest, why=search.why)


def _leads(scores: dict[str, np.ndarray], controls: Mapping[str, str]) -> dict[str, dict[str, Interval]]:
    """Control → arm → arm − control, paired."""
    return {
        control: {
            arm: difference_interval(scores[arm], scores[control]) for arm in ("deployed", "student") if arm in scores
        }
        for control in controls
        if control in scores
    }


def _no_better_than_controls(facts: ReportFacts, controls: Mapping[str, str]) -> list[StageCaution]:
    """Return cautions about the deployed model; train gave those about the student."""
    if facts.subject != "deployed" or not names.measures_content(facts.metric):
        return []
    score = facts.arms["deployed"].score
    return [
        StageCaution(
            stage="report",
            code=doubts.NO_BETTER,
            text=doubts.no_better(
                "deployed", score, controls[control], facts.arms[control].score, lead["deployed"], facts.metric
            ),
        )
        for control, lead in facts.controls.leads.items()
        if lead["deployed"].low <= 0
    ]


def series(workspace: Workspace) -> Series:
    """Return the curves, samples and text that the page draws, from the files that the manifests name."""
    manifests = _manifests(workspace)
    lines = (workspace.folder("train") / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    samples = workspace.folder("bench") / "samples"
    timed = manifests["bench"].read(BenchFacts).models if "bench" in manifests else ()
    return Series(
        context=manifests["collect"].read(ViewedFacts).context_text,
        training=[line for text in lines if (line := metrics_log.parsed(text)) is not None],
        latencies={model: _milliseconds(samples / f"{model}.parquet") for model in timed},
        run_dir=workspace.root,
    )


def _milliseconds(path: Path) -> np.ndarray:
    try:
        milliseconds: np.ndarray = parquet.read(path, ["milliseconds"])["milliseconds"].to_numpy()
        if not len(milliseconds) or not np.isfinite(milliseconds).all() or not (milliseconds > 0).all():
            raise ValueError("it holds no times")
        return milliseconds
    except (*parquet.ERRORS, TypeError) as error:
        raise UpstreamError(f"damaged: {first_line(error)}", where=str(path), next="distillctl bench RECIPE") from None


def headline(facts: ReportFacts) -> str:
    """Summarise the whole run in one sentence, good or bad."""
    tokens, useless = f"{facts.context_tokens.teacher:,} tokens", verdict.without_effect(facts)
    if useless and facts.failed_gate:
        return f"No smaller model passed the gate. The prompt of {tokens} {useless}"
    if facts.failed_gate:
        kept = verdict.kept(facts)
        return f"No smaller model passed the gate. The student does without a prompt of {tokens}: {kept}"
    deployed = facts.models["deployed"]
    model, faster = formatting.size(deployed.bytes), speed.words(facts.headline_peer, deployed.p50_ms)
    if useless:
        model_and_speed = f"The deployed model: {model}, {faster}"
        return f"A prompt of {tokens} {useless}, so there is nothing for a smaller model to keep. {model_and_speed}"
    return f"A prompt of {tokens} now lives in a {model} model: {verdict.kept(facts)}, {faster}"


def _manifests(workspace: Workspace) -> dict[str, Manifest]:
    """Return the manifests of the stages that are there; the stage has verified them."""
    manifests = {stage: workspace.manifest(stage) for stage in UPSTREAM}
    return {stage: manifest for stage, manifest in manifests.items() if manifest is not None}


def _cautions(manifests: dict[str, Manifest], failed: Manifest | None) -> list[StageCaution]:
    """Return every stage's cautions, in the stages' order."""
    manifests = manifests | ({"quantize": failed} if failed else {})
    by_stage = {name: manifest.read(StageFacts).cautions for name, manifest in manifests.items()}
    return [StageCaution(stage=name, **caution.given) for name, cautions in by_stage.items() for caution in cautions]


def _place(controls: Mapping[str, str], arm: str) -> int:
    """Return an arm's place in the order: the ceiling first, the recipe's own arms before the floor."""
    order = ("ceiling", *STUDENT_ARMS, *controls)
    return order.index(arm) if arm in order else len(order) + (arm == "floor")
