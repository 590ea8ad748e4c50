"""Time models of either kind of task: choose the rows, start the processes, write the results."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distillctl import cautions, console
from distillctl.data import view_table
from distillctl.data.answer_place import AnswerPlace
from distillctl.errors import UnavailableError
from distillctl.models import model_source
from distillctl.models.model_source import ModelSource
from distillctl.recipe import HuggingFaceTeacher, Recipe
from distillctl.run_dir.bench_facts import AlsoMeasured, BenchFacts, LoadgenFacts, ProfileTimes, TimedModel
from distillctl.run_dir.facts import DeployedFacts, Facts, PlaceFacts, PlacesFacts
from distillctl.run_dir.workspace import StageOutput, Workspace, replacing_folder, versions
from distillctl.runtimes import batched, lengths, loadgen, machine, model_facts, sustained
from distillctl.runtimes.interleaved import LEAST, MEMORY, Job, Plan, ProcessRun, agreement, figures, measure
from distillctl.runtimes.onnxruntime import graph_bytes
from distillctl.runtimes.process import WorkerProcess
from distillctl.runtimes.roofline import Reads

FOLDERS = {"fp32": "export", "deployed": "quantize", "deployed_genai": "quantize"}
"""Model → the stage that wrote its graph."""
TEACHER_PROCESSES = {"teacher": 3, "teacher_cached": 3, "teacher_genai": 3}
LOGS = "loadgen"
PASSES = 15
"""Passes over the large array that measures the speed of memory."""
MOST_WAITING = 0.2
"""Largest share of the deployed model's time without a processor that gives no caution. With `distillctl bench
recipes/demo.yaml` on two cores it is at most 0.001 for each model, and 0.45 to 0.52 at a load of 10."""
LEAST_AGREEMENT = 0.99
Answers = Mapping[str, list[int]]
"""Row id → the answer's token ids, or a single label index."""


class BenchSession:
    """Time models on a seeded sample of eval rows, the same for all, on the CPU with ``bench.threads`` threads.

    The teacher is timed under its full context: in PyTorch, with and without its prompt cached; and, where possible, in
    onnxruntime-genai with int4 weights and its prompt cached, as a service would run it. The headline compares with the
    fastest teacher that has its prompt cached. `distillctl.runtimes.worker` says what is counted,
    `distillctl.runtimes.interleaved` how models take turns.
    """

    def __init__(self, recipe: Recipe, workspace: Workspace) -> None:
        settings = recipe.bench
        if settings.loadgen:
            loadgen.require()
        self.recipe, self.workspace = recipe, workspace
        self.plan = Plan(
            processes=settings.processes,
            queries=max(LEAST, math.ceil(settings.queries / settings.processes)),
            warmup=settings.warmup,
            seconds=None if settings.max_seconds is None else settings.max_seconds / settings.processes,
            fewer=TEACHER_PROCESSES,
        )
        self._threads, self._cpus = settings.used_threads, machine.cpus(settings.used_threads)
        self._limits = {"threads": self._threads, "cpus": self._cpus}
        self._views = view_table.read(workspace.folder("collect") / "views.parquet", "eval")
        # Rows repeat if there are fewer of them than queries.
        order = np.random.default_rng(recipe.seed).permutation(len(self._views.id))
        self._sample: list[int] = np.resize(order, self.plan.rows).tolist()

    @property
    def rows(self) -> list[str]:
        """Return the row id of each query."""
        return [self._views.id[row] for row in self._sample]

    @property
    def _place(self) -> PlaceFacts:
        """Return the place where the teacher's answer begins."""
        return self.workspace.facts("collect", PlacesFacts).answer_place["full"]

    def teachers(
        self, build: Callable[[HuggingFaceTeacher, ModelSource, int], Path | None], **task: Any
    ) -> dict[str, Job]:
        """Return the jobs that time the teacher. None for a served teacher, whose times depend on network and load.

        build: teacher and number of positions → the folder of its graph for onnxruntime-genai, or None. task: what the
        worker has to know about the task.
        """
        if not isinstance(self.recipe.teacher, HuggingFaceTeacher):
            return {}
        source, threads = model_source.teacher(self.recipe), self.recipe.bench.used_threads
        texts = [self._views.full[row] for row in self._sample]
        job = {
            "runtime": "torch",
            **self._limits,
            "texts": texts,
            "teacher": self.recipe.teacher.model_copy(update={"device": "cpu", "threads": threads}).model_dump(),
            "source": {
                "reference": source.reference,
                "path": source.path and str(source.path),
                "revision": source.revision,
            },
            "place": self._place.as_json(),
            **task,
        }
        jobs = {"teacher": {**job, "cached": False}, "teacher_cached": {**job, "cached": True}}
        if self.recipe.bench.quantized_teacher:
            jobs |= self._genai_teacher(build, self.recipe.teacher, source, texts, task)
        return jobs

    def _genai_teacher(
        self,
        build: Callable[[HuggingFaceTeacher, ModelSource, int], Path | None],
        spec: HuggingFaceTeacher,
        source: ModelSource,
        texts: list[str],
        task: dict[str, Any],
    ) -> dict[str, Job]:
        from distillctl.runtimes import teacher_tokens  # torch

        place = AnswerPlace(**self._place.as_json())
        prompted = teacher_tokens.read(spec, source, texts, place, task.get("label_words"))
        vocabulary = prompted.pop("vocabulary")
        longest = len(prompted["context"]) + max(map(len, prompted["suffixes"].values()))
        folder = build(spec, source, longest + task.get("limit", 0))
        if folder is None:
            return {}
        job = {"runtime": "genai_teacher", **self._limits, "texts": texts, "folder": str(folder)}
        job |= {"prompted": prompted, "vocabulary": vocabulary, **task}
        try:
            with WorkerProcess("teacher_genai", job) as worker:
                worker.run(0, 1)
        except UnavailableError as error:  # a graph that was built may still be one that the runtime cannot run
            console.note(f"bench: the teacher is timed in PyTorch only: {error.what.splitlines()[-1]}")
            return {}
        return {"teacher_genai": job}

    def student(self, name: str, runtime: str, **task: Any) -> dict[str, Job]:
        """Return the job that times one of `FOLDERS` in ``runtime``."""
        texts = [self._views.simplified[row] for row in self._sample]
        folder = str(self.workspace.folder(FOLDERS[name]))
        device = self.recipe.bench.device
        memory = {} if device is None else {"data_bytes": device.data_bytes}
        return {name: {"runtime": runtime, **self._limits, **memory, "texts": texts, "folder": folder, **task}}

    def run(
        self,
        jobs: Mapping[str, Job],
        expected: Mapping[str, Answers],
        columns: Callable[[Sequence[ProcessRun]], Mapping[str, list[Any]]],
        more: Callable[[list[ProcessRun]], dict[str, Any]] = lambda runs: {},
        reads: Mapping[str, Reads] | None = None,
    ) -> StageOutput:
        """Time all models, and return the result to commit.

        expected: model → the recorded answers. The cached teacher is expected to answer as the uncached one does.
        columns: columns of answers for the samples. more: further figures of a model. reads: model → its weights, to
        compare with the memory's bandwidth.
        """
        before, settings = machine.describe(), self.recipe.bench
        console.note(
            f"timing {len(jobs)} models in {self.plan.processes} fresh processes each (a local teacher in fewer), "
            f"{settings.used_threads} thread(s)"
        )
        passes = self._memory() if reads else []
        with console.progress("bench", self.plan.turns * sum(map(self.plan.rounds, jobs)), "turns") as bar:
            runs = measure(jobs, self.plan, lambda name: bar.advance(model=name))
        chosen = self.workspace.facts("quantize", DeployedFacts).chosen
        models = {
            name: TimedModel.model_validate(
                self._sizes(name, jobs[name], model_runs)
                | model_facts.described(name, self.recipe, chosen)
                | figures(model_runs)
                | more(model_runs)
            )
            for name, model_runs in runs.items()
        }
        shares = self._agreement(runs, expected)
        also: Facts = AlsoMeasured(headline_peer=model_facts.headline_peer(models, shares))
        caution_busy(models["deployed"].waiting_share or 0.0)
        if reads:
            speed = max(passes + self._memory())
            models |= {name: self._shared(models[name], read, speed) for name, read in reads.items()}
            also |= AlsoMeasured(memory_bytes_per_second=speed)
        if device := settings.device:
            times = lengths.measure(jobs["deployed"], device.context_tokens)
            described = {"name": settings.profile, "host": "this host, not a phone", **device.model_dump(mode="json")}
            also |= AlsoMeasured(profile=ProfileTimes(**described, lengths=times))
        if settings.sustained_seconds:
            also |= AlsoMeasured(sustained=sustained.measure(jobs["deployed"], settings.sustained_seconds))
        if settings.batch:
            if "deployed_genai" in jobs:
                also |= AlsoMeasured(together=batched.measure(jobs["deployed_genai"], settings.batch))
            else:
                console.warn("bench.batch needs a deployed graph that onnxruntime-genai runs; it is left out")
        for name, share in shares.items():
            if share is not None and share < LEAST_AGREEMENT and name != "teacher_genai":  # it is quantized
                cautions.add(
                    "other-answers",
                    f"{name} gave the expected answer in only {share:.1%} of its timed queries. The report's "
                    "scores belong to the expected answers.",
                )
        with tempfile.TemporaryDirectory() as scratch:
            logs = Path(scratch)
            if (rated := self._loadgen(jobs["deployed"], logs)) is not None:
                also |= AlsoMeasured(loadgen=rated)
            facts = BenchFacts(
                models=models,
                machine=before,
                threads=self._threads,
                cpus=self._cpus,
                ratios={n: m.p50_ms / models["deployed"].p50_ms for n, m in models.items() if n != "deployed"},
                agreement=shares,
                **also.given,
            )
            return StageOutput(self._write(facts, runs, columns, logs), facts)

    def _memory(self) -> list[int]:
        """Measure the memory bandwidth in bytes per second, with the same threads. The best pass before and after the
        models counts.
        """
        with WorkerProcess("memory", {"runtime": "memory", "texts": [""] * PASSES, **self._limits}) as worker:
            return [speed for [speed] in worker.run(0, PASSES)["answers"]]

    def _shared(self, model: TimedModel, reads: Reads, speed: float) -> TimedModel:
        """Add the model's share of the memory bandwidth to its figures."""
        view, answer, held = model.view_tokens or 0.0, model.answer_tokens or 0.0, model.kv_bytes or 0
        # Keys and values grow with the answer: their size halfway through it is the mean.
        bytes_read = (reads.bytes_per_run + held * (view + answer / 2) / (view + answer)) / reads.tokens_per_run
        rate = model.decode_tokens_per_second
        return model.model_copy(
            update={
                "bytes_per_token": bytes_read,
                "tokens_per_run": reads.tokens_per_run,
                "bandwidth_share": rate and rate * bytes_read / speed,
            }
        )

    def _loadgen(self, deployed: Job, folder: Path) -> LoadgenFacts | None:
        """Return MLPerf LoadGen's result on the deployed graph; leave its logs in ``folder``."""
        rules = self.recipe.bench.loadgen
        if rules is None:
            return None
        console.note(f"MLPerf LoadGen, SingleStream: at least {rules.min_queries:,} queries, {rules.min_seconds:g} s")
        result = loadgen.measure("deployed", deployed, **rules.model_dump(), folder=folder)
        if not result.valid:
            kept = self.workspace.folder("bench") / LOGS / loadgen.SUMMARY
            console.warn(f"MLPerf LoadGen's verdict is INVALID ({', '.join(result.unmet)}): see {kept}")
        return result

    def _sizes(self, name: str, job: Job, runs: Sequence[ProcessRun]) -> dict[str, int | None]:
        """Return a model's ``bytes``, and a teacher's ``file_bytes`` and ``cached_tokens``."""
        if name in FOLDERS:
            return {"bytes": graph_bytes(self.workspace.folder(FOLDERS[name]))}
        if name == "teacher_genai":
            return {"bytes": graph_bytes(Path(job["folder"])), "cached_tokens": runs[0].loaded["cached_tokens"]}
        path = model_source.teacher(self.recipe).path
        weights = [] if path is None else [path] if path.is_file() else path.glob("*.safetensors")
        return {
            "bytes": runs[0].loaded["bytes"],
            "file_bytes": sum(file.stat().st_size for file in weights) or None,
            "cached_tokens": runs[0].loaded["cached_tokens"],
        }

    def _agreement(self, runs: dict[str, list[ProcessRun]], expected: Mapping[str, Answers]) -> dict[str, float | None]:
        """Return for each model the share of timed queries with the expected answer."""
        shares: dict[str, float | None] = {}
        if "teacher" in runs:
            shares["teacher_cached"] = agreement(runs["teacher_cached"], _by_query(runs["teacher"]))
        for name, answers in expected.items():
            if name not in runs:
                continue
            by_query = {query: answers[row] for query, row in enumerate(self.rows)}
            shares[name] = agreement(runs[name], by_query)
        return shares

    def _write(
        self,
        facts: BenchFacts,
        runs: dict[str, list[ProcessRun]],
        columns: Callable[[Sequence[ProcessRun]], Mapping[str, list[Any]]],
        logs: Path,
    ) -> list[str]:
        tables = {
            name: {
                "process": [run.process for run in model_runs for _ in run.queries],
                "query": [query for run in model_runs for query in run.queries],
                "milliseconds": [ms for run in model_runs for ms in run.milliseconds],
                **columns(model_runs),
            }
            for name, model_runs in runs.items()
        }
        models = {
            name: {
                **facts.models[name].as_json(),
                "samples": f"samples/{name}.parquet",
                "runs": [
                    {**run.loaded, "first_ms": run.first_ms, "warmup_ms": run.warmup_ms, "n": len(run.queries)}
                    | {kind: getattr(run, kind) for kind in MEMORY}
                    for run in model_runs
                ],
            }
            for name, model_runs in runs.items()
        }
        # rows: the query of a sample → the id of its example
        results = {**facts.as_json(), "models": models, "versions": versions(), "rows": self.rows}
        text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        with replacing_folder(self.workspace.folder("bench")) as staged:
            if facts.loadgen is not None:
                shutil.copytree(logs, staged / LOGS)
            (staged / "samples").mkdir()
            for name, table in tables.items():
                pq.write_table(pa.table(table), staged / "samples" / f"{name}.parquet")
            (staged / "results.json").write_text(text, encoding="utf-8")
        return ["results.json", "samples", *([LOGS] if facts.loadgen else [])]


def caution_busy(waiting_share: float) -> None:
    """Caution if the deployed model often waited for a processor. waiting_share: of the time of its queries."""
    if waiting_share > MOST_WAITING:
        cautions.add(
            "busy-machine",
            f"The deployed model spent {waiting_share:.0%} of its queries' time waiting for a processor, because other "
            "programs were running. On a quiet machine it is faster, and it may compare otherwise with the teacher: "
            "end them and run distillctl bench RECIPE --force.",
        )


def _by_query(runs: Sequence[ProcessRun]) -> dict[int, Any]:
    """Return the answer to each query."""
    return {query: answer for run in runs for query, answer in zip(run.queries, run.answers, strict=True)}
