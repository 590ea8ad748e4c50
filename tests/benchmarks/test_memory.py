"""The memory benchmark: each stage works on what was made for it, and the figures are those of the processes."""

import subprocess
import sys

import pytest

from tests.benchmarks import memory, memory_worker
from tests.fixtures import project

pytestmark = pytest.mark.slow


def test_peak_rss_is_the_processs_own():
    program = (
        "from tests.benchmarks.memory_worker import peak_rss; import numpy as np\n"
        "before = peak_rss(); np.ones(2**23).sum(); print(peak_rss() - before)"
    )
    grown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert 60 * 2**20 < int(grown) < 80 * 2**20


@pytest.fixture
def forked(monkeypatch):
    """Measure in forks that have no imports to wait for; what is measured is made by the true process."""
    started = memory._worker

    def worker(*words):
        if words[0] == "prepare":
            return started(*words)
        done = project.call(memory_worker.main, list(map(str, words)))
        assert done.returncode == 0, done.stderr
        return done.stdout

    monkeypatch.setattr(memory, "_worker", worker)


@pytest.mark.long
@pytest.mark.slow
def test_every_stage_is_measured_at_both_sizes(forked, tmp_path, capsys):
    found = memory.measure(tmp_path, memory.STAGES, (250, 300), runs=1)
    assert set(found["stages"]) == set(memory.STAGES)
    for stage in found["stages"].values():
        few, many = stage["peak_rss_bytes"]["250"], stage["peak_rss_bytes"]["300"]
        assert few > 2**27
        assert stage["rss_ratio"] == many / few
    assert found["rss_ratio"] == max(stage["rss_ratio"] for stage in found["stages"].values())
    for kind in ("labels", "texts"):
        assert list((tmp_path / "300" / kind / "run" / "collect").glob("shards/full-train-*"))
        assert (tmp_path / "300" / kind / "drawn" / "train" / "eval.parquet").exists()
    memory._told(found)
    assert len(capsys.readouterr().out.splitlines()) == 5
