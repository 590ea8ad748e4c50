"""Describe the deployed model's speed in words, compared with the teacher as it would be served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distillctl.report import formatting


def words(facts: Mapping[str, Any]) -> str:
    """Against `headline_peer`, which is named with its runtime; of a served teacher, which is not timed, how long the
    deployed model takes."""
    peer = facts.get("headline_peer")
    if peer is None:
        return f"{formatting.duration(facts['models']['deployed']['p50_ms'])} a query"
    ratio = peer["ratio"]
    speed = f"{formatting.times(ratio)} faster" if ratio >= 1 else f"{formatting.times(1 / ratio)} slower"
    return f"{speed} than {peer['name']} ({running(peer)})"


def running(model: Mapping[str, Any]) -> str:
    """What one of the models, or the headline's peer, ran in: runtime, dtype and threads."""
    threads = model["threads"]
    return f"{model['runtime']}, {model['dtype']}, {threads} thread{'s' if threads != 1 else ''}"
