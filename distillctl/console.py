"""The only module that writes to the terminal. stdout is data; progress, notes and errors go to stderr."""

from __future__ import annotations

import json
import logging
import os
import sys
import termios
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from io import TextIOWrapper
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from distillctl import interrupts, ranks
from distillctl.errors import UserFacingError
from distillctl.terminal.progress import LiveProgress, LoggedProgress, Progress
from distillctl.untrusted.printable import printable

_PLAIN: dict[str, Any] = {"highlight": False, "emoji": False}
"""Options of both consoles. Texts such as `:warning:` are shown as they are."""
_out = Console(**_PLAIN)
_err = Console(stderr=True, **_PLAIN)
_state: dict[str, Any] = {"json": False, "verbosity": 0}


def configure(*, as_json: bool = False, verbosity: int = 0) -> None:
    """Set up the console.

    as_json: stdout carries one JSON object. verbosity: -1 quiet, 0, 1 verbose. Only the first of several ranks prints.
    """
    global _out, _err
    if not ranks.is_first():
        verbosity = -1
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # replace characters that the terminal's encoding lacks
            stream.reconfigure(errors="replace")
    _out, _err = Console(**_PLAIN), Console(stderr=True, **_PLAIN)
    _state.update(json=as_json, verbosity=verbosity)
    if verbosity <= 0:  # read by the libraries when they are imported, which is later
        for name in ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")
        for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY", "DATASETS_VERBOSITY"):
            os.environ.setdefault(name, "error")
        for name in ("urllib3", "requests", "httpx", "httpx2", "httpcore", "fsspec"):
            logging.getLogger(name).setLevel(logging.ERROR)
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # transformers would ask a service to convert pickles


def is_json() -> bool:
    """Return whether stdout takes one JSON object."""
    return bool(_state["json"])


def note(message: str) -> None:
    """Print a line about progress on stderr; nothing with -q."""
    if _state["verbosity"] >= 0:
        _err.print(f"[dim]{_quoted(message)}[/dim]", soft_wrap=True)


def from_handler(message: str) -> None:
    """Print a note from a signal handler, without buffers, because it may interrupt another write."""
    if _state["verbosity"] >= 0:
        with suppress(OSError):
            os.write(2, f"{chr(10) * os.isatty(2)}{message}\n".encode())  # on a terminal this line holds a progress bar


def warn(message: str) -> None:
    """Print a warning on stderr, even with -q; only the first rank does."""
    if ranks.is_first():
        _err.print(f"[yellow]warning:[/yellow] {_quoted(message)}", soft_wrap=True)


def caution(message: str) -> None:
    """Print a caution about the user's data or numbers (`distillctl.cautions`), even with -q."""
    if ranks.is_first():
        _err.print(f"[yellow]caution:[/yellow] {_quoted(message)}", soft_wrap=True)


def ask(question: str) -> bool:
    """Ask a yes-or-no question on the terminal. Return False without a terminal. Earlier input is discarded."""
    stdin = sys.stdin
    if os.environ.get("CI") or stdin is None or stdin.closed or not (stdin.isatty() and _err.is_terminal):
        return False
    with suppress(termios.error, OSError):
        termios.tcflush(stdin, termios.TCIFLUSH)
    _err.print(f"[bold]{_quoted(question)}[/bold] \\[y/N] ", soft_wrap=True, end="")
    return stdin.readline().strip().lower() in ("y", "yes")


def error(problem: UserFacingError) -> None:
    """Print a user's error or a failed gate: what, where, and the next command."""
    _err.print(f"[bold red]error:[/bold red] {_quoted(str(problem))}", soft_wrap=True)
    if problem.next:
        _err.print(f"[dim]next:[/dim]  {_quoted(problem.next)}", soft_wrap=True)
    if is_json():
        payload = {"what": problem.what, "where": problem.where, "next": problem.next, "exit_code": problem.exit_code}
        print_json({**problem.facts, "error": payload})
    if _state["verbosity"] > 0 and problem.__cause__ is not None:
        traceback.print_exception(problem.__cause__, file=sys.stderr)


_MOST_CHARACTERS = 4000
"""Longest message in characters, because quoted names and rows may have any length."""


def _quoted(message: str) -> str:
    """Return a message without control characters and not too long: parts of it may come from untrusted files."""
    if len(message) > _MOST_CHARACTERS:
        message = f"{message[:_MOST_CHARACTERS]} …"
    return escape(printable(message, keep="\n"))


def bug(problem: BaseException) -> None:
    """Print the traceback of a bug in distillctl."""
    traceback.print_exception(problem, file=sys.stderr)
    _err.print("[bold red]this is a bug in distillctl[/bold red]; please report the lines above")
    if is_json():
        print_json({"error": {"what": f"{type(problem).__name__}: {problem}", "exit_code": 1}})


def print_json(value: Mapping[str, object]) -> None:
    """Print the command's one JSON object. Signals are ignored from now on, so that no second one follows."""
    text = json.dumps(value, allow_nan=False) + "\n"  # ASCII with escapes: the same in every encoding
    interrupts.ignore()
    sys.stdout.write(text)
    sys.stdout.flush()


def result(value: Mapping[str, object], *renderables: object) -> None:
    """Print the command's result on stdout, as a JSON object or in readable form."""
    if not ranks.is_first():
        return
    if is_json():
        print_json(value)
    else:
        readable(*renderables)


def readable(*renderables: object) -> None:
    """Print the readable form of a result before an error, which prints the JSON object; nothing with --json."""
    if not is_json():
        for renderable in renderables:
            _show(_out, renderable)


def _show(console: Console, renderable: object) -> None:
    """Print text literally but without control characters, and tables and the like as rich draws them."""
    if isinstance(renderable, str):
        console.print(printable(renderable, keep="\n\t"), soft_wrap=True, markup=False)
    else:
        console.print(renderable)


def intermediate(*renderables: object) -> None:
    """Print a stage's result on stderr while a longer command continues; nothing with -q."""
    if _state["verbosity"] >= 0:
        for renderable in renderables:
            _show(_err, renderable)


def show_qr(address: str) -> None:
    """Print an address on stderr with its QR code for a phone's camera; with -q only the address."""
    _err.print(Text(address, style="bold"), soft_wrap=True)
    if _state["verbosity"] >= 0:
        import segno  # imported here because no other command needs it

        rows = [list(row) for row in segno.make(address, error="l", micro=False).matrix_iter(border=2)]
        if len(rows[0]) > _err.width:
            note(f"a terminal of {len(rows[0])} columns would show the address as a QR code")
            return
        rows += [[0] * len(rows[0])] * (len(rows) % 2)
        halves = {(0, 0): " ", (1, 0): "▀", (0, 1): "▄", (1, 1): "█"}  # two modules to a character
        pairs = zip(rows[::2], rows[1::2], strict=True)
        lines = ("".join(halves[both] for both in zip(*pair, strict=True)) for pair in pairs)
        _err.print(Text("\n".join(lines), style="black on white", no_wrap=True))


def stdout_is_terminal() -> bool:
    """Tell whether stdout is a terminal, read by a person."""
    return _out.is_terminal


def text(value: str) -> None:
    """Print plain text on stdout unchanged."""
    sys.stdout.write(value if value.endswith("\n") else value + "\n")


@contextmanager
def libraries_quiet() -> Iterator[None]:
    """Suppress the output of libraries; with -v show it on stderr."""
    if _state["verbosity"] <= 0:
        logging.getLogger().setLevel(logging.ERROR)
        for name in ("torch.onnx", "onnxscript", "onnx_ir", "optimum", "accelerate", "datasets"):
            logging.getLogger(name).setLevel(logging.ERROR)
        if "transformers" in sys.modules:
            from transformers.utils import logging as transformers_logging

            transformers_logging.set_verbosity_error()
            transformers_logging.disable_progress_bar()
    with (
        warnings.catch_warnings(),
        open(os.devnull, "w") as nowhere,
        redirect_stdout(sys.stderr if _state["verbosity"] > 0 else nowhere),
    ):
        if _state["verbosity"] <= 0:
            warnings.simplefilter("ignore")
        yield


@contextmanager
def progress(label: str, total: float, unit: str = "rows") -> Iterator[Progress]:
    """Show a loop's progress: a live bar on a terminal, a line every minute elsewhere and in CI, nothing with -q.

    unit: what ``total`` counts.
    """
    shown: type[Progress] = Progress
    if _state["verbosity"] >= 0:
        shown = LiveProgress if _err.is_terminal and not os.environ.get("CI") else LoggedProgress
    with shown(_err, label, total, unit) as bar:
        yield bar
