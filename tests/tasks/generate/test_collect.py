"""collect for texts: what stands in the shards is what the teacher says and thinks, whatever was resumed or shared."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from distillctl import pipeline
from distillctl import recipe as recipes
from distillctl.commands import dry_run
from distillctl.data import view_table
from distillctl.data.responses import clean
from distillctl.errors import DataError
from distillctl.recipe import Dense, EvalSoftLabels, Sampled, Text, TopK, implementation
from distillctl.run_dir.workspace import Workspace
from distillctl.soft_labels import response_shards as store
from distillctl.soft_labels import size
from distillctl.soft_labels.dense import DenseLabels
from distillctl.soft_labels.text import TextLabels
from distillctl.soft_labels.top_k import TopKLabels
from distillctl.teachers.huggingface import Teacher
from tests.fixtures import project, tiny_generate

pytestmark = pytest.mark.slow

CONTEXT = "the old king sees a river and reads of the sea in a book but never runs far "
STOP = ["e"]
TOKENS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny teacher that writes, and rows."""
    path = tmp_path_factory.mktemp("texts")
    tiny_generate.decoder().save_pretrained(path / "teacher")
    tiny_generate.bpe_tokenizer().save_pretrained(path / "teacher")
    texts = tiny_generate.texts(40)
    with (path / "rows.jsonl").open("w") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"input": text, "reference": texts[number - 1]}) + "\n")
    return path


def _recipe(folder, name="recipe", **sections):
    recipe = {
        "name": "texts",
        "task": {"kind": "generate", "stop": STOP, "max_new_tokens": TOKENS, "metrics": ["chrf", "exact"],
                 "soft_labels": {"kind": "top_k", "k": 5}},
        "data": {"source": "rows.jsonl", "eval_rows": 10, "train_rows": 20},
        "contexts": {"full": {"template": CONTEXT + "{{ input }}"}, "arms": {"cue": {"template": "book {{ input }}"}}},
        "teacher": {"model": "teacher", "batch_tokens": 60, "threads": 1},
        "student": {"kind": "pretrained", "model": "teacher"},
        "shard_rows": 4,
        "train": {},
    }  # fmt: skip
    for key, section in sections.items():
        recipe[key] = {**recipe[key], **section} if isinstance(section, dict) else section
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return recipes.load(path)


def _collect(recipe, root):
    workspace = Workspace(root)
    return workspace, pipeline.stage("collect", recipe, workspace).manifest.facts


@pytest.fixture(scope="module")
def collected(folder, tmp_path_factory):
    recipe = _recipe(folder)
    return recipe, *_collect(recipe, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def teacher():
    return tiny_generate.decoder(), tiny_generate.bpe_tokenizer()


@torch.inference_mode()
def _log_probs(teacher, view, response):
    """float64 [R, V]: one plain forward pass over one row."""
    model, tokenizer = teacher
    ids = tokenizer(view).input_ids
    logits = model(input_ids=torch.tensor([[*ids, *response]])).logits[0].double()
    return logits[len(ids) - 1 : -1].log_softmax(-1).numpy()


def _views(workspace, split):
    return view_table.read(workspace.folder("collect") / "views.parquet", split)


def _shards(workspace):
    return {path.name: path.read_bytes() for path in workspace.folder("collect").glob("shards/*.parquet")}


# ── what stands there ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("split", ["train", "eval"])
def test_responses_and_distributions_are_those_of_the_whole_view(collected, teacher, split):
    _, workspace, _ = collected
    views = _views(workspace, split)
    profile = TopKLabels(TopK(k=5)) if split == "train" else implementation(EvalSoftLabels())(EvalSoftLabels())
    found = store.read(workspace, "full", split, profile)
    assert found.id == views.id
    assert set(found.sample) == {0}
    for row, view in enumerate(views.full):
        said = found.token_ids[row].tolist()
        log_probs = _log_probs(teacher, view, said)
        assert said == log_probs.argmax(-1).tolist()
        ends = [token for token in said if "e" in teacher[1].decode([token]) or token == tiny_generate.EOS_ID]
        assert ends == ([] if found.cut[row] else said[-1:])
        assert len(said) == TOKENS or not found.cut[row]
        assert found.text[row] == clean(teacher[1].decode(said, skip_special_tokens=True), STOP)
        for place, ids in enumerate(found.labels["ids"][row]):
            likeliest = np.argsort(-log_probs[place], kind="stable")[:5].tolist()
            assert ids.tolist() == (
                likeliest if split == "train" else list(range(300))
            )  # all, in a vocabulary so small
            np.testing.assert_allclose(
                found.labels["log_probs"][row][place], log_probs[place][ids], rtol=2**-10, atol=1e-4
            )


def test_the_other_arms_answer_the_eval_rows_and_keep_no_distributions(collected, teacher):
    _, workspace, _ = collected
    views = _views(workspace, "eval")
    cue = store.read(workspace, "cue", "eval", TextLabels(Text()))
    for row, text in enumerate(views.input):
        log_probs = _log_probs(teacher, f"book {text}", cue.token_ids[row].tolist())
        assert cue.token_ids[row].tolist() == log_probs.argmax(-1).tolist()
    assert cue.context_kl is None
    for path in workspace.folder("collect").glob("shards/*.parquet"):
        named = set(pq.read_schema(path).names) - {"id", "sample", "text", "cut", "token_ids"}
        kept = (
            {"ids", "log_probs", "log_tail", "tail_ids", "tail_log_probs"} if path.name.startswith("full-") else set()
        )
        assert named == (kept | {"context_kl"} if path.name.startswith("simplified-") else kept)
    assert not list(workspace.folder("collect").glob("shards/cue-train*"))


def test_context_kl_is_the_two_views_divergence_along_the_ceilings_response(collected, teacher):
    _, workspace, facts = collected
    views = _views(workspace, "eval")
    said = store.read(workspace, "full", "eval", TextLabels(Text()))
    floor = store.read(workspace, "simplified", "eval", TextLabels(Text()))
    every = []
    for row in range(len(views.id)):
        tokens = said.token_ids[row].tolist()
        full, simplified = (_log_probs(teacher, view[row], tokens) for view in (views.full, views.simplified))
        expected = (np.exp(full) * (full - simplified)).sum(-1)
        np.testing.assert_allclose(floor.context_kl[row], expected, atol=1e-4, rtol=1e-3)
        every.append(floor.context_kl[row])
    every = np.concatenate(every)
    assert every.min() > 0.01
    assert facts["necessity"] == pytest.approx({"mean": every.mean(), "median": np.median(every)})


def test_the_manifest_says_what_was_found(collected):
    _, workspace, facts = collected
    said = [store.read(workspace, "full", split, TextLabels(Text())) for split in ("train", "eval")]
    lengths = np.array([len(ids) for part in said for ids in part.token_ids])
    found = facts["responses"]
    assert found["count"] == 30
    assert found["cut"] == sum(int(part.cut.sum()) for part in said) > 0
    assert found["tokens"] == pytest.approx(lengths.mean())
    size = sum(len(content) for name, content in _shards(workspace).items() if name.startswith("full-train-"))
    assert found["bytes_per_token"] == pytest.approx(size / sum(len(ids) for ids in said[0].token_ids))
    assert found["eval_bytes"] > 0
    assert found["eval_rows_measured"] is None  # all of them
    assert 0 < found["captured_mass"]["p5"] <= found["captured_mass"]["median"] < 1
    assert found["entropy"] is None
    assert facts["vocabulary"] == 300
    assert facts["scored_rows"] == 20 + 10 * 3
    assert facts["metric"] == "chrf"
    assert set(facts["arms"]) == set(facts["metrics"]) == {"ceiling", "floor", "cue"}
    assert set(facts["gaps"]) == {"floor", "cue"}
    assert set(facts["metrics"]["floor"]) == {"chrf", "exact"}
    stop = {i for i in range(300) if "e" in tiny_generate.bpe_tokenizer().decode([i])} | {tiny_generate.EOS_ID}
    assert facts["stop_ids"] == sorted(stop)
    assert facts["shared_tokens"] >= 16, "the shared context is not tested otherwise"


# ── resuming ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kept", [
    {"kind": "sampled", "draws": 7}, {"kind": "top_k", "k": 3, "temperatures": [2.0]},
])  # fmt: skip
@pytest.mark.parametrize("killed_at", [2, 7, 9])
def test_killed_and_resumed_gives_the_same_shards_bit_for_bit(folder, tmp_path, monkeypatch, capsys, kept, killed_at):
    said = {"kind": "sampling", "n": 2, "temperature": 1.3, "top_p": 0.9}
    recipe = _recipe(folder, "resumed", task={"responses": said, "soft_labels": kept, "kind": "generate", "stop": STOP,
                                              "max_new_tokens": TOKENS})  # fmt: skip
    unbroken, whole = _collect(recipe, tmp_path / "whole")
    written = 0

    def killed(*args):
        nonlocal written
        if written == killed_at:
            raise KeyboardInterrupt
        written += 1
        write(*args)

    write = store.write
    monkeypatch.setattr(store, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        _collect(recipe, tmp_path / "resumed")
    monkeypatch.setattr(store, "write", write)
    assert Workspace(tmp_path / "resumed").manifest("collect") is None
    capsys.readouterr()
    resumed, facts = _collect(recipe, tmp_path / "resumed")
    assert _shards(resumed) == _shards(unbroken)
    assert facts["reused_rows"] + facts["scored_rows"] == whole["scored_rows"]
    assert 0 < facts["reused_rows"] <= 4 * killed_at
    assert "rows of full are already there" in capsys.readouterr().err
    same = {"scored_rows", "reused_rows", "tokens_per_second"}
    assert {k: v for k, v in facts.items() if k not in same} == {k: v for k, v in whole.items() if k not in same}


@pytest.mark.parametrize(
    ("sections", "again"),
    [
        ({"contexts": {"arms": {"cue": {"template": "book {{ input }}"}, "new": {"template": "a {{ input }}"}}}}, 10),
        ({"data": {"train_rows": 21}}, 21),
        ({"task": {"soft_labels": {"kind": "top_k", "k": 6}}}, 20),  # what is kept of eval rows does not depend on k
        ({"task": {"max_new_tokens": 9}}, 50),
        ({"task": {"metrics": ["exact"]}}, 0),
        ({"seed": 1}, 0),
    ],
)
def test_what_a_changed_knob_does_not_touch_is_reused(folder, collected, tmp_path, sections, again):
    recipe, workspace, _ = collected
    shutil.copytree(workspace.root, tmp_path / "run")
    task = recipe.model_dump(mode="json")["task"]
    if "task" in sections:
        sections = {"task": {**task, **sections["task"]}}
    changed = _recipe(folder, "changed", **sections)
    _, facts = _collect(changed, tmp_path / "run")
    if "data" in sections:  # slices of like length move when a row comes in
        assert 0 < facts["scored_rows"] <= again
    else:
        assert facts["scored_rows"] == again


def test_a_torn_shard_is_answered_again(folder, collected, tmp_path):
    recipe, workspace, _ = collected
    shutil.copytree(workspace.root, tmp_path / "run")
    before = _shards(workspace)
    torn = next((tmp_path / "run").glob("collect/shards/full-train-*.parquet"))
    torn.write_bytes(torn.read_bytes()[:-40])
    resumed, facts = _collect(recipe, tmp_path / "run")
    assert facts["scored_rows"] == 4
    assert _shards(resumed) == before


# ── what the teacher is asked for ────────────────────────────────────────────────────────────────


def test_samples_are_of_the_train_rows_and_the_eval_rows_are_answered_greedily(folder, collected, tmp_path):
    _, plain, _ = collected
    said = {"kind": "sampling", "n": 3, "temperature": 2.0}
    recipe = _recipe(folder, "sampling", task={**_task(), "responses": said})
    workspace, facts = _collect(recipe, tmp_path)
    found = store.read(workspace, "full", "train", TextLabels(Text()))
    assert found.sample == [0, 1, 2] * 20
    assert found.id == [row for row in _views(workspace, "train").id for _ in range(3)]
    assert len({tuple(ids.tolist()) for ids in found.token_ids}) > 50
    assert facts["responses"]["count"] == 70
    reseeded, _ = _collect(_recipe(folder, "sampling", task={**_task(), "responses": said}, seed=1), tmp_path / "seed")
    other = store.read(reseeded, "full", "train", TextLabels(Text()))
    assert [ids.tolist() for ids in other.token_ids] != [ids.tolist() for ids in found.token_ids]
    greedy, before = (store.read(w, "full", "eval", TextLabels(Text())) for w in (workspace, plain))
    assert [ids.tolist() for ids in greedy.token_ids] == [ids.tolist() for ids in before.token_ids]


def test_given_responses_are_the_references_and_the_teacher_says_how_likely_they_are(folder, teacher, tmp_path):
    task = {**_task(), "responses": {"kind": "given"}, "soft_labels": {"kind": "dense"}, "stop": ["\n"]}
    recipe = _recipe(folder, "given", task=task | {"max_new_tokens": 40})
    workspace, facts = _collect(recipe, tmp_path)
    views = _views(workspace, "train")
    found = store.read(workspace, "full", "train", DenseLabels(Dense()))
    newline = teacher[1]("\n").input_ids
    for row, reference in enumerate(views.reference):
        tokens = found.token_ids[row].tolist()
        assert tokens == [*teacher[1](" " + reference).input_ids, *newline]
        assert found.text[row] == reference
        assert not found.cut[row]
        np.testing.assert_allclose(
            np.stack(list(found.labels["log_probs"][row])), _log_probs(teacher, views.full[row], tokens), atol=1e-4
        )
    greedy = store.read(workspace, "full", "eval", TextLabels(Text()))
    view = _views(workspace, "eval").full[0]
    said = greedy.token_ids[0].tolist()
    assert said == _log_probs(teacher, view, said).argmax(-1).tolist()
    assert facts["responses"]["captured_mass"] == {"median": 1.0, "p5": 1.0}
    assert facts["responses"]["entropy"] > 0


def test_given_responses_that_are_too_long_are_cut_and_counted(folder, tmp_path, capsys):
    task = {**_task(), "responses": {"kind": "given"}, "stop": [], "max_new_tokens": 4}
    workspace, _ = _collect(_recipe(folder, "cut", task=task), tmp_path)
    found = store.read(workspace, "full", "train", TextLabels(Text()))
    assert max(len(ids) for ids in found.token_ids) == 4
    assert found.cut.any()
    assert "cut off after 4 tokens: raise task.max_new_tokens" in " ".join(capsys.readouterr().err.split())


def test_given_text_alone_needs_no_forward_pass_over_the_train_rows(folder, tmp_path, monkeypatch):
    asked = []
    answer, score = Teacher.answer, Teacher.score_responses
    monkeypatch.setattr(
        Teacher, "answer", lambda self, rows, *a, **k: asked.append(len(rows)) or answer(self, rows, *a, **k)
    )
    monkeypatch.setattr(
        Teacher, "score_responses", lambda self, rows, *a, **k: asked.append(len(rows)) or score(self, rows, *a, **k)
    )
    task = {**_task(), "responses": {"kind": "given"}, "soft_labels": {"kind": "text"}}
    recipe = _recipe(
        folder, "bare", task=task, teacher={"share_context": False}, train={"loss": [{"kind": "cross_entropy"}]}
    )
    _, facts = _collect(recipe, tmp_path)
    assert sum(asked) == 10 * 3 + 10 * 2, "the eval rows of three arms, and the ceiling's answers under two contexts"
    assert facts["responses"]["captured_mass"] is None


def test_given_without_a_reference_is_told_before_torch(folder, tmp_path):
    path = folder / "some.jsonl"
    rows = (folder / "rows.jsonl").read_text().splitlines()
    path.write_text("\n".join([*(json.dumps({"input": f"{n} has none"}) for n in range(9)), *rows]))
    recipe = _recipe(folder, "missing", data={"source": "some.jsonl", "train_rows": None},
                     task={**_task(), "responses": {"kind": "given"}})  # fmt: skip
    with pytest.raises(DataError, match=r"data.reference: row \w+ has no reference, which task.responses: given"):
        pipeline.stage("collect", recipe, Workspace(tmp_path))
    with pytest.raises(DataError, match="has no reference"):
        dry_run.plan(recipe, Workspace(tmp_path), ["collect"])


def test_a_context_that_does_nothing_is_told(folder, tmp_path, capsys):
    same = {"template": "book {{ input }}"}
    recipe = _recipe(folder, "same", contexts={"full": same, "simplified": same, "arms": {}})
    _, facts = _collect(recipe, tmp_path)
    assert "Ceiling and floor cannot be told apart" in " ".join(capsys.readouterr().err.split())
    assert facts["necessity"]["mean"] == pytest.approx(0, abs=1e-5)


def test_without_references_arms_are_compared_with_the_ceiling(folder, tmp_path):
    path = folder / "bare.jsonl"
    path.write_text("\n".join(json.dumps({"input": text}) for text in tiny_generate.texts(30)))
    _, facts = _collect(_recipe(folder, "unlabelled", data={"source": "bare.jsonl"}), tmp_path)
    assert facts["metric"] == "chrf vs ceiling"
    assert facts["arms"]["ceiling"]["score"] == 1
    assert facts["arms"]["floor"]["score"] < 1


def _task():
    return {"kind": "generate", "stop": STOP, "max_new_tokens": TOKENS, "soft_labels": {"kind": "top_k", "k": 5}}


# ── the dry run ──────────────────────────────────────────────────────────────────────────────────


TEXT = size.bytes_per_token(Text(), 300)


def _dry(recipe, tmp_path):
    return dry_run.plan(recipe, Workspace(tmp_path / "none"), ["collect", "train"])


def test_a_dry_run_projects_responses_by_their_upper_bound(folder, tmp_path):
    found = _dry(_recipe(folder, "dry"), tmp_path)
    assert "upper bound, 10 tokens (task.max_new_tokens)" in found["tokens"]
    full, floor, cue = (found["arms"][name] for name in ("full", "simplified", "cue"))
    assert full["shared_tokens"] >= 16
    views = 30 * (full["tokens_per_row"] - full["shared_tokens"]) + full["shared_tokens"]
    views += 10 * floor["tokens_per_row"] + 10 * cue["tokens_per_row"]
    again = 10 * (full["tokens_per_row"] - full["shared_tokens"] + 10) + 10 * (floor["tokens_per_row"] + 10)
    assert found["collect"]["forward_tokens"] == views + 50 * 10 + again
    assert found["collect"]["soft_label_bytes"] == round(300 * size.bytes_per_token(TopK(k=5), 300) + 200 * TEXT)
    assert found["train"]["tokens"] == 20 * (floor["tokens_per_row"] + 10) * 4


@pytest.mark.parametrize(
    "kept",
    [Dense(), Sampled(), Text(), TopK(k=8, temperatures=(2.0,))],
    ids=lambda kept: kept.kind,
)
def test_a_dry_run_knows_each_profiles_bytes(folder, tmp_path, kept):
    task = {**_task(), "soft_labels": kept.model_dump(mode="json")}
    recipe = _recipe(folder, "dry", task=task, train={"loss": [{"kind": "cross_entropy"}]})
    expected = 300 * size.bytes_per_token(kept, 300) + 200 * TEXT
    assert _dry(recipe, tmp_path)["collect"]["soft_label_bytes"] == round(expected)


def test_a_dry_run_counts_samples_and_given_responses(folder, tmp_path):
    plain = _dry(_recipe(folder, "dry"), tmp_path)
    drawn = _dry(_recipe(folder, "dry", task={**_task(), "responses": {"kind": "sampling", "n": 4}}), tmp_path)
    assert drawn["train"]["tokens"] == 4 * plain["train"]["tokens"]
    assert drawn["collect"]["forward_tokens"] == plain["collect"]["forward_tokens"] + 3 * 20 * 10
    given = _dry(
        _recipe(folder, "dry", task={**_task(), "responses": {"kind": "given"}, "max_new_tokens": 60}), tmp_path
    )
    tokenizer = tiny_generate.bpe_tokenizer()
    rows = [json.loads(line)["reference"] for line in (folder / "rows.jsonl").read_text().splitlines()]
    longest = max(len(tokenizer(text).input_ids) for text in rows) + 1
    views = given["arms"]["simplified"]["tokens_per_row"] * 20 * 4
    assert 0 < given["train"]["tokens"] - views <= longest * 20 * 4


def test_a_dry_run_imports_no_torch(folder):
    _recipe(folder, "dry")
    program = (
        "import sys; from distillctl import cli; sys.argv = ['distillctl', 'run', sys.argv[1], '--dry-run', '--json']\n"
        "try: cli.main()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, folder / "dry.yaml"],
        capture_output=True,
        text=True,
        env=project.environment(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["train"]["steps"] > 0
