"""train for texts, after a real collect: what is saved, what is measured, and what the two sides' views have to do."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from distillctl import pipeline
from distillctl import recipe as recipes
from distillctl.data import view_table
from distillctl.errors import RecipeError
from distillctl.recipe import Dense, Text
from distillctl.run_dir.workspace import Workspace
from distillctl.runtimes.drafts import START, Drafts
from distillctl.soft_labels import response_shards as store
from distillctl.soft_labels.dense import DenseLabels
from distillctl.soft_labels.text import TextLabels
from distillctl.students.student import Student
from distillctl.tasks.generate import train as generate_train
from distillctl.tasks.generate.train import GenerateTraining
from tests.fixtures import exported_generate, tiny_generate

CONTEXT = "the old king sees a river and reads of the sea in a book but never runs far "
STILL = {"epochs": 1, "learning_rate": 1e-12, "weight_decay": 0.0}
"""Trains nothing: the student stays what it was made as."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts")
    tiny_generate.decoder().save_pretrained(path / "teacher")
    tiny_generate.bpe_tokenizer().save_pretrained(path / "teacher")
    tiny_generate.bpe_tokenizer(["zzz yyy the king"] * 20, 270, appends_eos=True).save_pretrained(path / "other")
    with (path / "rows.jsonl").open("w") as file:
        for text in tiny_generate.texts(40):
            file.write(json.dumps({"input": text}) + "\n")
    return path


def recipe_of(folder, **sections):
    recipe = {
        "name": "texts",
        "task": {"kind": "generate", "stop": ["e"], "max_new_tokens": 10, "metrics": ["chrf", "exact"],
                 "soft_labels": {"kind": "dense"}},
        "data": {"source": "rows.jsonl", "eval_rows": 10, "train_rows": 24},
        "contexts": {"full": {"template": CONTEXT + "{{ input }}"}},
        "teacher": {"model": "teacher", "threads": 1},
        "student": {"kind": "pretrained", "model": "teacher"},
        "train": {"batch_rows": 8, "threads": 1, **STILL},
    }  # fmt: skip
    for key, section in sections.items():
        recipe[key] = {**recipe[key], **section}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return recipes.load(path)


def collected_in(folder, root, **sections):
    workspace = Workspace(root)
    pipeline.stage("collect", recipe_of(folder, **sections), workspace)
    return workspace


@pytest.fixture(scope="module")
def workspace(folder, tmp_path_factory):
    return collected_in(folder, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def without_context(folder, tmp_path_factory):
    """The teacher sees what the student sees, and draws two responses for each train row."""
    return collected_in(folder, tmp_path_factory.mktemp("run"), **WITHOUT_CONTEXT)


WITHOUT_CONTEXT = {  # and without draws, whose KL is right in the mean alone
    "contexts": {"full": {"template": "{{ input }}"}},
    "task": {"responses": {"kind": "sampling", "n": 2}, "soft_labels": {"kind": "top_k", "k": 8, "tail_draws": 0}},
}


def trained(folder, workspace, **sections):
    facts = pipeline.stage("train", recipe_of(folder, **sections), workspace).manifest.facts
    return facts, pq.read_table(workspace.folder("train") / "eval.parquet").to_pydict()


def test_a_student_that_is_the_teacher_is_as_far_off_as_the_context_makes_the_teacher(folder, workspace):
    facts, rows = trained(folder, workspace)
    floor = store.read(workspace, "simplified", "eval", TextLabels(Text()))
    expected = [float(kl.mean()) for kl in floor.context_kl]
    assert min(expected) > 0.01
    np.testing.assert_allclose(rows["kl"], expected, rtol=2e-3)
    assert rows["student"] == floor.text
    assert rows["student_ids"] == [ids.tolist() for ids in floor.token_ids]
    assert rows["student_cut"] == floor.cut.tolist()
    assert rows["id"] == view_table.read(workspace.folder("collect") / "views.parquet", "eval").id
    ceiling = store.read(workspace, "full", "eval", DenseLabels(Dense()))
    tokens = np.array([len(ids) for ids in ceiling.token_ids])
    assert facts["kl"] == pytest.approx((np.array(rows["kl"]) * tokens).sum() / tokens.sum(), rel=1e-5)
    assert facts["nll"] > facts["kl"]
    assert 0 <= facts["agreement"] < 1
    assert facts["metrics"] == workspace.manifest("collect").facts["metrics"]["floor"]
    assert facts["shared_tokenizer"] is True
    assert facts["encoder_decoder"] is False


def test_without_a_context_it_has_nothing_to_learn(folder, without_context):
    facts, rows = trained(folder, without_context, **WITHOUT_CONTEXT)
    assert facts["kl"] < 1e-4
    assert facts["agreement"] == 1
    assert facts["metrics"]["exact"] == 1
    assert rows["control"] == [None] * 10
    assert facts["control"] is None
    assert without_context.manifest("collect").facts["responses"]["count"] == 2 * 24 + 10


def test_what_is_saved_answers_by_itself(folder, workspace):
    facts, rows = trained(folder, workspace)
    saved = workspace.folder("train") / "model"
    config = GenerationConfig.from_pretrained(saved)
    assert config.eos_token_id == facts["stop_ids"] == workspace.manifest("collect").facts["stop_ids"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    view = view_table.read(workspace.folder("collect") / "views.parquet", "eval").simplified[3]
    read = tokenizer(view, return_tensors="pt")
    said = model.generate(**read)[0, read.input_ids.shape[1] :].tolist()
    assert said == rows["student_ids"][3]


def test_a_control_learns_from_the_text_alone(folder, workspace):
    learning = {"epochs": 2, "learning_rate": 1e-3, "batch_rows": 8, "control": True}
    facts, rows = trained(folder, workspace, train=learning)
    assert facts["kl"] != facts["control"]["kl"]
    assert set(facts["control"]) == {"kl", "nll", "agreement", "metrics"}
    assert all(isinstance(text, str) for text in rows["control"])
    lines = [json.loads(line) for line in (workspace.folder("train") / "metrics.jsonl").read_text().splitlines()]
    assert {line["run"] for line in lines} == {"student", "control"}
    looks = [line for line in lines if "nll" in line]
    assert all({"kl", "nll", "agreement"} < set(line) for line in looks)


def test_a_trimmed_student_says_the_same(folder, tmp_path, monkeypatch):
    views = [" ".join(words) for words in itertools.product(["sea", "old"], repeat=4)]
    (folder / "few.jsonl").write_text("".join(json.dumps({"input": text}) + "\n" for text in views))
    few = WITHOUT_CONTEXT | {"data": {"source": "few.jsonl", "eval_rows": 6, "train_rows": 10}}
    few |= {"task": {"max_new_tokens": 3}}
    workspace = collected_in(folder, tmp_path, **few)
    monkeypatch.setattr(generate_train, "MUCH_DROPPED", 0)
    facts, _ = trained(folder, workspace, student={"vocabulary": {"merges": 3}}, **few)
    assert 0 < facts["dropped_mass"] < 1
    [told] = [caution["text"] for caution in facts["cautions"] if caution["code"] == "trimmed-mass"]
    assert f"The teacher gives {facts['dropped_mass']:.0%} of its probability to tokens that were trimmed" in told
    assert facts["vocabulary"]["tokens_after"] < facts["vocabulary"]["tokens_before"] == tiny_generate.VOCABULARY
    assert facts["metrics"]["exact"] == 1
    # Both sides are normalised over what is left.
    assert facts["kl"] < 1e-4
    tokenizer = AutoTokenizer.from_pretrained(workspace.folder("train") / "model")
    teacher = AutoTokenizer.from_pretrained(folder / "teacher")
    theirs = teacher.convert_ids_to_tokens(workspace.manifest("collect").facts["stop_ids"])
    assert set(tokenizer.convert_ids_to_tokens(facts["stop_ids"])) == set(theirs) & set(tokenizer.get_vocab())
    responses = store.read(workspace, "full", "train", TextLabels(Text()))
    written = ["".join(teacher.convert_ids_to_tokens(ids.tolist())) for ids in responses.token_ids]
    usual = Drafts.read(workspace.folder("train") / "model").usual
    assert usual
    for context, token in usual.items():  # in the student's ids
        ids = [*(one for one in context if one != START), token]
        assert any("".join(tokenizer.convert_ids_to_tokens(ids)) in text for text in written)


def with_a_new_student(folder, model_type, tokenizer, sizes, **sections):
    student = {"kind": "from_config", "model_type": model_type, "tokenizer": str(folder / tokenizer), "config": sizes}
    given = recipe_of(folder, **sections).model_dump(mode="json") | {"student": student}
    path = folder / "new.yaml"
    path.write_text(yaml.safe_dump(given))
    return recipes.load(path)


def with_its_own_tokenizer(folder, **sections):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return with_a_new_student(folder, "llama", "other", sizes, **sections)


@pytest.mark.parametrize("model_type", ["t5", "marian"])
def test_an_encoder_decoder_with_the_teachers_tokenizer_learns_its_distributions(folder, workspace, model_type):
    sizes = {
        "t5": {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2},
        "marian": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
        | {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 128},
    }  # fmt: skip
    learning = {"epochs": 2, "learning_rate": 1e-3}
    recipe = with_a_new_student(folder, model_type, "teacher", sizes[model_type], train=learning)
    facts = pipeline.stage("train", recipe, workspace).manifest.facts
    assert facts["encoder_decoder"] is True
    assert facts["shared_tokenizer"] is True
    assert np.isfinite(facts["kl"])
    saved = workspace.folder("train") / "model"
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    view = view_table.read(workspace.folder("collect") / "views.parquet", "eval").simplified[3]
    said = model.generate(**tokenizer(view, return_tensors="pt"))[0, 1:].tolist()
    rows = pq.read_table(workspace.folder("train") / "eval.parquet").to_pydict()
    assert said == rows["student_ids"][3]


@pytest.mark.parametrize("loss", ["uld", "cross_entropy"])
def test_a_tokenizer_of_its_own_learns_from_ranks_or_text(folder, workspace, loss):
    recipe = with_its_own_tokenizer(folder, train={"loss": [{"kind": loss}], "learning_rate": 1e-3})
    facts = pipeline.stage("train", recipe, workspace).manifest.facts
    rows = pq.read_table(workspace.folder("train") / "eval.parquet").to_pydict()
    assert facts["shared_tokenizer"] is False
    assert facts["stop_ids"] == [tiny_generate.EOS_ID]
    assert facts["kl"] is None
    assert rows["kl"] == [None] * 10
    assert np.isfinite(rows["nll"]).all()
    tokenizer = AutoTokenizer.from_pretrained(workspace.folder("train") / "model")
    assert tokenizer("the").input_ids[-1] != tiny_generate.EOS_ID  # the response goes on where the view ends


def test_a_tokenizer_of_its_own_cannot_learn_from_distributions(folder, workspace):
    with pytest.raises(RecipeError, match=r"^train.loss\[0\]: forward_kl compares") as error:
        pipeline.stage("train", with_its_own_tokenizer(folder), workspace)
    assert "uld or cross_entropy" in error.value.next


# ── how many tokens a decoder takes ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("allowed", "longest", "named", "taken"),
    [
        (32_768, 40, None, 2048),  # Gemma 3's rotary tables for all of them have 67 MB
        (32_768, 3000, None, 6000),
        (32_768, 30_000, None, 32_768),
        (128, 40, None, 128),
        (300, 40, 300, 300),
        (32_768, 40, 32_768, 32_768),
    ],
)
def test_a_decoder_takes_what_the_recipe_names_or_twice_its_longest_row(
    allowed: int, longest: int, named: int | None, taken: int
) -> None:
    made = exported_generate.recipe()
    made = made.model_copy(update={"student": made.student.model_copy(update={"max_length": named})})
    training = GenerateTraining(made, Workspace(Path("nowhere")))
    own = Student(tiny_generate.decoder(), tiny_generate.bpe_tokenizer(), allowed)
    data = {split: SimpleNamespace(lengths=np.array([3, longest])) for split in ("train", "eval")}
    assert training._shortened(own, data).max_length == taken
    other = Student(tiny_generate.seq2seq(), own.tokenizer, allowed)
    assert training._shortened(other, data).max_length == allowed
