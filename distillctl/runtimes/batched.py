"""Compare the texts per second of the deployed graph one at a time, as a user types, and several together."""

from __future__ import annotations

import statistics

from distillctl import interrupts
from distillctl.run_dir.bench_facts import BatchTimes
from distillctl.runtimes.interleaved import Job
from distillctl.runtimes.process import WorkerProcess

ROUNDS = 3
GROUPS = 4
"""Groups of texts that each way answers in a round."""


def measure(job: Job, batch: int) -> BatchTimes:
    """Have two fresh, warm processes answer the same texts in turns; a ratio is the median of the rounds.

    job: a job of the runtime "genai". batch: number of texts that are decoded together.
    """
    texts = job["texts"][: batch * GROUPS]
    groups = [texts[at : at + batch] for at in range(0, len(texts), batch)]
    with (
        WorkerProcess("one at a time", job | {"texts": texts}) as alone,
        WorkerProcess("together", job | {"runtime": "genai_batch", "texts": groups}) as together,
    ):
        ways = {"alone": (alone, len(texts)), "together": (together, len(groups))}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        answers = {}
        for turn in range(-1, ROUNDS):  # the first is not counted
            interrupts.raise_if_pending()
            for name in list(ways) if turn % 2 == 0 else list(ways)[::-1]:
                worker, queries = ways[name]
                run = worker.run(0, queries)
                answers[name] = run["answers"]
                if turn >= 0:
                    seconds[name].append(sum(map(sum, run["token_ms"])) / 1e3)
    answers["together"] = [answer for [group] in answers["together"] for answer in group]
    pairs = zip(answers["alone"], answers["together"], strict=True)
    same = [other in (own, own[:-1]) for own, other in pairs]  # together, an answer lacks its stop id
    return BatchTimes(
        batch=batch,
        texts=len(texts),
        texts_per_second=len(texts) / statistics.median(seconds["alone"]),
        texts_per_second_together=len(texts) / statistics.median(seconds["together"]),
        ratio=statistics.median(one / many for one, many in zip(seconds["alone"], seconds["together"], strict=True)),
        same_answers=statistics.mean(same),
    )
