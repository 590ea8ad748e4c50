"""Figures of the deployed graph from quantize, and from bench if it measured the same graph."""

from __future__ import annotations

import contextlib

from distillctl.errors import UpstreamError
from distillctl.metrics import names
from distillctl.run_dir.bench_facts import BenchFacts
from distillctl.run_dir.facts import DeployedFacts
from distillctl.run_dir.workspace import Manifest, Workspace


def bench(workspace: Workspace) -> Manifest | None:
    """Return bench's manifest if it measured the graph that quantize committed, else None."""
    with contextlib.suppress(UpstreamError):
        measured, quantize = workspace.manifest("bench"), workspace.manifest("quantize")
        if measured and quantize and measured.inputs.get("quantize") == quantize.fingerprint:
            return measured
    return None


def bench_fingerprint(workspace: Workspace) -> dict[str, str]:
    """Return bench's fingerprint for the pipeline: new latencies make a bundle stale."""
    measured = bench(workspace)
    return {"bench": measured.fingerprint} if measured else {}


def measured(quantize: DeployedFacts, bench: BenchFacts | None, unit: str) -> list[dict[str, str]]:
    """Return the rows of the card's table, one for the fp32 graph and one for the deployed one.

    unit: the thing that a graph chooses, a label or a token.
    """
    fp32 = quantize.fp32
    rows = {
        "fp32": _row("fp32", fp32.bytes, fp32.score, None, None, unit, quantize.metric),
        "deployed": _row(
            f"**{quantize.chosen}** (here)",
            quantize.bytes,
            quantize.score,
            quantize.kl,
            quantize.same_top,
            unit,
            quantize.metric,
        ),
    }
    for name, row in rows.items():
        if bench is not None and (timed := bench.models.get(name)):
            row |= {"p50": f"{timed.p50_ms:.2f} ms", "p99": f"{timed.p99_ms:.2f} ms"}
            row |= {"peak memory": f"{timed.peak_rss_bytes / 1e6:.0f} MB"}
    return list(rows.values())


def machine(bench: BenchFacts | None) -> str:
    """Return a sentence about where the latencies were measured; empty without any."""
    if bench is None:
        return ""
    host = bench.machine
    return (
        f"Latency: one query at a time, {bench.threads} thread(s), real inputs, on the host that built this "
        f"({host.cpu}, {host.architecture}), not a phone."
    )


def _row(
    name: str, size: int, score: float | None, kl: float | None, same_top: float | None, unit: str, metric: str
) -> dict[str, str]:
    return {
        "graph": name,
        "size": f"{size / 1e6:.2f} MB",
        "KL from fp32": "–" if kl is None else f"{kl:.5f}",
        f"same top {unit}": "–" if same_top is None else f"{same_top:.2%}",
        names.named(metric): "–" if score is None else f"{score:.4f}",
    }
