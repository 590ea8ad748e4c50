"""collect: the teacher's soft labels, under the full context and under every other arm's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from distillctl import console, references
from distillctl.data import examples, view_table, views
from distillctl.data.examples import Dataset, Example
from distillctl.data.views import Renderer
from distillctl.errors import DataError
from distillctl.metrics import scores
from distillctl.metrics.statistics import difference_interval, mean_interval
from distillctl.recipe import Recipe, implementation
from distillctl.soft_labels import labels as soft_labels
from distillctl.soft_labels import store
from distillctl.soft_labels.store import Shard, SoftLabels
from distillctl.teachers.huggingface import Teacher
from distillctl.teachers.shared_context import common_prefix
from distillctl.workspace import Outcome, Workspace, digest

CEILING, FLOOR = "full", "simplified"


@dataclass(frozen=True)
class Arm:
    """One context over the splits it is scored on: text and token ids per row, and where the shared tokens end."""

    name: str
    text: dict[str, list[str]]
    ids: dict[str, list[list[int]]]
    shared: int


def run(recipe: Recipe, workspace: Workspace) -> Outcome:
    """Score every arm shard by shard; shards that are there already are reused."""
    dataset = examples.load(recipe)
    contexts = views.renderers(recipe, dataset.shots)
    source = references.teacher(recipe)
    teacher: Teacher = implementation(recipe.teacher)(recipe.teacher, source)
    answers = [teacher.encode_answer(recipe.task.answer_prefix + words) for words in recipe.task.labels.values()]
    limit = teacher.max_length - max(map(len, answers))
    arms = [_arm(recipe, teacher, dataset, name, renderer, limit) for name, renderer in contexts.items()]
    fingerprint = source.fingerprint()

    folder = workspace.folder("collect")
    workspace.retract("collect")
    plan = {
        (arm.name, split): _shards(recipe, arm, split, _rows(dataset, split), answers, fingerprint)
        for arm in arms
        for split in arm.ids
    }
    work = _Work(recipe, teacher, answers, folder)
    with console.progress("collect", total=sum(len(shard.ids) for shards in plan.values() for shard in shards)) as bar:
        for arm in arms:
            work.score_arm(arm, {split: plan[arm.name, split] for split in arm.ids}, dataset, bar)
    labels = {
        key: store.read_shards(folder, shards, [example.id for example in _rows(dataset, key[1])])
        for key, shards in plan.items()
    }
    _write_views(folder, dataset, arms)
    named = {shard.file for shards in plan.values() for shard in shards}
    for path in (folder / "shards").glob("*.parquet"):
        if f"shards/{path.name}" not in named:
            path.unlink()
    facts = _findings(recipe, dataset, labels) | {
        "counts": dataset.counts,
        "context_tokens": {
            "teacher": _median_tokens(arms, CEILING),
            "student": _median_tokens(arms, FLOOR),
        },
        "shared_tokens": arms[0].shared,
        "context_text": arms[0].text["eval"][0][: views.shared_length(arms[0].text["eval"])],
        "teacher": {
            "reference": recipe.teacher.model,
            "parameters": teacher.parameters,
            "bytes": sum(p.numel() * p.element_size() for p in teacher.model.parameters()),
            "fingerprint": fingerprint,
        },
        "scored_rows": work.scored,
        "reused_rows": work.reused,
        "tokens_per_second": round(work.tokens / work.seconds, 1) if work.seconds else None,
    }
    return Outcome(outputs=["views.parquet", "shards"], facts=facts)


# ── views ────────────────────────────────────────────────────────────────────────────────────────


def _rows(dataset: Dataset, split: str) -> list[Example]:
    return dataset.train if split == "train" else dataset.eval


def _arm(recipe: Recipe, teacher: Teacher, dataset: Dataset, name: str, renderer: Renderer, limit: int) -> Arm:
    # The student's text of the train rows is wanted too, but only the full context is scored on them.
    splits = ("train", "eval") if name in (CEILING, FLOOR) else ("eval",)
    text: dict[str, list[str]] = {}
    ids: dict[str, list[list[int]]] = {}
    for split in splits:
        fitted = [_fit(recipe, teacher, renderer, example, limit) for example in _rows(dataset, split)]
        text[split] = [view for view, _ in fitted]
        if split == "eval" or name == CEILING:
            ids[split] = [tokens for _, tokens in fitted]
    shared = common_prefix([view for part in ids.values() for view in part])
    return Arm(name, text, ids, shared)


def _fit(recipe: Recipe, teacher: Teacher, renderer: Renderer, example: Example, limit: int) -> tuple[str, list[int]]:
    """The view and its tokens; too long is an error, or the end of the input is cut, as the recipe says."""
    text = renderer.render(example, teacher.tokenizer)
    ids = teacher.encode(text, chat=renderer.is_chat)
    if not ids:
        raise DataError(f"row {example.id}: the view is empty", where=renderer.where)
    if len(ids) <= limit:
        return text, ids
    words = teacher.tokenizer(example.input, add_special_tokens=False).input_ids
    keep = len(words) - (len(ids) - limit)
    if recipe.contexts.truncate == "never" or keep < 1:
        raise DataError(
            f"row {example.id}: the view has {len(ids)} tokens, the teacher takes {limit} before the answer",
            where=renderer.where,
            next="shorten the context, or set contexts.truncate: input",
        )
    shorter = Example(example.id, teacher.tokenizer.decode(words[:keep]), example.reference, example.documents)
    return _fit(recipe, teacher, renderer, shorter, limit)


def _write_views(folder: Path, dataset: Dataset, arms: Sequence[Arm]) -> None:
    text = {arm.name: arm.text for arm in arms}
    tables = {
        split: view_table.ViewTable(
            [e.id for e in rows],
            [e.input for e in rows],
            [e.reference for e in rows],
            text[CEILING][split],
            text[FLOOR][split],
        )
        for split, rows in (("train", dataset.train), ("eval", dataset.eval))
    }
    view_table.write(folder / "views.parquet", tables)


def _median_tokens(arms: Sequence[Arm], name: str) -> int:
    return int(statistics.median(len(ids) for arm in arms if arm.name == name for ids in arm.ids["eval"]))


# ── scoring ──────────────────────────────────────────────────────────────────────────────────────


def _shards(
    recipe: Recipe, arm: Arm, split: str, rows: list[Example], answers: list[list[int]], fingerprint: str
) -> list[Shard]:
    """The split in slices of like length. The key holds everything of recipe, data and models that a row's numbers
    depend on, to the last bit; not the machine and the libraries' versions."""
    ids = arm.ids[split]
    order = sorted(range(len(ids)), key=lambda row: (len(ids[row]), row))
    how = [fingerprint, recipe.teacher.model_dump(mode="json", exclude={"model"}), answers, arm.shared]
    slices = [order[start : start + recipe.shard_rows] for start in range(0, len(order), recipe.shard_rows)]
    return [
        Shard(arm.name, split, number, digest([how, [[rows[r].id, ids[r]] for r in part]]), [rows[r].id for r in part])
        for number, part in enumerate(slices)
    ]


class _Work:
    """Scores what is missing, and counts."""

    def __init__(self, recipe: Recipe, teacher: Teacher, answers: list[list[int]], folder: Path) -> None:
        self.recipe, self.teacher, self.answers, self.folder = recipe, teacher, answers, folder
        self.scored = self.reused = self.tokens = 0
        self.seconds = 0.0

    def score_arm(self, arm: Arm, plan: dict[str, list[Shard]], dataset: Dataset, bar: console.Bar) -> None:
        there = {shard.key for shards in plan.values() for shard in shards if store.present(self.folder, shard)}
        missing = [(split, shard) for split, shards in plan.items() for shard in shards if shard.key not in there]
        reused = sum(len(shard.ids) for shards in plan.values() for shard in shards if shard.key in there)
        self.reused += reused
        bar.advance(reused)
        if reused:
            console.note(f"collect: {reused} rows of {arm.name} are there already")
        if not missing:
            return
        every = [view for part in arm.ids.values() for view in part]
        context = self.teacher.prepare(every, self.answers, arm.shared)
        skip = arm.shared if context else 0
        for split, shard in missing:
            place = {example.id: row for row, example in enumerate(_rows(dataset, split))}
            rows = [arm.ids[split][place[row]][skip:] for row in shard.ids]
            start = time.perf_counter()
            found = self.teacher.score(rows, self.answers, context)
            self.seconds += time.perf_counter() - start
            self.tokens += sum(map(len, rows))
            self.scored += len(rows)
            store.write(self.folder, shard, SoftLabels(shard.ids, found.log_probs, found.mass))
            bar.advance(len(rows), arm=arm.name, tokens=f"{self.tokens / self.seconds:,.0f}/s")


# ── what was found ───────────────────────────────────────────────────────────────────────────────


def _findings(recipe: Recipe, dataset: Dataset, labels: dict[tuple[str, str], SoftLabels]) -> dict[str, object]:
    """The arms' scores with intervals, their distance from the ceiling, and the prior."""
    log_prior = None
    if recipe.task.prior == "batch":
        log_prior = soft_labels.batch_prior(labels[CEILING, "train"].log_probs)
    references = [example.reference for example in dataset.eval]
    if 0 < (without := references.count(None)) < len(references):
        console.warn(
            f"{without} of {len(references)} eval rows have no reference: arms are scored by agreement instead"
        )
    calibrated = {
        arm: soft_labels.calibrate(found.log_probs, log_prior)
        for (arm, split), found in labels.items()
        if split == "eval"
    }
    rows = {}
    metric = ""
    for arm, log_probs in calibrated.items():
        rows[arm], metric = scores.row_scores(log_probs, recipe.task.names, references, calibrated[CEILING])
    public = {CEILING: "ceiling", FLOOR: "floor"}
    raw = {
        public.get(arm, arm): float(
            scores.row_scores(found.log_probs, recipe.task.names, references, calibrated[CEILING])[0].mean()
        )
        for (arm, split), found in labels.items()
        if split == "eval"
    }
    arms, gaps = {}, {}
    for arm, values in rows.items():
        interval = mean_interval(values, seed=recipe.seed)
        arms[public.get(arm, arm)] = {
            "score": interval.value,
            "low": interval.low,
            "high": interval.high,
            "n": len(values),
            "metric": metric,
        }
        if arm != CEILING:
            gaps[public.get(arm, arm)] = asdict(difference_interval(rows[CEILING], values, seed=recipe.seed))
    _warn(gaps)
    return {
        "metric": metric,
        "labels": recipe.task.names,
        "without_prior": None if log_prior is None else raw,
        "log_prior": None if log_prior is None else [float(v) for v in log_prior],
        "arms": arms,
        "gaps": gaps,
        "label_mass": {arm: float(np.median(found.mass)) for (arm, split), found in labels.items() if split == "eval"},
    }


def _warn(gaps: dict[str, dict[str, float]]) -> None:
    if gaps["floor"]["high"] < 0:
        console.warn(f"the full context makes the teacher worse ({gaps['floor']['value']:+.3f}): look at the template")
    elif gaps["floor"]["low"] <= 0:
        console.warn(
            "ceiling and floor cannot be told apart: "
            f"the full context changes the score by {gaps['floor']['value']:+.3f} "
            f"({gaps['floor']['low']:+.3f} … {gaps['floor']['high']:+.3f}). On these rows that context was not doing "
            "anything a student could learn; change the context or the data before paying for training"
        )
    for arm, gap in gaps.items():
        if arm != "floor" and gap["low"] <= 0:
            console.warn(f"the ceiling and the arm {arm} cannot be told apart ({gap['value']:+.3f})")
