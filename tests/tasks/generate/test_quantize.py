"""quantize of students that write: every candidate on the same rows, the smallest inside the gate, or nothing."""

from __future__ import annotations

import json
import shutil

import numpy as np
import onnx
import pyarrow.parquet as pq
import pytest
import torch
from onnx import TensorProto
from pydantic import ValidationError
from scipy.special import log_softmax

from distillctl.data import view_table
from distillctl.errors import GateFailed
from distillctl.losses.targets import Targets
from distillctl.metrics import text as text_metrics
from distillctl.quantizers import dynamic_int8, search
from distillctl.recipe import CANDIDATES, Dense, DynamicInt8, Quantize, implementation
from distillctl.run_dir.facts import Facts
from distillctl.run_dir.workspace import StageOutput, Workspace, tree_digest
from distillctl.runtimes.onnx_generator import open_generator
from distillctl.runtimes.onnxruntime import graph_bytes
from distillctl.soft_labels import response_shards
from distillctl.soft_labels.shards import Shard
from distillctl.stages import quantize
from distillctl.students.load_trained import without_weights
from distillctl.students.student import Corpus
from distillctl.tasks.generate import quantization
from distillctl.tasks.generate.response_rows import ResponseRows
from tests.fixtures import exported_generate, tiny, tiny_generate
from tests.fixtures.exported_generate import MAX_NEW_TOKENS, exported
from tests.fixtures.quantized import same_bytes_each_time

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]

OPEN = {"max_kl": 1e3, "min_same_top": 0.0, "max_score_drop": 1.0}
KINDS = {"decoder": ("llama", "genai"), "encoder_decoder": ("t5", "seq2seq")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Workspace]:
    """Run directories with export committed, the decoder's with the teacher's whole distributions."""
    found = {}
    for name, kind in KINDS.items():
        one = exported(*kind)
        found[name] = exported_generate.workspace(tmp_path_factory.mktemp("run"), one.model)
        shutil.copytree(one.folder, found[name].folder("export"))
        outputs = sorted(path.name for path in one.folder.iterdir())
        tiny.commit(found[name], "export", StageOutput(outputs, Facts.model_validate({"builder": kind[1]})))
    _keep_distributions(found["decoder"])
    return found


def _keep_distributions(space: Workspace) -> None:
    """Of a random teacher, in place of the texts alone."""
    text = implementation(_recipe().generate.soft_labels)(_recipe().generate.soft_labels)
    dense = implementation(Dense())(Dense())
    said = response_shards.read(space, "full", "eval", text)
    shard = Shard("full", "eval", 0, "0" * 16, said.id)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for row, ids, answer in zip(said.id, said.token_ids, said.text, strict=True):
        logits = torch.randn(len(ids), tiny_generate.VOCABULARY, generator=generator) * 3
        labels = dense.keep(logits.log_softmax(-1), generator)
        rows.append((row, 0, response_shards.Response([int(token) for token in ids], answer, False, labels)))
    response_shards.write(space.folder("collect"), shard, rows, dense)
    facts = space.manifest("collect").facts
    tiny.commit(space, "collect", StageOutput(["views.parquet", "shards"], Facts.model_validate(facts)))


def _recipe(kind: str = "text", **quantize_: object):
    task = {"kind": "generate", "max_new_tokens": MAX_NEW_TOKENS, "soft_labels": {"kind": kind}}
    return exported_generate.recipe(task=task, quantize={"gate": OPEN, **quantize_})


@pytest.fixture
def copy(runs, tmp_path):
    """A run directory that a test may write into."""
    return lambda kind: Workspace(shutil.copytree(runs[kind].root, tmp_path / kind))


# ── the stage ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", KINDS)
def test_the_stage_commits_the_smallest_with_all_it_needs(kind, copy, capfd):
    space = copy(kind)
    before = tree_digest(space.folder("export"))
    outcome = quantize.run(_recipe(), space)
    tiny.commit(space, "quantize", outcome)
    assert capfd.readouterr().out == ""
    folder, facts = space.folder("quantize"), outcome.facts.as_json()
    exported_files = {path.name for path in space.folder("export").iterdir()} - {"manifest.json"}
    assert set(outcome.outputs) == exported_files | {"candidates.json", "eval.parquet", "README.md"}
    assert {path.name for path in folder.iterdir()} == {*outcome.outputs, "manifest.json"}
    assert {one["name"] for one in facts["candidates"]} == {spec.name for spec in CANDIDATES[kind]}
    sizes = [one["bytes"] for one in facts["candidates"]]
    assert sizes == sorted(sizes)
    assert facts["bytes"] == graph_bytes(folder) <= min(sizes) * (1 + search.SAME_SIZE)
    assert facts["fp32"]["bytes"] == graph_bytes(space.folder("export")) > max(sizes)
    assert json.loads((folder / "candidates.json").read_text())["candidates"] == facts["candidates"]
    assert f"| **{facts['chosen']}** (here) |" in (folder / "README.md").read_text()
    assert "| same top token |" in (folder / "README.md").read_text()
    assert tree_digest(space.folder("export")) == before


@pytest.mark.parametrize("kind", KINDS)
def test_the_figures_are_those_of_the_committed_graph(kind, copy):
    """Computed again by hand from the committed files."""
    space = copy(kind)
    recipe = _recipe("dense" if kind == "decoder" else "text")
    chosen = next(one for one in quantize.run(recipe, space).facts.as_json()["candidates"] if one["chosen"])
    table = pq.read_table(space.folder("quantize") / "eval.parquet").to_pydict()
    views = view_table.read(space.folder("collect") / "views.parquet", "eval")
    assert table["id"] == views.id
    profile = implementation(recipe.generate.soft_labels)(recipe.generate.soft_labels)
    said = response_shards.read(space, "full", "eval", profile)
    deployed, fp32 = open_generator(space.folder("quantize")), open_generator(space.folder("export"))
    kl, same_top, kl_teacher = [], [], []
    for row, view in enumerate(views.simplified):
        ids, response = deployed.encode(view), [int(token) for token in said.token_ids[row]]
        answer = deployed.generate(ids, MAX_NEW_TOKENS)
        assert table["deployed_ids"][row] == answer
        assert table["deployed"][row] == deployed.decode(answer).strip()
        q, p = (log_softmax(graph.score(ids, response).astype(np.float64), -1) for graph in (deployed, fp32))
        kl += list((np.exp(p) * (p - q)).sum(-1))
        same_top += list(p.argmax(-1) == q.argmax(-1))
        assert table["nll"][row] == pytest.approx(-q[np.arange(len(response)), response].mean(), abs=1e-4)
        if kind == "decoder":
            t = np.stack(list(said.labels["log_probs"][row])).astype(np.float64)
            of_row = (np.exp(t) * (t - q)).sum(-1)
            assert table["kl"][row] == pytest.approx(of_row.mean(), abs=1e-4)
            assert table["same_top"][row] == pytest.approx((t.argmax(-1) == q.argmax(-1)).mean(), abs=1e-6)
            kl_teacher += list(of_row)
    assert chosen["kl"] == pytest.approx(np.mean(kl), abs=1e-5)
    assert chosen["same_top"] == pytest.approx(np.mean(same_top), abs=1e-6)
    scores = text_metrics.row_scores("chrf", table["deployed"], views.reference, said.text, None)
    assert chosen["score"] == pytest.approx(scores.mean())
    assert 0 < chosen["p50_ms"] < 1e4
    if kind == "decoder":
        assert chosen["kl_teacher"] == pytest.approx(np.mean(kl_teacher), abs=1e-4)
    else:
        assert chosen["kl_teacher"] is None
        assert table["kl"] == [None] * len(table["id"])


def test_a_candidate_outside_the_gate_is_passed_over(copy):
    """A bound between the best and the second best KL leaves one."""
    space = copy("decoder")
    everything = quantize.run(_recipe(), space).facts.as_json()["candidates"]
    best, second = sorted(everything, key=lambda one: one["kl"])[:2]
    assert best["bytes"] > min(one["bytes"] for one in everything)
    facts = quantize.run(_recipe(gate=OPEN | {"max_kl": (best["kl"] + second["kl"]) / 2}), space).facts.as_json()
    assert facts["chosen"] == best["name"]
    assert [one["name"] for one in facts["candidates"] if one["inside"]] == [best["name"]]
    assert all(one["why"].startswith("kl ") for one in facts["candidates"] if not one["inside"])


def test_none_inside_commits_nothing_and_lists_every_candidate(copy):
    space = copy("decoder")
    candidates = [{"kind": "weight_only", "bits": bits, "algorithm": "rtn"} for bits in (4, 8)]
    tiny.commit(space, "quantize", quantize.run(_recipe(candidates=candidates), space))
    before = tree_digest(space.root)
    with pytest.raises(GateFailed) as caught:
        quantize.run(_recipe(candidates=candidates, gate={"max_kl": 1e-9}), space)
    assert caught.value.exit_code == 6
    for name in ("int4_rtn_block32", "int8_rtn_block32"):
        line = next(line for line in caught.value.what.splitlines() if f"graph {name}," in line)
        assert "> 1e-09" in line
        assert "same top token" in line
    assert tree_digest(space.root) == before


@pytest.mark.parametrize("kind", KINDS)
def test_either_kind_of_candidate_does_for_either_kind_of_graph(kind, copy):
    candidates = [{"kind": "weight_only", "bits": 8}, {"kind": "dynamic_int8"}]
    facts = quantize.run(_recipe(candidates=candidates), copy(kind)).facts.as_json()
    assert [one["name"] for one in facts["candidates"]] == ["int8_k_quant_block32", "dynamic_int8_per_channel"]
    assert all(one["bytes"] < 0.6 * facts["fp32"]["bytes"] and one["kl"] < 0.5 for one in facts["candidates"])


# ── on the rows ──────────────────────────────────────────────────────────────────────────────────


class _Recorder:
    """Answers with as many tokens as the view has; sure of token ``top``."""

    def __init__(self, name: str, top: int, asked: list[tuple[str, str, int]]) -> None:
        self.name, self.top, self.asked = name, top, asked

    def generate(self, view, max_new_tokens):
        self.asked.append((self.name, "answer", view[0]))
        return view[:max_new_tokens]

    def score(self, view, response):
        self.asked.append((self.name, "score", view[0]))
        return np.tile(np.eye(4, dtype=np.float32)[self.top] * 2, (len(response), 1))


def test_graphs_take_turns_and_each_sees_every_row_once():
    count, asked, done = search.BLOCK + 3, [], []
    graphs = {name: _Recorder(name, top, asked) for name, top in (("fp32", 1), ("small", 2))}
    rows = ResponseRows(
        [[row, 0] for row in range(count)],
        [[1] * (1 + row % 3) for row in range(count)],
        lambda some: Targets(torch.tensor([1] * (1 + some[0] % 3))),
        vocabulary=3,
    )
    found = quantization.measure(graphs, rows, 8, done.append)
    assert done == [search.BLOCK, 3]
    assert sorted(asked) == sorted(
        (name, what, row) for name in graphs for what in ("answer", "score") for row in range(count)
    )
    turns = [name for name, what, _ in asked if what == "answer"]
    assert [turns[0], turns[search.BLOCK], turns[2 * search.BLOCK]] == ["fp32", "small", "small"]
    assert found["small"].ids == rows.views
    # Logits of ids that are no tokens are left out: of three tokens one has e², the others 1.
    top = np.exp(2) / (np.exp(2) + 2)
    rest = 1 / (np.exp(2) + 2)
    figures = found["small"].figures(np.array([0.25, 0.75]))
    assert figures.kl == pytest.approx((top - rest) * np.log(top / rest), rel=1e-5)
    assert (figures.same_top, figures.score, figures.kl_teacher) == (0.0, 0.5, None)
    same = found["fp32"].figures(np.array([0.25, 0.75]))
    assert (same.kl, same.same_top) == (0.0, 1.0)
    np.testing.assert_allclose(found["fp32"].forced.nll, -np.log(top), rtol=1e-5)
    assert found["fp32"].forced.teacher_top.tolist() == [1.0] * count


def test_means_count_tokens_not_rows():
    forced = quantization.TeacherForcedMetrics(*(np.array([0.0, 1.0]) for _ in range(4)), None, np.array([3, 1]), [])
    assert forced.mean(forced.kl) == 0.25


# ── the trained student, without its weights ─────────────────────────────────────────────────────


def test_a_trimmed_vocabulary_is_told_from_the_tokens_names(tmp_path):
    source = tmp_path / "source"
    exported_generate.save(tiny_generate.decoder(), source)
    recipe = exported_generate.recipe(
        student={"kind": "pretrained", "model": str(source), "vocabulary": {"merges": 20}, "max_length": 80}
    )
    text = tiny_generate.texts(5)
    student = implementation(recipe.student)(recipe.student, recipe, Corpus(text, []))
    assert len(student.kept_ids) < tiny_generate.VOCABULARY
    student.save(tmp_path / "model")
    found = without_weights(recipe, tmp_path / "model", student.max_length, student.vocabulary_facts)
    np.testing.assert_array_equal(found.kept_ids, student.kept_ids)
    np.testing.assert_array_equal(found.remap, student.remap)
    assert list(found.encode([(text, text)])) == list(student.encode([(text, text)]))
    assert (found.max_view, found.is_encoder_decoder) == (student.max_view, False)
    assert {parameter.device.type for parameter in found.model.parameters()} == {"meta"}


# ── dynamic int8 of several graphs ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["t5", pytest.param("marian", marks=pytest.mark.slow)])
def test_encoder_and_decoder_both_shrink_and_no_table_stays_in_float(kind, tmp_path):
    source = exported(kind, "seq2seq").folder
    target = shutil.copytree(source, tmp_path / "small", ignore=shutil.ignore_patterns("*.onnx"))
    dynamic_int8.quantize(DynamicInt8(), source, target)
    for name in ("encoder_model.onnx", "decoder_model_merged.onnx"):
        graph = onnx.load(target / name).graph
        assert (target / name).stat().st_size < 0.6 * (source / name).stat().st_size
        large = [tensor for tensor in graph.initializer if np.prod(tensor.dims) >= 64 * 64]
        assert {tensor.data_type for tensor in large} <= {TensorProto.INT8, TensorProto.UINT8}  # tables are unsigned
        onnx.checker.check_model(target / name)
    found, fp32 = open_generator(target), exported(kind, "seq2seq").open()
    ids, response = (fp32.encode(text) for text in tiny_generate.texts(2))
    logits = fp32.score(ids, response)
    assert np.abs(found.score(ids, response) - logits).mean() < 0.1 * np.abs(logits).max()


def test_the_bytes_are_the_same_each_time(tmp_path):
    same_bytes_each_time(DynamicInt8(), exported("t5", "seq2seq").folder, tmp_path)


# ── the recipe ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([{"kind": "weight_only", "bits": 8, "algorithm": "k_quant_mixed"}], "for all of them use k_quant"),
        ([{"kind": "weight_only"}, {"kind": "weight_only", "block_size": 32}], "int4_k_quant_block32 is listed twice"),
        ([], "at least 1"),
    ],
)
def test_candidates_that_make_no_sense_are_refused(candidates, message):
    with pytest.raises(ValidationError, match=message):
        Quantize.model_validate({"candidates": candidates})


def test_candidates_that_differ_have_names_that_differ():
    candidates = [{"kind": "weight_only", "accuracy_level": level} for level in (1, 4)]
    assert len({spec.name for spec in Quantize.model_validate({"candidates": candidates}).candidates}) == 2
