"""Build all candidates, measure them on the same rows, apply the gate, and choose by the recipe's objective."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distillctl import console, interrupts
from distillctl.metrics.statistics import difference_interval
from distillctl.quantizers.candidates import Unit, measured, none_inside
from distillctl.quantizers.sensitivity import Calibration
from distillctl.recipe import Gate, implementation
from distillctl.recipe.quantize import Objective, Quantize, Quantizer
from distillctl.run_dir.facts import Candidate, Fp32Facts, Interval, QuantizeFacts, SearchFacts
from distillctl.runtimes.onnxruntime import graph_bytes

FP32 = "fp32"
BLOCK = 20
"""Rows per turn, after which the next graph answers, so that drift of the machine's speed affects all."""
SAME_SIZE = 0.01
"""Files whose sizes differ by less than this share tie. Per-channel weights have a scale and a zero point per output,
5 bytes for hundreds of weights (0.45 % of MiniLM's file): a difference that no phone notices."""
SAME_SPEED = 0.1
"""Median latencies that differ by less than this share tie. On a busy machine the comparison of two graphs in turns
differs from one process to the next by 3 to 6 %, and the choice should not depend on that."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Figures:
    """The measurements of a graph; None: not known.

    kl, kl_teacher: KL(fp32 student ‖ graph) and KL(teacher ‖ graph) in nats, same_top: the share of the fp32 student's
    top choices; per row for `classify`, per token for `generate`. kl_percentiles: the 50th, 90th and 99th of the rows'
    KL from fp32. row_scores: the task's score of each row, float64 [N] in 0…1. p50_ms: of an answer.
    """

    kl: float
    kl_percentiles: tuple[float, float, float]
    kl_teacher: float | None
    same_top: float
    row_scores: np.ndarray | None
    p50_ms: float

    @property
    def score(self) -> float | None:
        """Return the mean of the rows' scores."""
        return None if self.row_scores is None else float(self.row_scores.mean())

    def drop(self, fp32: Figures) -> Interval | None:
        """Return how much less this graph scores than ``fp32``, paired over the rows."""
        if fp32.row_scores is None or self.row_scores is None:
            return None
        return difference_interval(fp32.row_scores, self.row_scores)


def percentiles(rows_kl: np.ndarray) -> tuple[float, float, float]:
    """Return the 50th, 90th and 99th percentile."""
    low, high, highest = np.percentile(rows_kl, (50, 90, 99)).tolist()
    return low, high, highest


# ── building ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Built:
    """The built candidates, name → folder, the smallest first. not_tried: names beyond the time budget."""

    folders: dict[str, Path]
    not_tried: list[str]


def build(
    candidates: Sequence[Quantizer],
    source: Path,
    folder: Path,
    calibration: Calibration | None = None,
    budget_seconds: float | None = None,
) -> Built:
    """Write every candidate's graphs to a folder of its own below ``folder``, with configs and tokenizer of ``source``.

    No candidate is begun when the budget is spent, except the first.
    """
    folders: dict[str, Path] = {}
    deadline = time.monotonic() + (math.inf if budget_seconds is None else budget_seconds)
    with console.progress("quantize", len(candidates), "candidates") as bar:
        for spec in candidates:
            interrupts.raise_if_pending()
            if folders and time.monotonic() >= deadline:
                break
            folders[spec.name] = folder / spec.name
            folders[spec.name].mkdir()
            for path in _sidecar_files(source):
                shutil.copyfile(path, folders[spec.name] / path.name)
            implementation(spec)(spec, source, folders[spec.name], calibration)
            bar.advance()
    not_tried = [spec.name for spec in candidates if spec.name not in folders]
    if not_tried:
        console.warn(f"quantize.budget_seconds was spent before these candidates were tried: {', '.join(not_tried)}")
    return Built(dict(sorted(folders.items(), key=lambda item: graph_bytes(item[1]))), not_tried)


def _sidecar_files(source: Path) -> list[Path]:
    """Return configs and tokenizer, without the card and the manifest, which belong to export."""
    export_files = {"README.md", "manifest.json"}
    return [
        path
        for path in sorted(source.iterdir())
        if ".onnx" not in path.name and path.name not in export_files and path.is_file() and not path.is_symlink()
    ]


# ── measuring, judging, choosing ─────────────────────────────────────────────────────────────────


def turns(names: Sequence[str], rows: int) -> Iterator[tuple[list[str], range]]:
    """Yield blocks of rows with the order in which the graphs answer them. Each turn another graph is first."""
    for turn, start in enumerate(range(0, rows, BLOCK)):
        interrupts.raise_if_pending()
        first = turn % len(names)
        yield [*names[first:], *names[:first]], range(start, min(start + BLOCK, rows))


def judge(name: str, size: int, figures: Figures, fp32: Figures, gate: Gate) -> Candidate:
    """Check a graph's figures against the gate. size: in bytes."""
    broken: dict[str, float] = {}  # description of a broken bound → figure / bound
    if not math.isfinite(figures.kl):
        broken["kl is not finite"] = math.inf
    elif gate.max_kl is not None and figures.kl > gate.max_kl:
        broken[f"kl {figures.kl:.4f} > {gate.max_kl} (quantize.gate.max_kl)"] = _ratio(figures.kl, gate.max_kl)
    if gate.min_same_top is not None and figures.same_top < gate.min_same_top:
        bound = f"same_top {figures.same_top:.4f} < {gate.min_same_top} (quantize.gate.min_same_top)"
        broken[bound] = _ratio(1 - figures.same_top, 1 - gate.min_same_top)
    if gate.max_bytes is not None and size > gate.max_bytes:
        broken[f"{size:,} bytes > {gate.max_bytes:,} (quantize.gate.max_bytes)"] = _ratio(size, gate.max_bytes)
    if (drop := figures.drop(fp32)) is not None:
        if drop.value > gate.max_score_drop + _ROUNDING:
            bound = f"score {figures.score:.4f}, a drop of {drop.value:.4f} > {gate.max_score_drop}"
            broken[f"{bound} (quantize.gate.max_score_drop)"] = _ratio(drop.value, gate.max_score_drop)
        if (highest := gate.max_score_drop_high) is not None and drop.high > highest + _ROUNDING:
            bound = f"the score may drop by up to {drop.high:.4f} > {highest}"
            broken[f"{bound} (quantize.gate.max_score_drop_high)"] = _ratio(drop.high, highest)
    elif gate.max_score_drop_high is not None or (gate.max_kl is None and gate.min_same_top is None):
        broken["without references the drop of the score, which the gate relies on, is not known"] = math.inf
    return Candidate(
        name=name,
        bytes=size,
        kl=_finite(figures.kl),
        kl_percentiles=[_finite(value) for value in figures.kl_percentiles],
        kl_teacher=_finite(figures.kl_teacher),
        same_top=figures.same_top,
        score=figures.score,
        score_drop=drop,
        p50_ms=figures.p50_ms,
        why="; ".join(broken) or None,
        excess=_finite(max(broken.values(), default=None)),
        inside=not broken,
    )


def choose(candidates: Sequence[Candidate], objective: Objective = "smallest") -> Candidate | None:
    """Return the smallest, fastest or closest candidate inside the gate, or None if none is inside.

    The other figures, size before KL before speed, decide among candidates that tie (`SAME_SIZE`, `SAME_SPEED`).
    """
    inside = [candidate for candidate in candidates if candidate.inside]
    if objective == "fastest":
        inside = _near(inside, lambda candidate: candidate.p50_ms, SAME_SPEED)
    if objective != "closest":
        inside = _near(inside, lambda candidate: candidate.bytes, SAME_SIZE)
    return min(inside, key=lambda candidate: (candidate.kl, candidate.bytes, candidate.p50_ms), default=None)


def _near(candidates: Sequence[Candidate], figure: Callable[[Candidate], float], share: float) -> list[Candidate]:
    least = min(map(figure, candidates), default=0.0)
    return [candidate for candidate in candidates if figure(candidate) <= least * (1 + share)]


def front(candidates: Sequence[Candidate]) -> list[str]:
    """Return the names on the Pareto front of bytes, KL and milliseconds. Latencies that tie count as equal.

    A candidate is not on it if another one matches it in all three and beats it in size or KL.
    """

    def beats(other: Candidate, candidate: Candidate) -> bool:
        if other.kl is None or candidate.kl is None:
            return candidate.kl is None and other.kl is not None
        as_good = (
            other.bytes <= candidate.bytes
            and other.kl <= candidate.kl
            and other.p50_ms <= candidate.p50_ms * (1 + SAME_SPEED)
        )
        return as_good and (other.bytes < candidate.bytes or other.kl < candidate.kl)

    return [candidate.name for candidate in candidates if not any(beats(other, candidate) for other in candidates)]


@dataclass(frozen=True)
class Selection:
    """The chosen candidate. facts: for the manifest. shown: the rows of the card's table."""

    chosen: Candidate
    facts: QuantizeFacts
    shown: list[dict[str, str]]


def select_candidate(
    staged: Path,
    built: Built,
    source: Path,
    figures: Mapping[str, Figures],
    spec: Quantize,
    unit: Unit,
    metric: str,
) -> Selection:
    """Judge all candidates, move the chosen one's files to ``staged`` and write candidates.json there.

    source: folder of the fp32 graphs; metric: name of the scores. Raises GateFailed with every candidate's figures if
    none is inside.
    """
    reference = figures[FP32]
    fp32 = Fp32Facts(bytes=graph_bytes(source), score=reference.score, p50_ms=reference.p50_ms)
    sizes = {name: graph_bytes(path) for name, path in built.folders.items()}
    judged = [judge(name, size, figures[name], reference, spec.gate) for name, size in sizes.items()]
    chosen, front_names = choose(judged, spec.objective), front(judged)
    listed = [row.model_copy(update={"front": row.name in front_names, "chosen": row is chosen}) for row in judged]
    search = SearchFacts(fp32=fp32, metric=metric, candidates=listed, not_tried=built.not_tried)
    if chosen is None:
        raise none_inside(search, unit)
    for path in sorted(built.folders[chosen.name].iterdir()):
        path.replace(staged / path.name)
    document = {"gate": spec.gate.model_dump(), "objective": spec.objective, **search.as_json()}
    text = json.dumps(document, indent=2)
    (staged / "candidates.json").write_text(text + "\n", encoding="utf-8")
    facts = QuantizeFacts(
        **search.given,
        chosen=chosen.name,
        bytes=chosen.bytes,
        kl=chosen.kl,
        same_top=chosen.same_top,
        score=chosen.score,
    )
    return Selection(chosen, facts, measured(search, unit))


def _ratio(figure: float, bound: float) -> float:
    return figure / bound if bound > 0 else math.inf


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
