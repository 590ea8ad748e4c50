"""The benchmarks of losses and soft labels, on tiny models: what they promise to compare is what they compare."""

import json

import numpy as np
import pytest
import torch
import yaml

from distillctl import pipeline
from distillctl import recipe as recipes
from distillctl.errors import UpstreamError
from distillctl.recipe import DynamicInt8, WeightOnly
from distillctl.run_dir.workspace import Workspace
from distillctl.stages import export
from tests.benchmarks import loss, search, soft_labels
from tests.fixtures import tiny, tiny_generate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A recipe and a run directory where a tiny teacher has answered."""
    folder = tmp_path_factory.mktemp("collected")
    tiny_generate.decoder().save_pretrained(folder / "teacher")
    tiny_generate.bpe_tokenizer().save_pretrained(folder / "teacher")
    rows = "\n".join(json.dumps({"input": text}) for text in tiny_generate.texts(40))
    (folder / "rows.jsonl").write_text(rows)
    document = {
        "name": "small",
        "task": {"kind": "generate", "max_new_tokens": 6, "soft_labels": {"kind": "top_k", "k": 3}},
        "data": {"source": "rows.jsonl", "eval_rows": 10, "train_rows": 20},
        "contexts": {"full": {"template": "the old king sees a river and reads of the sea in a book {{ input }}"}},
        "teacher": {"model": "teacher", "threads": 1},
        "student": {"kind": "pretrained", "model": "teacher"},
        "shard_rows": 8,
        "train": {},
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(document))
    pipeline.stage("collect", recipes.load(folder / "small.yaml"), Workspace(folder / "run"))
    return folder


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(soft_labels, "STEPS", 12)
    monkeypatch.setattr(soft_labels, "ENDS", 1)


def test_soft_labels_prints_a_table_and_then_its_figures(collected, short, capsys):
    arguments = [str(collected / "small.yaml"), "--run-dir", str(collected / "run")]
    soft_labels.main(arguments)
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["responses"] == 20
    assert 0 < found["top_k_bytes_per_token"] <= found["top_k_bytes_per_token_152k"]
    assert 0 < found["sampled_bytes_per_token"] <= found["sampled_bytes_per_token_152k"]
    assert 1 < found["distinct_ids"] <= 50
    assert 0 < found["captured_mass_p5"] <= found["captured_mass_median"] < 1
    students = found["students"]
    assert [len(students[name]) for name in ("dense", "top_k", "top_k_lumped", "sampled")] == [1, 2, 1, 2]
    assert found["sampled_kl_ratio"] == pytest.approx(np.mean(students["sampled"]) / students["dense"][0])
    assert [line.split()[0] for line in table[-4:]] == ["dense", "top_k", "top_k_lumped", "sampled"]
    assert f"{found['top_k_kl_ratio']:.4f}" in table[-3]

    soft_labels.main([*arguments, "--json"])
    assert json.loads(capsys.readouterr().out) == found  # one object, and the same twice


def test_the_whole_distributions_are_the_teachers_and_exact(collected):
    recipe, space = recipes.load(collected / "small.yaml"), Workspace(collected / "run")
    from distillctl.models import model_source
    from distillctl.teachers import huggingface

    teacher = huggingface.load(recipe.teacher, model_source.teacher(recipe))
    said = soft_labels._answers(recipe, space, teacher)["eval"]
    assert len(said.views) == 10
    top = [said.exact(row).argmax(-1).tolist() for row in range(10)]
    assert top == [response.token_ids for response in said.responses]  # they were greedy, and stand where they belong
    assert all(said.exact(row).exp().sum(-1).allclose(torch.ones(1)) for row in range(10))


def test_a_student_on_all_ranks_learns_what_one_on_whole_distributions_learns(collected, short, monkeypatch):
    monkeypatch.setattr(soft_labels, "DRAWN", (0,))
    monkeypatch.setitem(soft_labels.KINDS, "top_k", recipes.TopK(k=tiny_generate.VOCABULARY))
    found = soft_labels.measure(recipes.load(collected / "small.yaml"), Workspace(collected / "run"))
    assert found["top_k_kl_ratio"] == pytest.approx(1, abs=1e-3)
    assert found["sampled_kl_ratio"] != pytest.approx(1, abs=1e-5)


def test_a_run_directory_without_responses_is_told(collected, tmp_path):
    with pytest.raises(UpstreamError, match="nothing was collected") as told:
        soft_labels.measure(recipes.load(collected / "small.yaml"), Workspace(tmp_path))
    assert told.value.next == f"distillctl collect RECIPE --run-dir {tmp_path}"


@pytest.mark.slow
def test_loss_compares_the_same_loss_in_processes_that_take_turns(monkeypatch, capsys):
    monkeypatch.setattr(loss, "SHAPES", {"152k": (6000, 16)})
    loss.main(rounds=2)
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["peak_ratio"] < 1
    assert found["time_ratio"] == found["vocabularies"]["152k"]["chunked"]["time_ratio"] > 0
    for shape in found["vocabularies"].values():
        assert shape["chunked_dense"]["loss"] == pytest.approx(shape["plain"]["loss"], rel=1e-4)
        assert 0 < shape["chunked"]["loss"] < shape["plain"]["loss"]  # a lumped tail can only lose
        assert shape["plain"]["peak_bytes"] > 1024 * shape["vocabulary"] * 4
    assert len(table) == 2 + 3


@pytest.mark.parametrize("beats", [True, False])
def test_search_says_whether_a_candidate_beats_the_presets(beats, tmp_path, monkeypatch, capsys):
    """Blocks of 4 bits against int8: smaller, so chosen; a preset itself never beats the presets."""
    space = tiny.workspace(tmp_path / "run", rows=12)
    tiny.commit(space, "export", export.run(tiny.recipe(), space))
    int8, int4 = DynamicInt8(), WeightOnly(bits=4)
    monkeypatch.setitem(search.PRESETS, "classifier", (int8,) if beats else (int8, int4))
    open_gate = {"max_kl": 10.0, "min_same_top": 0.0, "max_score_drop": 1.0}
    recipe = tiny.recipe(quantize={"gate": open_gate, "candidates": [int8.model_dump(), int4.model_dump()]})
    monkeypatch.setattr(search.recipes, "load", lambda path: recipe)
    monkeypatch.setattr(search.search, "SAME_SPEED", 1e6)  # of a graph so small, nothing is told by its latency
    search.main([(tmp_path / "tiny.yaml", space.root)])
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    own = found["runs"][recipe.name]
    assert found["beats"] == {recipe.name: beats}
    assert own["chosen"]["name"] == int4.name
    assert own["best_preset"]["name"] == (int8 if beats else int4).name
    assert (own["size_ratio"] > 1.01) == beats
    assert {one["name"]: one["preset"] for one in own["candidates"]} == {int8.name: True, int4.name: not beats}
    assert any("best preset" in line for line in table) == beats
    assert not space.folder("quantize").exists()
