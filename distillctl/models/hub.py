"""Ask once whether the model hub can be reached, before a library tries for minutes."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Mapping

from distillctl import console
from distillctl.errors import UnavailableError, first_line
from distillctl.models.model_source import ModelSource

SECONDS = 6.0
"""Time limit for the hub's first answer; the hub library's own variable, HF_HUB_ETAG_TIMEOUT, overrides it."""


def require(models: Mapping[str, ModelSource | None]) -> None:
    """Raise UnavailableError if the hub cannot be reached and a model from the hub is not on this machine.

    models: recipe key → the model it names. Models that are on this machine are then used without asking the hub.
    """
    from_hub = {key: model for key, model in models.items() if model is not None and model.from_hub}
    if not from_hub or (reason := unreachable()) is None:
        return
    missing = {key: model.reference for key, model in from_hub.items() if model.local_folder is None}
    if missing:
        (where, reference), *others = missing.items()
        more = "".join(f"; neither is {key}, {other}" for key, other in others)
        raise UnavailableError(
            f"{reference} cannot be loaded: it is not on this machine{more}, and {reason}",
            where=where,
            next=f"set {' and '.join(missing)} to a local folder, a .gguf file or package:NAME/path; {_ACCESS}",
        )
    _note(reason)


@functools.cache
def _note(reason: str) -> None:
    console.note(f"{reason}; files on this machine are used")


_ACCESS = "or set HF_ENDPOINT to a mirror, or HTTPS_PROXY to a proxy, that can be reached"


def no_data_set(name: str, error: BaseException, where: str) -> UnavailableError:
    """Return the error for a data set that cannot be loaded."""
    reason = unreachable()
    if reason is None:
        return UnavailableError(f"there is no data set {name!r}: {first_line(error)}", where=where)
    problem = f"the data set {name!r} is not on this machine, and {reason}"
    return UnavailableError(problem, where=where, next=f"set {where} to a local file; {_ACCESS}")


@functools.cache
def unreachable() -> str | None:
    """Return why the hub cannot be reached, or None if it answers.

    If it cannot, its libraries use only files on this machine from now on, here and in processes started later.
    """
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE keeps it from being downloaded"
    seconds = float(constants.HF_HUB_ETAG_TIMEOUT) if os.environ.get("HF_HUB_ETAG_TIMEOUT") else SECONDS
    problem = _ask(constants.ENDPOINT, seconds)
    if problem is None:
        return None
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True
    if datasets := sys.modules.get("datasets"):
        datasets.config.HF_HUB_OFFLINE = True
    address = constants.ENDPOINT.split("://")[-1].rpartition("@")[2]  # without a password
    return f"the hub ({address}) cannot be reached: {problem.rstrip('.')}"


def _ask(endpoint: str, seconds: float) -> str | None:
    """Request the hub's first page with its own client, which knows proxies and certificates. Return the problem, or
    None.

    It runs in a thread, because a name server that does not answer takes longer than any client's time limit.
    """
    problems: list[str | None] = []

    def ask() -> None:
        from huggingface_hub import get_session

        try:
            status = get_session().head(endpoint, timeout=seconds, follow_redirects=False).status_code
            problems.append(f"it answers with status {status}" if status >= 500 else None)
        except Exception as error:  # clients, proxies and invalid addresses raise all kinds
            problems.append(first_line(error))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return problems[0] if problems else f"it did not answer within {seconds:g} s"
