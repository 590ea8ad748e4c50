"""Describe the deployed model's speed in words, compared with the teacher as it would be served."""

from __future__ import annotations

from distillctl.report import formatting
from distillctl.run_dir.bench_facts import HeadlinePeer, RuntimeFacts


def words(peer: HeadlinePeer | None, deployed_p50_ms: float) -> str:
    """Describe the ratio to the peer, which is named with its runtime.

    A served teacher is not timed: without a peer the text is the deployed model's own time.
    """
    if peer is None:
        return f"{formatting.duration(deployed_p50_ms)} a query"
    ratio = peer.ratio
    speed = f"{formatting.times(ratio)} faster" if ratio >= 1 else f"{formatting.times(1 / ratio)} slower"
    return f"{speed} than {peer.name} ({running(peer)})"


def running(model: RuntimeFacts) -> str:
    """Describe the runtime, dtype and threads of a model or of the headline's peer."""
    return f"{model.runtime}, {model.dtype}, {model.threads} thread{'s' if model.threads != 1 else ''}"
