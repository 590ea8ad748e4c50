"""Every command in every locale on every kind of output: `python -m tests.terminal.matrix` tries the whole matrix.

What must hold: no traceback, the right exit code, one JSON object with --json, and on narrow terminals the same numbers
as on wide ones.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fixtures import project

STRICT = {"PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
"""Without these Python takes UTF-8 wherever the locale is C or POSIX."""
OUTPUTS = ("terminal of 40", "terminal of 80", "terminal of 200", "pipe", "closed pipe", "full device",
           "closed pipe, stderr too", "full device, stderr too", "nothing open")  # fmt: skip
ON_RUN = ("recipe.yaml", "--run-dir", "run")
COMMANDS: Mapping[str, int] = {
    "--help": 0,
    "--version": 0,
    "bench --help": 0,
    "--nope": 2,
    "doctor": 0,
    "doctor --json": 0,
    "guide": 0,
    "guide safety": 0,
    "guide safety --json": 0,
    "guide no-such-topic": 2,
    "init --schema": 0,
    "init new": 0,
    "status RUN": 0,
    "status RUN --json": 0,
    "status nowhere.yaml": 3,
    "status nowhere.yaml --json": 3,
    "run RUN --dry-run": 0,
    "run RUN --dry-run --json": 0,
    "collect RUN": 0,
    "collect RUN --json": 0,
    "collect FORCED --force": 0,
    "train RUN": 0,
    "train FORCED --force": 0,
    "export RUN": 0,
    "quantize RUN": 0,
    "bench RUN": 0,
    "report RUN": 0,
    "report RUN --format md": 0,
    "report RUN --format json": 0,
    "report RUN --fail-under accuracy=2": 2,
    "bench RUN --against run --max-seconds 1": 0,
    "report RUN --fail-under deployed=2": 6,
    "run RUN": 0,
    "run RUN --json": 0,
    "run RUN --set train.epoch=1": 3,
    "bundle verify nowhere": 3,
    "collect OTHER": 3,
}
"""Each command → its exit code where its output is taken. RUN: a finished run directory; FORCED: one whose stages are
run; OTHER: data in which much is wrong, and all of it beyond ASCII."""
QUICK = tuple(
    command for command in COMMANDS if not {"FORCED", "export", "quantize", "bench", "report"} & {*command.split()}
)
"""Those that need no more than collect and train."""


@dataclass(frozen=True)
class Ended:
    """What a command in a terminal left. out: None where nobody took it."""

    code: int
    out: bytes | None
    err: bytes | None


def locales(folder: Path) -> dict[str, dict[str, str]]:
    """Name → the environment. The Latin-1 locale is built in ``folder``, or where that cannot be done, its encoding is
    given to Python alone."""
    latin = {"LC_ALL": "en_US.ISO-8859-1", **STRICT}
    build = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(folder / "en_US.ISO-8859-1")]
    if shutil.which("localedef") and subprocess.run(build, capture_output=True, check=False).returncode == 0:
        latin["LOCPATH"] = str(folder)
    else:
        latin["PYTHONIOENCODING"] = "iso-8859-1"
    return {
        "C": {"LC_ALL": "C"},
        "C in ASCII": {"LC_ALL": "C", **STRICT},
        "POSIX": {"LC_ALL": "POSIX", **STRICT, "PYTHONIOENCODING": "ascii"},
        "en_US.ISO-8859-1": latin,
        "C.UTF-8": {"LC_ALL": "C.UTF-8"},
    }


def make(folder: Path, command: str = "run") -> None:
    """A project with a finished run, or as far as ``command`` runs it, and OTHER."""
    rows = [{"input": f"wo sind die Bücher № {number}?", "reference": "人"} for number in range(3)]
    bench = {"queries": 2, "processes": 1, "warmup": 0, "quantized_teacher": False}
    recipe = project.make(folder, rows=24, data={"eval_rows": 8}, train={"epochs": 1, "validation": 0.2}, bench=bench)
    (folder / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = project.run(command, recipe, "--run-dir", folder / "run", "-q")
    if done.returncode:
        raise RuntimeError(done.stderr)
    shutil.copytree(folder / "run", folder / "forced")


def words(command: str) -> list[str]:
    other = ("recipe.yaml", "--run-dir", "other", "--set", "data.source=other.jsonl")
    forced = ("recipe.yaml", "--run-dir", "forced")
    replaced = {"RUN": ON_RUN, "FORCED": forced, "OTHER": other}
    return [word for part in command.split() for word in replaced.get(part, (part,))]


def run(command: str, output: str, locale: Mapping[str, str], folder: Path) -> Ended:
    """The command on an output, in ``folder``, from a process of its own."""
    unset = ("COLUMNS", "LINES", "NO_COLOR", "CI", "LANG", "PYTHONIOENCODING", "PYTHONUTF8", "FORCE_COLOR")
    environment = {key: value for key, value in os.environ.items() if key not in unset and not key.startswith("LC_")}
    environment |= {"TERM": "xterm-256color", "HF_HUB_OFFLINE": "1", **locale}
    argv = [sys.executable, "-m", "distillctl", *words(command)]
    if output.startswith("terminal"):
        return _on_terminal(argv, int(output.split()[-1]), environment, folder)
    if output == "nothing open":
        argv = ["/bin/sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *argv]
    with open("/dev/full", "wb") as full, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        reader, closed = os.pipe()
        os.close(reader)
        where: Any = {"closed pipe": closed, "full device": full, "pipe": subprocess.PIPE}.get(
            output.split(",")[0], out
        )
        child = subprocess.Popen(
            argv, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=where,
            stderr=where if "stderr too" in output else err,
        )  # fmt: skip
        os.close(closed)
        said = child.communicate()[0]
        err.seek(0)
        return Ended(child.returncode, said, None if "," in output or output == "nothing open" else err.read())


def _on_terminal(argv: list[str], columns: int, environment: Mapping[str, str], folder: Path) -> Ended:
    own, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    child = subprocess.Popen(argv, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    try:
        while part := os.read(own, 65536):
            said += part
    except OSError:  # EIO: the last one who had it open is gone
        pass
    os.close(own)
    return Ended(child.wait(), said.replace(b"\r\n", b"\n"), None)


# ── what must hold ───────────────────────────────────────────────────────────────────────────────


def problems(command: str, output: str, locale: str, ended: Ended) -> list[str]:
    """What does not hold of what a command left."""
    said = (ended.out or b"") + (ended.err or b"")
    expected = [COMMANDS[command]]
    if "full device" in output and expected == [0]:
        expected = [5]
    if "closed pipe" in output:
        expected.append(141)
    found = []
    if ended.code not in expected:
        found.append(f"code {ended.code}, not {expected}")
    if b"Traceback" in said or b"this is a bug" in said or b"Exception ignored" in said:
        found.append("a traceback")
    if output == "full device" and ended.err is not None and len(ERROR.findall(ended.err)) != 1:
        found.append("not one error")
    if output == "pipe" and ended.out is not None:
        found += _piped(command, locale, ended.out)
    return [f"{problem}: {said[-600:].decode('utf-8', 'replace')}" for problem in found]


def _piped(command: str, locale: str, out: bytes) -> Iterator[str]:
    encoding = {"en_US.ISO-8859-1": "latin-1", "POSIX": "ascii", "C in ASCII": "ascii"}.get(locale, "utf-8")
    try:
        text = out.decode(encoding)
    except UnicodeDecodeError as error:
        yield f"stdout is not {encoding}: {error}"
        return
    if "json" in command or "--schema" in command:
        if not out.isascii():
            yield "the JSON is not in ASCII"
        if not isinstance(json.loads(text), dict) or text.count("\n") != 1:
            yield "not one JSON object"


ERROR = re.compile(rb"^error:|^.{1,6} Error ", re.MULTILINE)
"""Ours, or Typer's box."""
NUMBER = re.compile(rb"\d[\d.,]*\d|\d")


def numbers(screen: bytes) -> set[bytes]:
    """Of what a terminal was sent, without its colours, and without what a live bar drew and wiped away."""
    lines = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", screen).split(b"\n")
    return {number for line in lines for number in NUMBER.findall(line.split(b"\r")[-1])}


def check(folder: Path, cells: list[tuple[str, str, str]], at_once: int = 2) -> list[str]:
    """Try commands on outputs in locales; what does not hold. Each worker has a copy of the project."""
    environments = locales(folder)
    lanes = [folder / f"lane-{number}" for number in range(at_once)]
    for lane in lanes:
        shutil.copytree(folder / "project", lane)
    free = list(lanes)

    def one(cell: tuple[str, str, str]) -> list[str]:
        command, output, locale = cell
        lane = free.pop()
        try:
            shutil.rmtree(lane / "new", ignore_errors=True)
            ended = run(command, output, environments[locale], lane)
        finally:
            free.append(lane)
        return [f"{command} [{output}, {locale}]: {problem}" for problem in problems(command, output, locale, ended)]

    with ThreadPoolExecutor(at_once) as pool:
        return list(itertools.chain.from_iterable(pool.map(one, cells)))


def matrix() -> list[tuple[str, str, str]]:
    return list(itertools.product(COMMANDS, OUTPUTS, locales(Path(os.devnull))))


def main() -> int:
    """The whole matrix; what does not hold on stderr, the figures as one JSON object on stdout."""
    with tempfile.TemporaryDirectory(prefix="terminals-") as scratch:
        folder = Path(scratch)
        (folder / "project").mkdir()
        make(folder / "project")
        cells = matrix()
        found = check(folder, cells)
    sys.stderr.write("".join(f"!! {problem}\n" for problem in found))
    figures = {"commands": len(COMMANDS), "outputs": len(OUTPUTS), "runs": len(cells), "problems": len(found)}
    sys.stdout.write(json.dumps(figures) + "\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
