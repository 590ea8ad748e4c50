"""The licence in a GGUF file's header, as the gguf package writes it."""

import contextlib

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillctl.bundle import model_card
from distillctl.models import gguf_header
from tests.fixtures import tiny


def written(path, **general):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_languages(["en", "fr"])
    writer.add_quantization_version(2)
    for key, value in general.items():
        writer.add_string(f"general.{key}", value)
    writer.add_token_list(["a"] * 5000)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_strings_of_the_general_group(tmp_path):
    found = gguf_header.general(written(tmp_path / "a.gguf", license="apache-2.0", name="Tiny é"))
    assert found == {"architecture": "llama", "license": "apache-2.0", "name": "Tiny é"}


def test_the_card_quotes_it(tmp_path):
    path = written(tmp_path / "a.gguf", license="mit")
    [_, teacher, _] = model_card.sources(tiny.recipe(teacher={"model": str(path)}))
    assert teacher["licence"] == "mit"
    (tmp_path / "README.md").write_text("---\nlicense: gemma\n---\n")
    [_, teacher, _] = model_card.sources(tiny.recipe(teacher={"model": str(path)}))
    assert teacher["licence"] == "gemma"  # the model card's word goes first
    (tmp_path / "README.md").unlink()
    path.write_bytes(b"GGUF" + b"\xff" * 100)
    [_, teacher, _] = model_card.sources(tiny.recipe(teacher={"model": str(path)}))
    assert teacher["licence"] == "not stated"


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    path.write_bytes(b"GGUF" + data)
    with contextlib.suppress(ValueError):
        assert all(isinstance(value, str) for value in gguf_header.general(path).values())


def test_no_gguf_file(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="not a GGUF"):
        gguf_header.general(tmp_path / "a.gguf")
