"""A model's folder that a stranger made: what it would cost is told from its files, before any of it is taken."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import yaml

from distillctl import recipe
from distillctl.bundle import contents, model_card
from distillctl.errors import RecipeError, UnavailableError
from distillctl.models import checkpoint_files, from_pretrained
from distillctl.models.model_source import ModelSource
from distillctl.models.preview import ModelPreview
from distillctl.recipe import yaml_text
from distillctl.students import preflight
from distillctl.untrusted import limits
from tests.fixtures import tiny, tiny_generate
from tests.fixtures.costs import bounded

LLAMA = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
}  # fmt: skip
SHAPES = [[512, 64], [64, 64], [128, 64], [64, 128], [64]]


def folder(path: Path, shapes: list[list[int]] = SHAPES, **config: Any) -> Path:
    """A folder whose safetensors file has nothing but its header, which is all that is looked at."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps({**LLAMA, **config}))
    header = json.dumps({f"t{n}": {"dtype": "F32", "shape": s, "data_offsets": [0, 0]} for n, s in enumerate(shapes)})
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode())
    return path


# ── sizes ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "asked",
    [
        {"vocab_size": 60_000_000},
        {"vocab_size": 2_000_000},
        {"hidden_size": 60_000_000},
        {"intermediate_size": 10**9},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 6},
        {"num_attention_heads": 10**8},
        {"num_attention_heads": 60_000, "head_dim": 60_000},
        {"num_labels": 10**9},
        {"max_position_embeddings": 10**12},
        {"num_experts": 10**7},
        {"num_experts": 60_000, "moe_intermediate_size": 60_000},
        {"hidden_size": 60_000, "intermediate_size": 60_000},
        {"text_config": {"vocab_size": 60_000_000, "hidden_size": 8}},
        {"text_config": {"decoder": {"vocab_size": 60_000_000}}},
        {"is_encoder_decoder": True, "max_position_embeddings": 10**7},
        {"vocab_size": int("9" * 4000)},
    ],
)
def test_sizes_that_the_weights_do_not_show_are_refused(tmp_path: Path, asked: dict[str, Any]) -> None:
    checkpoint_files.check_size(folder(tmp_path / "honest"))
    other = folder(tmp_path / "other", **asked)
    with bounded(memory=32 << 20), pytest.raises(UnavailableError, match=r"config\.json (has|needs) "):
        from_pretrained.folder(ModelSource("x", other))


def test_real_models_are_taken(tmp_path: Path) -> None:
    """Layers that share their weights, several values in a stored number, positions without a table, experts."""
    albert = {"model_type": "albert", "vocab_size": 30_000, "embedding_size": 128, "hidden_size": 4096}
    albert |= {"intermediate_size": 16_384, "num_hidden_layers": 12, "num_attention_heads": 64}
    shared = [[30_000, 128], [4096, 128], *[[4096, 4096]] * 4, [16_384, 4096], [4096, 16_384], *[[4096]] * 6]
    checkpoint_files.check_size(folder(tmp_path / "albert", shared, **albert))
    llama = {"vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    four_bits = [[128_256, 2048], *[[2048, 1024], [8192, 256], [2048, 1024]] * 16]
    checkpoint_files.check_size(folder(tmp_path / "packed", four_bits, **llama, max_position_embeddings=10_485_760))
    experts = {"num_experts": 128, "moe_intermediate_size": 768, "hidden_size": 2048, "num_hidden_layers": 4}
    checkpoint_files.check_size(
        folder(tmp_path / "moe", [[151_936, 2048], *[[128, 2048, 1536], [128, 768, 2048]] * 4], **experts)
    )
    for kind in ("llama", "gemma3_text", "gpt2", "qwen3"):
        try:
            tiny_generate.decoder(kind).save_pretrained(tmp_path / kind)
        except KeyError:  # a kind that the tests have no sizes for
            continue
        checkpoint_files.check_size(tmp_path / kind)


def test_what_config_names_and_no_key_tells_is_counted_before_it_is_loaded(tmp_path: Path) -> None:
    """A size under a name that nobody has listed: transformers' own model says how many weights it is."""
    from transformers import AutoConfig, AutoModelForCausalLM

    tiny_generate.decoder().save_pretrained(tmp_path / "model")
    config = AutoConfig.from_pretrained(tmp_path / "model")
    from_pretrained.check_size(AutoModelForCausalLM, config, tmp_path / "model")
    config.vocab_size = 60_000_000
    told = r"needs [\d,]+ weights, but the files hold"
    with bounded(memory=64 << 20), pytest.raises(UnavailableError, match=told):
        from_pretrained.check_size(AutoModelForCausalLM, config, tmp_path / "model")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"num_hidden_layers": 10**9}, "which no model has"),
        ({"num_labels": 10**9}, "which no model has"),
        ({"max_position_embeddings": 10**12}, "which no model has"),
        ({"vocab_size": 60_000_000, "hidden_size": 100_000}, "its weights alone take 24,000.0 GB"),
        ({"hidden_size": 2_000_000, "intermediate_size": 2_000_000}, "its weights alone take"),
        ({"hidden_size": 4096, "num_experts": 100_000, "moe_intermediate_size": 60_000}, "its weights alone take"),
    ],
)
def test_a_new_student_fits_the_machine(monkeypatch: pytest.MonkeyPatch, config: dict[str, int], told: str) -> None:
    spec = recipe.FromConfigStudent(
        kind="from_config", model_type="llama", config=config, tokenizer={"vocabulary": 320}
    )
    with pytest.raises(RecipeError, match=told) as error:
        preflight.check_sizes(spec)
    assert error.value.where == "student.config"


def test_the_machines_memory_is_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    preflight.check_memory(1 << 20)
    monkeypatch.setattr(limits, "machine_bytes", lambda: 1 << 20)
    with pytest.raises(RecipeError, match=r"0\.0 GB"):
        preflight.check_memory(1 << 20)


# ── files ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "README.md", "vocab.txt", "added_tokens.json"])
def test_a_pipe_in_a_files_place_is_not_waited_for(tmp_path: Path, name: str) -> None:
    made = folder(tmp_path / "model")
    (made / name).unlink(missing_ok=True)
    os.mkfifo(made / name)
    with pytest.raises(UnavailableError, match="FIFO"):
        from_pretrained.folder(ModelSource("x", made))
    assert ModelPreview(ModelSource("x", made)).config == ({} if name == "config.json" else {**LLAMA})
    with pytest.raises(OSError, match="not a regular file"):
        limits.read_bytes(made / name, 10)
    with pytest.raises(OSError, match="not a regular file"):
        limits.read_bytes(Path("/dev/zero"), 10)


@pytest.mark.parametrize("name", ["tokenizer.json", "special_tokens_map.json", "vocab.txt", "chat_template.jinja"])
def test_a_file_longer_than_any_real_one_is_not_read(tmp_path: Path, name: str) -> None:
    made = folder(tmp_path / "model")
    with (made / name).open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UnavailableError, match=f"{name} has 1,099,511,627,776 bytes"):
        checkpoint_files.check_size(made)
    if name == "tokenizer.json":
        with pytest.raises(UnavailableError, match=f"{name} has 1,099,511,627,776 bytes"):
            ModelPreview(ModelSource("x", made)).tokens("a text")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "", "{", "\xff", '{"a": ' + "9" * 9999 + "}"])
def test_json_that_is_none_is_a_value_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"."):
        limits.read_json(tmp_path / "x.json")


# ── front matter ─────────────────────────────────────────────────────────────────────────────────

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
MERGES = "m0: &m0 {a: 1}\n" + "".join(
    f"m{n}: &m{n}\n  <<: [{', '.join([f'*m{n - 1}'] * 9)}]\n  k{n}: 1\n" for n in range(1, 12)
)
CARDS = {
    "aliases": f"---\n{LAUGHS}license: mit\n---\n",
    "merges": f"---\n{MERGES}license: mit\n---\n",
    "itself": "---\na: &a [*a]\nlicense: mit\n---\n",
    "deep": "---\nlicense: mit\na: " + "[" * 5000 + "]" * 5000 + "\n---\n",
    "deep blocks": "---\nlicense: mit\n" + "".join(" " * n + "- \n" for n in range(2000)) + "---\n",
    "an object": "---\nlicense: !!python/object/apply:os.system [touch pwned]\n---\n",
    "many": "---\nlicense: mit\na: [" + "1," * 200_000 + "]\n---\n",
    "twice": "---\nlicense: mit\nlicense: gpl\n---\n",
    "no end": "---\nlicense: mit\n" + "# x\n" * 300_000,
    "large": "---\nlicense: mit\n---\n" + "x" * (2 << 20),
    "no utf-8": "---\nlicense: m\xefit\n---\n",
    "a list": "---\n- license\n---\n",
    "a number": "---\nlicense: 1.0e+99999\n---\n",
    "digits": "---\nlicense: " + "9" * 9999 + "\n---\n",
    "sexagesimal": "---\nlicense: " + ":".join(["59"] * 20_000) + "\n---\n",
    "date": "---\nlicense: 2001-99-99\n---\n",
}


def licence(path: Path, text: str) -> str:
    (path / "model").mkdir()
    (path / "model" / "README.md").write_bytes(text.encode("latin-1"))
    return model_card._licence(tiny.recipe(), str(path / "model"), None)


@pytest.mark.parametrize("what", CARDS)
def test_a_hostile_model_card_costs_nothing_and_states_nothing(tmp_path: Path, what: str) -> None:
    with bounded(memory=128 << 20):
        assert licence(tmp_path, CARDS[what]) == "not stated"
    assert not Path("pwned").exists()


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ("mit", "mit"),
        ("[mit, apache-2.0]", "mit, apache-2.0"),
        ('"a\\nb"', "a b"),
        ("x" * 5000, "x" * 200),
        ("", "not stated"),
    ],
)
def test_a_licence_is_quoted_in_a_line(tmp_path: Path, stated: str, told: str) -> None:
    assert licence(tmp_path, f"---\nlicense: {stated}\ntags: [a]\n---\n# Model\n---\nmore\n") == told


def test_a_card_that_is_a_pipe_states_nothing(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    os.mkfifo(tmp_path / "model" / "README.md")
    assert model_card._licence(tiny.recipe(), str(tmp_path / "model"), None) == "not stated"


def test_recipes_and_cards_have_one_reader() -> None:
    for text in (LAUGHS, "a: &a [*a]", "a: 1\na: 2"):
        with pytest.raises(yaml.YAMLError):
            yaml_text.load_bounded(text)
        with pytest.raises(RecipeError):
            yaml_text.parse(text, "recipe.yaml")
    assert yaml_text.load_bounded("a: &a [1]\nb: *a") == {"a": [1], "b": [1]}
    assert yaml_text.load_bounded("date: 2020-01-01\n1: x")[1] == "x"  # what no recipe may have, and many cards do


def test_a_licence_that_is_a_link_or_too_long_stays_where_it_is(tmp_path: Path) -> None:
    """A bundle is there to be published: what a link in a model's folder leads to may be anything of the user's."""
    made = folder(tmp_path / "model")
    (tmp_path / "secret").write_text("key")
    (made / "LICENSE").symlink_to(tmp_path / "secret")
    (made / "NOTICE").write_text("x" * (2 << 20))
    (made / "LICENSE.txt").write_text("free")
    (tmp_path / "bundle").mkdir()
    contents.licences(
        tiny.recipe(teacher={"model": str(made)}, student={"kind": "pretrained", "model": str(made)}),
        tmp_path / "bundle",
    )
    found = {path.name: path.read_text() for path in (tmp_path / "bundle" / "licences").iterdir()}
    assert found == {"teacher-LICENSE.txt": "free", "student-LICENSE.txt": "free"}
