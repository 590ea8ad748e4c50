"""What transformers' `from_pretrained` is given: where a model's files are, looked at first, and how to take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from distillctl.models import checkpoint_files
from distillctl.models.gguf import dequantized
from distillctl.models.model_source import ModelSource


def folder(source: ModelSource) -> str:
    """A hub id or a folder; of a GGUF file, what was made of it. UnavailableError when its files are not what they
    should be."""
    if source.path is None:
        return source.name
    if source.is_gguf:
        return str(dequantized(source.path))
    checkpoint_files.check_size(source.path)
    return source.name


def check_size(auto: Any, config: Any, folder: Path) -> None:
    """UnavailableError where the model that ``auto`` makes of a configuration is larger than the weights beside it
    explain. Nothing is allocated to find that out."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in auto.from_config(config).parameters())
    if problem := checkpoint_files.too_many(count, folder):
        raise problem


def options(source: ModelSource, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """The further arguments."""
    pinned = {"revision": revision} if revision and source.path is None else {}
    return {"trust_remote_code": trust_remote_code, **pinned}
