"""Settings for all tests."""

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# Each test process computes on one core, and so do the processes that it starts: the workers of pytest-xdist share the
# cores among them. Libraries read these when they are imported.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tests import python_path

os.environ["PYTHONPATH"] = python_path()

import numpy as np
import pytest
from hypothesis import settings

from tests.fixtures import shared

# The machine may be busy: a slow example is no failure.
settings.register_profile("busy", deadline=None, print_blob=True)
settings.load_profile("busy")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Draw the seed of hypothesis, which its plugin and the workers of pytest-xdist take from the options."""
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(random.SystemRandom().randrange(2**32))


def pytest_xdist_auto_num_workers() -> int:
    """One worker more than there are cores: a quarter of the tests' time is spent waiting for servers and children."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the seed of a run that failed."""
    if terminalreporter.stats.keys() & {"failed", "error"}:
        seed = terminalreporter.config.option.hypothesis_seed
        terminalreporter.write_line(f"Hypothesis drew its examples with --hypothesis-seed={seed}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the files that take longest first, so that at the end no worker of pytest-xdist waits for another."""
    order = ("e2e", "long", "slow")
    ranks: dict[Path, int] = {}
    for item in items:
        own = [place for place, name in enumerate(order) if item.get_closest_marker(name)]
        ranks[item.path] = min(*own, ranks.get(item.path, len(order)), len(order))
    items.sort(key=lambda item: ranks[item.path])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Start every test with the same random state, whichever tests ran before it in its process."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:  # tests that need no torch do not wait for its import
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _shared_folders(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> None:
    shared.use(tmp_path_factory, is_worker=hasattr(request.config, "workerinput"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The same sums in the same order on any machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def npm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a bundle's JavaScript finds its packages."""
    folder = tmp_path_factory.mktemp("npm")
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    packages = ["onnxruntime-web@1.30.0", "@huggingface/tokenizers@0.2.0"]
    if subprocess.run([*install, *packages], cwd=folder, capture_output=True, timeout=300).returncode:
        pytest.skip("the npm registry cannot be reached")
    return folder
