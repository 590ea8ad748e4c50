"""quantize: every candidate measured once, the smallest inside the gate kept, or nothing at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto
from scipy.special import log_softmax

from distillctl.data import view_table
from distillctl.errors import GateFailed, UpstreamError
from distillctl.quantizers import dynamic_int8, search
from distillctl.quantizers.candidates import Candidate
from distillctl.recipe import CANDIDATES, DynamicInt8, Gate
from distillctl.run_dir.workspace import Workspace, tree_digest
from distillctl.runtimes.onnxruntime import OnnxClassifier, graph_bytes
from distillctl.stages import export, quantize
from distillctl.tasks.classify import quantization
from distillctl.tasks.classify.quantization import ClassifyAnswers, EvalRows
from tests.fixtures import tiny
from tests.fixtures.quantized import same_bytes_each_time

pytestmark = pytest.mark.slow

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


@pytest.mark.parametrize("per_channel", [False, True])
def test_zero_points_of_zeros_are_left_out_and_no_answer_changes(graphs, tmp_path, per_channel, monkeypatch):
    shutil.copytree(graphs, tmp_path / "with")
    shutil.copytree(graphs, tmp_path / "without")
    dynamic_int8.quantize(DynamicInt8(per_channel=per_channel), graphs, tmp_path / "without")
    monkeypatch.setattr(dynamic_int8, "_leave_out_zero_points", lambda graph: None)
    dynamic_int8.quantize(DynamicInt8(per_channel=per_channel), graphs, tmp_path / "with")
    products = {
        which: [
            len(n.input) for n in onnx.load(tmp_path / which / "model.onnx").graph.node if n.op_type == "MatMulInteger"
        ]
        for which in ("with", "without")
    }
    assert products == {"with": [4] * len(products["with"]), "without": [3] * len(products["with"])}
    assert graph_bytes(tmp_path / "without") < graph_bytes(tmp_path / "with")
    texts = tiny.texts(20)
    np.testing.assert_array_equal(*(OnnxClassifier(tmp_path / which).logits(texts) for which in products))


@pytest.mark.parametrize("spec", [DynamicInt8(per_channel=False), DynamicInt8(reduce_range=True)], ids=lambda s: s.name)
def test_the_bytes_are_the_same_each_time(spec, graphs, tmp_path):
    same_bytes_each_time(spec, graphs, tmp_path)


@pytest.mark.parametrize("bits", [4, 8])
def test_small_tables_are_looked_up_in_blocks_beside_int8_products(bits, graphs, tmp_path):
    whole, small = tmp_path / "whole", tmp_path / "small"
    for spec, folder in ((DynamicInt8(), whole), (DynamicInt8(table_bits=bits), small)):
        shutil.copytree(graphs, folder)
        dynamic_int8.quantize(spec, graphs, folder)
    operators = [node.op_type for node in onnx.load(small / "model.onnx").graph.node]
    assert operators.count("GatherBlockQuantized") == 3
    assert "MatMulInteger" in operators
    answers = [OnnxClassifier(folder).logits(tiny.texts(ROWS)) for folder in (graphs, whole, small)]
    # Two ways to round: neither is further from fp32 than int8 is, four bits of these random tables aside.
    assert np.abs(answers[2] - answers[0]).mean() < (2 if bits == 8 else 20) * np.abs(answers[1] - answers[0]).mean()


# ── judging and choosing ─────────────────────────────────────────────────────────────────────────


def _candidate(name: str, size: int, kl: float = 0.01, p50: float = 1.0, why: str | None = None) -> Candidate:
    return Candidate(
        name=name, bytes=size, kl=kl, kl_percentiles=[kl] * 3, kl_teacher=kl, same_top=1.0, score=None, p50_ms=p50,
        why=why, inside=why is None,
    )  # fmt: skip


def test_the_smallest_inside_wins():
    big, small = _candidate("big", 2000, kl=0.001), _candidate("small", 1000, kl=0.02)
    tiniest = _candidate("tiniest", 500, why="kl 0.2 > 0.05")
    assert search.choose([big, small, tiniest]) is small
    assert search.choose([tiniest]) is None


def test_sizes_within_a_percent_tie_and_go_to_the_lower_kl_then_the_faster():
    coarse, fine = _candidate("coarse", 100_000, kl=0.02), _candidate("fine", 100_900, kl=0.01)
    assert search.choose([coarse, fine]) is fine
    assert search.choose([coarse, _candidate("fine", 101_100, kl=0.01)]) is coarse
    faster = _candidate("faster", 100_900, kl=0.01, p50=0.5)
    assert search.choose([coarse, fine, faster]) is faster


def test_the_fastest_inside_wins_and_latencies_that_tie_go_to_the_smaller():
    slow, fast = _candidate("slow", 1000, p50=2.0), _candidate("fast", 3000, p50=1.0)
    assert search.choose([slow, fast], "fastest") is fast
    assert search.choose([slow, _candidate("fast", 3000, p50=1.0, why="kl 0.2 > 0.05")], "fastest") is slow
    near = _candidate("near", 2000, kl=0.02, p50=1.0 + 0.9 * search.SAME_SPEED)
    assert search.choose([slow, fast, near], "fastest") is near
    assert (
        search.choose([slow, fast, _candidate("near", 2000, kl=0.02, p50=1.0 + 1.1 * search.SAME_SPEED)], "fastest")
        is fast
    )


def test_the_closest_inside_wins_whatever_its_size():
    small, close = _candidate("small", 1000, kl=0.02), _candidate("close", 3000, kl=0.01)
    assert search.choose([small, close], "closest") is close
    assert search.choose([], "closest") is None


NUMBERS = st.sampled_from([1.0, 2.0, 3.0, 4.0])


@given(st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=8))
def test_who_is_not_on_the_front_is_beaten_by_one_who_is(figures):
    some = [_candidate(str(n), int(size), kl=kl, p50=p50) for n, (size, kl, p50) in enumerate(figures)]
    best = [one for one in some if one.name in search.front(some)]
    for one in some:
        rivals = [other for other in best if other.bytes <= one.bytes and other.kl <= one.kl]
        assert one in best or any(other.p50_ms <= one.p50_ms for other in rivals)
    assert search.choose(some).name in {one.name for one in best} or len({one.bytes for one in some}) < len(some)


def test_a_size_target_is_a_bound_like_the_others():
    rows = _rows()
    assert _judge(rows.student, rows, max_bytes=1).inside
    figures = ClassifyAnswers(rows.student, np.ones(100)).figures(rows)
    found = search.judge("one", 2_000, figures, figures, Gate(max_bytes=1_000))
    assert found.why == "2,000 bytes > 1,000 (quantize.gate.max_bytes)"
    assert found.excess == 2


def _rows(n: int = 100, truth: bool = True) -> EvalRows:
    """A student that is sure of its label, and right on all rows but ten."""
    top = np.arange(n) % 3
    student = log_softmax(4.0 * np.eye(3, dtype=np.float32)[top], axis=-1)
    right = np.where(np.arange(n) < 10, (top + 1) % 3, top)
    return EvalRows([""] * n, student, student, right if truth else None)


def _judge(log_probs: np.ndarray, rows: EvalRows, **gate: float) -> Candidate:
    fp32, found = (ClassifyAnswers(each, np.ones(len(each))).figures(rows) for each in (rows.student, log_probs))
    return search.judge("one", 1, found, fp32, Gate(**gate))


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


def test_a_gate_of_the_task_alone_bounds_the_drop_and_what_the_rows_can_show_of_it():
    task = {"max_kl": None, "min_same_top": None, "max_score_drop": 0.02}
    few, many = _rows(100), _rows(2_000)
    for rows in (few, many):
        far = np.log(np.float32([0.4, 0.35, 0.25]))[(np.arange(3) - rows.student.argmax(-1)[:, None]) % 3]
        found = _judge(far, rows, **task)  # the same labels, another distribution
        assert (found.inside, found.score_drop.value) == (True, 0.0)
        assert found.score_drop.low < 0 < found.score_drop.high
    # No row differs, but a hundred rows cannot show that fewer than one in a hundred would.
    assert "the score may drop by up to 0.0" in _judge(few.student, few, **task, max_score_drop_high=0.01).why
    assert _judge(many.student, many, **task, max_score_drop_high=0.01).inside


def test_without_references_there_is_no_score_to_drop():
    rows = _rows(truth=False)
    found = _judge(rows.student[:, [1, 2, 0]], rows, **OPEN | {"max_score_drop": 0.0})
    assert found.score is None
    assert found.inside


@pytest.mark.parametrize("gate", [{"max_kl": None, "min_same_top": None}, {"max_score_drop_high": 0.5}])
def test_a_gate_of_the_task_needs_references(gate):
    rows = _rows(truth=False)
    found = _judge(rows.student, rows, **gate)
    assert not found.inside
    assert "without references the drop of the score" in found.why


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
    found = quantization.measure({"a": Recorder("a"), "b": Recorder("b")}, texts, done.append)
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
    folder, facts = space.folder("quantize"), outcome.facts.as_json()
    files = {"README.md", "candidates.json", "config.json", "eval.parquet", "model.onnx", "tokenizer.json"}
    assert set(outcome.outputs) == files | {"tokenizer_config.json"}
    assert {path.name for path in folder.iterdir()} == {*outcome.outputs, "manifest.json"}
    sizes = {one["name"]: one["bytes"] for one in facts["candidates"]}
    assert len(sizes) == len(CANDIDATES["classifier"])
    assert list(sizes.values()) == sorted(sizes.values())
    assert facts["bytes"] == (folder / "model.onnx").stat().st_size <= min(sizes.values()) * (1 + search.SAME_SIZE)
    assert [one["name"] for one in facts["candidates"] if one["chosen"]] == [facts["chosen"]]
    assert json.loads((folder / "candidates.json").read_text())["candidates"] == facts["candidates"]
    assert facts["fp32"]["bytes"] == (exported.folder("export") / "model.onnx").stat().st_size
    assert f"| **{facts['chosen']}** (here) |" in (folder / "README.md").read_text()


def test_a_spent_budget_leaves_out_the_last_and_names_them(space, capfd):
    names = [spec.name for spec in CANDIDATES["classifier"]]
    outcome = quantize.run(tiny.recipe(quantize={"gate": OPEN, "budget_seconds": 1e-6}), space)
    assert [one["name"] for one in outcome.facts.as_json()["candidates"]] == names[:1]
    assert outcome.facts.as_json()["chosen"] == names[0]
    assert outcome.facts.as_json()["not_tried"] == names[1:]
    assert json.loads((space.folder("quantize") / "candidates.json").read_text())["not_tried"] == names[1:]
    assert f"candidates were tried: {names[1]}," in " ".join(capfd.readouterr().err.split())


def test_the_figures_are_those_of_the_committed_graph(space):
    """Computed again by hand from the committed files."""
    outcome = quantize.run(tiny.recipe(quantize={"gate": OPEN}), space)
    chosen = next(one for one in outcome.facts.as_json()["candidates"] if one["chosen"])
    logits = OnnxClassifier(space.folder("quantize")).logits(tiny.texts(ROWS))
    deployed = log_softmax(logits.astype(np.float64), axis=-1)
    table = pq.read_table(space.folder("quantize") / "eval.parquet").to_pydict()
    np.testing.assert_allclose(np.array(table["deployed"]), deployed, atol=1e-5)
    student = pq.read_table(space.folder("train") / "eval.parquet").to_pydict()
    assert table["id"] == student["id"]
    fp32 = np.array(student["student"])
    assert chosen["kl"] == pytest.approx((np.exp(fp32) * (fp32 - deployed)).sum(-1).mean(), abs=1e-6)
    assert chosen["same_top"] == (fp32.argmax(-1) == deployed.argmax(-1)).mean()
    known = view_table.read(space.folder("collect") / "views.parquet", "eval").reference
    right = [tiny.LABELS[top] == name for top, name in zip(deployed.argmax(-1), known, strict=True)]
    assert chosen["score"] == outcome.facts.as_json()["score"] == pytest.approx(np.mean(right))


def test_a_candidate_outside_the_gate_is_passed_over(space):
    """A bound between the best and the second best KL leaves one."""
    everything = quantize.run(tiny.recipe(quantize={"gate": OPEN}), space).facts.as_json()["candidates"]
    best, second = sorted(everything, key=lambda one: one["kl"])[:2]
    gate = OPEN | {"max_kl": (best["kl"] + second["kl"]) / 2}
    facts = quantize.run(tiny.recipe(quantize={"gate": gate}), space).facts.as_json()
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
    facts = quantize.run(tiny.recipe(quantize={"gate": OPEN}), space).facts.as_json()
    assert facts["score"] is facts["fp32"]["score"] is None
    assert {one["score"] for one in facts["candidates"]} == {None}


def test_the_objective_and_the_front_are_told(space):
    facts = quantize.run(tiny.recipe(quantize={"gate": OPEN, "objective": "closest"}), space).facts.as_json()
    least = min(one["kl"] for one in facts["candidates"])
    [chosen] = [one for one in facts["candidates"] if one["chosen"]]
    assert chosen["kl"] == least
    assert chosen["front"]
    assert chosen["kl_percentiles"] == sorted(chosen["kl_percentiles"])
    told = json.loads((space.folder("quantize") / "candidates.json").read_text())
    assert told["objective"] == "closest"


# ── the exported graph ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("input", "logits", "body", "told"),
    [
        ("input_ids", "float[b, s]", "logits = Cast<to = 1>(input_ids)", "logits of a text are float32"),
        ("input_ids", "float[]", "f = Cast<to = 1>(input_ids) logits = ReduceSum<keepdims = 0>(f)", "are no array"),
        ("other_ids", "float[b, s]", "logits = Cast<to = 1>(other_ids)", "asks for 'other_ids'"),
    ],
)
def test_a_graph_that_answers_otherwise_is_told(graphs, tmp_path, input, logits, body, told):
    shutil.copytree(graphs, tmp_path / "export")
    text = f'<ir_version: 10, opset_import: ["" : 18]> g (int64[b, s] {input}) => ({logits} logits) {{ {body} }}'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "export" / "model.onnx")
    with pytest.raises(UpstreamError, match=told):
        quantization.check_graph(tmp_path / "export", "who is it", len(tiny.LABELS), "distillctl export RECIPE")


def test_a_config_without_labels_is_told(graphs, tmp_path):
    shutil.copytree(graphs, tmp_path / "export")
    (tmp_path / "export" / "config.json").write_text("{}")
    with pytest.raises(UpstreamError, match="has no 'id2label'"):
        quantization.check_graph(tmp_path / "export", "who is it", 3, "distillctl export RECIPE")
