"""The user's approvals, which a recipe cannot give: sending keys to hosts, and running the code that comes with a
model.

A key goes to this machine and to its own provider (`providers`) without a question. Every other host must be approved
for that key: with --trust, in DISTILLCTL_TRUST, or by answering a question on a terminal. Approvals from --trust and
answers are remembered in the user's configuration folder; removing a line of that file revokes the approval.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distillctl import console
from distillctl.errors import DistillctlError, RecipeError, UsageError
from distillctl.recipe import OpenAITeacher, Recipe, addresses
from distillctl.run_dir.workspace import replacing
from distillctl.trust import providers
from distillctl.untrusted import limits

ENVIRONMENT = "DISTILLCTL_TRUST"
FILES = "files"
"""Stands for rows of files from outside the recipe's folder, in place of a key's variable."""
_FORM = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)@([^\s/?#@]+)")
_HEADER = "# Keys that distillctl may send, as VARIABLE@HOST; remove a line to revoke its approval.\n"
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Approval:
    """subject: the environment variable with the key, or `FILES`. host: as in `OpenAITeacher.host`."""

    subject: str
    host: str

    def __str__(self) -> str:
        return f"{self.subject}@{self.host}"


@dataclass
class _Command:
    """The approvals that this command's options and answers give."""

    approved: set[Approval] = field(default_factory=set)
    remote_code: bool = False


_command = _Command()


def configure(trust: Sequence[str] = (), *, remote_code: bool = False) -> None:
    """Set a command's --trust and --trust-remote-code. Raise UsageError unless entries are VARIABLE@HOST."""
    global _command
    _command = _Command({_parse(entry, "--trust") for entry in trust}, remote_code)


def _parse(entry: str, where: str) -> Approval:
    match = _FORM.fullmatch(entry)
    try:
        if match is None:
            raise ValueError("expected VARIABLE@HOST, such as OPENAI_API_KEY@llm.example.org")
        return Approval(match[1], addresses.host(f"https://{match[2]}"))
    except ValueError as error:
        raise UsageError(str(error), where=f"{where} {entry}") from None


# ── keys and rows ────────────────────────────────────────────────────────────────────────────────


def wanted(teacher: OpenAITeacher, outside: Mapping[str, Path]) -> list[Approval]:
    """Return the approvals that sending to this teacher needs. A provider's own host may have its key, but no files.

    outside: recipe key → file from outside the recipe's folder whose rows or text the requests carry.
    """
    if teacher.is_local:
        return []
    variable = teacher.api_key_env
    keys = [] if variable is None or providers.owns(teacher.host, variable) else [variable]
    return [Approval(subject, teacher.host) for subject in (*keys, *([FILES] if outside else []))]


def is_approved(approval: Approval) -> bool:
    """Tell whether the user has approved this already."""
    words = os.environ.get(ENVIRONMENT, "").replace(",", " ").split()
    return (
        approval in _command.approved
        or approval in {_parse(word, ENVIRONMENT) for word in words}
        or approval in _remembered()
    )


def check_sending(teacher: OpenAITeacher, outside: Mapping[str, Path]) -> None:
    """Ask the user on a terminal for missing approvals, and remember them. Raise RecipeError without one."""
    if teacher.api_key_env is not None and not os.environ.get(teacher.api_key_env):
        return  # without the key nothing is sent, and the client reports that
    for approval in wanted(teacher, outside):
        if not is_approved(approval):
            allowed = console.ask(
                f"{_effect(approval, outside)}. The recipe asks for this, and you have not approved it yet.\n"
                "Allow it, now and in the future?"
            )
            if not allowed:
                raise _refusal(approval, outside)
            _command.approved.add(approval)
        if approval in _command.approved:
            _remember(approval)


def require_key(teacher: OpenAITeacher) -> None:
    """Raise RecipeError unless the teacher's key may be sent to its host. This does not ask the user."""
    if teacher.is_local and not addresses.leads_here(teacher.base_url):
        raise RecipeError(
            f"{teacher.host} leads to another machine here, and the key in {teacher.api_key_env} would go there",
            where="teacher.base_url",
            next="write 127.0.0.1 for this machine, or check how the name is resolved (/etc/hosts)",
        )
    for approval in wanted(teacher, {}):
        if not is_approved(approval):
            raise _refusal(approval, {})


def _effect(approval: Approval, outside: Mapping[str, Path]) -> str:
    if approval.subject != FILES:
        return f"The key in {approval.subject} goes to {approval.host}"
    named = ", ".join(f"{path} ({key})" for key, path in outside.items())
    return f"Rows of files outside the recipe's folder go to {approval.host}: {named}"


def _refusal(approval: Approval, outside: Mapping[str, Path]) -> RecipeError:
    effect = _effect(approval, outside)
    return RecipeError(
        f"{effect[0].lower()}{effect[1:]}, which you have not approved",
        where="teacher.base_url",
        next=f"if that is what you want, add --trust {approval} once, or export {ENVIRONMENT}={approval}",
    )


# ── code ─────────────────────────────────────────────────────────────────────────────────────────


def remote_code(recipe: Recipe) -> dict[str, str]:
    """Return recipe key → whose code it lets run in this process."""
    code = {}
    for side in ("teacher", "student"):
        spec = getattr(recipe, side)
        if getattr(spec, "trust_remote_code", False):
            code[f"{side}.trust_remote_code"] = f"Python code that comes with {spec.model}"
    address = recipe.collect.address
    if address not in (None, "auto", "local"):
        url = str(address) if "://" in str(address) else f"ray://{address}"
        if not addresses.is_local(url):
            code["collect.address"] = f"pickles, which are code, from the Ray cluster at {address}"
    return code


def check_code(recipe: Recipe) -> None:
    """Raise RecipeError if the recipe runs foreign code and the command has no --trust-remote-code."""
    if not _command.remote_code and (foreign := remote_code(recipe)):
        raise RecipeError(
            f"it runs {', and '.join(foreign.values())}, which you must also allow on the command line",
            where=" and ".join(foreign),
            next="if you have read that code and trust it, add --trust-remote-code to the command",
        )


# ── remembered approvals ─────────────────────────────────────────────────────────────────────────


def path() -> Path | None:
    """Return the file with remembered approvals; None for a user without a home."""
    configured = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    try:
        folder = configured if configured.is_absolute() else Path.home() / ".config"
    except RuntimeError:
        return None
    return folder / "distillctl" / "trusted-keys"


def _remembered() -> set[Approval]:
    """Read the file, unless somebody else may have written it. Lines that are no approvals are skipped."""
    file = path()
    try:
        if file is None:
            return set()
        status = file.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            console.warn(f"{file} is ignored: it must be a file of yours that nobody else may write (chmod 600)")
            return set()
        return set(_approvals(limits.read_bytes(file, _MOST_BYTES).decode().splitlines()))
    except FileNotFoundError:
        return set()
    except (OSError, ValueError) as error:
        console.warn(f"{file} cannot be read, so its approvals do not count: {error}")
        return set()


def _approvals(lines: Iterable[str]) -> Iterable[Approval]:
    for line in lines:
        try:
            yield _parse(line.strip(), "")
        except UsageError:
            continue


def _remember(approval: Approval) -> None:
    """Add an approval to the file, which only the user may read. Warn if that fails."""
    known, file = _remembered(), path()
    if approval in known or file is None:
        return
    lines = sorted(map(str, {*known, approval}))
    try:
        with replacing(file) as temporary:
            temporary.touch(mode=0o600)
            temporary.write_text(_HEADER + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    except (DistillctlError, OSError) as error:
        console.warn(f"{approval} is approved for this command only, because it cannot be remembered: {error}")
    else:
        console.note(f"{approval} is remembered in {file}")
