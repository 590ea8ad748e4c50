"""Every hostile file through its commands, and what must hold: `python -m tests.hostile [FORMAT | FORMAT/FILE …]`."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.hostile import base, cases, cell, make_trust, watch
from tests.hostile.cases import Case, Command
from tests.hostile.cell import Ended

SECONDS, BYTES = 5.0, cell.GIB
"""Of a command: processor time, and resident memory at its peak."""
CODES = (3, 4, 5, 6)


@dataclass(frozen=True)
class Verdict:
    """What one command made of one file."""

    case: Case
    command: Command
    ended: Ended
    escapes: list[str]

    @property
    def traceback(self) -> bool:
        return self.ended.code == 1 or self.ended.code < 0 or "Traceback" in self.ended.stderr

    @property
    def problems(self) -> list[str]:
        """What does not hold."""
        ended, errors = self.ended, len(re.findall(r"^error:", self.ended.stderr, re.MULTILINE))
        found = [f"escape: {escape}" for escape in self.escapes]
        if self.traceback:
            found.append(f"code {ended.code}")
        elif ended.code not in (0, *CODES):
            found.append(f"code {ended.code} is none of {CODES}")
        elif (ended.code != 0) != (errors == 1):
            found.append(f"code {ended.code} with {errors} error lines")
        if ended.seconds >= SECONDS:
            found.append(f"{ended.seconds:.1f} s")
        if ended.peak_bytes >= BYTES:
            found.append(f"{ended.peak_bytes / 1e9:.2f} GB")
        plain = re.sub(r"\x1b\[[0-9;]*m", "", ended.stderr)  # transformers writes in colours
        if any(not (character.isprintable() or character in "\n\t") for character in plain):
            found.append("orders to the terminal on stderr")
        if any(secret in ended.stderr for secret in make_trust.ENVIRONMENT.values()):
            found.append("a key on stderr")
        if len(ended.stderr) > 10_000:
            found.append(f"{len(ended.stderr)} characters on stderr")
        return found

    def __str__(self) -> str:
        ended = self.ended
        lines = ended.stderr.splitlines()
        told = [line for line in lines if line.startswith("error:")] or lines[-3:]
        return (
            f"{self.case.name} [{self.command[0]}]: {ended.code}, {ended.seconds:.2f} s, "
            f"{ended.peak_bytes / 1e6:.0f} MB: {' / '.join(told)[:300]}"
        )


def refused(verdicts: Sequence[Verdict]) -> bool:
    """Whether any of a file's commands refused it."""
    return any(verdict.ended.code != 0 for verdict in verdicts)


def warm() -> None:
    """Import what the commands import, once for all children; nothing is computed, so that no threads are left."""
    import transformers.models.bert.modeling_bert
    import transformers.models.llama.modeling_llama  # noqa: F401

    from distillctl.bundle import verify  # noqa: F401
    from distillctl.models import gguf  # noqa: F401
    from distillctl.phone import messages  # noqa: F401
    from distillctl.stages import bench, collect, export, quantize, report, train  # noqa: F401
    from distillctl.tasks import classify, generate

    for kind in (classify, generate):
        for part in pkgutil.iter_modules(kind.__path__, f"{kind.__name__}."):
            importlib.import_module(part.name)

    from distillctl.students import (
        preflight,  # noqa: F401
    )


def judge(chosen: Sequence[Case]) -> Iterator[Verdict]:
    """Every command on every file. The base is made first, in a child of its own."""
    warm()
    with tempfile.TemporaryDirectory(prefix="hostile-") as scratch:
        folder = Path(scratch).resolve()
        made = folder / "base"
        built = cell_alone(lambda: base.make(made), folder / "base.log")
        if built:
            raise RuntimeError((folder / "base.log").read_text())
        for case in chosen:
            yield from _judged(case, made, folder / "case")
            shutil.rmtree(folder / "case")


def cell_alone(work, log: Path) -> int:  # type: ignore[no-untyped-def]
    """In a forked child, unwatched; its exit code."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            told = os.open(log, os.O_CREAT | os.O_WRONLY)
            os.dup2(told, 1)
            os.dup2(told, 2)
            work()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _judged(case: Case, made: Path, folder: Path) -> Iterator[Verdict]:
    commands = cases.place(case, made, folder)
    own = [folder / "work" / "run", folder / "work" / "runs", folder / "tmp", folder / "cache" / "distillctl"]
    secrets = watch.Secrets([folder / "outside", folder / "home"])
    for number, command in enumerate(commands):
        before = watch.tree(folder, own)
        secrets.touched()
        log = folder.parent / f"log-{number}"
        ended = cell.run(lambda command=command: _command(command, folder), folder, own, log)
        after = watch.tree(folder, own)
        changed = sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))
        escapes = [*ended.escapes, *(f"opened {path}" for path in secrets.touched())]
        yield Verdict(case, command, ended, [*escapes, *(f"changed {path}" for path in changed)])
    secrets.close()


def _command(command: Command, folder: Path) -> int | None:
    os.environ |= {"HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(folder / "tmp")}
    os.environ |= {"XDG_CONFIG_HOME": str(folder / "home" / ".config"), **make_trust.ENVIRONMENT}
    tempfile.tempdir = None
    if command[0] in cases.IN_PLACE:
        return cases.IN_PLACE[command[0]](Path(command[1]))
    from distillctl.cli import app

    app(list(command), prog_name="distillctl")
    return 0


# ── the figures ──────────────────────────────────────────────────────────────────────────────────


def main(wanted: Sequence[str]) -> int:
    """Lines on stderr, the figures as one JSON object on stdout; 1 where something does not hold."""
    chosen = [c for c in cases.all_cases() if not wanted or c.format in wanted or c.name in wanted]
    found: list[Verdict] = []
    bad = 0
    for verdict in judge(chosen):
        found.append(verdict)
        bad += bool(verdict.problems)
        sys.stderr.write("\n   !! ".join([str(verdict), *verdict.problems]) + "\n")
    for case in chosen:
        if refused([v for v in found if v.case == case]) == case.is_odd:
            bad += 1
            sys.stderr.write(f"{case.name}: {'refused' if case.is_odd else 'taken'}\n   !! it should not be\n")
    sys.stdout.write(json.dumps(figures(chosen, found) | {"problems": bad}) + "\n")
    return int(bad > 0)


def figures(chosen: Sequence[Case], found: Sequence[Verdict]) -> dict[str, float]:
    return {
        "files": len(chosen),
        "formats": len({case.format for case in chosen}),
        "commands": len(found),
        "tracebacks": sum(verdict.traceback for verdict in found),
        "escapes": sum(len(verdict.escapes) for verdict in found),
        "slowest_seconds": round(max((verdict.ended.seconds for verdict in found), default=0), 2),
        "largest_bytes": max((verdict.ended.peak_bytes for verdict in found), default=0),
    }
