"""Weigh a response's tokens in the loss by what they depend on.

Most tokens of a form follow from the form, such as the braces and keys of JSON, and any student learns them. The weight
of a token is the mean of 1 and of its need over the mean need, so that no token is forgotten and a step keeps its size.
Its need is KL(P_full ‖ P_simplified) of the teacher, or the entropy of its distribution, in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from distillctl.data.views import FLOOR
from distillctl.recipe import Recipe, Text
from distillctl.run_dir.workspace import Workspace
from distillctl.soft_labels import response_shards
from distillctl.soft_labels.ragged import Ragged
from distillctl.soft_labels.response_shards import Responses, SoftLabelCodec
from distillctl.soft_labels.text import TextLabels

Needs = Callable[[Responses], Sequence[np.ndarray]]
"""Returns the need of each token of some responses, nats [T] each."""


def needs(recipe: Recipe, workspace: Workspace, codec: SoftLabelCodec) -> Needs | None:
    """Return the function that reads the needs of the train rows' tokens; None where all tokens count the same."""
    if recipe.train.weights is None:
        return None
    if recipe.train.weights == "entropy":
        return lambda part: _entropies(part, codec)
    parts = response_shards.read_parts(workspace, FLOOR, "train", TextLabels(Text()))
    need_of = {row: kl for part in parts for row, kl in zip(part.id, part.context_kl or (), strict=True)}
    return lambda part: [need_of[row] for row in part.id]


def weights(need: np.ndarray, mean: float) -> np.ndarray:
    """Return the weights of tokens, float32 [T], from their needs and the mean need of all train tokens."""
    if mean <= 0:
        return np.ones(len(need), np.float32)
    return ((1 + need.astype(np.float64) / mean) / 2).astype(np.float32)  # a mean may be 0 as a float32


def _entropies(part: Responses, codec: SoftLabelCodec) -> list[np.ndarray]:
    """Return H(P) at each token. Of the k likeliest tokens and a tail, the tail counts as one more outcome."""
    whole = codec.entropy(part.labels)
    if whole is None:
        head, tail = Ragged.joined(part.labels["log_probs"]).padded(-np.inf), np.concatenate(part.labels["log_tail"])
        log_probs = np.concatenate([head, tail[:, None]], 1)
        whole = -(np.exp(log_probs) * np.where(np.isneginf(log_probs), 0, log_probs)).sum(-1)
    return np.split(whole, np.cumsum([len(ids) for ids in part.token_ids])[:-1])
