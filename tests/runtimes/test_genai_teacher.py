"""The prompted teacher in onnxruntime-genai: it says what PyTorch's says, its graph is built once, and the headline
names the fastest teacher that has its prompt cached."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distillctl.data.answer_place import AnswerPlace
from distillctl.graphs import genai_builder, teacher_graph
from distillctl.models.model_source import ModelSource
from distillctl.recipe import HuggingFaceTeacher
from distillctl.report import speed
from distillctl.run_dir.bench_facts import TimedModel
from distillctl.runtimes import model_facts, teacher_tokens
from distillctl.runtimes.genai_teacher import GenaiTeacherClassifier, GenaiTeacherGenerator, Prompted
from distillctl.runtimes.torch import TeacherClassifier, TeacherGenerator, shared_context
from distillctl.teachers.huggingface import Teacher, load
from tests.fixtures import exported_generate, tiny_generate

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

CONTEXT = "the old king sees a river and reads of the sea in a book but never runs far "
VIEWS = [CONTEXT + text for text in tiny_generate.texts(6)]
WORDS = ["sea", "sea old", "river", "a book"]
"""Of one token and of several; one begins another."""
LIMIT = 12
PLACE = AnswerPlace()


def _teacher(folder: Path, kind: str, **config: Any) -> tuple[Teacher, ModelSource]:
    exported_generate.save(exported_generate.model(kind, "genai", **config), folder)
    source = ModelSource(str(folder), folder)
    return load(HuggingFaceTeacher(model=str(folder), device="cpu", threads=1), source), source


def _prompted(teacher: Teacher, source: ModelSource, words: list[str] | None) -> tuple[Prompted, int]:
    found = teacher_tokens.read(teacher.spec, source, VIEWS, PLACE, words)
    vocabulary = found.pop("vocabulary")
    return Prompted(**found), vocabulary


@pytest.mark.parametrize(("kind", "config"), [("llama", {}), ("gemma3_text", {"sliding_window": 8})])
def test_of_the_same_weights_it_says_what_pytorchs_says(tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    """In float32; Gemma's window is shorter than the prompt. Queries come in any order, and twice."""
    teacher, source = _teacher(tmp_path / "source", kind, **config)
    graph = tmp_path / "graph"
    graph.mkdir()
    genai_builder.export(tmp_path / "source", graph, exported_generate.STOP_IDS, 128)
    shutil.copyfile(tmp_path / "source" / "tokenizer.json", graph / "tokenizer.json")
    chosen, vocabulary = _prompted(teacher, source, WORDS)
    prior = [0.5, -1.0, 0.0, 2.0]
    ours = GenaiTeacherClassifier(graph, 1, chosen, vocabulary, prior)
    ours.read_prompt()
    context = shared_context(teacher, VIEWS, PLACE)
    assert list(chosen.context) == context
    theirs = TeacherClassifier(teacher, WORDS, PLACE, context, prior)
    for text in [*VIEWS, *VIEWS[::-1]]:
        np.testing.assert_allclose(ours.log_probs(text), theirs.log_probs(text), atol=2e-4)
        assert ours.label(text) == theirs.label(text)
    written, _ = _prompted(teacher, source, None)
    stop = exported_generate.STOP_IDS
    writer = GenaiTeacherGenerator(graph, 1, written, stop, LIMIT)
    writer.read_prompt()
    expected = TeacherGenerator(teacher, stop, PLACE, context)
    for text in [*VIEWS, *VIEWS[::-1]]:
        view = writer.encode(text)
        assert view == expected.encode(text)
        assert list(writer.stream(view, LIMIT)) == list(expected.stream(view, LIMIT))


def test_views_that_share_nothing(tmp_path: Path) -> None:
    teacher, source = _teacher(tmp_path / "source", "llama")
    graph = tmp_path / "graph"
    graph.mkdir()
    genai_builder.export(tmp_path / "source", graph, exported_generate.STOP_IDS, 128)
    shutil.copyfile(tmp_path / "source" / "tokenizer.json", graph / "tokenizer.json")
    texts = ["sea king", "river", "old book"]
    found = teacher_tokens.read(teacher.spec, source, texts, PLACE, None)
    found.pop("vocabulary")
    assert found["context"] == []
    writer = GenaiTeacherGenerator(graph, 1, Prompted(**found), exported_generate.STOP_IDS, LIMIT)
    writer.read_prompt()
    expected = TeacherGenerator(teacher, exported_generate.STOP_IDS, PLACE)
    for text in [*texts, *texts]:
        assert list(writer.stream(writer.encode(text), LIMIT)) == list(expected.stream(expected.encode(text), LIMIT))


# ── the graph in the cache ───────────────────────────────────────────────────────────────────────


def test_the_graph_is_built_once_for_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    teacher, source = _teacher(tmp_path / "source", "llama")
    built = []
    quantized = genai_builder.quantized
    monkeypatch.setattr(genai_builder, "quantized", lambda *a, **k: built.append(a) or quantized(*a, **k))
    folder = teacher_graph.build(teacher.spec, source, 60)
    assert folder is not None
    assert tmp_path / "cache" in folder.parents
    shutil.copytree(tmp_path / "source", tmp_path / "copy")
    copy = ModelSource(str(tmp_path / "copy"), tmp_path / "copy")
    assert teacher_graph.build(teacher.spec, copy, 60) == folder
    assert len(built) == 1
    (folder / "model.onnx").write_bytes(b"damaged")  # it is built again, not run
    assert teacher_graph.build(teacher.spec, source, 60) == folder
    assert len(built) == 2
    prompted, vocabulary = _prompted(teacher, source, WORDS)
    model = GenaiTeacherClassifier(folder, 1, prompted, vocabulary, None)
    model.read_prompt()
    assert np.exp(model.log_probs(VIEWS[0])).sum() <= 1


@pytest.mark.parametrize(("kind", "config"), [("gpt2", {}), ("mistral", {"sliding_window": 20})])
def test_a_teacher_that_cannot_be_had_so_is_timed_in_pytorch_with_a_note(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    config: dict[str, Any],
) -> None:
    """An architecture that the builder does not know; a window that it leaves out."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    teacher, source = _teacher(tmp_path / "source", kind, **config)
    assert teacher_graph.build(teacher.spec, source, 60) is None
    assert "the teacher is timed in PyTorch only" in capsys.readouterr().err


def test_a_teacher_that_memory_does_not_hold_is_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    teacher, source = _teacher(tmp_path / "source", "llama")
    monkeypatch.setattr(teacher_graph, "_BUILD_BYTES", 2**50)
    assert teacher_graph.build(teacher.spec, source, 60) is None
    assert "GB of memory" in capsys.readouterr().err


# ── the headline ─────────────────────────────────────────────────────────────────────────────────


def timed(p50_ms: float, runtime: str, dtype: str, threads: int = 1) -> TimedModel:
    return TimedModel(
        runtime=runtime, dtype=dtype, threads=threads, bytes=1, bytes_of="file", p50_ms=p50_ms, p90_ms=p50_ms,
        p99_ms=p50_ms, n=1, load_ms=1.0, peak_rss_bytes=1,
    )  # fmt: skip


MODELS = {
    "teacher": timed(3000.0, "PyTorch", "float32"),
    "teacher_cached": timed(170.0, "PyTorch", "float32"),
    "teacher_genai": timed(40.0, "onnxruntime-genai", "int4"),
    "deployed": timed(2.0, "ONNX Runtime", "dynamic_int8"),
}


def test_the_headline_compares_with_the_fastest_cached_teacher_and_names_it() -> None:
    peer = model_facts.headline_peer(MODELS, {"teacher_genai": 0.97})
    assert peer is not None
    assert (peer.model, peer.ratio, peer.agreement) == ("teacher_genai", 20.0, 0.97)
    said = "20× faster than the teacher with its prompt cached (onnxruntime-genai, int4, 1 thread)"
    assert speed.words(peer, 2.0) == said
    slower = MODELS | {"teacher_genai": timed(500.0, "onnxruntime-genai", "int4", threads=2)}
    peer = model_facts.headline_peer(slower, {})
    said = "85× faster than the teacher with its prompt cached (PyTorch, float32, 1 thread)"
    assert speed.words(peer, 2.0) == said


def test_a_served_teacher_is_compared_with_nothing() -> None:
    models = {"deployed": MODELS["deployed"]}
    assert model_facts.headline_peer(models, {}) is None
    assert speed.words(None, 2.0) == "2.00\u00a0ms a query"
