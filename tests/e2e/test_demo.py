"""The demo's own teacher, student and data on fewer rows: the whole path on real input."""

import json
from pathlib import Path

import pytest

from tests import ROOT
from tests.fixtures import project

DEMO = ROOT / "recipes" / "demo.yaml"
SMALL = (
    "data.train_rows=400", "data.eval_rows=100", "shard_rows=50", "train.epochs=6", "train.batch_rows=16",
    "bench.queries=9", "bench.processes=1", "bench.max_seconds=3", "bench.warmup=1", "quantize.gate.min_same_top=0.8",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.e2e
def test_the_prompt_does_something_and_a_small_student_recovers_part_of_it(tmp_path):
    done = project.run("run", DEMO, "--run-dir", tmp_path, "--json", *[a for s in SMALL for a in ("--set", s)])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["gaps"]["floor"]["low"] > 0.15
    assert found["gaps"]["cue_only"]["low"] > 0.05
    assert found["recovered"]["deployed"]["value"] > 0.3
    assert found["context_tokens"]["teacher"] > 1100
    assert found["context_tokens"]["student"] < 30
    models = found["models"]
    assert models["deployed"]["bytes"] <= 24_000_000
    assert models["teacher"]["p50_ms"] > 100 * models["deployed"]["p50_ms"]
    assert models["teacher_cached"]["p50_ms"] > 5 * models["deployed"]["p50_ms"]
    assert Path(found["artifact"]).is_file()
