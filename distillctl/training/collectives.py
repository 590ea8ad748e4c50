"""Communicate between the ranks of a run. With one rank every function is the identity and costs nothing.

Figures and decisions use a gloo group of their own, in main memory, whatever the gradients use.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import distributed

from distillctl import console, interrupts, ranks
from distillctl.errors import UnavailableError, UsageError

_PATIENCE = timedelta(days=1)
"""Time limit for waiting for the first rank. A rank that ends is noticed at once, because its connections close."""
_group: Any = None


def join() -> None:
    """Join the other ranks; only the first call does anything.

    Python cannot interrupt a rank that waits for others, so a signal just ends it; it has nothing to lose. Models are
    loaded whole on every rank, whatever the launcher asks transformers for.
    """
    global _group
    if ranks.count() == 1 or _group is not None:
        return
    if "MASTER_ADDR" not in os.environ:
        raise UsageError(
            "WORLD_SIZE is set, but nothing says where the other ranks are",
            next="start with torchrun or accelerate launch, or unset WORLD_SIZE",
        )
    interrupts.leave()
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    with console.libraries_quiet():
        PartialState(cpu=on_cpu())
    _group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    # torch documents TCPStore but does not declare that it exports it
    store = distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)  # type: ignore[attr-defined]
    ranks.reports_error = lambda: _fails_first(store)
    interrupts.install()


def on_cpu() -> bool:
    """Tell whether several ranks compute on CPUs.

    Raises UnavailableError if a machine has more ranks than accelerators.
    """
    device = torch.accelerator.current_accelerator(check_available=True)
    if ranks.count() == 1 or parse_flag_from_env("ACCELERATE_USE_CPU"):
        return bool(parse_flag_from_env("ACCELERATE_USE_CPU"))
    if device is None or device.type == "mps":
        return True
    local_ranks, accelerators = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.count())), torch.accelerator.device_count()
    if local_ranks > accelerators:
        raise UnavailableError(
            f"{local_ranks} ranks on a machine with {accelerators} accelerators",
            next=f"start {accelerators} there, or all on the CPU with ACCELERATE_USE_CPU=true",
        )
    return False


def broadcast(value: object = None) -> Any:
    """Return the first rank's ``value`` on all ranks."""
    if ranks.count() == 1:
        return value
    join()
    box = [value]
    distributed.broadcast_object_list(box, src=0, group=_group)
    return box[0]


def barrier() -> None:
    """Wait for all ranks."""
    broadcast()


def summed(values: np.ndarray) -> np.ndarray:
    """Return the sum over ranks on all ranks. It is exact if at most one rank has a nonzero entry."""
    if ranks.count() == 1:
        return values
    total = torch.from_numpy(np.array(values, np.float64))
    distributed.all_reduce(total, group=_group)
    return total.numpy().astype(values.dtype)


def any_of(here: bool) -> bool:
    """Tell whether the value is true on any rank."""
    return bool(summed(np.array(float(here))) > 0)


def gathered(values: dict[int, Any]) -> dict[int, Any]:
    """Return all ranks' entries, whose keys differ, on all ranks."""
    if ranks.count() == 1:
        return values
    parts: list[Any] = [None] * ranks.count()
    distributed.all_gather_object(parts, values, group=_group)
    return {key: value for part in parts for key, value in part.items()}


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Leave the other ranks at the end of the block. Raise UnavailableError if one of them is lost."""
    try:
        yield
    except RuntimeError as error:
        if ranks.count() > 1 and (isinstance(error, distributed.DistError) or "gloo" in str(error)):
            raise UnavailableError("another rank ended", next="run the same command again to continue") from error
        raise
    if _group is not None:
        barrier()
        distributed.destroy_process_group()


def _fails_first(store: Any) -> bool:
    try:
        return bool(store.add("distillctl/failed", 1) == 1)
    except RuntimeError:  # its host went first
        return False
