"""Two processes on one run directory: the second is refused with the holder's name, a dead holder is not waited for."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from distillctl.errors import UnavailableError
from distillctl.run_dir.atomic_io import set_aside_name, temporary_name
from distillctl.run_dir.workspace import Workspace

HOLDER = """if True:
    import sys, time
    from pathlib import Path
    from distillctl.run_dir.workspace import Workspace
    with Workspace(Path(sys.argv[1])).lock():
        print("held", flush=True)
        time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_the_second_is_refused_with_the_holders_name_and_a_killed_holder_is_taken_over_from(holder, tmp_path):
    with (
        pytest.raises(UnavailableError, match=rf"in use by process {holder.pid} on ") as refused,
        Workspace(tmp_path).lock(),
    ):
        pass
    assert refused.value.exit_code == 5
    assert "wait for it" in refused.value.next
    holder.kill()
    holder.wait()
    assert f"process {holder.pid}" in (tmp_path / ".lock").read_text()  # its name is still there
    with Workspace(tmp_path).lock():
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    assert (tmp_path / ".lock").read_text() == ""


def test_a_name_without_a_lock_is_nobody(tmp_path):
    (tmp_path / ".lock").write_text("process 1 on another machine")
    with Workspace(tmp_path).lock():
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_cannot_lock_says_so(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(UnavailableError, match="its file system cannot lock files") as refused,
        Workspace(tmp_path).lock(),
    ):
        pass
    assert "local disk" in refused.value.next


def test_who_holds_it_finds_it_as_it_was_last_committed(tmp_path):
    with Workspace(tmp_path).lock():
        aside, torn = set_aside_name(tmp_path / "export"), temporary_name(tmp_path / "recipe.lock.yaml")
    aside.mkdir()
    (aside / "manifest.json").write_text("{}")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "torn").write_text("half")
    torn.write_text("half")
    with Workspace(tmp_path).lock():
        assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
            ".distillctl-run.json", ".lock", "export", "export/manifest.json",
        ]  # fmt: skip
