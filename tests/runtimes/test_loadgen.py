"""MLPerf LoadGen's word on a graph, and what else is measured of the deployed one alone."""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from distillctl.commands import findings
from distillctl.errors import UnavailableError
from distillctl.run_dir.workspace import tree_digest
from distillctl.runtimes import bench as runtimes_bench
from distillctl.runtimes import loadgen, machine, roofline, sustained
from distillctl.runtimes.process import WorkerProcess
from distillctl.stages import bench
from tests.fixtures import bench_run

pytestmark = pytest.mark.slow


def job(folder: Path) -> dict[str, Any]:
    return {
        "runtime": "onnx", "folder": str(bench_run.graph(folder)), "threads": 1, "texts": bench_run.questions(20),
    }  # fmt: skip


def test_single_stream_by_the_rules(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    found = loadgen.measure("deployed", job(tmp_path), min_queries=300, min_seconds=0.5, folder=logs)
    summary = (logs / loadgen.SUMMARY).read_text()
    assert sorted(path.name for path in logs.iterdir()) == [loadgen.DETAIL, loadgen.SUMMARY]
    assert "Result is : VALID" in summary
    assert "Scenario : SingleStream" in summary
    assert "min_query_count : 300" in summary
    assert (found.valid, found.unmet, found.first_token_p90_ms) == (True, [], None)
    assert f"90.00 percentile latency (ns)   : {found.p90_ms * 1e6:.0f}\n" in summary
    assert f"Mean latency (ns)               : {found.mean_ms * 1e6:.0f}\n" in summary
    assert found.queries == found.as_json()["tokens"] >= 300
    assert found.seconds >= 0.5
    assert found.p50_ms <= found.p90_ms <= found.early_stopping_p90_ms
    assert "SingleStream: VALID, p90" in findings.loadgen(found)


def test_too_few_queries_are_invalid(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    found = loadgen.measure("deployed", job(tmp_path), min_queries=10, min_seconds=0.001, folder=logs)
    assert "Result is : INVALID" in (logs / loadgen.SUMMARY).read_text()
    assert (found.valid, found.unmet, found.early_stopping_p90_ms) == (False, ["early_stopping"], None)
    assert "INVALID (early_stopping)" in findings.loadgen(found)


def test_an_audit_config_in_the_current_folder_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "audit.config").write_text("*.*.min_query_count = 7\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").mkdir()
    found = loadgen.measure("d", job(tmp_path), min_queries=100, min_seconds=0.001, folder=tmp_path / "logs")
    assert found.queries >= 100


def test_a_query_that_fails_is_told(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    broken = job(tmp_path) | {"texts": ["a question"] * 12 + [5]}
    with pytest.raises(UnavailableError, match="TextEncodeInput"):
        loadgen.measure("deployed", broken, min_queries=64, min_seconds=0.001, folder=tmp_path / "logs")


def test_without_it_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, workspace = bench_run.prepare(tmp_path, loadgen={})
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlperf_loadgen" else found(name))
    with pytest.raises(UnavailableError) as error:
        bench.run(recipe, workspace)
    assert (error.value.exit_code, error.value.next) == (5, "pip install 'distillctl[loadgen]'")


@pytest.mark.long
def test_in_the_stage(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes_bench, "TEACHER_PROCESSES", {"teacher": 1, "teacher_cached": 1})
    rules = {"min_queries": 10, "min_seconds": 0.01}
    settings = {"queries": 8, "processes": 2, "warmup": 1, "sustained_seconds": 0.6}
    recipe, workspace = bench_run.prepare(tmp_path, loadgen=rules, **settings)
    torch.set_num_threads(1)
    time_models, timed = runtimes_bench.measure, []

    def measure(*args: Any) -> Any:
        """Time the models in the first run only: LoadGen has no part in that."""
        timed[:] = timed or [time_models(*args)]
        return timed[0]

    monkeypatch.setattr(runtimes_bench, "measure", measure)
    outcome = bench.run(recipe, workspace)
    facts = json.loads(json.dumps(outcome.facts.as_json(), allow_nan=False))
    assert "loadgen" in outcome.outputs
    assert (workspace.folder("bench") / "loadgen" / loadgen.DETAIL).is_file()
    assert facts["loadgen"]["queries"] >= 10
    if not facts["loadgen"]["valid"]:
        assert "verdict is INVALID" in capfd.readouterr().err
    assert facts["sustained"]["seconds"] >= 0.6
    assert {name: m["processes"] for name, m in facts["models"].items()} == {
        "teacher": 1, "teacher_cached": 1, "fp32": 2, "deployed": 2,
    }  # fmt: skip
    assert len(facts["cpus"]) == 1
    deployed = facts["models"]["deployed"]
    assert 0 < deployed["mapped_bytes"] < deployed["peak_rss_bytes"]
    assert 0 < deployed["anonymous_bytes"] < deployed["peak_rss_bytes"]
    assert deployed["warmup_ratio"] > 0
    said = "\n".join(findings.further_measurements(outcome.facts))
    assert "of mapped files" in said
    assert "without a pause" in said
    assert "MLPerf LoadGen" in said

    workspace.commit("bench", recipe={}, inputs={}, outcome=outcome, seed=0, seconds=0.0)
    before = tree_digest(workspace.folder("bench"))

    def hangs(*args: Any, **kwargs: Any) -> None:
        raise UnavailableError("it hangs")

    with monkeypatch.context() as patch:
        patch.setattr(loadgen, "measure", hangs)
        with pytest.raises(UnavailableError):
            bench.run(recipe, workspace)
    assert tree_digest(workspace.folder("bench")) == before

    without = recipe.model_copy(update={"bench": recipe.bench.model_copy(update={"loadgen": None})})
    outcome = bench.run(without, workspace)
    assert outcome.outputs == ["results.json", "samples"]
    assert "loadgen" not in outcome.facts.as_json()
    assert not (workspace.folder("bench") / "loadgen").exists()


def test_worker_stays_on_its_cpus_within_its_memory(tmp_path: Path) -> None:
    [cpu] = machine.cpus(1)
    one = job(tmp_path) | {"cpus": [cpu]}
    with WorkerProcess("a", one) as worker:
        assert os.sched_getaffinity(worker.loaded["pid"]) == {cpu}
        assert worker.loaded["cpus"] == [cpu]
    with pytest.raises(UnavailableError, match="a: the process that measures it"):
        WorkerProcess("a", one | {"data_bytes": 2_000_000})


def test_memory_is_read_at_a_plausible_speed() -> None:
    with WorkerProcess("memory", {"runtime": "memory", "threads": 1, "texts": [""] * 3}) as worker:
        speeds = [speed for [speed] in worker.run(0, 3)["answers"]]
    assert 2e8 < statistics.median(speeds) < 1e12
    assert worker.loaded["anonymous_bytes"] > 4 * roofline.FLOATS


def test_bytes_per_token_are_of_products_not_of_looked_up_tables(tmp_path: Path) -> None:
    assert roofline.bytes_per_run(bench_run.graph(tmp_path)) == 8 * len(bench_run.LABELS) * 4


def test_either_end_of_a_long_run() -> None:
    assert sustained._until([100.0] * 20, 0.35) == [100.0] * 4
    assert sustained._until([100.0] * 2, 9) == [100.0] * 2
    assert sustained._until([900.0], 0.1) == [900.0]


def test_a_run_that_slows_down_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Heating:
        spent = 0.0

        def __init__(self, name: str, job: dict[str, Any]) -> None: ...

        def __enter__(self) -> Heating:
            return self

        def __exit__(self, *_: object) -> None: ...

        def run(self, start: int, count: int, seconds: float) -> dict[str, Any]:
            assert 0 <= start < start + count <= 20
            query_ms = 100.0 if self.spent < 100 else 150.0
            fit = min(count, round(1e3 * seconds / query_ms))
            self.spent += fit * query_ms / 1e3
            return {"token_ms": [[query_ms]] * fit}

    monkeypatch.setattr(sustained, "WorkerProcess", Heating)
    found = sustained.measure({"texts": [""] * 20}, 200)
    assert (found.part_seconds, found.first_p50_ms, found.last_p50_ms, found.ratio) == (60, 100, 150, 1.5)
    assert 200 <= found.seconds < 203


def test_unlike_machines() -> None:
    here = machine.describe()
    assert machine.unlike(here, here.model_copy(update={"load_average": 9.0, "os": "another"})) is None
    told = machine.unlike(here, here.model_copy(update={"cpu": "Cortex-A55", "flags": ["asimd"]}))
    assert told is not None
    assert "cpu: " in told
    assert "/ Cortex-A55; flags: " in told
