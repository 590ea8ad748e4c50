"""The command reference in README, generated from --help: `python -m tests.reference README.md` writes it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests import project

START, END = "<!-- reference: make docs -->", "<!-- /reference -->"
COMMANDS = (
    "", "collect", "train", "export", "quantize", "bench", "report", "run", "bundle verify", "status", "init", "doctor",
)  # fmt: skip


def help_of(name: str) -> str:
    """One command's --help, as an 88-column terminal without colour shows it."""
    done = subprocess.run(
        project.command(*name.split(), "--help"),
        capture_output=True, text=True, check=True, env=project.environment(COLUMNS="88", TERM="dumb"),
    )  # fmt: skip
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def reference() -> str:
    return "\n\n".join(
        f"```text\n$ distillctl {name}{' ' * bool(name)}--help\n{help_of(name)}\n```" for name in COMMANDS
    )


def inserted(readme: str) -> str:
    """``readme`` with the reference between its marks."""
    head, _, rest = readme.partition(START)
    _, _, tail = rest.partition(END)
    return f"{head}{START}\n\n{reference()}\n\n{END}{tail}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(inserted(path.read_text(encoding="utf-8")), encoding="utf-8")
