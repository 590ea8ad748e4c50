"""A dozen kills, and some of all else that can go wrong; `make test-durability` does hundreds over all stages."""

import json
import subprocess
import sys

import pytest

from tests.fixtures import project

FEW = ["--kills", "12", "--faults", "10", "--signals", "6", "--powers", "6"]


@pytest.mark.long
@pytest.mark.slow
def test_nothing_is_lost_and_nothing_half_done_accepted():
    done = subprocess.run(
        [sys.executable, "-m", "tests.durability", "--tasks", "labels", "--stages", "collect,train", *FEW],
        capture_output=True,
        text=True,
        env=project.environment(OMP_NUM_THREADS="1"),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] >= 12
    assert found["lost"] == found["partial_accepted"] == found["left_behind"] == 0
    assert found["bitwise_equal"]
    assert found["faults"]["faults"] == 10
    assert found["power"]["power_losses"] == 6
