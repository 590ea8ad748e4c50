"""bench of models that write: who answers what, what is timed, and what the figures mean."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from distillctl import pipeline
from distillctl.data.answer_place import AnswerPlace
from distillctl.recipe import Recipe
from distillctl.run_dir.workspace import Workspace
from distillctl.runtimes import interleaved
from distillctl.runtimes.genai import GenaiDecoder
from distillctl.runtimes.interleaved import ProcessRun
from distillctl.runtimes.onnx_generator import open_generator
from distillctl.runtimes.process import WorkerProcess
from distillctl.runtimes.roofline import bytes_per_run
from distillctl.runtimes.torch import TeacherGenerator, shared_context
from tests.fixtures import bench_run, exported_generate, real_run_generate, tiny_generate

pytestmark = pytest.mark.slow

LIMIT = 12
VIEWS = [bench_run.CONTEXT + text + bench_run.CUE for text in bench_run.questions(6)]


# ── the prompted teacher ─────────────────────────────────────────────────────────────────────────


PLACE = AnswerPlace()


@pytest.mark.parametrize("sliding_window", [None, 5])
def test_one_query_at_a_time_the_teacher_says_what_it_says_in_batches(
    tmp_path: Path, sliding_window: int | None
) -> None:
    teacher = bench_run.teacher(bench_run.causal_model(tmp_path, sliding_window=sliding_window))
    views = [teacher.encode(view) for view in VIEWS]
    said = [one[0].token_ids for one in teacher.answer(views, None, stop=(), max_new_tokens=LIMIT)]
    stop = said[0][2:3]  # in the middle of an answer
    said = [one[0].token_ids for one in teacher.answer(views, None, stop=stop, max_new_tokens=LIMIT)]
    assert min(map(len, said)) < LIMIT
    context = shared_context(teacher, VIEWS, PLACE)
    uncached, cached = (TeacherGenerator(teacher, stop, PLACE, part) for part in ((), context))
    for _ in range(2):  # the cached prompt is as good for the second query as for the first
        for text, view, answer in zip(VIEWS, views, said, strict=True):
            assert uncached.encode(text) == [*context, *cached.encode(text)] == view
            assert list(uncached.stream(view, LIMIT)) == answer
            assert list(cached.stream(cached.encode(text), LIMIT)) == answer


@pytest.mark.parametrize("sliding_window", [None, 5])
def test_the_teachers_keys_and_values_are_what_its_cache_holds(tmp_path: Path, sliding_window: int | None) -> None:
    teacher = bench_run.teacher(bench_run.causal_model(tmp_path, sliding_window=sliding_window))
    writer = TeacherGenerator(teacher, [], PLACE, teacher.encode(bench_run.CONTEXT))
    for length in (3, 20):
        layers = writer._run(list(range(length))).layers
        assert writer.kv_bytes(length) == sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)


# ── onnxruntime-genai ────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def folder() -> Path:
    return exported_generate.exported("llama", "genai").folder


def test_genai_answers_as_our_own_loop_does(folder: Path) -> None:
    found, own = GenaiDecoder(folder), exported_generate.exported("llama", "genai").open()
    for text in tiny_generate.texts(20):
        view = found.encode(text)
        assert view == own.encode(text)
        assert list(found.stream(view, LIMIT)) == own.generate(view, LIMIT)
    assert found.kv_bytes(7) == own.kv_bytes(7) > 0


def test_genai_cuts_a_view_where_the_tokenizer_of_the_folder_does(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "cut")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(5)
    tokenizer.save(str(tmp_path / "cut" / "tokenizer.json"))
    text = tiny_generate.TEXT
    own = open_generator(tmp_path / "cut").encode(text)
    assert GenaiDecoder(tmp_path / "cut", max_view=5).encode(text) == own
    assert len(own) == 5


def test_genai_begins_a_view_as_the_tokenizer_of_the_folder_does(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "begun")
    file = tmp_path / "begun" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    special = [(tiny_generate.EOS, tiny_generate.EOS_ID)]
    tokenizer.post_processor = TemplateProcessing(single=f"{tiny_generate.EOS} $A", special_tokens=special)
    tokenizer.save(str(file))
    own = open_generator(tmp_path / "begun")
    begin = own.encode("")
    assert begin == [tiny_generate.EOS_ID]
    assert GenaiDecoder(tmp_path / "begun", begin=begin).encode("the king") == own.encode("the king")


def test_genai_ends_an_answer_at_the_last_position(folder: Path) -> None:
    full = json.loads((folder / "genai_config.json").read_text())["model"]["context_length"]
    assert len(list(GenaiDecoder(folder).stream([5] * (full - 2), 10**6))) <= 2


def test_genai_has_as_many_threads_as_are_asked_for(folder: Path) -> None:
    code = f"""if True:
        import psutil
        from pathlib import Path
        from distillctl.runtimes.genai import GenaiDecoder
        before = psutil.Process().num_threads()
        one = GenaiDecoder(Path({str(folder)!r}), threads=1)
        middle = psutil.Process().num_threads()
        three = GenaiDecoder(Path({str(folder)!r}), threads=3)
        print(psutil.Process().num_threads() - middle, middle - before)
    """
    more, few = map(int, subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert more >= 2  # ONNX Runtime's pool has one thread less than it works with
    assert few <= more


# ── the worker process ───────────────────────────────────────────────────────────────────────────


def job(folder: Path, runtime: str) -> dict[str, Any]:
    texts = tiny_generate.texts(6)
    usual = {"threads": 1, "texts": texts, "limit": 9, "answer_tokens": 4.5}
    return {"runtime": runtime, "folder": str(folder), **usual} | (
        {"max_view": 80, "begin": []} if runtime == "genai" else {}
    )


@pytest.mark.parametrize("runtime", ["onnx_text", "genai"])
def test_what_writes_on_a_phone_needs_no_torch(folder: Path, runtime: str) -> None:
    code = """if True:
        import sys
        from distillctl.runtimes import worker
        worker.main()
        print(sorted({"torch", "transformers", "pydantic", "pyarrow"} & sys.modules.keys()), file=sys.stderr)
    """
    lines = [json.dumps(job(folder, runtime)), json.dumps({"start": 0, "count": 2, "seconds": None})]
    done = subprocess.run([sys.executable, "-c", code], input="\n".join(lines), capture_output=True, text=True)
    assert done.stderr == "[]\n"
    loaded, answer = map(json.loads, done.stdout.splitlines())
    assert 20e6 < loaded["peak_rss_bytes"] <= answer["peak_rss_bytes"] < 400e6
    assert min(loaded["import_ms"], loaded["load_ms"]) > 0


@pytest.mark.parametrize("runtime", ["onnx_text", "genai"])
def test_a_worker_times_every_token_of_an_answer(folder: Path, runtime: str) -> None:
    own, asked = exported_generate.exported("llama", "genai").open(), job(folder, runtime)
    views = [own.encode(text) for text in asked["texts"]]
    with WorkerProcess("deployed", asked) as worker:
        found = worker.run(1, 4)
        assert len(worker.run(0, 6, seconds=1e-9)["answers"]) == 1
    assert found["answers"] == [own.generate(view, 9) for view in views[1:5]]
    assert [len(times) for times in found["token_ms"]] == [len(answer) for answer in found["answers"]]
    assert all(ms > 0 for times in found["token_ms"] for ms in times)
    assert worker.loaded["view_tokens"] == [len(view) for view in views]
    assert worker.loaded["kv_bytes"] == own.kv_bytes(round(np.mean([len(view) for view in views]) + 4.5))


# ── the figures' laws ────────────────────────────────────────────────────────────────────────────

times = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=6)


def made_runs(token_ms: list[list[list[float]]], view_tokens: list[int]) -> list[ProcessRun]:
    runs = []
    for process, part in enumerate(token_ms):
        loaded = {"import_ms": 1.0, "load_ms": 2.0, "view_tokens": view_tokens, "kv_bytes": 77}
        queries = [query % len(view_tokens) for query in range(len(part))]
        runs.append(ProcessRun(process, loaded, 1.0, [], queries, [[0] * len(one) for one in part], part, 1))
    return runs


@given(
    st.lists(st.lists(times, min_size=1, max_size=5), min_size=1, max_size=3),
    st.lists(st.integers(1, 900), min_size=1, max_size=5),
)
def test_figures_add_up(token_ms: list[list[list[float]]], view_tokens: list[int]) -> None:
    runs = made_runs(token_ms, view_tokens)
    found = interleaved.figures(runs) | interleaved.generation_figures(runs)
    answers = [one for part in token_ms for one in part]
    read = [view_tokens[query] for run in runs for query in run.queries]
    assert 0 < found["first_token_ms"] <= found["p50_ms"] * (1 + 1e-9)
    assert found["n"] == len(answers)
    assert found["kv_bytes"] == 77
    assert found["view_tokens"] == pytest.approx(np.mean(read))
    assert found["answer_tokens"] == pytest.approx(np.mean([len(one) for one in answers]))
    # Both speeds, and the counts, give the whole time back.
    seconds = sum(read) / found["prefill_tokens_per_second"]
    later = sum(len(one) - 1 for one in answers)
    if later:
        assert found["token_p50_ms"] <= found["token_p90_ms"] <= found["token_p99_ms"]
        seconds += later / found["decode_tokens_per_second"]
    else:
        assert found["decode_tokens_per_second"] is found["token_p50_ms"] is found["token_p99_ms"] is None
    assert 1e3 * seconds == pytest.approx(found["mean_ms"] * found["n"])


def test_the_first_token_is_no_part_of_the_speed_of_the_others() -> None:
    found = interleaved.generation_figures(made_runs([[[100.0, 2.0, 4.0], [300.0]], [[200.0, 6.0]]], [30, 50]))
    assert found["first_token_ms"] == 200
    assert found["decode_tokens_per_second"] == pytest.approx(3 / 0.012)
    assert found["prefill_tokens_per_second"] == pytest.approx((30 + 50 + 30) / 0.6)
    assert (found["token_p50_ms"], found["token_p90_ms"]) == (4, pytest.approx(5.6))


# ── the stage ────────────────────────────────────────────────────────────────────────────────────

NAMES = ["teacher", "teacher_cached", "fp32", "deployed", "deployed_genai"]


@pytest.fixture(scope="module")
def run() -> tuple[Recipe, Workspace]:
    return real_run_generate.finished()


def test_every_model_is_timed_token_by_token(run: tuple[Recipe, Workspace]) -> None:
    workspace = run[1]
    folder, manifest = workspace.folder("bench"), workspace.manifest("bench")
    assert manifest
    facts = json.loads(json.dumps(manifest.facts, allow_nan=False))
    assert list(facts["models"]) == NAMES
    assert facts["agreement"] == dict.fromkeys(NAMES, 1.0)
    assert facts["ratios"].keys() == {*NAMES} - {"deployed"}
    for name, model in facts["models"].items():
        samples = pq.read_table(folder / f"samples/{name}.parquet").to_pydict()
        assert samples["query"] == list(range(12))
        whole, first = samples["milliseconds"], [times[0] for times in samples["token_ms"]]
        assert whole == pytest.approx([sum(times) for times in samples["token_ms"]])
        assert [len(ids) for ids in samples["token_ids"]] == [len(times) for times in samples["token_ms"]]
        assert model["n"] == 12
        assert model["p50_ms"] == pytest.approx(np.median(whole))
        assert model["first_token_ms"] == pytest.approx(np.median(first))
        assert model["prefill_tokens_per_second"] == pytest.approx(1e3 * sum(samples["view_tokens"]) / sum(first))
        assert model["answer_tokens"] == pytest.approx(np.mean([len(ids) for ids in samples["token_ids"]]))
        assert min(model["load_ms"], model["bytes"], model["kv_bytes"], model["peak_rss_bytes"]) > 0


def test_prompts_and_answers_have_the_recipes_real_lengths(run: tuple[Recipe, Workspace]) -> None:
    collect, bench = (run[1].manifest(stage) for stage in ("collect", "bench"))
    assert collect
    assert bench
    models = bench.facts["models"]
    cached = models["teacher_cached"]["cached_tokens"]
    assert cached == collect.facts["shared_tokens"] > 10
    assert models["teacher"]["view_tokens"] == pytest.approx(models["teacher_cached"]["view_tokens"] + cached)
    assert models["teacher"]["view_tokens"] == pytest.approx(models["deployed"]["view_tokens"] + cached, abs=1)
    # The cached prompt's keys and values are held as well.
    assert models["teacher"]["kv_bytes"] == models["teacher_cached"]["kv_bytes"] > 2 * models["deployed"]["kv_bytes"]
    assert models["deployed"]["kv_bytes"] == models["deployed_genai"]["kv_bytes"]
    assert models["fp32"]["bytes"] == (run[1].folder("export") / "model.onnx").stat().st_size
    assert models["teacher"]["peak_rss_bytes"] > 2 * models["deployed_genai"]["peak_rss_bytes"]


def test_no_process_is_left_behind(run: tuple[Recipe, Workspace]) -> None:
    results = json.loads((run[1].folder("bench") / "results.json").read_text())
    pids = [one["pid"] for model in results["models"].values() for one in model["runs"]]
    assert len(set(pids)) == 5
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    assert len(results["rows"]) == 12 + 1 + 1


def test_the_stage_is_fresh_until_the_recipe_changes(run: tuple[Recipe, Workspace]) -> None:
    made, workspace = run
    assert pipeline.stage("bench", made, workspace).reused
    other = made.model_copy(update={"bench": made.bench.model_copy(update={"threads": 2})})
    assert [state.why for state in pipeline.status(other, workspace) if state.stage == "bench"] == [
        ("bench.threads changed",)
    ]


def test_a_decoders_share_of_what_memory_can_do(run: tuple[Recipe, Workspace]) -> None:
    manifest = run[1].manifest("bench")
    assert manifest
    models, roof = manifest.facts["models"], manifest.facts["memory_bytes_per_second"]
    for name, model in models.items():
        if not name.startswith("deployed") and name != "fp32":
            assert "bandwidth_share" not in model
            continue
        weights = bytes_per_run(run[1].folder("export" if name == "fp32" else "quantize"))
        assert weights < model["bytes_per_token"] * model["tokens_per_run"] < weights + model["kv_bytes"]
        assert model["tokens_per_run"] == 1 if name == "deployed_genai" else model["tokens_per_run"] >= 1
        rate = model["decode_tokens_per_second"]
        assert model["bandwidth_share"] == pytest.approx(rate * model["bytes_per_token"] / roof)
        assert 0 < model["bandwidth_share"] < 1


# ── sliding windows ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("window", [8, 64, 512])
def test_a_student_with_a_sliding_window_is_exported_quantized_and_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    """Gemma 3: views and answers of some 40 tokens are longer than the window, shorter, and it exceeds what the
    student takes at all. Its teacher is one too, and is timed with its prompt cached in onnxruntime-genai."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = real_run_generate.recipe(tmp_path, "gemma3_text", sliding_window=window)
    made = made.model_copy(update={"bench": made.bench.model_copy(update={"quantized_teacher": window == 8})})
    workspace = Workspace(tmp_path / "run")
    for stage in ("collect", "train", "export", "quantize", "bench"):
        pipeline.stage(stage, made, workspace)
    manifest = workspace.manifest("bench")
    assert manifest
    facts, models = manifest.facts, manifest.facts["models"]
    assert facts["agreement"]["deployed_genai"] == 1
    assert models["deployed_genai"]["p50_ms"] > 0
    assert ("teacher_genai" in models) == (window == 8)
    described = {name: (one["runtime"], one["dtype"], one["bytes_of"]) for name, one in models.items()}
    assert described.pop("teacher_genai", None) in (None, ("onnxruntime-genai", "int4", "file"))
    assert described == {
        "teacher": ("PyTorch", "float32", "memory"),
        "teacher_cached": ("PyTorch", "float32", "memory"),
        "fp32": ("ONNX Runtime", "float32", "file"),
        "deployed": ("ONNX Runtime", described["deployed"][1], "file"),
        "deployed_genai": ("onnxruntime-genai", described["deployed"][1], "file"),
    }
    peer = facts["headline_peer"]
    cached = {name: models[name]["p50_ms"] for name in ("teacher_cached", "teacher_genai") if name in models}
    assert peer["model"] == min(cached, key=cached.__getitem__)
    assert peer["ratio"] == facts["ratios"][peer["model"]]
    if window == 8:
        assert models["teacher_genai"]["cached_tokens"] == models["teacher_cached"]["cached_tokens"] > 10
        assert 0 <= facts["agreement"]["teacher_genai"] <= 1
