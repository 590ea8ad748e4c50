"""Choose the graph to deploy: build all candidates, measure them on the same rows, apply the gate, and pick by the
recipe's objective.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distillctl import console, interrupts
from distillctl.quantizers.candidates import Candidate, Unit, measured, none_inside
from distillctl.quantizers.sensitivity import Calibration
from distillctl.recipe import Gate, implementation
from distillctl.recipe.quantize import Objective, Quantize, Quantizer
from distillctl.runtimes.onnxruntime import graph_bytes

FP32 = "fp32"
BLOCK = 20
"""Rows of a turn, after which the next graph answers, so that drift of the machine's speed affects all."""
SAME_SIZE = 0.01
"""Files whose sizes differ by less than this share tie. Per-channel weights carry a scale and a zero point per output,
5 bytes beside some hundreds of weights (0.45 % of MiniLM's file): a difference no phone notices."""
SAME_SPEED = 0.1
"""Median latencies that differ by less than this share tie. What one process measures of two graphs in turns comes out
otherwise in the next by some 3 to 6 % on a busy machine (the memory each was given), and a choice should not turn on
it."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Figures:
    """What was measured of a graph: KL(fp32 student ‖ it) and KL(teacher ‖ it) in nats and the share of the fp32
    student's top choices, per row of labels or token of text; the task's score; the median answer's milliseconds.
    kl_percentiles: the 50th, 90th and 99th of the rows' KL from fp32. None: not known."""

    kl: float
    kl_percentiles: tuple[float, float, float]
    kl_teacher: float | None
    same_top: float
    score: float | None
    p50_ms: float


def percentiles(rows_kl: np.ndarray) -> tuple[float, float, float]:
    """Of the rows' KL."""
    low, high, highest = np.percentile(rows_kl, (50, 90, 99)).tolist()
    return low, high, highest


# ── building ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Built:
    """Name → folder of the candidates that were built, the smallest first; the names of those for which the budget did
    not reach."""

    folders: dict[str, Path]
    not_tried: list[str]


def build(
    candidates: Sequence[Quantizer],
    source: Path,
    folder: Path,
    calibration: Calibration | None = None,
    budget_seconds: float | None = None,
) -> Built:
    """Every candidate's graphs, each in a folder of its own below ``folder``, with what lies beside those of the export
    folder ``source``. No further one is begun when the budget is spent; the first always is."""
    folders: dict[str, Path] = {}
    end = time.monotonic() + (math.inf if budget_seconds is None else budget_seconds)
    with console.progress("quantize", len(candidates), "candidates") as bar:
        for spec in candidates:
            interrupts.raise_if_pending()
            if folders and time.monotonic() >= end:
                break
            folders[spec.name] = folder / spec.name
            folders[spec.name].mkdir()
            for path in _beside(source):
                shutil.copyfile(path, folders[spec.name] / path.name)
            implementation(spec)(spec, source, folders[spec.name], calibration)
            bar.advance()
    not_tried = [spec.name for spec in candidates if spec.name not in folders]
    if not_tried:
        console.warn(f"quantize.budget_seconds is spent; not tried: {', '.join(not_tried)}")
    return Built(dict(sorted(folders.items(), key=lambda item: graph_bytes(item[1]))), not_tried)


def _beside(source: Path) -> list[Path]:
    """Return configs and tokenizer, but not the card and the manifest, which belong to export."""
    own = {"README.md", "manifest.json"}
    return [
        path
        for path in sorted(source.iterdir())
        if ".onnx" not in path.name and path.name not in own and path.is_file() and not path.is_symlink()
    ]


# ── measuring, judging, choosing ─────────────────────────────────────────────────────────────────


def turns(names: Sequence[str], rows: int) -> Iterator[tuple[list[str], range]]:
    """Yield blocks of rows with the order in which the graphs answer them; each time another graph is first."""
    for turn, start in enumerate(range(0, rows, BLOCK)):
        interrupts.raise_if_pending()
        first = turn % len(names)
        yield [*names[first:], *names[:first]], range(start, min(start + BLOCK, rows))


def judge(name: str, size: int, found: Figures, fp32_score: float | None, gate: Gate) -> Candidate:
    """Build a candidate of ``size`` bytes with its figures, and check them against the gate."""
    broken: dict[str, float] = {}  # description of a broken bound → figure / bound
    if not found.kl <= gate.max_kl:  # NaN too
        broken[f"kl {found.kl:.4f} > {gate.max_kl} (quantize.gate.max_kl)"] = _ratio(found.kl, gate.max_kl)
    if found.same_top < gate.min_same_top:
        bound = f"same_top {found.same_top:.4f} < {gate.min_same_top} (quantize.gate.min_same_top)"
        broken[bound] = _ratio(1 - found.same_top, 1 - gate.min_same_top)
    if gate.max_bytes is not None and size > gate.max_bytes:
        broken[f"{size:,} bytes > {gate.max_bytes:,} (quantize.gate.max_bytes)"] = _ratio(size, gate.max_bytes)
    if found.score is not None and fp32_score is not None:
        drop = fp32_score - found.score
        if drop > gate.max_score_drop + _ROUNDING:
            bound = f"score {found.score:.4f}, a drop of {drop:.4f} > {gate.max_score_drop}"
            broken[f"{bound} (quantize.gate.max_score_drop)"] = _ratio(drop, gate.max_score_drop)
    excess = _finite(max(broken.values(), default=None))
    figures = asdict(found) | {"kl": _finite(found.kl), "kl_teacher": _finite(found.kl_teacher)}
    figures["kl_percentiles"] = [_finite(value) for value in found.kl_percentiles]
    return Candidate(name=name, bytes=size, **figures, why="; ".join(broken) or None, excess=excess)


def choose(candidates: Sequence[Candidate], objective: Objective = "smallest") -> Candidate | None:
    """Return the smallest, fastest or closest candidate inside the gate, or None if none is inside.

    Who ties with the first (`SAME_SIZE`, `SAME_SPEED`) is compared by the other figures: size before KL before speed.
    """
    inside = [candidate for candidate in candidates if candidate.inside]
    if objective == "fastest":
        inside = _near(inside, lambda one: one.p50_ms, SAME_SPEED)
    if objective != "closest":
        inside = _near(inside, lambda one: one.bytes, SAME_SIZE)
    return min(inside, key=lambda one: (one.kl, one.bytes, one.p50_ms), default=None)


def _near(candidates: Sequence[Candidate], figure: Callable[[Candidate], float], share: float) -> list[Candidate]:
    least = min(map(figure, candidates), default=0.0)
    return [candidate for candidate in candidates if figure(candidate) <= least * (1 + share)]


def front(candidates: Sequence[Candidate]) -> list[str]:
    """The Pareto front of bytes, KL and milliseconds: the names of those that no other matches in all three and beats
    in size or KL. Latencies that tie count as equal."""

    def beats(other: Candidate, one: Candidate) -> bool:
        if other.kl is None or one.kl is None:
            return one.kl is None and other.kl is not None
        as_good = other.bytes <= one.bytes and other.kl <= one.kl and other.p50_ms <= one.p50_ms * (1 + SAME_SPEED)
        return as_good and (other.bytes < one.bytes or other.kl < one.kl)

    return [one.name for one in candidates if not any(beats(other, one) for other in candidates)]


@dataclass(frozen=True)
class Selection:
    """The chosen candidate. facts: for the manifest. shown: the rows of the card's table."""

    chosen: Candidate
    facts: dict[str, Any]
    shown: list[dict[str, str]]


def select_candidate(
    staged: Path,
    built: Built,
    found: Mapping[str, Figures],
    fp32: Mapping[str, Any],
    spec: Quantize,
    unit: Unit,
    metric: str,
) -> Selection:
    """Judge all candidates, move the chosen one's files to ``staged`` and write candidates.json there.

    fp32: bytes, score and p50_ms of the fp32 graph; metric: of the scores. GateFailed with every candidate's figures
    when none is inside.
    """
    sizes = {name: graph_bytes(path) for name, path in built.folders.items()}
    judged = [judge(name, size, found[name], fp32["score"], spec.gate) for name, size in sizes.items()]
    chosen, best = choose(judged, spec.objective), front(judged)
    listed = [
        asdict(one) | {"inside": one.inside, "front": one.name in best, "chosen": one is chosen} for one in judged
    ]
    searched = {"metric": metric, "candidates": listed, "not_tried": built.not_tried}
    if chosen is None:
        raise none_inside(judged, fp32, unit, metric, {FP32: dict(fp32), **searched})
    for path in sorted(built.folders[chosen.name].iterdir()):
        path.replace(staged / path.name)
    document = {"gate": spec.gate.model_dump(), "objective": spec.objective, FP32: fp32, **searched}
    text = json.dumps(document, indent=2)
    (staged / "candidates.json").write_text(text + "\n", encoding="utf-8")
    facts = {key: getattr(chosen, key) for key in ("bytes", "kl", "same_top", "score")}
    facts = {"chosen": chosen.name, **facts, FP32: dict(fp32), **searched}
    return Selection(chosen, facts, measured(judged, chosen, fp32, unit, metric))


def _ratio(figure: float, bound: float) -> float:
    return figure / bound if bound > 0 else math.inf


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
