"""Prepare the arguments of transformers' `from_pretrained`: a folder whose files were checked, and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from distillctl.models import checkpoint_files
from distillctl.models.gguf import dequantized
from distillctl.models.model_source import ModelSource


def folder(source: ModelSource) -> str:
    """Return a hub id or a folder; for a GGUF file, the folder with its dequantized weights.

    Raise UnavailableError if the files fail the checks.
    """
    if source.path is None:
        return source.name
    if source.is_gguf:
        return str(dequantized(source.path))
    checkpoint_files.check_size(source.path)
    return source.name


def check_size(auto: Any, config: Any, folder: Path) -> None:
    """Raise UnavailableError if ``auto`` makes a larger model of ``config`` than the weights in ``folder`` explain.

    The check allocates nothing.
    """
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in auto.from_config(config).parameters())
    if problem := checkpoint_files.too_many(count, folder):
        raise problem


def options(source: ModelSource, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """Return the other keyword arguments."""
    pinned = {"revision": revision} if revision and source.path is None else {}
    return {"trust_remote_code": trust_remote_code, **pinned}
