"""The part of the report that only a run with generated text has."""

from __future__ import annotations

from typing import Any

import numpy as np

from distillctl.data import controls_table, eval_table, field_references, view_table
from distillctl.data.view_table import ViewTable
from distillctl.data.views import CEILING, FLOOR, PUBLIC
from distillctl.metrics import leakage, placeholders, text
from distillctl.recipe import Recipe, Text
from distillctl.run_dir.workspace import Workspace
from distillctl.runtimes import text_folder
from distillctl.soft_labels import response_shards
from distillctl.soft_labels.response_shards import Responses
from distillctl.soft_labels.text import TextLabels
from distillctl.tasks.generate import context_kl, field_shares, text_checks
from distillctl.tasks.generate.facts import (
    ContextNeedSpread,
    GenerateCollect,
    GenerateDistance,
    GenerateExport,
    GenerateQuantize,
    GenerateReport,
    GenerateTrain,
    KlMeasured,
    LeakageFacts,
    PerToken,
    PointingResponse,
    PointingSpan,
    ShownAnswers,
    TextAgreement,
    TextVerdicts,
)

SHOWN = ("ceiling", "floor", "student", "deployed")
"""The arms whose answers stand side by side."""


def compare(
    recipe: Recipe, workspace: Workspace, views: ViewTable, *, deployed: bool
) -> tuple[dict[str, np.ndarray], GenerateReport]:
    """Return each arm's score per held-out row, float64 [N], and this kind's part of the report.

    deployed: whether quantize chose a graph; otherwise the student stands in for it.
    """
    last, task = "deployed" if deployed else "student", recipe.generate
    collect, train = workspace.facts("collect", GenerateCollect), workspace.facts("train", GenerateTrain)
    export = workspace.facts("export", GenerateExport)
    quantize = workspace.facts("quantize", GenerateQuantize) if deployed else GenerateQuantize()
    decided = {"deployed": quantize.context_decided, "student": train.context_decided}
    teacher = {PUBLIC.get(arm, arm): _read(workspace, arm, "eval") for arm in (CEILING, FLOOR, *recipe.contexts.arms)}
    tables = {
        arm: eval_table.read(workspace.folder(stage) / "eval.parquet", views.id)
        for arm, stage in (("deployed", "quantize"), ("student", "train"))[not deployed :]
    }
    student = tables["student"]
    student_answers = {arm: part[arm] for arm, part in tables.items()}
    student_answers |= {"control": student["control"]} if "control" in student else {}
    student_answers |= controls_table.read(workspace, views.id, list(task.controls))
    answers_of = {arm: part.text for arm, part in teacher.items()} | student_answers
    against = (views.reference, answers_of["ceiling"], task.format)
    scores = {arm: text.row_scores(task.score, part, *against) for arm, part in answers_of.items()}
    # Without references `metrics` holds these figures already.
    alike = [name for name in task.metrics if name != "format"] if views.has_references else []
    likeness = text.row_scores("chrf", answers_of[last], [None], answers_of["ceiling"], None)
    graphs = workspace.folder("quantize" if deployed else "export")
    genai = (graphs / "genai_config.json").is_file()
    targets = text.targets(*against[:2])
    cut = {"ceiling": teacher["ceiling"].cut, "floor": teacher["floor"].cut, "student": student["student_cut"]}

    def answers(rows: list[int]) -> list[ShownAnswers]:
        return [
            ShownAnswers(
                input=views.input[row],
                reference=views.reference[row],
                likeness=float(likeness[row]),
                said={arm: answers_of[arm][row] for arm in SHOWN if arm in answers_of},
                cut=[arm for arm, column in cut.items() if column[row]],
            )
            for row in rows
        ]

    sampled = np.random.default_rng(recipe.seed).permutation(len(views.id))[: recipe.report.answers]
    furthest = np.argsort(likeness, kind="stable")[: recipe.report.disagreements]
    lengths = np.array([len(ids) for ids in teacher["ceiling"].token_ids])
    need = collect.necessity
    spread = context_kl.spread(teacher["floor"].context_kl or [])
    return scores, GenerateReport(
        artifact=f"quantize/{_graph(export.builder)}" if deployed else None,
        fields=field_shares.equal(answers_of),
        fields_by_reference=field_shares.right(_field_references(recipe, workspace, views.id), answers_of),
        builder=export.builder,
        genai=genai,
        snippets=["answer.py", *(["answer_genai.py", "Writer.kt"] if genai else [])],
        begin=text_folder.begin(graphs) if export.builder != "seq2seq" else [],
        stop=list(task.stop),
        max_new_tokens=task.max_new_tokens,
        placeholder=placeholders.PATTERN if task.keep_placeholders else None,
        metrics=collect.metrics
        | {arm: text.corpus(task.metrics, part, *against) for arm, part in student_answers.items()},
        like_ceiling={
            arm: text.corpus(alike, part, [None], answers_of["ceiling"], None)
            for arm, part in answers_of.items()
            if alike
        },
        checks={
            arm: text_checks.check(views.input, part, targets, recipe.report.languages)
            for arm, part in answers_of.items()
        },
        broken_placeholders=text_checks.broken(views.input, answers_of[last])[: recipe.report.disagreements],
        candidate_metrics=quantize.candidate_metrics,
        candidate_checks=quantize.candidate_checks,
        probes=quantize.probes,
        responses=collect.responses,
        kl_measured=KlMeasured(rows=train.kl_rows, lumped=train.kl_lumped, dropped_mass=train.dropped_mass),
        per_token=_per_token(tables, lengths, train.control),
        context_decided={arm: part for arm, part in decided.items() if part},
        necessity=ContextNeedSpread(**need.given, **spread.given) if need else None,
        leakage=_leakage(recipe, workspace, views, student_answers),
        verdicts=TextVerdicts(
            rows=len(views.id),
            different=_different(answers_of["ceiling"], answers_of[last]),
            quantization=_different(answers_of["student"], answers_of[last]),
            likeness=float(likeness.mean()),
        ),
        sampled=answers(sampled.tolist()),
        furthest=answers(furthest.tolist()),
        parity=TextAgreement(
            max_logit_difference=export.max_logit_difference,
            rows=export.rows,
            prompts=export.prompts,
            equal_prompts=export.equal_prompts,
        ),
    )


def _read(workspace: Workspace, context: str, split: str) -> Responses:
    """Read the answers without the distributions."""
    return response_shards.read(workspace, context, split, TextLabels(Text()))


def _field_references(recipe: Recipe, workspace: Workspace, ids: list[str]) -> dict[str, list[str | None]]:
    wanted = recipe.generate.fields
    return field_references.read(workspace.folder("collect"), ids, wanted) if wanted else {}


def _graph(builder: str) -> str:
    """Return the file that generates the answer; an encoder–decoder has a second file for its encoder."""
    return "decoder_model_merged.onnx" if builder == "seq2seq" else "model.onnx"


def _per_token(
    tables: dict[str, dict[str, Any]], lengths: np.ndarray, control: GenerateDistance | None
) -> dict[str, PerToken]:
    figures = {
        arm: PerToken(**{key: _mean(columns.get(key), lengths) for key in ("kl", "nll", "same_top")})
        for arm, columns in tables.items()
    }
    if control is not None:
        figures["control"] = PerToken(kl=control.kl, nll=control.nll, same_top=control.agreement)
    return figures


def _mean(per_row: np.ndarray | None, lengths: np.ndarray) -> float | None:
    """Return the mean per token of the teacher's responses, from means [N] over each response's ``lengths`` tokens."""
    if per_row is None:
        return None
    known = ~np.isnan(per_row)
    weights = lengths[known] if lengths.any() else None  # of a served text none are known
    return float(np.average(per_row[known], weights=weights))


def _different(first: list[str], second: list[str]) -> int:
    return sum(a != b for a, b in zip(first, second, strict=True))


# ── references to the context ────────────────────────────────────────────────────────────────────


def _leakage(
    recipe: Recipe, workspace: Workspace, views: ViewTable, student_answers: dict[str, list[str]]
) -> LeakageFacts:
    """Find the teacher's responses, of both splits, and the student's answers that refer to the context."""
    pointing: list[PointingResponse] = []
    count = 0
    folder = workspace.folder("collect")
    for split in ("train", "eval"):
        split_views = view_table.read(folder / "views.parquet", split)
        place = {row: index for index, row in enumerate(split_views.id)}
        responses = _read(workspace, CEILING, split)
        rows = [place[row] for row in responses.id]
        count += len(rows)
        for row, response, spans in zip(rows, responses.text, _spans(responses.text, split_views, rows), strict=True):
            if spans:
                pointing.append(PointingResponse(split=split, input=split_views.input[row], text=response, spans=spans))
    pointing.sort(key=lambda response: -sum(span.end - span.start for span in response.spans))
    all_rows = list(range(len(views.id)))

    def count_of(why: str) -> int:
        return sum(any(span.why == why for span in response.spans) for response in pointing)

    return LeakageFacts(
        words=leakage.WORDS,
        responses=count,
        leaking=len(pointing),
        copied=count_of("copied"),
        phrase=count_of("phrase"),
        own={arm: sum(map(bool, _spans(texts, views, all_rows))) for arm, texts in student_answers.items()},
        listed=pointing[: recipe.report.answers],
    )


def _spans(texts: list[str], views: ViewTable, rows: list[int]) -> list[list[PointingSpan]]:
    # The student sees the simplified view; the input also counts as seen where a template leaves part of it out.
    seen = [f"{views.simplified[row]}\n{views.input[row]}" for row in rows]
    spans_of = leakage.spans(texts, [views.full[row] for row in rows], seen)
    return [[PointingSpan(**vars(span)) for span in spans] for spans in spans_of]
