"""Device profiles: data files whose limits hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer

from distillctl.commands import findings
from distillctl.recipe import profiles
from distillctl.recipe.bench import Bench as Settings
from distillctl.runtimes import bench as runtimes_bench
from distillctl.runtimes import lengths
from distillctl.stages import bench
from tests.fixtures import bench_run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", profiles.names())
def test_every_profile_can_be_used_and_says_what_it_is_not(name: str) -> None:
    found = Settings(profile=name)
    assert found.device == profiles.profile(name)
    assert found.used_threads == found.device.threads
    assert Settings(profile=name, threads=3).used_threads == 3
    text = (Path(profiles.__file__).parent / "device_profiles" / f"{name}.yaml").read_text()
    assert "this host, not a phone" in text


def test_without_one_there_is_one_thread() -> None:
    assert (Settings().device, Settings().used_threads) == (None, 1)
    with pytest.raises(ValidationError, match=r"no such profile; there are phone, small-phone"):
        Settings(profile="watch")


def test_in_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int | None]] = []
    original = runtimes_bench.measure

    def measure(jobs, plan, advance):
        asked.extend((name, job.get("data_bytes")) for name, job in jobs.items())
        return original(jobs, plan, advance)

    monkeypatch.setattr(runtimes_bench, "measure", measure)
    recipe, workspace = bench_run.prepare(tmp_path, queries=2, processes=1, warmup=0, profile="small-phone")
    torch.set_num_threads(1)
    outcome = bench.run(recipe, workspace)
    facts = outcome.facts.as_json()
    limit = profiles.profile("small-phone").data_bytes
    assert asked == [("teacher", None), ("teacher_cached", None), ("fp32", limit), ("deployed", limit)]
    assert facts["profile"]["host"] == "this host, not a phone"
    assert [one["tokens"] for one in facts["profile"]["lengths"]] == [32, 128]
    assert all(one["p50_ms"] > 0 for one in facts["profile"]["lengths"])
    assert "deployed, by length: 32 tokens" in "\n".join(findings.further_measurements(outcome.facts))


@pytest.mark.parametrize("length", [1, 7, 33, 500])
def test_texts_of_a_length(tmp_path: Path, length: int) -> None:
    tokenizer = Tokenizer.from_file(str(bench_run.graph(tmp_path) / "tokenizer.json"))
    assert len(tokenizer.encode(lengths._text(tokenizer, bench_run.questions(3), length)).ids) == length
