"""Settings for all tests."""

import subprocess

import pytest
import torch
from hypothesis import settings

# The machine may be busy: a slow example is no failure.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")


@pytest.fixture(scope="module")
def one_thread():
    """The same sums in the same order on any machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def npm(tmp_path_factory):
    """A folder in which a bundle's JavaScript finds its packages."""
    folder = tmp_path_factory.mktemp("npm")
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    packages = ["onnxruntime-web@1.30.0", "@huggingface/tokenizers@0.2.0"]
    if subprocess.run([*install, *packages], cwd=folder, capture_output=True, timeout=300).returncode:
        pytest.skip("the npm registry cannot be reached")
    return folder
