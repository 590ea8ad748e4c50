"""Format the findings of each stage as readable lines for stdout, from its manifest alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from distillctl.bundle.manifest import BundleFacts
from distillctl.commands import text_findings
from distillctl.commands.output import Line, line, size
from distillctl.data.rows import left_out
from distillctl.data.views import PUBLIC
from distillctl.metrics import names
from distillctl.phone.devices import DeviceFigures
from distillctl.pipeline import StageResult
from distillctl.report import speed
from distillctl.report.facts import ReportFacts
from distillctl.run_dir.bench_facts import BenchFacts, LoadgenFacts, TimedModel
from distillctl.run_dir.facts import (
    ArmFacts,
    AskedFacts,
    CollectFacts,
    Distance,
    ExportFacts,
    Interval,
    QuantizeFacts,
    ServerTokens,
    TrainFacts,
)
from distillctl.run_dir.workspace import Manifest
from distillctl.tasks.classify.facts import ClassifyCollect, LabelParity
from distillctl.tasks.generate.facts import (
    GenerateCollect,
    GenerateDistance,
    GenerateExport,
    GenerateReport,
    GenerateTrain,
    KlFacts,
)
from distillctl.terminal.text_table import TextTable


def readable(result: StageResult) -> Iterator[Line]:
    """Yield a short readable result."""
    if result.stage != "report":
        yield line(result)
    yield from _READABLE[result.stage](result.manifest)


def _interval(interval: Interval) -> str:
    return f"{interval.value:.3f}  ({interval.low:.3f} … {interval.high:.3f})"


def _arms(facts: ArmFacts) -> TextTable:
    """Return a table of the arms' scores. A ceiling that is compared with itself has no interval."""
    metric = facts.metric
    table = TextTable(("arm", f"{names.named(metric)}  (95 % interval)", "ceiling − arm"))
    for name, arm in facts.arms.items():
        gap, by_construction = facts.gaps.get(name), name == "ceiling" and names.is_vs_ceiling(metric)
        score = "1 by construction" if by_construction else f"{arm.score:.3f}  ({arm.low:.3f} … {arm.high:.3f})"
        table.add_row(name, score, _interval(gap) if gap else "")
    return table


def _collect(facts: CollectFacts) -> Iterator[Line]:
    texts, labels = facts.part_if_any(GenerateCollect), facts.part_if_any(ClassifyCollect)
    counts, tokens = facts.counts, facts.context_tokens
    yield (
        f"{counts.train} train and {counts.eval} eval rows; {left_out(counts.model_dump())}; "
        f"scored {facts.scored_rows}, reused {facts.reused_rows}"
    )
    yield (
        f"the teacher reads {tokens.teacher} tokens a row ({facts.shared_tokens} shared), the student {tokens.student}"
    )
    if cut := _cut_inputs(counts.cut_inputs):
        yield cut
    if texts:
        yield from text_findings.responses(texts.responses, texts.necessity)
    if facts.teacher.served and facts.teacher.served.requests is not None:
        yield _served(facts.teacher.served)
    if labels and labels.unseen:
        yield "; ".join(
            f"{PUBLIC.get(arm, arm)}: label mass {labels.label_mass[arm]:.3f} in the median, {bounds.pairs:.1%} "
            f"of the (row, label) pairs not shown, by upper bounds {bounds.mass:.1%} of the mass"
            for arm, bounds in labels.unseen.items()
        )
    yield _arms(facts)
    if texts:
        yield text_findings.corpus(texts.metrics)
    if labels and labels.without_prior:
        yield "without the prior: " + ", ".join(f"{arm} {score:.3f}" for arm, score in labels.without_prior.items())


def _cut_inputs(counts: Mapping[str, int] | None) -> str | None:
    """Return how many inputs were cut; None if none was, or if an older version did not count them."""
    if not counts or not any(counts.values()):
        return None
    return "inputs whose end was cut: " + ", ".join(f"{count:,} in {split}" for split, count in counts.items())


def _served(served: AskedFacts) -> str:
    """Return what asking the server took."""
    tokens = served.tokens or ServerTokens(read=0, written=0)
    cost = "" if served.cost is None else f", cost {served.cost:.4g}"
    return (
        f"{served.requests:,} requests, {sum(served.faults.values()):,} of them failed, {served.kept_answers:,} "
        f"answers reused; {tokens.read:,} tokens read and {tokens.written:,} written in this run directory{cost}"
    )


def _train(facts: TrainFacts) -> Iterator[Line]:
    texts = facts.part_if_any(GenerateTrain)
    resumed = f", resumed from step {facts.resumed_from}" if facts.resumed_from else ""
    precision = " in bfloat16" if facts.mixed_precision == "bf16" else ""
    yield f"{facts.steps} steps{precision} (best {facts.best_step}){resumed}; stopped by {facts.stopped}"
    yield f"on eval: {_distance(facts, texts)}"
    if cut := _cut_inputs(facts.cut_inputs):
        yield cut
    if texts and any(cut_responses := texts.cut_responses.values()):
        yield f"responses whose end was cut: {sum(cut_responses):,}"
    if texts and (decided := texts.context_decided):
        yield f"the context decides {decided.share:.1%} of the tokens; on these, same top token {decided.agreement:.3f}"
    if facts.control:
        yield f"control on the teacher's bare answers: {_distance(facts.control, texts and KlFacts())}"
    if texts and (vocabulary := texts.vocabulary):
        yield (
            f"vocabulary trimmed from {vocabulary.tokens_before:,} to {vocabulary.tokens_after:,} tokens: "
            f"{size(vocabulary.bytes_saved)} ({vocabulary.share_saved:.0%}) of fp32 weights saved"
        )


def _distance(distance: Distance, measured: KlFacts | None) -> str:
    """Return how far a model is from the teacher, per row of labels or, with ``measured``, per token of a response."""
    if measured is None:
        return f"KL to the teacher {distance.kl:.4f} nats, same top label {distance.agreement:.3f}"
    texts, mass = distance.part(GenerateDistance), measured.dropped_mass
    dropped = "" if mass is None else f" ({mass:.2%} of the teacher's mass lies outside it)"
    kl = "" if distance.kl is None else f"{_kl_name(measured)} {distance.kl:.4f} nats per token{dropped}, "
    metrics = ", ".join(f"{names.named(name)} {value:.3f}" for name, value in texts.metrics.items())
    return f"{kl}−log Q of its responses {texts.nll:.4f}, same top token {distance.agreement:.3f}; {metrics}"


def _kl_name(measured: KlFacts) -> str:
    """Name the KL of response tokens, which depends on what is known of the teacher's distribution."""
    if measured.kl_lumped:
        return "KL to the teacher (its shown tokens, and all others as one outcome)"
    return "KL to the teacher" if measured.dropped_mass is None else "KL to the teacher over the kept vocabulary"


def _export(facts: ExportFacts) -> Iterator[Line]:
    if texts := facts.part_if_any(GenerateExport):
        yield (
            f"{texts.architecture} by {texts.builder}: {size(facts.bytes)}, opset {facts.opset}; on "
            f"{facts.rows} rows max relative |Δlogit| {facts.max_logit_difference:.1e}, the same answer to "
            f"{texts.equal_prompts} of {texts.prompts} prompts"
        )
        return
    labels = facts.part_if_any(LabelParity)
    same = f", same top label {labels.same_top:.3f}" if labels else ""
    yield (
        f"model.onnx {size(facts.bytes)}, opset {facts.opset}; on {facts.rows} rows max |Δlogit| "
        f"{facts.max_logit_difference:.1e}{same}"
    )


_NARROW = 8
"""Largest width of a column, in characters, at which candidates' names stay whole at 80 columns."""


def _quantize(facts: QuantizeFacts) -> Iterator[Line]:
    """Yield a table of the candidates: KL from the fp32 student, and share with its top label or token."""
    metric = names.named(facts.metric)
    column = metric if len(metric) <= _NARROW else "score"
    if column != metric:
        yield f"score: {metric}"
    table = TextTable(("size", "KL", "top", column, "p50 ms", "candidate"), text=(5,), gap=1)
    for candidate in facts.candidates:
        score = "-" if candidate.score is None else f"{candidate.score:.3f}"
        kl = "-" if candidate.kl is None else f"{candidate.kl:.5f}"
        colour = "bold green" if candidate.chosen else "" if candidate.inside else "dim"
        table.add_row(
            size(candidate.bytes), kl, f"{candidate.same_top:.3f}", score, f"{candidate.p50_ms:.2f}", candidate.name,
            style=colour,
        )  # fmt: skip
    yield table
    for candidate in facts.candidates:
        if not candidate.inside:
            yield f"outside the gate: {candidate.name}: {candidate.why}"
    yield f"chosen: {facts.chosen}"
    for candidate in facts.candidates:
        if candidate.chosen and candidate.score_drop is not None:
            yield f"quantization costs {_interval(candidate.score_drop)} of the {metric}"


def _bench(facts: BenchFacts) -> Iterator[Line]:
    yield models(facts.models)
    yield f"one query at a time, {facts.threads} thread(s), this host, not a phone"
    yield from compared(facts)
    yield from further_measurements(facts)


def compared(facts: BenchFacts) -> Iterator[str]:
    """Yield the teacher that the deployed model is compared with, and the meaning of the sizes."""
    if peer := facts.headline_peer:
        same = ""
        if peer.agreement is not None:
            same = f"; run like this, the teacher gives its own answer to {peer.agreement:.1%} of the timed queries"
        yield f"deployed: {speed.words(peer, facts.models['deployed'].p50_ms)}{same}"
    if loaded := [model for model in facts.models.values() if model.bytes_of == "memory"]:
        yield f"size: of the files; PyTorch holds {size(loaded[0].bytes)} of the teacher's weights in memory"


def further_measurements(facts: BenchFacts) -> Iterator[str]:
    """Yield bench's other results for the deployed graph, if the recipe asks for them."""
    deployed = facts.models["deployed"]
    if deployed.anonymous_bytes:
        own_memory, mapped = size(deployed.anonymous_bytes), size(deployed.mapped_bytes)
        yield f"deployed: {own_memory} of memory of its own, {mapped} of mapped files"
    if (guessed := deployed.tokens_per_run or 1.0) > 1:
        yield f"deployed: a run of the graph adds {guessed:.1f} tokens, because it checks what usually follows"
    if share := deployed.bandwidth_share:
        yield (
            f"deployed: decodes at {share:.0%} of what memory allows ({size(deployed.bytes_per_token)} a token, "
            f"{size(facts.memory_bytes_per_second)}/s read here)"
        )
    if profile := facts.profile:
        yield f"profile {profile.name}: {profile.about}; {profile.host}"
        yield "deployed, by length: " + ", ".join(
            f"{length.tokens} tokens " + ("fail" if length.p50_ms is None else f"{length.p50_ms:.2f} ms")
            for length in profile.lengths
        )
    if run := facts.sustained:
        yield (
            f"after {run.seconds:.0f} s without a pause: p50 {run.first_p50_ms:.2f} → {run.last_p50_ms:.2f} ms "
            f"({run.ratio - 1:+.1%})"
        )
    if both := facts.together:
        yield (
            f"{both.batch} texts together: {both.texts_per_second_together:.1f} texts/s, one at a time "
            f"{both.texts_per_second:.1f} ({both.ratio:.1f}×); the same answer to {both.same_answers:.1%}"
        )
    if facts.loadgen:
        yield loadgen(facts.loadgen)


def loadgen(result: LoadgenFacts) -> str:
    """Return LoadGen's verdict on the deployed graph."""
    verdict = "VALID" if result.valid else f"INVALID ({', '.join(result.unmet)})"
    first = f", first token {result.first_token_p90_ms:.2f} ms" if result.first_token_p90_ms else ""
    return (
        f"MLPerf LoadGen, SingleStream: {verdict}, p90 {result.p90_ms:.2f} ms{first}, {result.queries:,} queries "
        f"in {result.seconds:.0f} s"
    )


def models(figures: Mapping[str, TimedModel]) -> TextTable:
    """Return a table of latency and size per model, within 80 columns.

    Models that generate show the first token's latency and the speed of the others instead of the number of queries.
    """
    writes = any(m.first_token_ms is not None for m in figures.values())
    speed, count = (("first ms", "tokens/s"), ()) if writes else ((), ("n",))
    table = TextTable(("model", *speed, "p50 ms", "p99 ms", *count, "size", "memory", "ratio"))
    deployed = figures["deployed"].p50_ms if "deployed" in figures else None
    for name, m in figures.items():
        table.add_row(
            name,
            *([_milliseconds(m.first_token_ms), _speed(m.decode_tokens_per_second)] if writes else []),
            _milliseconds(m.p50_ms),
            _milliseconds(m.p99_ms),
            *([] if writes else [f"{m.n:,}"]),
            size(m.file_bytes or m.bytes),
            size(m.peak_rss_bytes),
            f"{m.p50_ms / deployed:,.1f}×" if deployed else "",
        )
    return table


def devices(results: Sequence[DeviceFigures]) -> Iterator[Line]:
    """Yield what devices measured in their browsers, with one line per backend."""
    table = TextTable(("device", "way", "load ms", "first ms", "p50 ms", "p90 ms", "as recorded"), text=(0, 1))
    for device in results:
        for run in device.runs:
            way = "WebGPU" if run.backend == "webgpu" else f"{run.threads} thread{'s' if run.threads > 1 else ''}"
            times = map(_milliseconds, (run.load_ms, run.first_ms, run.p50_ms, run.p90_ms))
            table.add_row(device.name, way, *times, f"{run.check.same_label}/{run.check.rows}")
    yield table
    yield "in the device's browser, one query at a time, from token ids to logits"


def _speed(tokens_per_second: float | None) -> str:
    """Return the speed of the tokens after the first, which a model that always writes one token does not have."""
    return "-" if tokens_per_second is None else f"{tokens_per_second:,.0f}"


def _milliseconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _report(facts: ReportFacts) -> Iterator[Line]:
    yield f"{facts.headline}."
    yield _arms(facts)
    for name, recovered in facts.recovered.items():
        no_lead = "unknown: the ceiling has no measurable lead over the floor"
        described = no_lead if recovered is None else _interval(recovered)
        if not names.measures_content(facts.metric):
            described = "unknown: the content of the answers was not measured"
        yield f"recovered by {name}: {described}"
    for control, leads in facts.controls.leads.items():
        yield "; ".join(f"{arm} − {control}: {_interval(lead)}" for arm, lead in leads.items())
    if texts := facts.part_if_any(GenerateReport):
        yield from text_findings.report(texts, facts.subject)
    if facts.failed_gate:
        yield f"quantize failed, so there is no deployed model and nothing is timed: {facts.failed_gate.why}"
    else:
        yield models(facts.models)
    yield from (f"caution ({caution.stage}): {caution.text}" for caution in facts.cautions)
    if facts.artifact:
        yield f"model: {facts.artifact}"


def _bundle(facts: BundleFacts) -> Iterator[Line]:
    table = TextTable(("file", "size"))
    for name, count in facts.files.items():
        table.add_row(name, size(count))
    yield table
    for name, graph in facts.graphs.items():
        if against := graph.against_onnx:
            yield f"{name}: " + ", ".join(f"{key.replace('_', ' ')} {_plain(value)}" for key, value in against.items())
    for name, check in facts.mobile.items():
        yield f"{name}: onnxruntime's check for phones advises {check.advice}"
    yield f"bundle: {facts.folder}, {facts.archive} ({size(facts.archive_bytes)})"


def _plain(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


_READABLE: dict[str, Callable[[Manifest], Iterator[Line]]] = {
    "bundle": lambda made: _bundle(made.read(BundleFacts)),
    "collect": lambda made: _collect(made.read(CollectFacts)),
    "train": lambda made: _train(made.read(TrainFacts)),
    "export": lambda made: _export(made.read(ExportFacts)),
    "quantize": lambda made: _quantize(made.read(QuantizeFacts)),
    "bench": lambda made: _bench(made.read(BenchFacts)),
    "report": lambda made: _report(made.read(ReportFacts)),
}
