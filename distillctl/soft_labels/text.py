"""Store no soft labels, only the response (sequence-level distillation, Kim & Rush 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from distillctl.losses.targets import Targets
from distillctl.recipe import Text


class TextLabels:
    """Store only the response's tokens, which every codec's rows have."""

    def __init__(self, spec: Text) -> None:
        self.fields: list[pa.Field] = []

    def keep(self, log_probs: Tensor, generator: torch.Generator) -> dict[str, np.ndarray | list[np.ndarray]]:
        """Keep nothing."""
        return {}

    def targets(
        self, labels: dict[str, list[Any]], token_ids: Sequence[np.ndarray], remap: np.ndarray | None
    ) -> Targets:
        """Return the rows' response tokens in order."""
        return Targets(flat_token_ids(token_ids, remap))

    def captured_mass(self, labels: dict[str, list[Any]]) -> None:
        """Return None: no distribution was stored."""

    def entropy(self, labels: dict[str, list[Any]]) -> None:
        """Return None: no distribution was stored."""


def flat_token_ids(token_ids: Sequence[np.ndarray], remap: np.ndarray | None) -> Tensor:
    """Concatenate the responses' tokens as the student's ids, int64 [N]; −1 for a token that it lacks."""
    parts = [np.asarray(ids, np.int64) for ids in token_ids]
    whole = np.concatenate(parts) if parts else np.empty(0, np.int64)
    return torch.from_numpy(whole if remap is None else remap[whole])
