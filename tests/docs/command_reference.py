"""Write the guide's page about commands from --help: `python -m tests.docs.command_reference` (make docs)."""

from __future__ import annotations

import subprocess

from tests import ROOT
from tests.fixtures import project

PAGE = ROOT / "distillctl" / "guide" / "commands.md"
START, END = "<!-- reference: make docs -->", "<!-- /reference -->"
COMMANDS = (
    "", "collect", "train", "export", "quantize", "bench", "report", "run", "bundle verify", "status", "init", "guide",
    "doctor",
)  # fmt: skip
COLUMNS = 78
"""A block of code this wide fits into a terminal of 80 columns."""


def help_of(name: str) -> str:
    """Return one command's --help as a terminal without colour shows it."""
    done = subprocess.run(
        project.command(*name.split(), "--help"),
        capture_output=True, text=True, check=True, env=project.environment(COLUMNS=str(COLUMNS), TERM="dumb"),
    )  # fmt: skip
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def reference() -> str:
    """Return the --help of every command, each below a heading."""
    names = {name: f"distillctl {name}".strip() for name in COMMANDS}
    return "\n\n".join(f"## {names[name]}\n\n```text\n{help_of(name)}\n```" for name in COMMANDS)


def with_reference(page: str, text: str) -> str:
    """Return ``page`` with ``text`` between its marks."""
    head, _, rest = page.partition(START)
    _, _, tail = rest.partition(END)
    return f"{head}{START}\n\n{text}\n\n{END}{tail}"


def main() -> None:
    """Write the page."""
    PAGE.write_text(with_reference(PAGE.read_text(encoding="utf-8"), reference()), encoding="utf-8")


if __name__ == "__main__":
    main()
