"""export --bundle of models that write: their graphs in both formats answer alike, and the code is that of the card."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from distillctl.bundle import archive
from distillctl.bundle.manifest import NAME, BundleManifest
from distillctl.bundle.verify import verify
from distillctl.errors import GateFailed
from distillctl.run_dir.facts import Facts
from distillctl.run_dir.workspace import StageOutput, Workspace
from distillctl.runtimes.onnx_generator import open_generator
from distillctl.stages import bundle
from distillctl.tasks.generate import bundle as text_bundle
from tests.fixtures import exported_generate, tiny, tiny_generate

pytestmark = pytest.mark.slow

GRAPHS = {
    "genai": ["model.onnx", "model.ort"],
    "trace": ["model.onnx", "model.ort"],
    "seq2seq": ["decoder_model_merged.onnx", "encoder_model.onnx", "decoder_model_merged.ort", "encoder_model.ort"],
}
KINDS = {"genai": "llama", "trace": "gpt2", "seq2seq": "t5"}


@pytest.fixture(scope="module", params=GRAPHS)
def made(request, tmp_path_factory) -> tuple[str, Workspace, StageOutput]:
    """A run directory whose deployed graph is the exported one, and its bundle."""
    builder = request.param
    exported = exported_generate.exported(KINDS[builder], builder)
    space = exported_generate.workspace(tmp_path_factory.mktemp(builder), exported.model)
    tiny.commit(space, "export", StageOutput([], Facts.model_validate({"builder": builder})))
    deployed = space.folder("quantize")
    deployed.mkdir()
    for path in exported.folder.iterdir():
        (deployed / path.name).write_bytes(path.read_bytes())
    outputs = sorted(path.name for path in space.folder("quantize").iterdir())
    tiny.commit(
        space,
        "quantize",
        StageOutput(outputs, tiny.deployed("chrf")),
    )
    outcome = bundle.run(recipe(), space)
    tiny.commit(space, "bundle", outcome)
    return builder, space, outcome


def recipe(**sections):
    return exported_generate.recipe(**sections)


def test_both_formats_answer_as_the_deployed_graph(made):
    builder, space, outcome = made
    folder = space.folder("bundle")
    assert list(outcome.facts.as_json()["graphs"]) == sorted(GRAPHS[builder], key=lambda name: (".ort" in name, name))
    for text in tiny_generate.texts(5, seed=7):
        answers = [
            graph.generate(graph.encode(text), 12)
            for graph in (
                open_generator(space.folder("quantize")),
                open_generator(folder),
                open_generator(folder, suffix=".ort"),
            )
        ]
        assert answers[0] == answers[1] == answers[2]


def test_it_is_verified_as_folder_and_archive(made):
    builder, space, _ = made
    for path in (space.folder("bundle"), space.root / "bundle.zip"):
        assert verify(path)["graphs"] == dict.fromkeys(GRAPHS[builder], "answers as recorded")


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_flipped_byte_in_any_file(made, tmp_path, share):
    _, space, _ = made
    archive.unpack(space.root / "bundle.zip", tmp_path)
    for name in list(archive.files(tmp_path)):
        whole = (tmp_path / name).read_bytes()
        spoilt = bytearray(whole)
        spoilt[int(len(whole) * share)] ^= 1
        (tmp_path / name).write_bytes(spoilt)
        with pytest.raises(GateFailed, match=name):
            verify(tmp_path)
        (tmp_path / name).write_bytes(whole)
    verify(tmp_path)


def test_another_recorded_answer(made, tmp_path):
    _, space, _ = made
    archive.unpack(space.root / "bundle.zip", tmp_path)
    listing = BundleManifest.model_validate_json((tmp_path / NAME).read_bytes())
    example = listing.example
    other = example.model_copy(update={"answer_ids": [*example.answer_ids[:-1], example.answer_ids[-1] + 1]})
    (tmp_path / NAME).write_bytes(listing.model_copy(update={"example": other}).with_checksum().dumps())
    with pytest.raises(GateFailed, match=r"answers .* instead of the recorded"):
        verify(tmp_path)


def test_the_python_code_answers(made):
    builder, space, _ = made
    folder = space.folder("bundle")
    graph = open_generator(folder)

    def answer(text: str) -> str:
        return graph.decode(graph.generate(graph.encode(text), exported_generate.MAX_NEW_TOKENS)).strip()

    # genai decodes up to the first bytes that are no UTF-8, which random models soon write.
    text = max(tiny_generate.texts(40), key=lambda text: len(answer(text).split("\ufffd")[0]))
    said = {}
    for name in ["answer.py"] + ["answer_genai.py"] * (builder == "genai"):
        command = [sys.executable, folder / "snippets" / name, text]
        done = subprocess.run(command, capture_output=True)  # bytes: a carriage return is one
        assert done.returncode == 0, done.stderr
        said[name] = done.stdout.decode().strip()
    assert said["answer.py"] == answer(text)
    if builder == "genai":
        readable = said["answer_genai.py"].split("\ufffd")[0].strip()
        assert readable
        assert readable == said["answer.py"].split("\ufffd")[0].strip()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm")
def test_the_javascript_answers(made, npm):
    _, space, _ = made
    graph = open_generator(space.folder("bundle"))
    shutil.rmtree(npm / "bundle", ignore_errors=True)
    shutil.copytree(space.folder("bundle"), npm / "bundle")
    for text in tiny_generate.texts(3):
        command = ["node", npm / "bundle" / "snippets" / "answer.mjs", text]
        done = subprocess.run(command, capture_output=True)
        assert done.returncode == 0, done.stderr
        answer = graph.decode(graph.generate(graph.encode(text), exported_generate.MAX_NEW_TOKENS))
        assert done.stdout.decode().strip() == answer.strip()


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
def test_the_javascript_is_javascript(made):
    _, space, _ = made
    subprocess.run(["node", "--check", space.folder("bundle") / "snippets" / "answer.mjs"], check=True)


def test_kotlin_is_there_where_genai_runs_it(made):
    builder, space, _ = made
    folder = space.folder("bundle")
    kotlin = folder / "snippets" / "Writer.kt"
    assert kotlin.exists() == (folder / "genai_config.json").exists() == (builder == "genai")
    card = (folder / "README.md").read_text()
    assert ("Writer.kt" in card) == (builder == "genai")
    assert "98.00%" in card
    assert json.loads((folder / NAME).read_bytes())["labels"] == []
    assert not [text for text in tiny_generate.texts(12) if len(text.split()) > 3 and text in card]


def test_other_answers_of_the_ort_graph_are_refused(made, monkeypatch):
    _, space, _ = made
    opened = text_bundle.open_generator

    def forgetful(folder: Path, suffix: str):
        graph = opened(folder, suffix=suffix)
        if suffix == ".ort":
            monkeypatch.setattr(graph, "generate", lambda ids, limit: [0])
        return graph

    monkeypatch.setattr(text_bundle, "open_generator", forgetful)
    before = verify(space.root / "bundle.zip")
    with pytest.raises(GateFailed, match="row row-0"):
        bundle.run(recipe(), space)
    assert verify(space.root / "bundle.zip") == before
