"""quantize: every candidate measured once, the smallest inside the gate kept, or nothing at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import torch
from onnx import TensorProto
from scipy.special import log_softmax

from distillctl.errors import GateFailed
from distillctl.quantizers import dynamic_int8, labels, search
from distillctl.quantizers.candidates import Candidate
from distillctl.quantizers.labels import Answers, HeldOut
from distillctl.recipe import DynamicInt8, Gate
from distillctl.runtimes.onnxruntime import OnnxClassifier, graph_bytes
from distillctl.stages.classify import export, quantize
from distillctl.workspace import Workspace, tree_digest
from tests import tiny
from tests.quantized import same_bytes_each_time

OPEN = {"max_kl": 10.0, "min_same_top": 0.0, "max_score_drop": 1.0}
ROWS = 40


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Workspace:
    """A run directory with export committed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    space = tiny.workspace(tmp_path_factory.mktemp("run"), rows=ROWS)
    tiny.commit(space, "export", export.run(tiny.recipe(), space))
    torch.set_num_threads(threads)
    return space


@pytest.fixture
def space(exported, tmp_path) -> Workspace:
    """A copy of it that a test may write into."""
    return Workspace(shutil.copytree(exported.root, tmp_path / "run"))


@pytest.fixture
def graphs(exported) -> Path:
    return exported.folder("export")


# ── dynamic int8 ─────────────────────────────────────────────────────────────────────────────────


def test_int8_weights_in_a_smaller_file_and_nothing_left_beside_the_source(graphs, tmp_path, capfd):
    before = tree_digest(graphs)
    dynamic_int8.quantize(DynamicInt8(), graphs, tmp_path)
    kinds = {tensor.data_type for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert TensorProto.INT8 in kinds
    assert graph_bytes(tmp_path) < graph_bytes(graphs) * 0.6
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert tree_digest(graphs) == before
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("spec", [DynamicInt8(per_channel=False), DynamicInt8(reduce_range=True)], ids=lambda s: s.name)
def test_the_bytes_are_the_same_each_time(spec, graphs, tmp_path):
    same_bytes_each_time(spec, graphs, tmp_path)


# ── judging and choosing ─────────────────────────────────────────────────────────────────────────


def _candidate(name: str, size: int, kl: float = 0.01, p50: float = 1.0, why: str | None = None) -> Candidate:
    return Candidate(name, size, kl, kl, 1.0, None, p50, why)


def test_the_smallest_inside_wins():
    big, small = _candidate("big", 2000, kl=0.001), _candidate("small", 1000, kl=0.02)
    tiniest = _candidate("tiniest", 500, why="kl 0.2 > 0.05")
    assert search.choose([big, small, tiniest]) is small
    assert search.choose([tiniest]) is None


def test_sizes_within_a_percent_tie_and_go_to_the_lower_kl_then_the_faster():
    coarse, fine = _candidate("coarse", 100_000, kl=0.02), _candidate("fine", 100_900, kl=0.01)
    assert search.choose([coarse, fine]) is fine
    assert search.choose([coarse, replace(fine, bytes=101_100)]) is coarse
    faster = replace(fine, name="faster", p50_ms=0.5)
    assert search.choose([coarse, fine, faster]) is faster


def _rows(n: int = 100, truth: bool = True) -> HeldOut:
    """A student that is sure of its label, and right on all rows but ten."""
    top = np.arange(n) % 3
    student = log_softmax(4.0 * np.eye(3, dtype=np.float32)[top], axis=-1)
    right = np.where(np.arange(n) < 10, (top + 1) % 3, top)
    return HeldOut([""] * n, student, student, right if truth else None)


def _judge(log_probs: np.ndarray, rows: HeldOut, **gate: float) -> Candidate:
    found = Answers(log_probs, np.ones(len(log_probs))).figures(rows)
    return search.judge("one", 1, found, rows.score(rows.student), Gate(**gate))


def test_the_student_itself_is_inside_any_gate():
    rows = _rows()
    found = _judge(rows.student, rows, max_kl=1e-9, min_same_top=1, max_score_drop=0)
    assert (found.inside, found.kl, found.same_top, found.score) == (True, 0.0, 1.0, 0.9)


def test_every_bound_that_breaks_is_named():
    rows = _rows()
    swapped = rows.student.copy()
    swapped[90:] = swapped[90:, [1, 2, 0]]
    found = _judge(swapped, rows)
    assert not found.inside
    assert [part.split()[0] for part in found.why.split("; ")] == ["kl", "same_top", "score"]
    assert "0.8000, a drop of 0.1000 > 0.02" in found.why
    # A drop of exactly what is allowed is allowed, whatever the floats make of it.
    assert _judge(swapped, rows, **OPEN | {"max_score_drop": 0.1}).inside


def test_without_references_there_is_no_score_to_drop():
    rows = _rows(truth=False)
    found = _judge(rows.student[:, [1, 2, 0]], rows, **OPEN | {"max_score_drop": 0.0})
    assert found.score is None
    assert found.inside


def test_nan_is_outside_and_no_number():
    rows = _rows()
    found = _judge(np.full_like(rows.student, np.nan), rows, **OPEN)
    assert (found.inside, found.kl, found.kl_teacher) == (False, None, None)


def test_graphs_take_turns_and_each_answers_every_row_once():
    asked = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def logits(self, texts):
            asked.append((self.name, *texts))
            return np.zeros((1, 3), np.float32)

    texts, done = [str(row) for row in range(search.BLOCK + 3)], []
    found = labels.measure({"a": Recorder("a"), "b": Recorder("b")}, texts, done.append)
    assert done == [search.BLOCK, 3]
    assert sorted(asked) == sorted((name, text) for name in "ab" for text in texts)
    turns = [name for index, (name, _) in enumerate(asked) if index == 0 or asked[index - 1][0] != name]
    assert turns == ["a", "b", "a"]  # b goes on: it is first in the second block
    assert all(len(answers.milliseconds) == len(answers.log_probs) == len(texts) for answers in found.values())


# ── the stage ────────────────────────────────────────────────────────────────────────────────────


def test_the_stage_commits_the_smallest_with_all_it_needs(space, exported, capfd):
    outcome = quantize.run(tiny.recipe(quantize={"gate": OPEN}), space)
    tiny.commit(space, "quantize", outcome)
    assert capfd.readouterr().out == ""
    folder, facts = space.folder("quantize"), outcome.facts
    files = {"README.md", "candidates.json", "config.json", "eval.parquet", "model.onnx", "tokenizer.json"}
    assert set(outcome.outputs) == files | {"tokenizer_config.json"}
    assert {path.name for path in folder.iterdir()} == {*outcome.outputs, "manifest.json"}
    sizes = {one["name"]: one["bytes"] for one in facts["candidates"]}
    assert len(sizes) == 4
    assert facts["bytes"] == (folder / "model.onnx").stat().st_size <= min(sizes.values()) * (1 + search.SAME_SIZE)
    assert [one["name"] for one in facts["candidates"] if one["chosen"]] == [facts["chosen"]]
    assert json.loads((folder / "candidates.json").read_text())["candidates"] == facts["candidates"]
    assert facts["fp32"]["bytes"] == (exported.folder("export") / "model.onnx").stat().st_size
    assert f"| **{facts['chosen']}** (here) |" in (folder / "README.md").read_text()


def test_the_figures_are_those_of_the_committed_graph(space):
    """Computed again by hand from the committed files."""
    outcome = quantize.run(tiny.recipe(quantize={"gate": OPEN}), space)
    chosen = next(one for one in outcome.facts["candidates"] if one["chosen"])
    logits = OnnxClassifier(space.folder("quantize")).logits(tiny.texts(ROWS))
    deployed = log_softmax(logits.astype(np.float64), axis=-1)
    table = pq.read_table(space.folder("quantize") / "eval.parquet").to_pydict()
    np.testing.assert_allclose(np.array(table["deployed"]), deployed, atol=1e-5)
    student = pq.read_table(space.folder("train") / "eval.parquet").to_pydict()
    assert table["id"] == student["id"]
    fp32 = np.array(student["student"])
    assert chosen["kl"] == pytest.approx((np.exp(fp32) * (fp32 - deployed)).sum(-1).mean(), abs=1e-6)
    assert chosen["same_top"] == (fp32.argmax(-1) == deployed.argmax(-1)).mean()
    views = pq.read_table(space.folder("collect") / "views.parquet").to_pydict()
    right = [tiny.LABELS[top] == name for top, name in zip(deployed.argmax(-1), views["reference"], strict=True)]
    assert chosen["score"] == outcome.facts["score"] == pytest.approx(np.mean(right))


def test_a_candidate_outside_the_gate_is_passed_over(space):
    """A bound between the best and the second best KL leaves one."""
    everything = quantize.run(tiny.recipe(quantize={"gate": OPEN}), space).facts["candidates"]
    best, second = sorted(everything, key=lambda one: one["kl"])[:2]
    gate = OPEN | {"max_kl": (best["kl"] + second["kl"]) / 2}
    facts = quantize.run(tiny.recipe(quantize={"gate": gate}), space).facts
    assert facts["chosen"] == best["name"]
    assert [one["name"] for one in facts["candidates"] if one["inside"]] == [best["name"]]
    assert all(one["why"].startswith("kl ") for one in facts["candidates"] if not one["inside"])


def test_none_inside_commits_nothing_and_lists_every_candidate(space):
    tiny.commit(space, "quantize", quantize.run(tiny.recipe(quantize={"gate": OPEN}), space))
    before = tree_digest(space.root)
    candidates = [{"kind": "dynamic_int8", "per_channel": channel} for channel in (True, False)]
    with pytest.raises(GateFailed) as caught:
        quantize.run(tiny.recipe(quantize={"gate": {"max_kl": 1e-9}, "candidates": candidates}), space)
    assert caught.value.exit_code == 6
    for name in ("dynamic_int8_per_channel", "dynamic_int8"):
        line = next(line for line in caught.value.what.splitlines() if f"graph {name}," in line)
        assert "> 1e-09" in line
    assert tree_digest(space.root) == before


def test_without_references_scores_are_null(tmp_path, exported):
    space = tiny.workspace(tmp_path, rows=8, references=False)
    shutil.copytree(exported.folder("export"), space.folder("export"))
    facts = quantize.run(tiny.recipe(quantize={"gate": OPEN}), space).facts
    assert facts["score"] is facts["fp32"]["score"] is None
    assert {one["score"] for one in facts["candidates"]} == {None}
