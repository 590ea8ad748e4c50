"""Graphs that strangers made: looked at through and through, and run only in processes with limits."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

from distillctl.bundle.verify import verify
from distillctl.errors import GateFailed, UpstreamError
from distillctl.graphs import sidecar_files
from distillctl.runtimes import trial
from distillctl.runtimes.process import WorkerFailed, WorkerProcess
from distillctl.untrusted import limits
from tests.fixtures import bench_run, bundled
from tests.fixtures.costs import bounded
from tests.fixtures.processes import SECONDS, ended, wait_until

pytestmark = pytest.mark.slow

FOREVER = """
import pathlib, time
pathlib.Path(__file__).with_name("started").touch()
while True:
    time.time()
"""


# ── what is found without running it ─────────────────────────────────────────────────────────────


def value(name: str, kind: int = TensorProto.INT64) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, None)


def loop(result: str = "spun") -> onnx.NodeProto:
    """A Loop that goes on for ever: its condition stays true."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["more"], ["again"]), helper.make_node("Identity", ["carried"], ["next"])],
        "body",
        [value("turn"), value("more", TensorProto.BOOL), value("carried")],
        [value("again", TensorProto.BOOL), value("next")],
    )
    return helper.make_node("Loop", ["", "true", "attention_mask"], [result], body=body)


def within_if(node: onnx.NodeProto, levels: int = 1) -> onnx.NodeProto:
    for level in range(levels):
        branch = helper.make_graph([node], f"then{level}", [], [value(node.output[0])])
        other = helper.make_graph(
            [helper.make_node("Identity", ["attention_mask"], ["other"])], f"else{level}", [], [value("other")]
        )
        node = helper.make_node("If", ["true"], [f"if{level}"], then_branch=branch, else_branch=other)
    return node


def hostile(folder: Path, node: onnx.NodeProto, functions: list[onnx.FunctionProto] | None = None) -> Path:
    """The classifier's graph in ``folder``, whose mask has been through ``node`` first."""
    path = folder / "model.onnx"
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
    for old in model.graph.node:
        for place, name in enumerate(old.input):
            if name == "attention_mask":
                old.input[place] = node.output[0]
    nodes = [node, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    if functions:
        model.functions.extend(functions)
        model.opset_import.append(helper.make_opsetid("strange", 1))
    onnx.save(model, path)
    return folder


def function(name: str, *nodes: onnx.NodeProto) -> onnx.FunctionProto:
    return helper.make_function(
        "strange", name, ["attention_mask", "true"], [nodes[-1].output[0]], list(nodes),
        [helper.make_opsetid("", 18), helper.make_opsetid("strange", 1)],
    )  # fmt: skip


def call(name: str) -> onnx.NodeProto:
    return helper.make_node(name, ["attention_mask", "true"], ["called"], domain="strange")


def scan() -> onnx.NodeProto:
    body = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "body", [value("a")], [value("b")])
    return helper.make_node("Scan", ["attention_mask"], ["scanned"], body=body, num_scan_inputs=1)


ENDLESS = {
    "loop": lambda folder: hostile(folder, loop()),
    "loop in an if": lambda folder: hostile(folder, within_if(loop())),
    "loop six ifs deep": lambda folder: hostile(folder, within_if(loop(), 6)),
    "scan in an if": lambda folder: hostile(folder, within_if(scan())),
    "loop in a function": lambda folder: hostile(folder, call("f"), [function("f", loop())]),
    "loop in an if in a function": lambda folder: hostile(folder, call("f"), [function("f", within_if(loop()))]),
    "loop in a function of a function": lambda folder: hostile(
        folder, call("g"), [function("f", within_if(loop())), function("g", call("f"))]
    ),
    "function called in an if": lambda folder: hostile(folder, within_if(call("f")), [function("f", loop())]),
    "search of onnxruntime's": lambda folder: hostile(
        folder, within_if(helper.make_node("GreedySearch", ["attention_mask"], ["found"], domain="com.microsoft"))
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(bench_run.graph(tmp_path / "graph"))


@pytest.mark.parametrize("what", ENDLESS)
def test_what_need_not_end_is_found_wherever_it_hides(folder: Path, what: str) -> None:
    sidecar_files.check_folder(folder, "again")
    ENDLESS[what](folder)
    with bounded(), pytest.raises(UpstreamError, match="need not end"):
        sidecar_files.check_folder(folder, "again")


@pytest.mark.parametrize("what", ENDLESS)
def test_a_bundle_with_one_is_not_what_was_made(tmp_path: Path, what: str) -> None:
    made = shutil.copytree(bundled.finished().folder("bundle"), tmp_path / "bundle")
    ENDLESS[what](made)
    bundled.reseal(made)
    with pytest.raises(GateFailed, match=r"model\.onnx: it has a .*need not end"):
        verify(made)


@pytest.mark.parametrize(
    "settings",
    [
        {"decoder": {"session_options": {"custom_ops_library": "./evil.so"}}},
        {"decoder": {"session_options": {"provider_options": [{"qnn": {"backend_path": "evil.so"}}]}}},
        {"decoder": {"filename": "../../outside.onnx"}},
        {"decoder": {"filename": "/dev/zero"}},
        {"decoder": {"filename": "none.onnx"}},
        {"decoder": {"filename": ["model.onnx"]}},
        {"encoder": {"filename": "link.onnx"}},
        {"decoder": {"pipeline": [{"a": {"filename": "../model.onnx"}}]}},
        "[" * 3000,
        "",
        '"a"' + " " * (1 << 20),
    ],
)
def test_what_genai_would_load_besides_is_refused(folder: Path, settings: object) -> None:
    (folder / "link.onnx").symlink_to("/dev/zero")
    text = settings if isinstance(settings, str) else json.dumps({"model": settings})
    (folder / sidecar_files.GENAI_CONFIG).write_text(text)
    with pytest.raises(UpstreamError, match=r"genai_config\.json"):
        sidecar_files.check_folder(folder, "again")


def test_what_the_builder_writes_is_taken(folder: Path) -> None:
    decoder = {"filename": "model.onnx", "session_options": {"log_id": "x", "provider_options": []}}
    (folder / sidecar_files.GENAI_CONFIG).write_text(json.dumps({"model": {"decoder": decoder}}))
    sidecar_files.check_folder(folder, "again")


# ── what is found by running it ──────────────────────────────────────────────────────────────────


def chain(first: str, nodes: list[onnx.NodeProto], held: list[onnx.TensorProto], folder: Path) -> Path:
    """The graph, that has first to work out ``nodes``; their last result is multiplied by nought and added."""
    path = folder / "model.onnx"
    model = onnx.load(path)
    ends = [
        helper.make_node("Cast", [nodes[-1].output[0]], ["chained"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["chained"], ["topmost"], keepdims=0),
        helper.make_node("Sub", ["topmost", "topmost"], ["nothing"]),
        helper.make_node("Add", ["attention_mask", "nothing"], ["through"]),
    ]
    for old in model.graph.node:
        for place, name in enumerate(old.input):
            if name == "attention_mask":
                old.input[place] = "through"
    before = list(model.graph.node)
    del model.graph.node[:]
    begin = [
        helper.make_node("ReduceMax", ["attention_mask"], ["top"], keepdims=0),
        helper.make_node("Cast", ["top"], [first], to=TensorProto.FLOAT),
    ]
    model.graph.node.extend([*begin, *nodes, *ends, *before])
    model.graph.initializer.extend(held)
    onnx.save(model, path)
    return folder


def shape(*sizes: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(sizes, np.int64), "shape")


def slow(folder: Path) -> Path:
    """Hours of products of large matrices, in some kilobytes."""
    grown = helper.make_node("Expand", ["x", "shape"], ["p0"])
    products = [helper.make_node("MatMul", [f"p{n}", "p0"], [f"p{n + 1}"]) for n in range(2000)]
    return chain("x", [grown, *products], [shape(3000, 3000)], folder)


def large(folder: Path) -> Path:
    """A hundred gigabytes of ones."""
    return chain("x", [helper.make_node("Expand", ["x", "shape"], ["p0"])], [shape(160_000, 160_000)], folder)


def doubled(folder: Path) -> Path:
    """A thing put beside itself, 40 times over."""
    nodes = [helper.make_node("Expand", ["x", "shape"], ["p0"])]
    nodes += [helper.make_node("Concat", [f"p{n}", f"p{n}"], [f"p{n + 1}"], axis=0) for n in range(40)]
    return chain("x", nodes, [shape(1024)], folder)


def laughing(folder: Path) -> Path:
    """A function that calls another twice, which calls another twice, … 40 times."""
    nodes = [
        helper.make_node("Identity", ["attention_mask"], ["a"]),
        helper.make_node("Identity", ["a"], ["out"]),
    ]
    functions = [function("f0", *nodes)]
    for n in range(40):
        calls = [
            helper.make_node(f"f{n}", ["attention_mask", "true"], ["a"], domain="strange"),
            helper.make_node(f"f{n}", ["a", "true"], ["out"], domain="strange"),
        ]
        functions.append(function(f"f{n + 1}", *calls))
    return hostile(folder, call("f40"), functions)


COSTLY = {"slow": slow, "large": large, "doubled": doubled, "laughing": laughing}


@pytest.mark.parametrize("what", COSTLY)
def test_a_graph_that_costs_too_much_is_ended(folder: Path, what: str) -> None:
    sidecar_files.try_out(folder, "onnx", "again")
    COSTLY[what](folder)
    with bounded(seconds=180), pytest.raises(UpstreamError, match="the graph does not run: ") as error:
        sidecar_files.try_out(folder, "onnx", "again")
    assert len(str(error.value)) < 1000
    assert not psutil.Process().children()


@pytest.mark.parametrize("what", ["slow", "large"])
def test_in_a_bundle_too(tmp_path: Path, what: str) -> None:
    made = shutil.copytree(bundled.finished().folder("bundle"), tmp_path / "bundle")
    COSTLY[what](made)
    bundled.reseal(made)
    with pytest.raises(GateFailed, match=r"model\.onnx does not open or run: "):
        verify(made)
    assert not psutil.Process().children()


# ── the process ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def forever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that never reads its stdin."""
    (tmp_path / "forever.py").write_text(FOREVER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return "forever"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_its_parent(forever: str, tmp_path: Path, number: int) -> None:
    """Not even what looks neither at its stdin nor at its signals."""
    code = f"""if True:
        from distillctl import interrupts
        from distillctl.runtimes.process import WorkerProcess
        with interrupts.handled(print):
            WorkerProcess("x", {{"threads": 1}}, module={forever!r})
    """
    parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    assert wait_until((tmp_path / "started").exists)
    [child] = psutil.Process(parent.pid).children()
    parent.send_signal(number)
    assert parent.wait(SECONDS) != 0
    assert ended(child.pid)


def test_a_process_without_its_parent_does_not_begin(forever: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "distillctl.runtimes.confined", "1", forever], timeout=SECONDS)
    assert done.returncode == 1
    assert not (tmp_path / "started").exists()


def test_processor_time_and_memory_are_limited(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"runtime": "onnx", "folder": str(folder), "threads": 1, "texts": ["who"]}
    with WorkerProcess("x", job | trial.limits(folder)) as worker:
        assert worker.run(0, 1)["answers"]
    with pytest.raises(WorkerFailed):
        WorkerProcess("x", job | {"data_bytes": 32 << 20})


def test_a_lower_limit_is_kept() -> None:
    code = """if True:
        import resource
        from distillctl.runtimes import confined
        resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 31))
        confined.limit(1 << 40, 1.0)
        print(resource.getrlimit(resource.RLIMIT_DATA) == (1 << 30, 1 << 31), *resource.getrlimit(resource.RLIMIT_CORE))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == ["True", "0"]
    assert 0 < limits.machine_bytes() <= psutil.virtual_memory().total
