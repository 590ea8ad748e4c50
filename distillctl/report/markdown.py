"""Write the report as a CI summary in GitHub's Markdown, from the contract alone."""

from __future__ import annotations

from collections.abc import Sequence

from distillctl.metrics import names
from distillctl.phone.devices import DeviceFigures
from distillctl.report import formatting, speed
from distillctl.report.facts import ReportFacts, StageCaution
from distillctl.run_dir.bench_facts import LoadgenFacts
from distillctl.run_dir.facts import Interval
from distillctl.tasks.generate.facts import GenerateReport
from distillctl.untrusted.markdown import code, plain, table


def render(facts: ReportFacts) -> str:
    """Return headline, arms, models and candidates as Markdown; names from the recipe are escaped."""
    generates = facts.task == "generate"
    corpora = facts.part(GenerateReport).metrics if generates else {}
    metrics = list(corpora.get("ceiling", ()))
    arms = [
        [
            plain(name),
            formatting.percent(arm.score),
            "by construction" if name == "ceiling" and facts.ceiling_by_construction else formatting.interval(arm),
            _recovered(facts.recovered.get(name)),
            *(formatting.percent(corpora[name][metric]) for metric in metrics),
            str(arm.n),
        ]
        for name, arm in facts.arms.items()
    ]
    models = [
        [
            plain(name),
            formatting.size(model.bytes) + (" in memory" if model.bytes_of == "memory" else ""),
            *([formatting.duration(model.first_token_ms)] if generates else []),
            *([formatting.count(model.decode_tokens_per_second)] if generates else []),
            formatting.duration(model.p50_ms),
            formatting.duration(model.p90_ms),
            formatting.duration(model.p99_ms),
            formatting.size(model.peak_rss_bytes),
            formatting.times(facts.ratios.get(name)),
            plain(speed.running(model)),
        ]
        for name, model in facts.models.items()
    ]
    candidates = [
        [
            f"**{plain(candidate.name)}**" if candidate.chosen else plain(candidate.name),
            formatting.size(candidate.bytes),
            formatting.duration(candidate.p50_ms),
            formatting.nats(candidate.kl),
            formatting.percent(candidate.same_top),
            "yes" if candidate.inside else f"no: {plain(candidate.why or '')}",
        ]
        for candidate in facts.candidates
    ]
    tokens, token = facts.context_tokens, "token" if generates else "label"
    corpus = [f"corpus {plain(names.named(metric))}" for metric in metrics]
    first = ["first token", "tokens/s"] if generates else []
    return "\n".join(
        [
            f"## {plain(facts.title)}",
            "",
            f"**{plain(facts.headline)}.** Each query shrinks from {tokens.teacher:,} to {tokens.student:,} tokens.",
            "",
            *_cautions(facts.cautions),
            *table(
                ["arm", plain(names.named(facts.metric)), "95 % interval", "recovered", *corpus, "rows"],
                arms,
                figures=True,
            ),
            "",
            *_controls(facts),
            *table(
                ["model", "size", *first, "p50", "p90", "p99", "peak memory", "deployed is faster by", "ran in"],
                models,
                figures=True,
            ),
            "",
            *_loadgen(facts.loadgen),
            *_devices(facts.devices.measured),
            *([f"**{plain(facts.failed_gate.why)}**", ""] if facts.failed_gate else []),
            "<details><summary>Candidates</summary>",
            "",
            *table(
                ["candidate", "size", "p50", "KL to fp32", f"same top {token}", "inside the gate"],
                candidates,
                figures=True,
            ),
            "",
            "</details>",
            "",
            f"Deployed graph: {code(facts.artifact)}" if facts.artifact else "Nothing is deployed.",
            "",
        ]
    )


def _cautions(cautions: Sequence[StageCaution]) -> list[str]:
    """Return the cautions as a GitHub alert, or nothing."""
    return (
        ["> [!CAUTION]", *(f"> - {plain(caution.stage)}: {plain(caution.text)}" for caution in cautions), ""]
        if cautions
        else []
    )


def _controls(facts: ReportFacts) -> list[str]:
    """Return the models' lead over the controls, in percentage points, paired over rows."""
    leads = facts.controls.leads
    arms = list(next(iter(leads.values())))
    rows = [[plain(name), *(formatting.points(lead[arm]) for arm in arms)] for name, lead in leads.items()]
    return [*table(["control", *(f"{plain(arm)} is better by (points)" for arm in arms)], rows, figures=True), ""]


def _loadgen(loadgen: LoadgenFacts | None) -> list[str]:
    """Return a line about LoadGen's result, or nothing."""
    if loadgen is None:
        return []
    verdict = "VALID" if loadgen.valid else f"INVALID ({plain(', '.join(loadgen.unmet))})"
    p90 = formatting.duration(loadgen.p90_ms)
    return [f"MLPerf LoadGen, SingleStream: **{verdict}**, p90 {p90}, {loadgen.queries:,} queries", ""]


def _devices(measured: Sequence[DeviceFigures]) -> list[str]:
    """Return a table of the devices that measured the graph, or nothing."""
    rows = [
        [
            plain(device.name),
            "WebGPU" if run.backend == "webgpu" else str(run.threads),
            *map(formatting.duration, (run.load_ms, run.first_ms, run.p50_ms, run.p90_ms)),
            f"{run.check.same_label} of {run.check.rows}",
        ]
        for device in measured
        for run in device.runs
    ]
    head = ["in a browser", "threads", "load", "first answer", "p50", "p90", "same label as recorded"]
    return [*table(head, rows, figures=True), ""] if rows else []


def _recovered(figure: Interval | None) -> str:
    return f"{formatting.percent(figure.value, 0)} ({formatting.interval(figure, 0)})" if figure else formatting.UNKNOWN
