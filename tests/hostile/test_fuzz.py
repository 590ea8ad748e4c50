"""Whole files with something changed: they are read, or refused with one of our errors, in bounded time.

`FUZZ_EXAMPLES=5000 pytest tests/hostile/test_fuzz.py` tries more; what was found is in the corpus.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from distillctl import recipe as recipes
from distillctl.bundle import archive
from distillctl.data import examples, formats, views
from distillctl.errors import DistillctlError
from distillctl.models import gguf_header
from distillctl.phone.messages import Results
from distillctl.recipe import Data
from distillctl.run_dir.facts import Facts
from distillctl.run_dir.workspace import Workspace
from distillctl.training import metrics_log
from distillctl.untrusted import parquet
from tests.fixtures import manifests, tiny
from tests.fixtures.costs import bounded
from tests.hostile import make_bundles, make_gguf, make_parquet

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "30"))

fuzz = settings(max_examples=EXAMPLES, derandomize=True, database=None)


@contextlib.contextmanager
def well_behaved(*refusals: type[Exception]):
    with bounded(), contextlib.suppress(DistillctlError, *refusals):
        yield


@st.composite
def spoilt(draw: Any, whole: bytes) -> bytes:
    """Bits flipped, pieces cut out, doubled, moved, or replaced by what often hurts."""
    data = bytearray(whole)
    hurting = (b"\0", b"\xff" * 8, b"\xff\xff\xff\x7f", b"[" * 200, b'"', b"\x80", b"9" * 400, b"\xed\xa0\x80")
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(0, 40))
        kind = draw(st.integers(0, 4))
        if kind == 0 and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = data[at : at + length] * draw(st.integers(1, 20))
        elif kind == 3:
            del data[at:]
        else:
            data[at : at + draw(st.integers(0, 8))] = draw(st.sampled_from(hurting))
    return bytes(data)


ODD = st.sampled_from(
    [None, True, -1, 0, 2**63, 10**40, 0.5, float("nan"), float("inf"), "", "\0", "\ud800", "../x", "/dev/zero", "~x",
     "{{ input }}", "(a*)*b", [], {}, [[]], {"": ""}, "x" * 5000]
)  # fmt: skip


@st.composite
def changed(draw: Any, document: Any) -> Any:
    """A JSON document with some of its parts replaced, dropped or doubled."""
    copied = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        node, parent, key = copied, None, None
        while isinstance(node, (dict, list)) and node and draw(st.integers(0, 3)):
            parent, key = node, draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
            node = node[key]
        if parent is None:
            continue
        kind = draw(st.integers(0, 3))
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            parent[draw(st.text(max_size=8))] = node
        else:
            parent[key] = draw(ODD)
    return copied


RECIPE = {
    "name": "tiny",
    "task": {"labels": {"number": "many", "person": "who"}, "answer_prefix": ""},
    "data": {"source": "rows.jsonl", "eval_rows": 1, "exclude": "^x"},
    "contexts": {"full": {"template": "say {{ input }}", "examples": {"rows": [{"input": "a", "answer": "b"}]}}},
    "teacher": {"model": "teacher"},
    "student": {"kind": "pretrained", "model": "student"},
    "train": {"epochs": 1, "loss": [{"kind": "jsd", "beta": 0.5}]},
}
ROWS = b'{"input": "who wrote it", "reference": "person"}\n{"input": "how many, then?", "reference": "number"}\n'


def read_data(folder: Path, recipe: recipes.Recipe) -> None:
    dataset = examples.load(recipe)
    for renderer in views.renderers(recipe, dataset.shots).values():
        renderer.preview(dataset.eval[0])
    recipes.dump(recipe)


@fuzz
@seed(0)
@given(changed(RECIPE))
def test_recipes_of_other_parts(tmp_path_factory, document):
    folder = tmp_path_factory.getbasetemp()
    (folder / "rows.jsonl").write_bytes(ROWS)
    (folder / "r.yaml").write_text(yaml.safe_dump(document), errors="surrogateescape")
    with well_behaved():
        read_data(folder, recipes.load(folder / "r.yaml"))


@fuzz
@seed(0)
@given(spoilt(yaml.safe_dump(RECIPE).encode()))
def test_recipes_of_other_bytes(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    (folder / "rows.jsonl").write_bytes(ROWS)
    (folder / "r.yaml").write_bytes(data)
    with well_behaved():
        read_data(folder, recipes.load(folder / "r.yaml"))


PIECES = st.sampled_from(
    ["{{ ", " }}", "{% ", " %}", "for x in range(99999)", "endfor", "if ", "endif", "set x = ", "endset", "macro m(a)",
     "endmacro", "input", "labels", "x", "m(", ")", "(", "[", "]", "|", "~", "*", "**", "%", "+", ".", "99999999",
     "'%9999999d'", "'{:9999999}'", "center(", "join(", "replace(", "format(", "upper", "__class__", "attr(", "'a'",
     "namespace(x=1)", "loop", ":", ","]
)  # fmt: skip


@fuzz
@seed(0)
@given(st.lists(PIECES, max_size=30).map("".join))
def test_templates(template):
    recipe = tiny.recipe(contexts={"full": {"template": template}})
    with well_behaved():
        views.renderers(recipe, {})["full"].preview(examples.Example("a", "who"))


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("rows.jsonl", ROWS),
        ("rows.csv", b'input,reference\n"who ""wrote""\nit",person\nhow,number\n'),
        ("rows.jsonl.gz", gzip.compress(ROWS, mtime=0)),
        ("rows.po", b'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\n#, c\nmsgid "b"\nmsgstr "c"\n'),
    ],
)
@fuzz
@seed(0)
@given(data=st.data())
def test_files_of_rows(tmp_path_factory, name, whole, data):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(data.draw(spoilt(whole)))
    with well_behaved():
        list(formats.rows(path, formats.format_of(path, "auto", "data"), Data(source=name)))


@pytest.mark.parametrize(
    "options", [{}, {"compression": "none", "use_dictionary": False}, {"data_page_version": "2.0"}], ids=str
)
@fuzz
@seed(0)
@given(data=st.data())
def test_parquet(tmp_path_factory, options, data):
    path = tmp_path_factory.getbasetemp() / "rows.parquet"
    path.write_bytes(data.draw(spoilt(make_parquet.packed(make_parquet.ROWS, **options))))
    with well_behaved():
        list(formats.rows(path, "parquet", Data(source="rows.parquet")))
    with well_behaved(*parquet.ERRORS):
        parquet.read(path)


@fuzz
@seed(0)
@given(spoilt(make_gguf.file()))
def test_gguf(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "a.gguf"
    path.write_bytes(data)
    with well_behaved(ValueError):
        gguf_header.read(path)
    with well_behaved(ValueError):
        gguf_header.general(path)


@fuzz
@seed(0)
@given(spoilt(make_bundles.archive(("bundle.json", b"{}"), ("a/b.onnx", b"x" * 40))))
def test_archives(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "archive"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "in").mkdir(parents=True)
    (folder / "a.zip").write_bytes(data)
    with well_behaved():
        archive.unpack(folder / "a.zip", folder / "in")
    inside = {path for path in folder.rglob("*") if path.is_file()} - {folder / "a.zip"}
    assert all(path.is_relative_to(folder / "in") for path in inside)


def _manifest(folder: Path) -> dict[str, Any]:
    space = Workspace(folder / "run")
    (folder / "run" / "collect").mkdir(parents=True, exist_ok=True)
    (folder / "run" / "collect" / "a.bin").write_bytes(b"x")
    from distillctl.run_dir.workspace import StageOutput

    tiny.commit(space, "collect", StageOutput(["a.bin"], Facts.model_validate({"labels": ["a"]})))
    found = json.loads((folder / "run" / "collect" / "manifest.json").read_text())
    return found | {"created": 0.5, "seconds": 0.5}  # numbers of other lengths would be another document


@fuzz
@seed(0)
@given(st.data())
def test_manifests(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "manifests"
    document = data.draw(changed(_manifest(folder)))
    texts = st.sampled_from([json.dumps(document).encode(), manifests.text(document).encode()])
    text = data.draw(texts if isinstance(document, dict) else st.just(json.dumps(document).encode()))
    (folder / "run" / "collect" / "manifest.json").write_bytes(data.draw(st.just(text) | spoilt(text)))
    with well_behaved():
        manifest = Workspace(folder / "run").manifest("collect")
        if manifest:
            Workspace(folder / "run").damage("collect", manifest)
            assert manifest.fingerprint


RESULTS = {
    "download_ms": 1, "timer_ms": 0.1, "hidden": False, "failures": [],
    "measurements": [
        {"backend": "wasm", "threads": 1, "load_ms": 1, "first_ms": 1, "milliseconds": [1], "logits": [[0.5]]}],
}  # fmt: skip


@fuzz
@seed(0)
@given(changed(RESULTS).map(json.dumps))
def test_messages(message):
    with well_behaved(ValidationError):
        Results.model_validate_json(message)


@fuzz
@seed(0)
@given(spoilt(b'{"run": "student", "step": 1, "loss": 0.5}\n{"run": "control", "step": 2, "kl": 1.5}\n'))
def test_metrics(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "metrics.jsonl"
    path.write_bytes(data)
    with well_behaved():
        metrics_log.keep_lines(path, "student", 0)
    assert all(metrics_log.parsed(text) for text in io.StringIO(path.read_text()))
