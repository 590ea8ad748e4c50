"""The models that bench times where the response is a text, and the answers expected of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distillctl.data import eval_table
from distillctl.data.views import CEILING
from distillctl.graphs import teacher_graph
from distillctl.recipe import Text
from distillctl.runtimes import text_folder
from distillctl.runtimes.bench import FOLDERS, Answers, BenchSession
from distillctl.runtimes.drafts import Drafts
from distillctl.runtimes.genai import CONFIG
from distillctl.runtimes.interleaved import ProcessRun, generation_figures
from distillctl.runtimes.onnx_generator import ENCODER_DECODER
from distillctl.runtimes.roofline import Reads, bytes_per_run
from distillctl.soft_labels import response_shards
from distillctl.soft_labels.text import TextLabels
from distillctl.tasks.base import BoundTask, Timing
from distillctl.tasks.generate.facts import GenerateTrain, TeacherTokens


def timing(task: BoundTask, bench: BenchSession) -> Timing:
    """Time the teacher and both graphs in our own loop, each until its own answers end.

    The deployed graph is timed in onnxruntime-genai, too, where its folder is made for that.
    """
    recipe, workspace = task.recipe, task.workspace
    limit = {"limit": recipe.generate.max_new_tokens}
    ceiling = response_shards.read(workspace, CEILING, "eval", TextLabels(Text()))
    expected = {
        "teacher": {row: ids.tolist() for row, ids in zip(ceiling.id, ceiling.token_ids, strict=True)},
        "fp32": _evaluated(workspace.folder("train"), "student_ids"),
        "deployed": _evaluated(workspace.folder("quantize"), "deployed_ids"),
    }
    expected["teacher_genai"] = expected["teacher"]
    jobs = bench.teachers(
        teacher_graph.build,
        stop_ids=workspace.facts("collect", TeacherTokens).stop_ids,
        answer_tokens=_mean(expected["teacher"]),
        **limit,
    )
    for name in ("fp32", "deployed"):
        jobs |= bench.student(name, task.runtime, answer_tokens=_mean(expected[name]), **limit)
    if (workspace.folder("quantize") / CONFIG).is_file():
        name = "deployed_genai"
        expected[name] = expected["deployed"]
        views = {
            "max_view": workspace.facts("train", GenerateTrain).max_length - recipe.generate.max_new_tokens,
            "begin": text_folder.begin(workspace.folder("quantize")),
        }
        jobs |= bench.student(name, "genai", answer_tokens=_mean(expected[name]), **views, **limit)
    graphs = {name: workspace.folder(FOLDERS[name]) for name in jobs if name in FOLDERS}
    # An encoder–decoder's decoder reads other weights for the first token than for the next ones.
    decoders = {name: folder for name, folder in graphs.items() if not (folder / ENCODER_DECODER).exists()}
    reads = {}
    for name, folder in decoders.items():
        drafts = Drafts.read(folder) if jobs[name]["runtime"] == task.runtime else Drafts()  # genai has none
        reads[name] = Reads(bytes_per_run(folder), _tokens_per_run(drafts, expected[name], **limit))
    return Timing(jobs, expected, _columns, generation_figures, reads)


def paired_job(task: BoundTask) -> tuple[dict[str, Any], str]:
    """Return a job for answers of the same length, the deployed graph's mean, whichever graph writes them."""
    tokens = max(2, round(_mean(_evaluated(task.workspace.folder("quantize"), "deployed_ids"))))
    job = {"runtime": task.runtime, "limit": tokens, "answer_tokens": tokens, "until": "limit"}
    return job, f"the view and an answer of {tokens} tokens, whether or not it would have ended before"


def _evaluated(folder: Path, column: str) -> Answers:
    """Return the tokens in an eval.parquet."""
    return eval_table.by_row(folder / "eval.parquet", column)


def _tokens_per_run(drafts: Drafts, answers: Answers, limit: int) -> float:
    """Return how many tokens a run after the first one adds to an answer: more than 1 where guesses are right."""
    tokens = sum(len(answer) - 1 for answer in answers.values())
    runs = sum(drafts.runs(answer, limit) - 1 for answer in answers.values())
    return tokens / runs if runs else 1.0


def _mean(answers: Answers) -> float:
    """Return the mean tokens per answer."""
    return statistics.mean(map(len, answers.values()))


def _columns(runs: Sequence[ProcessRun]) -> dict[str, list[Any]]:
    """Return the columns of the samples. token_ms: of each token of an answer; the first one's counts from its text's
    arrival."""
    return {
        "view_tokens": [run.loaded["view_tokens"][query] for run in runs for query in run.queries],
        "token_ids": [answer for run in runs for answer in run.answers],
        "token_ms": [times for run in runs for times in run.token_ms],
    }
