"""What a terminal cannot show is replaced, never lost as an error after the work is done."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.fixtures import project

SAY = """
from distillctl import console
console.configure(as_json={as_json})
console.result({{"minus": "−…×é漢"}}, "−…×é漢")
console.text("−…×é漢")
console.note("−…×é漢")
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("as_json", [False, True])
def test_any_encoding_of_the_terminal_will_do(encoding: str, as_json: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SAY.format(as_json=as_json)],
        capture_output=True,
        env={**project.environment(), "PYTHONIOENCODING": encoding},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first = done.stdout.decode(encoding).splitlines()[0]
    if as_json:
        assert json.loads(first) == {"minus": "−…×é漢"}
    else:
        assert first == "−…×é漢".encode(encoding, "replace").decode(encoding)
