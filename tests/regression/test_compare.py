"""bench --against: what it refuses, what it decides, and where it says so."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest

from distillctl.errors import GateFailed, UnavailableError, UsageError
from distillctl.regression import compare, output, paired_timing
from distillctl.regression.paired_timing import BenchTarget, PairedTiming
from distillctl.regression.sequential_test import LOOKS
from distillctl.runtimes.process import WorkerProcess
from tests.benchmarks import gate
from tests.fixtures import bench_run, manifests, project

pytestmark = pytest.mark.slow

SLOWED = "tests.benchmarks.slowed_worker"


def job(folder: Path, count: int = 40) -> dict[str, Any]:
    texts = bench_run.questions(count)
    return {"runtime": "onnx", "folder": str(bench_run.graph(folder)), "threads": 1, "texts": texts}


# ── the measurement ──────────────────────────────────────────────────────────────────────────────


def test_a_pair_is_two_fresh_processes_on_one_cpu_in_abba(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple[str, int, int]] = []
    pinned: list[set[int]] = []
    pids: list[int] = []

    class Logged(WorkerProcess):
        def run(self, start: int, count: int, seconds: float | None = None) -> dict[str, Any]:
            if not log or log[-1] != (self.name, start, count) or seconds is None:
                log.append((self.name, start, count))
            if seconds is None and count > 1:
                pinned.append(os.sched_getaffinity(self.loaded["pid"]))
                pids.append(self.loaded["pid"])
            return super().run(start, count, seconds)

    monkeypatch.setattr(paired_timing, "WorkerProcess", Logged)
    side = BenchTarget(job(tmp_path))
    fought = paired_timing.compare_latency(side, side, max_ratio=1.5, max_seconds=0)  # one pair always
    timed = [(name, start) for name, start, count in log if count == paired_timing.BLOCK]
    assert "".join(name[1] for name, _ in timed[:8]) == "wttwtwwt"  # own, other, other, own; then the other way round
    assert len({start for _, start in timed[:4]}) == 1
    assert timed[4][1] != timed[0][1]
    assert all(cpus == pinned[0] and len(cpus) == 1 for cpus in pinned)
    assert len(set(pids)) == 2
    assert not psutil.Process().children()
    facts = json.loads(json.dumps(fought.facts(), allow_nan=False))
    assert (facts["pairs"], facts["verdict"], facts["low"]) == (1, "undecided", None)
    assert facts["queries"] == len(timed) * paired_timing.BLOCK / 2
    assert facts["more_pairs"] is not None


def test_a_graph_against_itself_and_against_a_slow_one(tmp_path: Path) -> None:
    """A slowdown of half: what the finer one takes is what `make bench-gate` is for."""
    same = BenchTarget(job(tmp_path))
    slow = BenchTarget(same.job | {"slowdown": 0.5}, SLOWED)
    fought = paired_timing.compare_latency(slow, same, max_ratio=1.1, max_seconds=60)
    assert fought.verdict == "slower"
    assert 1.3 < fought.facts()["ratio"] < 1.7
    assert len(fought.differences) in LOOKS
    assert paired_timing.compare_latency(same, slow, max_ratio=1.1, max_seconds=60).verdict == "fine"


def test_a_side_that_cannot_load_leaves_no_process(tmp_path: Path) -> None:
    good = BenchTarget(job(tmp_path / "good"))
    bad = BenchTarget(good.job | {"folder": str(tmp_path / "nowhere")})
    for own, other, name in ((good, bad, "other"), (bad, good, "own")):
        with pytest.raises(UnavailableError, match=f"{name}: "):
            paired_timing.compare_latency(own, other, max_ratio=1.05)
        assert not psutil.Process().children()


@pytest.mark.parametrize("query_ms", [0.01, 1.5, 20.0, 900.0])
@pytest.mark.parametrize("rows", [1, 2, 7, 1000])
def test_slow_models_answer_fewer_rows(query_ms: float, rows: int) -> None:
    block, rounds = paired_timing._shape(query_ms, rows)
    assert 1 <= block <= rows
    assert rounds >= 1
    if rows == 1000:
        assert block * rounds == (50 if query_ms < 5 else 10 if query_ms == 20 else 3)


def test_the_slow_worker_works_longer_and_answers_alike(tmp_path: Path) -> None:
    one = job(tmp_path)
    with WorkerProcess("a", one) as plain, WorkerProcess("b", one | {"slowdown": 3.0}, module=SLOWED) as slow:
        answers = [worker.run(0, 40) for worker in (plain, slow)]
    assert answers[0]["answers"] == answers[1]["answers"]
    times = [sorted(ms for [ms] in answer["token_ms"])[20] for answer in answers]
    assert times[1] > 2.5 * times[0]


# ── what is said of it ───────────────────────────────────────────────────────────────────────────


def measured(differences: list[float], growth: float = 0.0) -> dict[str, Any]:
    timed = PairedTiming(
        math.log(1.05), differences, [1.0] * len(differences), [1.0] * len(differences), 10, 6.0
    ).facts()
    speed = {"slower": "failed", "fine": "passed", "undecided": "undecided"}[timed["verdict"]]
    size = "failed" if growth > 0.02 else "passed"
    return {
        "verdict": "failed" if size == "failed" else speed,
        "run_dir": "runs/new",
        "against": "runs/old",
        "latency": {**timed, "verdict": speed, "max_slowdown": 0.05, "measured": "the whole query"},
        "size": {
            "verdict": size, "bytes": 1020, "other_bytes": 1000, "growth": growth, "max_growth": 0.02,
        },
        "recorded": None,
        "threads": 1,
        "machine": {"cpu": "any"},
    }  # fmt: skip


SLOWER, FINE, OPEN = [0.10, 0.11, 0.12, 0.10, 0.11, 0.12], [0.0, 0.01, -0.01] * 2, [0.02, 0.09] * 3


@pytest.mark.parametrize(
    ("found", "undecided_fails", "fails", "tag"),
    [
        (measured(FINE), True, False, None),
        (measured(SLOWER), False, True, "failure"),
        (measured(FINE, growth=0.03), False, True, "failure"),
        (measured(OPEN), False, False, "skipped"),
        (measured(OPEN), True, True, "failure"),
    ],
)
def test_verdict_reaches_everyone(
    found: dict[str, Any],
    undecided_fails: bool,
    fails: bool,
    tag: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    step, junit = tmp_path / "step.md", tmp_path / "deep" / "junit.xml"
    step.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))
    if fails:
        with pytest.raises(GateFailed) as error:
            output.emit(found, undecided_fails=undecided_fails, junit=junit)
        assert error.value.exit_code == 6
        assert error.value.facts == found
    else:
        output.emit(found, undecided_fails=undecided_fails, junit=junit)
    said = capsys.readouterr()
    assert said.out.startswith("runs/new against runs/old\nlatency ")
    assert ("warning" in said.err) == (tag == "skipped")
    suites = ElementTree.parse(junit).getroot()
    [suite] = suites
    cases = {case.get("name"): case for case in suite}
    assert list(cases) == ["latency", "size"]
    tags = [child.tag for case in cases.values() for child in case if child.tag != "system-out"]
    assert tags == ([tag] if tag else [])
    assert (suite.get("tests"), suite.get("failures")) == ("2", str(tags.count("failure")))
    assert step.read_text().startswith("before\n### ")
    assert f"| latency | {found['latency']['verdict']} |" in step.read_text()


def test_undecided_says_how_much_more_it_takes() -> None:
    found = measured(OPEN)
    assert found["latency"]["more_pairs"] > 0
    assert f"about {found['latency']['more_pairs']} more pairs would tell" in output.reason(found)
    assert "no interval yet" in output.reason(measured([0.1]))


@pytest.mark.parametrize(("text", "value"), [("5%", 0.05), ("0.05", 0.05), ("0%", 0), ("2.5%", 0.025)])
def test_shares(text: str, value: float) -> None:
    assert compare.share(text, "--x") == pytest.approx(value)


@pytest.mark.parametrize("text", ["5", "-1%", "many", "nan", "%", "120%"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"--max-slowdown: .*no share"):
        compare.bounds(text, None, None)


# ── the command ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, and run directories "one" and "two" with all its models."""
    folder = tmp_path_factory.mktemp("made")
    _, run = project.finished(folder, without=("bench", "report"))
    run.rename(folder / "one")
    shutil.copytree(folder / "one", folder / "two")
    return folder


def against(made: Path, other: str = "two", *more: str) -> Any:
    return project.run(
        "bench", made / "recipe.yaml", "--run-dir", made / "one", "--against", made / other, "--json", *more
    )


@pytest.mark.slow
def test_same_graph_passes_and_nothing_is_written(made: Path, tmp_path: Path) -> None:
    before = [project.contents(made / name) for name in ("one", "two")]
    done = against(made, "two", "--max-slowdown", "60%", "--junit", str(tmp_path / "j.xml"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["verdict"], found["size"]["growth"]) == ("passed", 0)
    assert found["latency"]["pairs"] >= 6
    assert (tmp_path / "j.xml").is_file()
    assert [project.contents(made / name) for name in ("one", "two")] == before


@pytest.mark.slow
def test_larger_graph_fails_with_the_facts_in_one_object(made: Path) -> None:
    grown = made / "one/quantize/model.onnx"
    whole = grown.read_bytes()
    shutil.rmtree(made / "small", ignore_errors=True)
    shutil.copytree(made / "two", made / "small")
    # As another run would have committed it: the same graph, of fewer bytes.
    import onnx

    model = onnx.load(made / "small/quantize/model.onnx")
    model.doc_string = ""
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, made / "small/quantize/model.onnx")
    smaller = (made / "small/quantize/model.onnx").stat().st_size
    assert smaller < len(whole)
    manifest = json.loads((made / "small/quantize/manifest.json").read_text())
    from distillctl.run_dir.workspace import file_digest

    manifest["outputs"]["model.onnx"] = {
        "sha256": file_digest(made / "small/quantize/model.onnx"), "bytes": smaller,
    }  # fmt: skip
    manifests.write(made / "small/quantize/manifest.json", manifest)
    done = against(made, "small", "--max-size-growth", "0%", "--max-slowdown", "90%", "--max-seconds", "1")
    assert done.returncode == 6
    found = json.loads(done.stdout)
    assert found["size"]["verdict"] == found["verdict"] == "failed"
    assert found["error"]["exit_code"] == 6
    assert "size failed" in found["error"]["what"]


@pytest.mark.slow
def test_what_cannot_be_compared_is_refused(made: Path) -> None:
    def spoiled(name: str) -> Path:
        shutil.rmtree(made / name, ignore_errors=True)
        shutil.copytree(made / "two", made / name)
        return made / name

    assert against(made, "nowhere").returncode == 4
    (spoiled("bare") / "quantize/manifest.json").unlink()
    assert "quantize is missing there" in json.loads(against(made, "bare").stdout)["error"]["what"]
    flipped = spoiled("flipped") / "quantize/model.onnx"
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"?")
    done = against(made, "flipped")
    assert (done.returncode, "damaged" in done.stdout) == (4, True)
    path = spoiled("text") / "collect/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["recipe"]["task"]["kind"] = "generate"
    manifests.write(path, manifest)
    done = against(made, "text")
    assert (done.returncode, "its task is generate" in done.stdout) == (4, True)
    stale = project.run(
        "bench", made / "recipe.yaml", "--run-dir", made / "one", "--against", made / "two", "--set", "train.epochs=4"
    )
    assert stale.returncode == 4
    assert "bench --against needs train, which is stale" in stale.stderr
    alone = project.run("bench", made / "recipe.yaml", "--max-slowdown", "5%")
    assert (alone.returncode, "belong to --against" in alone.stderr) == (2, True)


@pytest.mark.slow
def test_quick_is_seen_by_freshness(made: Path) -> None:
    arguments = (made / "recipe.yaml", "--run-dir", made / "two")
    done = project.run("bench", *arguments, "--quick", "--set", "bench.queries=2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["models"]["deployed"]["n"] == 4  # two of each process: what is said last wins
    states = {row["stage"]: row for row in json.loads(project.run("status", *arguments, "--json").stdout)["stages"]}
    assert states["bench"]["state"] == "stale"
    assert "bench.queries changed from 2 to 6" in states["bench"]["why"]


# ── its benchmark ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_benchmark_counts(made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "SLOWDOWN", 1.0)
    monkeypatch.setattr(gate, "MAX_SLOWDOWN", 0.4)
    gate.main(["--run-dir", str(made / "one"), "--aa", "2", "--tries", "1"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (found["aa_runs"], found["false_alarms"], found["tries"], found["caught"]) == (2, 0, 1, 1)
    assert found["passed"] + found["undecided"] == 2
