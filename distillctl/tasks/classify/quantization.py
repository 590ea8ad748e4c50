"""Measure what quantizing does to a classifier, on held-out rows, and on train rows for calibration."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import log_softmax

from distillctl.errors import UpstreamError, first_line
from distillctl.metrics import scores
from distillctl.quantizers.search import Figures, percentiles, turns
from distillctl.runtimes.onnxruntime import OnnxClassifier


@dataclass(frozen=True)
class EvalRows:
    """The eval rows, with the answers that graphs are compared with.

    student, teacher: normalised log-probabilities [N, K] of the fp32 student and of the calibrated teacher; truth: the
    index of the right label, int [N], or None without references.
    """

    texts: Sequence[str]
    student: np.ndarray
    teacher: np.ndarray
    truth: np.ndarray | None

    def row_scores(self, log_probs: np.ndarray) -> np.ndarray | None:
        """Return 1 for each row whose top label is right and 0 for the others, float64 [N]; None without references."""
        return None if self.truth is None else (log_probs.argmax(-1) == self.truth).astype(np.float64)


@dataclass(frozen=True)
class ClassifyAnswers:
    """The answers of one graph to all rows: normalised log-probabilities float32 [N, K], milliseconds [N]."""

    log_probs: np.ndarray
    milliseconds: np.ndarray

    def figures(self, rows: EvalRows) -> Figures:
        """Compare the answers with the fp32 student, the teacher, and the references if any."""
        kl = scores.row_kl(rows.student, self.log_probs)
        return Figures(
            kl=float(kl.mean()),
            kl_percentiles=percentiles(kl),
            kl_teacher=scores.kl(rows.teacher, self.log_probs),
            same_top=scores.same_top(rows.student, self.log_probs),
            row_scores=rows.row_scores(self.log_probs),
            p50_ms=float(np.median(self.milliseconds)),
        )


def check_graph(folder: Path, text: str, labels: int, next: str) -> None:
    """Raise UpstreamError unless the folder's graph runs and turns a text into one finite logit for each label.

    next: the command that makes the folder anew.
    """
    try:
        graph = OnnxClassifier(folder)
    except KeyError as error:
        raise UpstreamError(f"config.json has no {error}", where=str(folder), next=next) from error
    try:
        logits = graph.logits([text])
    except KeyError as error:
        problem = f"the graph asks for {error}, which no tokenizer makes"
    except ValueError as error:
        problem = f"the graph's logits are no array: {first_line(error)}"
    else:
        if logits.dtype == np.float32 and logits.shape == (1, labels) and np.isfinite(logits).all():
            return
        problem = f"the graph's logits of a text are {logits.dtype} {list(logits.shape)}, not {labels} finite numbers"
    raise UpstreamError(problem, where=str(folder), next=next)


def measure(
    graphs: Mapping[str, OnnxClassifier], texts: Sequence[str], advance: Callable[[int], None] = lambda rows: None
) -> dict[str, ClassifyAnswers]:
    """Run every graph on every text, one at a time from text to logits, in turns, and return graph → answers.

    ``advance`` gets the number of rows of each block that all have done.
    """
    logits: dict[str, list[np.ndarray]] = {name: [] for name in graphs}
    seconds: dict[str, list[float]] = {name: [] for name in graphs}
    for order, rows in turns(list(graphs), len(texts)):
        for name in order:
            for row in rows:
                begin = time.perf_counter()
                answer = graphs[name].logits([texts[row]])
                seconds[name].append(time.perf_counter() - begin)
                logits[name].append(answer)
        advance(len(rows))
    return {
        name: ClassifyAnswers(log_softmax(np.concatenate(logits[name]), axis=-1), np.array(seconds[name]) * 1e3)
        for name in graphs
    }
