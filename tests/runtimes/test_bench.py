from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch

from distillctl import cautions
from distillctl.data.answer_place import AnswerPlace
from distillctl.errors import UnavailableError
from distillctl.runtimes import bench as runtimes_bench
from distillctl.runtimes import interleaved, machine
from distillctl.runtimes.interleaved import Plan, ProcessRun
from distillctl.runtimes.process import WorkerProcess
from distillctl.runtimes.torch import TeacherClassifier, shared_context
from distillctl.stages import bench
from tests.fixtures import bench_run
from tests.fixtures.processes import gone

pytestmark = pytest.mark.slow

WORDS = list(bench_run.LABELS.values())
PLACE = AnswerPlace()
VIEWS = [bench_run.CONTEXT + text + bench_run.CUE for text in bench_run.questions(6)]


# ── the prompted teacher ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("words", [WORDS, ["dog", "cat", "other"], ["good dog", "good red boats", "good"]])
@pytest.mark.parametrize("sliding_window", [None, 5])
def test_cached_prompt_gives_the_plain_log_probs(tmp_path: Path, words: list[str], sliding_window: int | None) -> None:
    teacher = bench_run.teacher(bench_run.causal_model(tmp_path, sliding_window=sliding_window))
    context = shared_context(teacher, VIEWS, PLACE)
    uncached, cached = (TeacherClassifier(teacher, words, PLACE, cut) for cut in ((), context))
    found = [teacher.label_tokens(view, words, PLACE) for view in VIEWS]
    plain = teacher.score([one.view for one in found], [one.answers for one in found], None)
    assert len(context) > 10
    for _ in range(2):  # the cached prompt is as good for the second query as for the first
        for view, expected in zip(VIEWS, plain.log_probs, strict=True):
            assert np.abs(uncached.log_probs(view) - expected).max() < 1e-4
            assert np.abs(cached.log_probs(view) - expected).max() < 1e-4
            assert cached.label(view) == uncached.label(view) == expected.argmax()


def test_prior_is_taken_off_before_choosing(tmp_path: Path) -> None:
    teacher = bench_run.teacher(bench_run.causal_model(tmp_path))
    log_probs = TeacherClassifier(teacher, WORDS, PLACE).log_probs(VIEWS[0])
    for label in range(len(WORDS)):
        prior = log_probs.copy()
        prior[label] -= 1
        assert TeacherClassifier(teacher, WORDS, PLACE, log_prior=prior.tolist()).label(VIEWS[0]) == label


def test_shared_context_leaves_every_view_a_token(tmp_path: Path) -> None:
    teacher = bench_run.teacher(bench_run.causal_model(tmp_path))
    assert shared_context(teacher, ["the price", "the price of cats"], PLACE) == teacher.encode("the")
    assert shared_context(teacher, ["the price", "a price"], PLACE) == []
    with pytest.raises(ValueError, match="does not start"):
        TeacherClassifier(teacher, WORDS, PLACE, teacher.encode("the")).label("a price")


# ── the worker process ───────────────────────────────────────────────────────────────────────────


def onnx_job(folder: Path) -> dict[str, Any]:
    texts = bench_run.questions(8)
    return {"runtime": "onnx", "folder": str(bench_run.graph(folder)), "threads": 1, "texts": texts}


def test_onnx_worker_needs_no_torch(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from distillctl.runtimes import worker
        worker.main()
        print(sorted({"torch", "transformers", "pydantic", "pyarrow"} & sys.modules.keys()), file=sys.stderr)
    """
    lines = [json.dumps(onnx_job(tmp_path)), json.dumps({"start": 2, "count": 3, "seconds": None})]
    done = subprocess.run([sys.executable, "-c", code], input="\n".join(lines), capture_output=True, text=True)
    assert done.stderr == "[]\n"
    loaded, answer = map(json.loads, done.stdout.splitlines())
    assert min(loaded["import_ms"], loaded["load_ms"]) > 0
    assert 20e6 < loaded["peak_rss_bytes"] <= answer["peak_rss_bytes"] < 400e6
    assert [len(times) for times in answer["token_ms"]] == [1] * 3
    assert min(answer["token_ms"]) > [0]


def test_worker_answers_what_is_asked_and_goes(tmp_path: Path) -> None:
    from distillctl.runtimes.onnxruntime import OnnxClassifier

    job = onnx_job(tmp_path)
    with WorkerProcess("fp32", job) as worker:
        answer = worker.run(1, 5)
        assert len(worker.run(0, 8, seconds=1e-9)["answers"]) == 1
    assert answer["answers"] == OnnxClassifier(tmp_path).logits(job["texts"][1:6]).argmax(1)[:, None].tolist()
    assert gone(worker.loaded["pid"])


def test_worker_that_cannot_load_says_why(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"fp32: .*ended with exit code 1\n(.*\n)*.*config\.json") as error:
        WorkerProcess("fp32", onnx_job(tmp_path) | {"folder": str(tmp_path / "nowhere")})
    assert error.value.exit_code == 5
    assert not psutil.Process().children()


def test_worker_that_dies_or_hangs_is_reported(tmp_path: Path) -> None:
    with WorkerProcess("deployed", onnx_job(tmp_path)) as worker:
        os.kill(worker.loaded["pid"], signal.SIGKILL)
        with pytest.raises(UnavailableError, match=r"deployed: .*was killed \(out of memory\?\)"):
            worker.run(0, 1)
    with pytest.raises(UnavailableError, match=r"gave no answer in 0\.001 s"):
        WorkerProcess("deployed", onnx_job(tmp_path), load_seconds=0.001)
    with pytest.raises(KeyError), WorkerProcess("deployed", onnx_job(tmp_path)) as worker:
        raise KeyError
    assert gone(worker.loaded["pid"])
    assert not psutil.Process().children()


def test_a_signal_while_a_worker_is_asked_leaves_nothing_that_keeps_the_command_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting(threading.Timer):
        def start(self) -> None:
            super().start()
            raise KeyboardInterrupt

    monkeypatch.setattr(threading, "Timer", Interrupting)
    with pytest.raises(KeyboardInterrupt):
        WorkerProcess("deployed", onnx_job(tmp_path))
    assert not psutil.Process().children()
    left = [one for one in threading.enumerate() if isinstance(one, Interrupting)]
    for one in left:
        one.cancel()
    assert all(one.daemon for one in left)


def test_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = f"""if True:
        import os
        from distillctl.runtimes.process import WorkerProcess
        worker = WorkerProcess("fp32", {onnx_job(tmp_path)!r})
        print(worker.loaded["pid"], flush=True)
        os.kill(os.getpid(), 9)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    assert gone(int(done.stdout))


# ── taking turns ─────────────────────────────────────────────────────────────────────────────────


class Pretend:
    """A worker whose queries take a given time; keeps a log of what all of them were asked."""

    log: list[tuple[str, int, int]] = []

    def __init__(self, name: str, job: dict[str, Any]) -> None:
        self.name, self.query_ms = name, job["query_ms"]
        self.loaded = {"pid": 0, "import_ms": 1.0, "load_ms": 2.0}

    def __enter__(self) -> Pretend:
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, start: int, count: int, seconds: float | None = None) -> dict[str, Any]:
        fit = count if seconds is None else min(count, max(1, int(-(-1e3 * seconds // self.query_ms))))
        self.log.append((self.name, start, fit))
        memory = dict.fromkeys(interleaved.MEMORY, 1)
        return {"token_ms": [[self.query_ms]] * fit, "answers": [[0]] * fit, "cpu_ms": self.query_ms * fit, **memory}


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    monkeypatch.setattr(interleaved, "WorkerProcess", Pretend)
    monkeypatch.setattr(Pretend, "log", [])
    return Pretend.log


def test_models_take_turns_on_the_same_rows(log: list[tuple[str, int, int]]) -> None:
    plan = Plan(processes=2, queries=12, warmup=3, seconds=None)
    turns: list[str] = []
    runs = interleaved.measure({name: {"query_ms": 1.0} for name in "ABCD"}, plan, turns.append)
    warm, timed = log[:8], log[8:20]
    assert warm == [(name, start, count) for name in "ABCD" for start, count in ((24, 1), (25, 3))]
    assert "".join(name for name, _, _ in timed) == "ABCDBCDACDAB"
    assert [(start, count) for name, start, count in timed if name == "C"] == [(0, 4), (4, 4), (8, 4)]
    assert "".join(name for name, _, _ in log[28:]) == "BCDACDABDABC"
    assert len(turns) == plan.processes * plan.turns * 4
    for model in runs.values():
        assert [run.queries for run in model] == [list(range(12)), list(range(12, 24))]
        assert [run.warmup_ms for run in model] == [[1.0] * 3] * 2


def test_slow_model_keeps_to_its_seconds(log: list[tuple[str, int, int]]) -> None:
    plan = Plan(processes=1, queries=60, warmup=5, seconds=20)
    runs = interleaved.measure({"slow": {"query_ms": 3600.0}, "fast": {"query_ms": 2.0}}, plan)
    [slow], [fast] = runs["slow"], runs["fast"]
    assert (slow.first_ms, slow.warmup_ms) == (3600.0, [])
    assert len(slow.queries) == 6  # 5 are 18 s
    assert len(fast.queries) == 60
    order = [name for name, _, _ in log]
    assert order.index("slow", order.index("fast") + 6) < len(order) - 4  # not all at the beginning
    [hopeless] = interleaved.measure({"slow": {"query_ms": 1e5}}, plan)["slow"]
    assert hopeless.queries == [0, 1]


def test_figures_are_over_all_samples() -> None:
    loaded = {"import_ms": 1.0, "load_ms": 2.0}
    runs = [ProcessRun(p, loaded, 9.0 + p, [], [0, 1], [[0], [1]], [[1.0 + p], [3.0 + p]], 100 + p) for p in range(3)]
    found = interleaved.figures(runs)
    samples = [1, 3, 2, 4, 3, 5]
    assert found["p90_ms"] == pytest.approx(np.percentile(samples, 90))
    assert found["queries_per_second"] == pytest.approx(1000 / np.mean(samples))
    assert (found["n"], found["processes"], found["peak_rss_bytes"], found["first_ms"]) == (6, 3, 102, 10.0)
    assert found["process_p50_ms"] == [2.0, 4.0]
    assert interleaved.agreement(runs, {0: [0], 1: [0]}) == 0.5
    assert interleaved.agreement(runs, {7: [0]}) is None


def test_machine_facts_are_plain() -> None:
    facts = json.loads(json.dumps(machine.describe().as_json(), allow_nan=False))
    assert facts["cores"] >= facts["usable_cores"] >= 1
    assert facts["memory_bytes"] > 1e8
    assert set(facts["flags"]) <= set(machine.VECTOR_FLAGS)


# ── the stage ────────────────────────────────────────────────────────────────────────────────────


def test_stage(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe, workspace = bench_run.prepare(tmp_path, queries=15, processes=2, warmup=1)
    torch.set_num_threads(1)
    outcome = bench.run(recipe, workspace)
    folder = workspace.folder("bench")
    names = ["teacher", "teacher_cached", "fp32", "deployed"]

    facts = json.loads(json.dumps(outcome.facts.as_json(), allow_nan=False))
    assert list(facts["models"]) == names
    assert facts["agreement"] == dict.fromkeys(names, 1.0)
    assert facts["ratios"].keys() == {"teacher", "teacher_cached", "fp32"}
    for name, model in facts["models"].items():
        samples = pq.read_table(folder / f"samples/{name}.parquet").to_pydict()
        assert samples["process"] == [0] * 8 + [1] * 8
        assert samples["query"] == list(range(16))
        assert (model["n"], model["processes"]) == (16, 2)
        assert model["p50_ms"] == pytest.approx(np.median(samples["milliseconds"]))
        assert 0 < model["p50_ms"] <= model["p90_ms"] <= model["p99_ms"]
        assert min(model["load_ms"], model["first_ms"], model["bytes"]) > 0
    assert facts["models"]["deployed"]["bytes"] == (workspace.folder("quantize") / "model.onnx").stat().st_size
    assert facts["models"]["teacher"]["file_bytes"] > facts["models"]["teacher"]["bytes"]  # a header, not counted
    assert facts["models"]["teacher"]["peak_rss_bytes"] > 2 * facts["models"]["deployed"]["peak_rss_bytes"]
    assert facts["models"]["teacher_cached"]["cached_tokens"] > 10
    assert all(0 <= model["waiting_share"] < 1 for model in facts["models"].values())

    results = json.loads((folder / "results.json").read_text())
    pids = [run["pid"] for model in results["models"].values() for run in model["runs"]]
    assert len(set(pids)) == 8
    assert all(gone(pid) for pid in pids)
    assert sorted(outcome.outputs) == ["results.json", "samples"]
    assert all((folder / model["samples"]).is_file() for model in results["models"].values())
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(("share", "codes"), [(0.1, []), (0.5, ["busy-machine"])])
def test_a_model_that_waits_for_a_processor_is_told(share, codes):
    with cautions.collected() as doubts:
        runtimes_bench.caution_busy(share)
    assert [doubt["code"] for doubt in doubts] == codes


def test_stage_warns_when_a_model_is_not_the_one_that_was_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, workspace = bench_run.prepare(tmp_path, rows=40)
    loaded = {"import_ms": 1.0, "load_ms": 1.0, "bytes": 1, "cached_tokens": 1}
    queries = list(range(40))
    always_first = ProcessRun(0, loaded, 1.0, [], queries, [[0]] * 40, [[1.0]] * 40, 1)
    monkeypatch.setattr(runtimes_bench, "measure", lambda jobs, plan, advance: {name: [always_first] for name in jobs})
    with cautions.collected() as doubts:
        shares = bench.run(recipe, workspace).facts.as_json()["agreement"]
    said = capfd.readouterr().err
    assert shares.pop("teacher_cached") == 1
    assert "teacher_cached" not in said
    for name, share in shares.items():
        assert 0 < share < 1
        assert f"{name} gave the expected answer in" in said
    assert [doubt["code"] for doubt in doubts].count("other-answers") == len(shares)
