"""Nothing phones home, nor leaves notes of it in the user's folders."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures import tiny

_CODE = """
import sys
import distillctl
from pathlib import Path
from distillctl.runtimes.onnxruntime import session
session(Path(sys.argv[1]), 1)
"""


@pytest.fixture(scope="module")
def graph() -> Path:
    return tiny.exported() / "model.onnx"


@pytest.mark.slow
def test_a_session_leaves_nothing_in_the_users_home(graph, tmp_path):
    clean = {key: value for key, value in os.environ.items() if "TELEMETRY" not in key and key != "CI"}
    environment = clean | {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", _CODE, str(graph)], env=environment, check=True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
