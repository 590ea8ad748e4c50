"""collect: a row that is too long is cut inside its views, for the teacher and the student alike, or refused."""

from __future__ import annotations

import json
import os

import pytest
import yaml

from distillctl import pipeline
from distillctl import recipe as recipes
from distillctl.commands import dry_run
from distillctl.data import view_table
from distillctl.errors import DataError
from distillctl.run_dir.workspace import Workspace
from tests.fixtures import project, tiny, tiny_generate

CUE = "where is the city in"
LONG = ["who wrote a king book " * 16, "how many live in the river city " * 10]


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    """A project with labels; two rows are too long for its student (64 tokens), both fit its teacher (128)."""
    folder = tmp_path_factory.mktemp("labels")
    path = project.make(
        folder,
        rows=20,
        task={"answer_prefix": " "},
        data={"eval_rows": 8},
        contexts={
            "truncate": "input",
            "full": {"template": f"book of the king {{{{ input }}}} {CUE}"},
            "simplified": {"template": f"far {{{{ input }}}} {CUE}"},
            "arms": {"cue_only": {"template": f"old {{{{ input }}}} {CUE}"}},
        },
    )
    _append(folder, LONG)
    return path


def _append(folder, texts):
    with (folder / "rows.jsonl").open("a") as file:
        for number, text in enumerate(texts):
            file.write(json.dumps({"input": text.strip(), "reference": list(project.LABELS)[number % 3]}) + "\n")


def _load(path, **sections):
    """The recipe with some sections extended."""
    content = yaml.safe_load(path.read_text())
    for name, section in sections.items():
        content[name] = {**content[name], **section} if isinstance(section, dict) and name in content else section
    other = path.with_name(f"{path.stem}-{len(list(path.parent.glob('*.yaml')))}.yaml")
    other.write_text(yaml.safe_dump(content))
    return recipes.load(other)


def _replaced(path, **sections):
    """The recipe with some sections replaced."""
    other = path.with_name(f"{path.stem}-{len(list(path.parent.glob('*.yaml')))}.yaml")
    other.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | sections))
    return recipes.load(other)


def _collect(recipe, root):
    workspace = Workspace(root)
    facts = pipeline.stage("collect", recipe, workspace).manifest.facts
    return facts, {
        split: view_table.read(workspace.folder("collect") / "views.parquet", split) for split in ("train", "eval")
    }


def test_the_cut_is_counted_and_every_view_is_whole_around_one_input(labels, tmp_path, capsys):
    facts, tables = _collect(_load(labels), tmp_path)
    assert sum(facts["counts"]["cut_inputs"].values()) == 2
    told = [one["text"] for one in facts["cautions"] if one["code"] == "inputs-cut"]
    assert len(told) == 1
    assert "the student takes 64" in told[0]
    assert told[0].split(" because")[0].removeprefix("The ends of the ") in " ".join(capsys.readouterr().err.split())
    whole = {json.loads(line)["input"] for line in (labels.parent / "rows.jsonl").read_text().splitlines()}
    tokenizer, cut = tiny.tokenizer(), 0
    for table in tables.values():
        for text, full, simplified in zip(table.input, table.full, table.simplified, strict=True):
            assert full == f"book of the king {text} {CUE}"
            assert simplified == f"far {text} {CUE}"
            assert len(tokenizer(simplified).input_ids) <= 64
            assert any(one.startswith(text) for one in whole)
            cut += text not in whole
    assert cut == 2


def test_the_teachers_limit_under_any_context_binds_all_of_them(labels, tmp_path):
    """The longest arm decides, and the student reads no more than the teacher did."""
    longer = "river " * 80
    arms = {"long": {"template": f"{longer}{{{{ input }}}} {CUE}"}}
    content = yaml.safe_load(labels.read_text())["contexts"]
    recipe = _load(labels, contexts={**content, "arms": arms}, student={"kind": "pretrained", "model": "teacher"})
    facts, tables = _collect(recipe, tmp_path)
    text = next(one for one in facts["cautions"] if one["code"] == "inputs-cut")["text"]
    assert "the teacher takes 12" in text
    for text, simplified in zip(tables["eval"].input, tables["eval"].simplified, strict=True):
        assert simplified == f"far {text} {CUE}"
        assert len(tiny.tokenizer()(f"{longer}{text} {CUE}").input_ids) - 1 <= 127  # the end token is left out


def test_never_refuses_before_the_teacher_is_loaded(labels, tmp_path, monkeypatch):
    monkeypatch.setattr("distillctl.teachers.huggingface.load", lambda *_: pytest.fail("the weights were loaded"))
    recipe = _load(labels, contexts={**yaml.safe_load(labels.read_text())["contexts"], "truncate": "never"})
    with pytest.raises(DataError) as refused:
        _collect(recipe, tmp_path)
    told = str(refused.value)
    longest = max(len(tiny.tokenizer()(f"far {text} {CUE}").input_ids) for text in LONG)
    assert f"the simplified view has {longest} tokens, the student takes 64 (1 more row is too long)" in told
    assert "contexts.simplified: row " in told
    assert "contexts.truncate: input" in str(refused.value.next)


def test_a_context_that_leaves_no_room_is_an_error_even_if_inputs_are_cut(labels, tmp_path):
    content = yaml.safe_load(labels.read_text())["contexts"]
    recipe = _load(labels, contexts={**content, "simplified": {"template": "river " * 70 + "{{ input }}"}})
    with pytest.raises(DataError, match="cutting its input does not help"):
        _collect(recipe, tmp_path)


def test_collect_depends_on_the_students_length_only_where_inputs_are_cut(labels, tmp_path):
    content = yaml.safe_load(labels.read_text())["contexts"]
    for truncate, why in (("input", ("student.max_length changed",)), ("never", ())):
        # Without the two long rows, never is content too.
        contexts = {**content, "truncate": truncate}
        exclude = {**yaml.safe_load(labels.read_text())["data"], "source": "short.jsonl"}
        lines = (labels.parent / "rows.jsonl").read_text().splitlines()[:20]
        (labels.parent / "short.jsonl").write_text("\n".join(lines))
        _collect(_load(labels, contexts=contexts, data=exclude), tmp_path / truncate)
        other = _load(labels, contexts=contexts, data=exclude, student={"max_length": 60})
        state = next(iter(pipeline.status(other, Workspace(tmp_path / truncate))))
        assert (state.state, state.why) == ("stale" if why else "fresh", why)


def test_train_reads_the_whole_cue_and_the_saved_tokenizer_cuts_nothing(labels, tmp_path):
    from tokenizers import Tokenizer

    workspace = Workspace(tmp_path)
    recipe = _load(labels, train={"epochs": 1, "control": False})
    facts, _ = _collect(recipe, tmp_path)
    train = pipeline.stage("train", recipe, workspace).manifest.facts
    assert train["cut_inputs"] == facts["counts"]["cut_inputs"]
    saved = Tokenizer.from_file(str(workspace.folder("train") / "model" / "tokenizer.json"))
    assert saved.truncation is None
    assert len(saved.encode("river " * 200).ids) > 200


# ── texts ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A project that answers with text: models with 128 positions, 10 of them for a response."""
    folder = tmp_path_factory.mktemp("texts")
    tiny_generate.decoder().save_pretrained(folder / "teacher")
    tiny_generate.bpe_tokenizer().save_pretrained(folder / "teacher")
    rows = [*tiny_generate.texts(12), "the young river king reads the old city " * 9]
    with (folder / "rows.jsonl").open("w") as file:
        for text in rows:
            file.write(json.dumps({"input": text, "reference": "a book"}) + "\n")
    path = folder / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": "texts",
                "task": {"kind": "generate", "max_new_tokens": 10, "metrics": ["exact"],
                         "soft_labels": {"kind": "top_k", "k": 5}},
                "data": {"source": "rows.jsonl", "eval_rows": 4},
                "contexts": {
                    "truncate": "input",
                    "full": {"template": "the king reads: {{ input }} and never:"},
                    "simplified": {"template": "{{ input }} and never:"},
                },
                "teacher": {"model": "teacher", "threads": 1},
                "student": {"kind": "pretrained", "model": "teacher", "max_length": 60},
                "train": {"epochs": 1, "threads": 1},
            }
        )
    )  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("student", "takes"),
    [
        ({"kind": "pretrained", "model": "teacher", "max_length": 60}, 50),
        ({"kind": "pretrained", "model": "teacher", "max_length": 60, "vocabulary": {"merges": 8}}, 50),
        ({"kind": "truncated", "model": "teacher", "layers": [0]}, 118),
        ({"kind": "from_config", "model_type": "t5", "tokenizer": "teacher", "max_length": 40,
          "config": {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}}, 40),
    ],
    ids=["decoder", "trimmed", "truncated", "encoder-decoder"],
)  # fmt: skip
def test_every_kind_of_student_reads_views_that_fit(texts, tmp_path, student, takes):
    recipe = _replaced(texts, student=student)
    facts, tables = _collect(recipe, tmp_path)
    assert sum(facts["counts"]["cut_inputs"].values()) == 1
    tokenizer = tiny_generate.bpe_tokenizer()
    lengths = [len(tokenizer(text).input_ids) for table in tables.values() for text in table.simplified]
    assert takes - 12 <= max(lengths) <= takes
    assert all(text.endswith(" and never:") for table in tables.values() for text in table.simplified)
    train = pipeline.stage("train", recipe, Workspace(tmp_path)).manifest.facts
    assert train["cut_inputs"] == facts["counts"]["cut_inputs"]


def test_a_new_tokenizer_refuses_in_train_and_says_how_many(texts, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    new = {"kind": "from_config", "model_type": "llama", "tokenizer": {"model": "bpe", "vocabulary": 320}}
    train = {"epochs": 1, "threads": 1, "loss": [{"kind": "cross_entropy"}]}
    recipe = _replaced(texts, student=new | {"max_length": 30, "config": sizes}, train=train)
    _collect(recipe, tmp_path)
    with pytest.raises(DataError, match=r"takes 30 and keeps 10 of them for the response \(\d+ more rows? "):
        pipeline.stage("train", recipe, Workspace(tmp_path))
    found = dry_run.plan(recipe, Workspace(tmp_path / "none"), ["collect"])["lengths"]
    assert "its tokenizer is trained in train" in found["student"]["note"]


# ── the dry run ──────────────────────────────────────────────────────────────────────────────────


def test_a_dry_run_lists_the_longest_rows_against_both_limits(labels, tmp_path):
    recipe = _load(labels)
    plan = dry_run.plan(recipe, Workspace(tmp_path / "run"), ["collect"])
    found = plan["lengths"]
    tokenizer = tiny.tokenizer()
    assert found["student"]["limit"] == 64
    assert found["teacher"]["limit"] == 127
    longest = sorted((len(tokenizer(f"far {text.strip()} {CUE}").input_ids) for text in LONG), reverse=True)
    assert [row["tokens"]["student"] for row in found["longest"]][:2] == longest
    assert found["too_long"] == {"teacher": 0, "student": 2, "rows": 2}
    assert (found["checked"], found["rows"]) == (22, 22)
    assert "are cut in collect" in found["then"]
    contexts = {**yaml.safe_load(labels.read_text())["contexts"], "truncate": "never"}
    refused = dry_run.plan(_load(labels, contexts=contexts), Workspace(tmp_path / "run"), ["collect"])["lengths"]
    assert "ends with an error before the teacher is asked" in refused["then"]
    assert set(plan["views"]) == {"full", "simplified", "cue_only"}
    assert plan["views"]["full"].startswith("book of the king ")
    assert plan["views"]["full"].endswith(CUE)


def test_a_dry_run_shows_chat_views_as_the_chat_template_writes_them(texts, tmp_path):
    folder = tmp_path / "chat"
    folder.mkdir()
    tiny_generate.decoder().save_pretrained(folder / "teacher")
    tokenizer = tiny_generate.bpe_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer.save_pretrained(folder / "teacher")
    content = yaml.safe_load(texts.read_text())
    content["contexts"] = {"full": {"messages": [{"role": "user", "content": "read {{ input }}"}]}}
    (folder / "rows.jsonl").write_text("\n".join(json.dumps({"input": f"the sea {n}"}) for n in range(9)))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    view = dry_run.plan(recipes.load(folder / "recipe.yaml"), Workspace(tmp_path / "run"), ["collect"])["views"]["full"]
    assert view.startswith("<user>read the sea ")
    assert view.endswith("<eos><assistant>")


def test_what_is_not_on_this_machine_is_said(labels, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe = _load(labels, student={"kind": "pretrained", "model": "nobody/nothing"})
    found = dry_run.plan(recipe, Workspace(tmp_path / "run"), ["collect"])["lengths"]["student"]
    assert found["limit"] is None
    assert "nobody/nothing is not on this machine yet" in found["note"]


def test_the_readable_dry_run_fits_a_terminal_and_imports_no_torch(labels, tmp_path):
    script = tmp_path / "no_torch" / "torch.py"
    script.parent.mkdir()
    script.write_text("raise SystemExit('torch was imported')")
    done = project.run(
        "run", labels, "--run-dir", tmp_path / "run", "--dry-run", COLUMNS="80",
        PYTHONPATH=os.pathsep.join([str(script.parent), os.environ.get("PYTHONPATH", "")]),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the student takes 64" in done.stdout
    assert "0 for the teacher, 2 for the student" in done.stdout
    assert "the cue_only view of the first eval row:" in done.stdout
