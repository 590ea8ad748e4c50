"""make bench-collect: the shared context run once, against the plain full forward pass, in one run.

Both sides score the same label positions of the same rows at their own best batch size. The plain side takes seconds a
row, so it goes through the rows once, in parts; the shared side scores all rows (its own pass over the context
included) between the parts, and its median counts. Ideal is N(P+S) / (P+NS), the ratio of the tokens that have to be
computed, for P shared tokens and S of its own per row. Prints a table, then one JSON object.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distillctl import console
from distillctl import recipe as recipes
from distillctl.data import examples, views
from distillctl.models import model_source
from distillctl.recipe import HuggingFaceTeacher, Recipe
from distillctl.teachers import huggingface, label_scoring
from distillctl.teachers.shared_context import SharedContext, common_prefix
from distillctl.teachers.worker_pool import AnswerRequest

ROWS, PARTS = 200, 4
SHARED_TOKENS = (160, 320, 640, 1280)
"""Row tokens per batch tried for the shared side."""
PLAIN_ROWS = (1, 2, 4)
"""Rows per batch tried for the plain side, on as many rows."""


class Contest:
    """The two ways of scoring the same rows."""

    def __init__(self, recipe: Recipe) -> None:
        dataset = examples.load(recipe)
        renderer = views.renderers(recipe, dataset.shots)["full"]
        assert isinstance(recipe.teacher, HuggingFaceTeacher)  # the one kind whose tensors are here
        self.teacher = huggingface.load(recipe.teacher, model_source.teacher(recipe))
        task = recipe.classify
        asked = AnswerRequest(task.answer_prefix, tuple(task.labels.values()))
        found = [self.teacher.view(renderer, example, asked) for example in dataset.eval[:ROWS]]
        self.views, self.answers = [view.ids or [] for view in found], [view.answers for view in found]
        self.shared = common_prefix(self.views)
        self.own = [view[self.shared :] for view in self.views]

    def plain(self, rows: Sequence[int], batch: int) -> tuple[float, np.ndarray]:
        """Seconds, and raw label log-probabilities of ``rows``, ``batch`` rows at a time."""
        part, answers = [self.views[row] for row in rows], [self.answers[row] for row in rows]
        start = time.perf_counter()
        found = label_scoring.score(self.teacher.model, part, answers, batch_tokens=batch * max(map(len, part)))
        return time.perf_counter() - start, found.log_probs

    def split(self, batch_tokens: int) -> tuple[float, np.ndarray]:
        """Seconds, and raw label log-probabilities of all rows; the context's own pass is part of it."""
        start = time.perf_counter()
        context = SharedContext(self.teacher.model, self.views[0][: self.shared])
        found = label_scoring.score(
            self.teacher.model, self.own, self.answers, batch_tokens=batch_tokens, context=context
        )
        return time.perf_counter() - start, found.log_probs


def main(path: str) -> None:
    """Benchmark the recipe's teacher under its full context."""
    contest = Contest(recipes.load(Path(path)))
    console.note("finding each side's best batch size")
    best_split = min(SHARED_TOKENS, key=lambda size: contest.split(size)[0])
    best_plain = min(PLAIN_ROWS, key=lambda size: contest.plain(range(4), size)[0])
    plain_seconds, shared_seconds, difference = 0.0, [], 0.0
    for number, rows in enumerate(np.array_split(np.arange(len(contest.views)), PARTS)):
        console.note(f"part {number + 1} of {PARTS}")
        seconds, found = contest.split(best_split)
        shared_seconds.append(seconds)
        seconds, plain = contest.plain(rows.tolist(), best_plain)
        plain_seconds += seconds
        difference = max(difference, float(abs(found[rows] - plain).max()))
    count, own = len(contest.views), statistics.mean(map(len, contest.own))
    ideal = count * (contest.shared + own) / (contest.shared + count * own)
    speedup = plain_seconds / statistics.median(shared_seconds)
    console.text(f"{count} rows, {contest.shared} shared tokens, {own:.1f} own tokens a row")
    console.text(f"plain    {plain_seconds:8.1f} s  ({best_plain} rows a batch)")
    console.text(f"shared   {statistics.median(shared_seconds):8.1f} s  ({best_split} own tokens a batch)")
    console.text(f"speed-up {speedup:8.1f}    of {ideal:.1f} ({speedup / ideal:.0%}); |Δ log p| ≤ {difference:.1e}")
    figures = {
        "speedup": speedup,
        "ideal": ideal,
        "share_of_ideal": speedup / ideal,
        "max_abs_logprob_diff": difference,
        "rows": count,
        "shared_tokens": contest.shared,
        "plain_seconds": plain_seconds,
        "shared_seconds": shared_seconds,
    }
    console.text(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1])
