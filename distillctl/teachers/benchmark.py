"""make bench-collect: the shared context run once, against the plain full forward pass, in one run.

Both sides score the same label positions of the same rows at their own best batch size. The plain side is too slow to
score all rows: it scores a sample of them, several times, and is scaled to all. Ideal is N(P+S) / (P+NS), the ratio of
the tokens that have to be computed, for P shared tokens and S of its own per row. Prints a table, then one JSON object.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from distillctl import console, references
from distillctl import recipe as recipes
from distillctl.data import examples, views
from distillctl.recipe import implementation
from distillctl.teachers import label_scoring
from distillctl.teachers.huggingface import Teacher
from distillctl.teachers.shared_context import SharedContext, common_prefix

ROWS = 240
PLAIN_ROWS = 8
"""The plain pass takes seconds a row; every row costs it the same P + S tokens."""
ROUNDS = 3
SHARED_TOKENS = (160, 320, 640, 1280)
PLAIN_BATCHES = (1, 2, 4)


def main(path: str) -> None:
    """Benchmark the recipe's teacher under its full context on ``ROWS`` eval rows."""
    recipe = recipes.load(Path(path))
    dataset = examples.load(recipe)
    renderer = views.renderers(recipe, dataset.shots)["full"]
    teacher: Teacher = implementation(recipe.teacher)(recipe.teacher, references.teacher(recipe))
    answers = [teacher.encode_answer(recipe.task.answer_prefix + words) for words in recipe.task.labels.values()]
    whole = [
        teacher.encode(renderer.render(example, teacher.tokenizer), chat=renderer.is_chat)
        for example in dataset.eval[:ROWS]
    ]
    shared = common_prefix(whole)
    own = [view[shared:] for view in whole]
    sample = sorted(range(len(whole)), key=lambda row: len(whole[row]))[:: len(whole) // PLAIN_ROWS][:PLAIN_ROWS]
    plain_views = [whole[row] for row in sample]
    longest = max(map(len, plain_views))

    def plain(batch: int) -> label_scoring.LabelScores:
        return label_scoring.score(teacher.model, plain_views, answers, batch_tokens=batch * longest)

    def split(batch_tokens: int) -> label_scoring.LabelScores:
        context = SharedContext(teacher.model, whole[0][:shared])
        return label_scoring.score(teacher.model, own, answers, batch_tokens=batch_tokens, context=context)

    console.note("finding each side's best batch size")
    best_split = min(SHARED_TOKENS, key=lambda size: _seconds(split, size)[0])
    best_plain = min(PLAIN_BATCHES, key=lambda size: _seconds(plain, size)[0])
    times: dict[str, list[float]] = {"plain": [], "shared": []}
    for number in range(ROUNDS):
        console.note(f"round {number + 1} of {ROUNDS}")
        seconds, reference = _seconds(plain, best_plain)
        times["plain"].append(seconds * len(whole) / len(plain_views))
        seconds, found = _seconds(split, best_split)
        times["shared"].append(seconds)
    difference = float(abs(found.log_probs[sample] - reference.log_probs).max())
    mean_own = statistics.mean(map(len, own))
    ideal = len(whole) * (shared + mean_own) / (shared + len(whole) * mean_own)
    speedup = statistics.median(times["plain"]) / statistics.median(times["shared"])
    console.text(f"{len(whole)} rows, {shared} shared tokens, {mean_own:.1f} of its own per row, {len(answers)} labels")
    console.text(f"plain   {statistics.median(times['plain']):8.1f} s  (batches of {best_plain}, from {len(sample)} rows)")
    console.text(f"shared  {statistics.median(times['shared']):8.1f} s  (batches of {best_split} tokens, context included)")
    console.text(f"speed-up {speedup:.1f} of an ideal {ideal:.1f}: {speedup / ideal:.0%}; max |Δ log p| {difference:.1e}")
    figures = {
        "speedup": speedup,
        "ideal": ideal,
        "share_of_ideal": speedup / ideal,
        "max_abs_logprob_diff": difference,
        "rows": len(whole),
        "compared_rows": len(sample),
        "shared_tokens": shared,
        "seconds": times,
    }
    console.text(json.dumps(figures))


def _seconds(
    score: Callable[[int], label_scoring.LabelScores], size: int
) -> tuple[float, label_scoring.LabelScores]:
    start = time.perf_counter()
    found = score(size)
    return time.perf_counter() - start, found


if __name__ == "__main__":
    main(sys.argv[1])
