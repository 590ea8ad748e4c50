"""collect, end to end on tiny models: what stands for a label, in templates and in chats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from distillctl import pipeline
from distillctl import recipe as recipes
from distillctl.data.view_table import read
from distillctl.run_dir.workspace import Workspace
from distillctl.soft_labels import label_shards
from tests.teachers.test_answer_tokens import sentence_piece_bpe

LABELS = ["bazu", "miro", "zupa"]
CHAT = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>{{ m.content }}:{% else %} {{ m.content }}</s>{% endif %}"
    "{% endfor %}"
)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    tokenizer: Any = sentence_piece_bpe()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), initializer_range=0.5, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def collected(folder: Path, teacher: Path, full: dict[str, Any], **task: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """The ceiling's label log-probabilities of the eval rows, and collect's facts."""
    rows = [f"{a} {b} {c}" for a in LABELS for b in LABELS for c in ("fe", "fete", "fe fe")]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps({"input": row}) for row in rows))
    recipe = {
        "name": "labels",
        "task": {"labels": LABELS, **task},
        "data": {"source": "rows.jsonl", "eval_rows": 9},
        "contexts": {"full": full},
        "teacher": {"model": str(teacher), "threads": 1},
        "student": {"kind": "pretrained", "model": str(teacher)},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    workspace = Workspace(folder / "run")
    ran = pipeline.stage("collect", recipes.load(folder / "recipe.yaml"), workspace)
    assert read(workspace.folder("collect") / "views.parquet", "eval").full
    return label_shards.read(workspace, "full", "eval").log_probs, ran.manifest.facts


def test_a_block_scalars_newline_changes_nothing_and_is_told(
    tmp_path: Path, teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for name, template in (("strip", "{{ input }}:"), ("block", "{{ input }}:\n")):
        (tmp_path / name).mkdir()
        found.append(collected(tmp_path / name, teacher, {"template": template})[0])
        assert ("does not read the final newline" in capsys.readouterr().err) == (name == "block")
    np.testing.assert_array_equal(*found)


def test_a_chat_and_the_same_text_as_a_template_have_the_same_labels(tmp_path: Path, teacher: Path) -> None:
    found = []
    for name, full in (
        ("template", {"template": "<s>{{ input }}:"}),
        ("chat", {"messages": [{"role": "user", "content": "{{ input }}"}]}),
    ):
        (tmp_path / name).mkdir()
        log_probs, facts = collected(tmp_path / name, teacher, full)
        found.append(log_probs)
        assert facts["answer_place"]["full"]["chat"] == (name == "chat")
    np.testing.assert_allclose(*found, atol=1e-5)


def test_an_explicit_prefix_wins(tmp_path: Path, teacher: Path) -> None:
    for name in ("derived", "space", "line"):
        (tmp_path / name).mkdir()
    full = {"template": "{{ input }}:"}
    derived, _ = collected(tmp_path / "derived", teacher, full)
    space, _ = collected(tmp_path / "space", teacher, full, answer_prefix=" ")
    line, _ = collected(tmp_path / "line", teacher, full, answer_prefix="\n")
    np.testing.assert_array_equal(derived, space)
    assert abs(derived - line).max() > 1e-3
