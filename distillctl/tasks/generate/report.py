"""What the report says of a run that answers with text, besides what is said of every run."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from distillctl.data import controls_table, eval_table, field_references, view_table
from distillctl.data.view_table import ViewTable
from distillctl.data.views import CEILING, FLOOR, PUBLIC
from distillctl.metrics import fields, leakage, text
from distillctl.metrics.statistics import mean_interval
from distillctl.recipe import Recipe, Text
from distillctl.run_dir.workspace import Workspace
from distillctl.runtimes import text_folder
from distillctl.soft_labels import response_shards
from distillctl.soft_labels.response_shards import Responses
from distillctl.soft_labels.text import TextLabels
from distillctl.tasks.generate import context_kl
from distillctl.tasks.generate.facts import (
    ContextNeedSpread,
    Corpus,
    FieldShare,
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
    """Each arm's score per held-out row, float64 [N], and this task's own part of the contract.

    deployed: whether quantize chose a graph; otherwise the student stands in for it.
    """
    last, task = "deployed" if deployed else "student", recipe.generate
    collect, train = workspace.facts("collect", GenerateCollect), workspace.facts("train", GenerateTrain)
    export = workspace.facts("export", GenerateExport)
    decided = {"deployed": workspace.facts("quantize", GenerateQuantize).context_decided} if deployed else {}
    decided["student"] = train.context_decided
    teacher = {PUBLIC.get(arm, arm): _read(workspace, arm, "eval") for arm in (CEILING, FLOOR, *recipe.contexts.arms)}
    tables = {
        arm: eval_table.read(workspace.folder(stage) / "eval.parquet", views.id)
        for arm, stage in (("deployed", "quantize"), ("student", "train"))[not deployed :]
    }
    student = tables["student"]
    own = {arm: found[arm] for arm, found in tables.items()}
    own |= {"control": student["control"]} if "control" in student else {}
    own |= controls_table.read(workspace, views.id, list(task.controls))
    said = {arm: found.text for arm, found in teacher.items()} | own
    against = (views.reference, said["ceiling"], task.format)
    scores = {arm: text.row_scores(task.score, found, *against) for arm, found in said.items()}
    # Without references that is what `metrics` has already.
    alike = [name for name in task.metrics if name != "format"] if views.has_references else []
    likeness = text.row_scores("chrf", said[last], [None], said["ceiling"], None)
    graphs = workspace.folder("quantize" if deployed else "export")
    genai = (graphs / "genai_config.json").is_file()
    cut = {"ceiling": teacher["ceiling"].cut, "floor": teacher["floor"].cut, "student": student["student_cut"]}

    def answers(rows: list[int]) -> list[ShownAnswers]:
        return [
            ShownAnswers(
                input=views.input[row],
                reference=views.reference[row],
                likeness=float(likeness[row]),
                said={arm: said[arm][row] for arm in SHOWN if arm in said},
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
        fields=_fields(said),
        fields_by_reference=_fields_by_reference(recipe, workspace, views.id, said),
        builder=export.builder,
        genai=genai,
        snippets=["answer.py", *(["answer_genai.py", "Writer.kt"] if genai else [])],
        begin=text_folder.begin(graphs) if export.builder != "seq2seq" else [],
        stop=list(task.stop),
        max_new_tokens=task.max_new_tokens,
        metrics=collect.metrics | {arm: text.corpus(task.metrics, found, *against) for arm, found in own.items()},
        like_ceiling={
            arm: text.corpus(alike, found, [None], said["ceiling"], None) for arm, found in said.items() if alike
        },
        responses=collect.responses,
        kl_measured=KlMeasured(rows=train.kl_rows, lumped=train.kl_lumped, dropped_mass=train.dropped_mass),
        per_token=_per_token(tables, lengths, train.control),
        context_decided={arm: found for arm, found in decided.items() if found},
        necessity=ContextNeedSpread(**need.given, **spread.given) if need else None,
        leakage=_leakage(recipe, workspace, views, own),
        verdicts=TextVerdicts(
            rows=len(views.id),
            different=_different(said["ceiling"], said[last]),
            quantization=_different(said["student"], said[last]),
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
    """What was said, without the distributions."""
    return response_shards.read(workspace, context, split, TextLabels(Text()))


def _graph(builder: str) -> str:
    """The file that writes the answer; an encoder–decoder has an encoder beside it."""
    return "decoder_model_merged.onnx" if builder == "seq2seq" else "model.onnx"


def _fields(said: dict[str, list[str]]) -> dict[str, Corpus]:
    """Key of the teacher's JSON → arm → share of the rows with the teacher's own value; of those where it has one."""
    found = {}
    for key in fields.keys(said["ceiling"]):
        wanted = fields.values(said["ceiling"], key)
        rows = [row for row, value in enumerate(wanted) if value is not None]
        found[key] = {
            arm: float(np.mean([own[row] == wanted[row] for row in rows]))
            for arm, texts in said.items()
            for own in [fields.values(texts, key)]
        }
    return found


def _fields_by_reference(
    recipe: Recipe, workspace: Workspace, ids: list[str], said: dict[str, list[str]]
) -> dict[str, dict[str, FieldShare]]:
    """Key of `task.fields` → arm → share of right values on the rows where the data have one."""
    wanted = recipe.generate.fields
    references = field_references.read(workspace.folder("collect"), ids, wanted) if wanted else {}
    found: dict[str, dict[str, FieldShare]] = {}
    for key, values in references.items():
        rows = [row for row, value in enumerate(values) if value is not None]
        found[key] = {}
        for arm, texts in said.items() if rows else ():
            own = [
                None if value is None else field_references.text_of(json.loads(value))
                for value in fields.values(texts, key)
            ]
            right = np.array([own[row] == values[row] for row in rows], dtype=np.float64)
            found[key][arm] = FieldShare(**mean_interval(right).given, n=len(rows))
    return found


def _per_token(
    tables: dict[str, dict[str, Any]], lengths: np.ndarray, control: GenerateDistance | None
) -> dict[str, PerToken]:
    found = {
        arm: PerToken(**{key: _mean(columns.get(key), lengths) for key in ("kl", "nll", "same_top")})
        for arm, columns in tables.items()
    }
    if control is not None:
        found["control"] = PerToken(kl=control.kl, nll=control.nll, same_top=control.agreement)
    return found


def _mean(per_row: np.ndarray | None, lengths: np.ndarray) -> float | None:
    """Per token of the teacher's responses, of means [N] over each response's ``lengths`` tokens."""
    if per_row is None:
        return None
    known = ~np.isnan(per_row)
    weights = lengths[known] if lengths.any() else None  # of a served text none are known
    return float(np.average(per_row[known], weights=weights))


def _different(one: list[str], other: list[str]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


# ── references to the context ────────────────────────────────────────────────────────────────────


def _leakage(recipe: Recipe, workspace: Workspace, views: ViewTable, own: dict[str, list[str]]) -> LeakageFacts:
    """How many of the teacher's responses, of both splits, refer to the context, and the worst of them; and how many
    answers of the student do."""
    found: list[PointingResponse] = []
    count = 0
    folder = workspace.folder("collect")
    for split in ("train", "eval"):
        split_views = view_table.read(folder / "views.parquet", split)
        place = {row: index for index, row in enumerate(split_views.id)}
        said = _read(workspace, CEILING, split)
        rows = [place[row] for row in said.id]
        count += len(rows)
        for row, response, spans in zip(rows, said.text, _spans(said.text, split_views, rows), strict=True):
            if spans:
                found.append(PointingResponse(split=split, input=split_views.input[row], text=response, spans=spans))
    found.sort(key=lambda one: -sum(span.end - span.start for span in one.spans))
    everyone = list(range(len(views.id)))

    def count_of(why: str) -> int:
        return sum(any(span.why == why for span in one.spans) for one in found)

    return LeakageFacts(
        words=leakage.WORDS,
        responses=count,
        leaking=len(found),
        copied=count_of("copied"),
        phrase=count_of("phrase"),
        own={arm: sum(map(bool, _spans(said, views, everyone))) for arm, said in own.items()},
        listed=found[: recipe.report.answers],
    )


def _spans(said: list[str], views: ViewTable, rows: list[int]) -> list[list[PointingSpan]]:
    # The student sees the simplified view; the input also counts as seen where a template leaves part of it out.
    seen = [f"{views.simplified[row]}\n{views.input[row]}" for row in rows]
    found = leakage.spans(said, [views.full[row] for row in rows], seen)
    return [[PointingSpan(**vars(span)) for span in spans] for spans in found]
