"""export --bundle: everything an app needs, the same bytes each time, and every graph in it gives the same labels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import yaml
from tokenizers import Tokenizer

from distillctl import pipeline
from distillctl import recipe as recipes
from distillctl.bundle import agreement, figures, ort_canonical, ort_format
from distillctl.bundle.manifest import NAME, BundleManifest
from distillctl.bundle.verify import verify
from distillctl.errors import GateFailed, UnavailableError
from distillctl.models.model_source import ModelSource
from distillctl.run_dir.bench_facts import BenchFacts, MachineFacts, TimedModel
from distillctl.run_dir.workspace import StageOutput, Workspace, file_digest, tree_digest
from distillctl.runtimes.onnxruntime import OnnxClassifier
from distillctl.stages import bundle
from tests.fixtures import bundled, project

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder() -> Path:
    return bundled.finished().folder("bundle")


@pytest.fixture(scope="module")
def listing(folder) -> BundleManifest:
    return BundleManifest.model_validate_json((folder / NAME).read_bytes())


# ── what is in it ────────────────────────────────────────────────────────────────────────────────


def test_every_file_is_listed_with_its_size_and_hash(folder, listing):
    for name, file in listing.files.items():
        assert (folder / name).stat().st_size == file.bytes
        assert file_digest(folder / name) == file.sha256
        assert file.what
    assert {"eval.parquet", "candidates.json"}.isdisjoint(listing.files)  # what is said of single rows stays at home
    assert json.loads((folder / "labels.json").read_text()) == bundled.LABELS == listing.labels


def test_the_archive_holds_the_same_files(folder):
    with zipfile.ZipFile(folder.parent / "bundle.zip") as archive:
        assert archive.namelist() == sorted(archive.namelist())
        for name in archive.namelist():
            assert archive.read(name) == (folder / name).read_bytes(), name
        assert set(archive.namelist()) == set(json.loads(archive.read(NAME))["files"]) | {NAME}


_AGAIN = """
import sys
from pathlib import Path
from distillctl.stages import bundle
from distillctl.run_dir.workspace import Workspace
from tests.fixtures import bundled
bundle.run(bundled.recipe(bundle={"text_in": True}), Workspace(Path(sys.argv[1])))
"""


def test_the_same_run_gives_the_same_bytes(tmp_path):
    """In another process and another folder, which hashes strings in another order."""
    space = Workspace(shutil.copytree(bundled.finished().root, tmp_path / "elsewhere"))
    shutil.rmtree(space.folder("bundle"))
    (space.root / "bundle.zip").unlink()
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", _AGAIN, str(space.root)], check=True, env=environment)
    assert file_digest(space.root / "bundle.zip") == file_digest(bundled.finished().root / "bundle.zip")
    # Beside what the stage's commit adds.
    (space.folder("bundle") / "manifest.json").write_bytes(
        (bundled.finished().folder("bundle") / "manifest.json").read_bytes()
    )
    assert tree_digest(space.folder("bundle")) == tree_digest(bundled.finished().folder("bundle"))


def test_a_file_that_quantize_did_not_write_stays_out(tmp_path):
    space = Workspace(shutil.copytree(bundled.finished().root, tmp_path / "run"))
    (space.folder("quantize") / "notes.txt").write_text("not ours")
    bundle.run(bundled.recipe(bundle={"text_in": True}), space)
    assert not (space.folder("bundle") / "notes.txt").exists()
    assert (space.folder("bundle") / NAME).read_bytes() == (bundled.finished().folder("bundle") / NAME).read_bytes()


def test_the_card_has_figures_files_verdicts_and_sources(folder, listing):
    card = (folder / "README.md").read_text()
    for shown in ("**small** (here)", "98.00%", "0.7500", "`model_text_in.onnx`", "Execution providers", "| teacher |"):
        assert shown in card
    assert all(f"`{name}`" in card for name in listing.files if name != "README.md")
    assert "Latency" not in card  # nothing was timed
    assert not [text for text in bundled.texts() if text in card]  # no row is quoted


def test_latencies_only_of_this_very_graph(tmp_path):
    space = bundled.workspace(tmp_path / "run")
    timed = TimedModel(
        runtime="ONNX Runtime", dtype="float32", threads=1, bytes=1, bytes_of="file", p50_ms=1.25, p90_ms=2.0,
        p99_ms=2.5, n=9, load_ms=1.0, peak_rss_bytes=50_000_000,
    )  # fmt: skip
    machine = MachineFacts(cpu="a CPU", architecture="x86_64")
    models = {"deployed": timed, "fp32": timed}
    outcome = StageOutput([], BenchFacts(models=models, machine=machine, threads=1, ratios={}, agreement={}))
    space.commit("bench", recipe={}, inputs={"quantize": "another"}, outcome=outcome, seed=0, seconds=0)
    assert figures.bench_fingerprint(space) == {}
    quantize = space.manifest("quantize")
    inputs = {"quantize": quantize.fingerprint}
    bench = space.commit("bench", recipe={}, inputs=inputs, outcome=outcome, seed=0, seconds=0)
    assert figures.bench_fingerprint(space) == {"bench": bench.fingerprint}
    bundle.run(bundled.recipe(), space)
    card = (space.folder("bundle") / "README.md").read_text()
    assert "1.25 ms" in card
    assert "a CPU" in card
    assert "not a phone" in card


def test_licences_that_lie_beside_teacher_and_student(tmp_path, monkeypatch):
    source = tmp_path / "teacher"
    source.mkdir()
    for name in ("LICENSE", "NOTICE.txt", "licensed.json"):
        (source / name).write_text(name)
    (tmp_path / "run").mkdir()
    monkeypatch.setattr("distillctl.models.model_source.teacher", lambda recipe: ModelSource("teacher", source))
    space = bundled.workspace(tmp_path / "run")
    bundle.run(bundled.recipe(), space)
    found = sorted(path.name for path in (space.folder("bundle") / "licences").iterdir())
    assert found == ["teacher-LICENSE", "teacher-NOTICE.txt"]
    assert verify(space.folder("bundle"))


# ── graphs ───────────────────────────────────────────────────────────────────────────────────────


def test_all_graphs_give_the_same_logits(folder):
    texts = bundled.texts()
    wanted = OnnxClassifier(folder).logits(texts)
    np.testing.assert_allclose(OnnxClassifier(folder, file="model.ort").logits(texts), wanted, atol=1e-5)
    options = ort.SessionOptions()
    import onnxruntime_extensions

    options.register_custom_ops_library(onnxruntime_extensions.get_library_path())
    inside = ort.InferenceSession(folder / "model_text_in.onnx", options)
    assert [(value.name, value.type, value.shape) for value in inside.get_inputs()] == [("text", "tensor(string)", [1])]
    for text, row in zip(texts, wanted, strict=True):
        logits, label = inside.run(["logits", "label"], {"text": [text]})
        np.testing.assert_allclose(logits[0], row, atol=1e-5)
        assert label.tolist() == [row.argmax()]


def test_an_ort_file_on_a_full_disk_is_no_bug(folder):
    options = ort.SessionOptions()
    options.optimized_model_filepath = "/dev/full"
    options.add_session_config_entry("session.save_model_format", "ORT")
    with (
        pytest.raises(UnavailableError, match=r"the \.ort file cannot be written") as told,
        ort_format._disk_errors(folder),
    ):
        ort.InferenceSession(folder / "model.onnx", options)
    assert told.value.where == str(folder)


def test_ort_bytes_are_in_order_and_nothing_else_changes(folder, tmp_path):
    path = tmp_path / "model.ort"
    shutil.copy(folder / "model.ort", path)
    ort_canonical.rewrite(path)
    assert path.read_bytes() == (folder / "model.ort").read_bytes()
    feed = {name: np.array([[2, 5, 3]]) for name in bundled.INPUTS}
    unordered, ordered = set(), set()
    for _ in range(5):
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(path)
        options.add_session_config_entry("session.save_model_format", "ORT")
        ort.InferenceSession(folder / "model.onnx", options)
        unordered.add(path.read_bytes())
        before = ort.InferenceSession(path).run(["logits"], feed)[0]
        ort_canonical.rewrite(path)
        ordered.add(path.read_bytes())
        np.testing.assert_array_equal(ort.InferenceSession(path).run(["logits"], feed)[0], before)
    assert len(unordered) > 1  # else nothing has to be put in order, and this module can go
    assert len(ordered) == 1


def test_the_operators_of_every_graph_are_listed(folder):
    listed = (folder / "required_operators_and_types.config").read_text()
    assert listed.startswith("# Generated from model.onnx, model_text_in.onnx\n")
    for operator in ("Gather", "ReduceMean", "MatMul", "Concat", "ai.onnx.contrib;1;BertTokenizer"):
        assert operator in listed
    assert '"float"' in listed  # types too


def test_another_label_names_the_row_and_a_tie_does_not():
    onnx = np.array([[1.0, 0.0], [0.5, 0.5001]], np.float32)
    other = np.array([[1.0, 0.0], [0.5001, 0.5]], np.float32)
    found = agreement.compare("model.ort", ["a", "b"], onnx, other, tie=0.01)
    assert found["same_label"] == 0.5
    assert found["rows"] == 2
    with pytest.raises(GateFailed, match="row b"):
        agreement.compare("model.ort", ["a", "b"], onnx, other, tie=1e-6)
    with pytest.raises(GateFailed, match="row a"):
        agreement.compare("model.ort", ["a", "b"], onnx, np.full_like(onnx, np.nan), tie=0.01)


# ── snippets ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["classify.py", "classify_text_in.py"])
def test_python_gives_the_recorded_label(folder, listing, name, tmp_path):
    command = [sys.executable, str(folder / "snippets" / name), listing.example.input]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["label"] == listing.example.label
    assert sum(found["probabilities"].values()) == pytest.approx(1)


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
def test_javascript_is_javascript(folder):
    subprocess.run(["node", "--check", folder / "snippets" / "classify.mjs"], check=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm")
def test_javascript_gives_the_recorded_label(folder, listing, npm):
    shutil.rmtree(npm / "bundle", ignore_errors=True)
    shutil.copytree(folder, npm / "bundle")
    for text in (listing.example.input, " ".join(bundled.texts())):  # the second one has to be cut
        command = ["node", str(npm / "bundle" / "snippets" / "classify.mjs"), text]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)["probabilities"]
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(bundled.MAX_LENGTH)
        logits = OnnxClassifier(folder, max_length=bundled.MAX_LENGTH).logits([text])[0]
        weights = np.exp(logits - logits.max())
        assert list(found.values()) == pytest.approx((weights / weights.sum()).tolist(), abs=1e-4)


@pytest.mark.parametrize("inside", [True, False])
def test_kotlin_and_swift_load_files_that_are_there(tmp_path, inside):
    space = bundled.workspace(tmp_path / "run")
    bundle.run(bundled.recipe(bundle={"text_in": inside}), space)
    found = space.folder("bundle")
    for name in ("Classifier.kt", "Classifier.swift"):
        code = (found / "snippets" / name).read_text()
        graph = "model_text_in.onnx" if inside else "model.ort"
        assert f'"{graph}"' in code
        assert (found / graph).is_file()
        assert all((f'"{tensor}"' in code) != inside for tensor in bundled.INPUTS)
        assert ("registerCustomOp" in code) == inside
        assert code.count("{") == code.count("}")
        assert "{%" not in code


# ── the gate and what is missing ─────────────────────────────────────────────────────────────────


def test_a_row_with_other_ids_is_named_and_what_was_committed_stays(tmp_path):
    rows = bundled.texts()
    rows[7] = "[SEP]"  # one special token to the student's tokenizer, three words to onnxruntime-extensions
    space = bundled.workspace(tmp_path / "run", rows=rows)
    bundle.run(bundled.recipe(), space)
    before = project.contents(space.root)
    with pytest.raises(GateFailed, match="row row-7") as told:
        bundle.run(bundled.recipe(bundle={"text_in": True}), space)
    assert told.value.exit_code == 6
    assert project.contents(space.root) == before


def test_without_the_extensions_nothing_is_begun(tmp_path, monkeypatch):
    space = bundled.workspace(tmp_path / "run")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="not installed") as told:
        bundle.run(bundled.recipe(bundle={"text_in": True}), space)
    assert told.value.exit_code == 5
    assert "distillctl[text-in]" in str(told.value.next)
    assert not space.folder("bundle").exists()


def test_the_example_has_the_form_of_a_view(tmp_path):
    rows = bundled.texts()
    space = bundled.workspace(tmp_path / "run", rows=rows, simplified=[f"ba {row} do" for row in rows])
    bundle.run(bundled.recipe(), space)
    listing = BundleManifest.model_validate_json((space.folder("bundle") / NAME).read_bytes())
    assert listing.example.view == f"ba {listing.example.input} do"
    assert rows[0] not in listing.example.view


# ── the pipeline and the command line ────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_on_a_real_run(tmp_path):
    recipe, run = project.finished(tmp_path, without=("quantize", "bench", "report"))

    def command(*args):
        return project.run(*args, recipe, "--run-dir", run, "--json")

    def bundle_state():
        found = {s.stage: s.state for s in pipeline.status(recipes.load(recipe), Workspace(run))}
        return found.get("bundle")

    refused = command("export", "--bundle")
    assert refused.returncode == 4
    assert json.loads(refused.stdout)["error"]["next"].startswith("distillctl quantize")
    assert command("quantize").returncode == 0
    plan = json.loads(command("export", "--bundle", "--dry-run").stdout)
    assert [stage["stage"] for stage in plan["stages"]] == ["bundle"]
    assert bundle_state() is None
    assert not (run / "bundle").exists()

    made = command("export", "--bundle")
    assert made.returncode == 0, made.stderr
    found = json.loads(made.stdout)
    assert found["stage"] == "bundle"
    assert found["graphs"]["model.ort"]["against_onnx"]["same_label"] == 1
    assert found["mobile"]["model.onnx"]["advice"]
    assert verify(run / "bundle.zip")
    assert bundle_state() == "fresh"
    assert json.loads(command("export", "--bundle").stdout)["fresh"]
    assert json.loads(command("export").stdout)["stage"] == "export"

    zipped = file_digest(run / "bundle.zip")
    (run / "bundle.zip").write_bytes(b"gone bad")
    assert bundle_state() == "damaged"
    assert command("export", "--bundle").returncode == 0
    assert file_digest(run / "bundle.zip") == zipped

    assert command("bench").returncode == 0
    assert bundle_state() == "stale"  # there are latencies now
    everything = json.loads(command("run").stdout)
    assert "bundle" not in everything["stages"]

    no_such = command("export", "--bundle", "--text-in")  # a tokenizer of whole words
    assert no_such.returncode == 3
    assert "WordLevel" in no_such.stderr


def test_text_in_goes_with_bundle_and_with_labels(tmp_path):
    recipe = project.make(tmp_path)
    assert project.run("export", recipe, "--text-in").returncode == 2
    made = yaml.safe_load(recipe.read_text())
    made["task"] = {"kind": "generate"}
    recipe.write_text(yaml.safe_dump(made))
    done = project.run("export", recipe, "--bundle", "--text-in")
    assert done.returncode == 3
    assert "bundle.text_in: a graph with the tokenizer inside is for task.kind: classify" in done.stderr
