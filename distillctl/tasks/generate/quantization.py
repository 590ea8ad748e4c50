"""Measure what quantizing does to a generating student, on held-out rows, and on train rows for calibration."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from scipy.special import log_softmax

from distillctl.losses.chunked_head import rows_at_once
from distillctl.losses.divergences import forward_kl
from distillctl.quantizers.search import FP32, Figures, percentiles, turns
from distillctl.quantizers.sensitivity import Calibration
from distillctl.runtimes.onnx_generator import OnnxGenerator, open_generator
from distillctl.tasks.generate.objective import per_token, token_figures
from distillctl.tasks.generate.response_rows import ResponseRows

TRIAL_ROWS = 16
"""Responses of some tokens each: enough to tell a small cost of quantization from none, few enough to be quick."""


@dataclass(frozen=True)
class TeacherForcedMetrics:
    """The figures of one graph under teacher forcing, means over each row's response tokens, float64 [N].

    kl, same_top: KL(fp32 student ‖ graph) in nats, and the share of tokens with the fp32 student's top one; nll: −log Q
    of the teacher's response; teacher_top: the share with the teacher's top token; kl_teacher: KL(teacher ‖ graph) as
    in `Scores.kl`, NaN where it is not known; tokens: the number of response tokens, int64 [N].
    """

    kl: np.ndarray
    same_top: np.ndarray
    nll: np.ndarray
    teacher_top: np.ndarray
    kl_teacher: np.ndarray
    tokens: np.ndarray
    agreements: list[np.ndarray]
    """For each row, bool [R]: the token is the teacher's top one."""

    def mean(self, rows: np.ndarray) -> float:
        """Return the mean of row means over the tokens of all measured rows; NaN where none was."""
        return per_token(rows, self.tokens)


@dataclass(frozen=True)
class GenerateAnswers:
    """The greedy answers of one graph to all rows, as token ids, with the milliseconds each took [N]."""

    ids: list[list[int]]
    milliseconds: np.ndarray
    forced: TeacherForcedMetrics

    @property
    def p50_ms(self) -> float:
        return float(np.median(self.milliseconds))

    def figures(self, row_scores: np.ndarray) -> Figures:
        """Return the figures. row_scores: each answer's score by the metric that scores the arms, float64 [N]."""
        forced = self.forced
        return Figures(
            kl=forced.mean(forced.kl),
            kl_percentiles=percentiles(forced.kl),
            kl_teacher=None if np.isnan(mean := forced.mean(forced.kl_teacher)) else mean,
            same_top=forced.mean(forced.same_top),
            row_scores=row_scores,
            p50_ms=self.p50_ms,
        )


def measure(
    graphs: Mapping[str, OnnxGenerator],
    rows: ResponseRows,
    max_new_tokens: int,
    advance: Callable[[int], None] = lambda rows: None,
) -> dict[str, GenerateAnswers]:
    """Run every graph, `FP32` among them, on every row, and return graph → answers and figures.

    Each graph answers a view to its last token, one row at a time, in turns, and scores the teacher's response in one
    pass. ``advance`` gets the number of rows of each block that all have done. At most one row's logits of two graphs
    are in memory.
    """
    ids: dict[str, list[list[int]]] = {name: [] for name in graphs}
    seconds: dict[str, list[float]] = {name: [] for name in graphs}
    forced: dict[str, list[np.ndarray]] = {name: [] for name in graphs}
    """For each row, [5, R]: kl, same_top, nll, teacher_top and kl_teacher of its tokens."""
    for order, block in turns(list(graphs), len(rows.views)):
        for name in order:
            for row in block:
                begin = time.perf_counter()
                answer = graphs[name].generate(rows.views[row], max_new_tokens)
                seconds[name].append(time.perf_counter() - begin)
                ids[name].append(answer)
        for row in block:
            for name, figures in _forced(graphs, rows, row).items():
                forced[name].append(figures)
        advance(len(block))
    return {
        name: GenerateAnswers(ids[name], np.array(seconds[name]) * 1e3, _columns(forced[name], rows.positions))
        for name in graphs
    }


@torch.inference_mode()
def _forced(graphs: Mapping[str, OnnxGenerator], rows: ResponseRows, row: int) -> dict[str, np.ndarray]:
    """Return kl, same_top, nll, teacher_top and kl_teacher of a row's response tokens, [5, R], for each graph."""
    view, response, targets = rows.views[row], rows.responses[row], rows.targets([row])
    at_once = rows_at_once(rows.vocabulary)
    reference, figures = None, {}
    for name in (FP32, *(name for name in graphs if name != FP32)):
        logits = torch.from_numpy(graphs[name].score(view, response))[:, : rows.vocabulary]
        reference = logits if reference is None else reference
        parts = []
        for start in range(0, len(response), at_once):
            part = slice(start, start + at_once)
            student, candidate = reference[part], logits[part]
            kl = forward_kl(student.log_softmax(-1), candidate.log_softmax(-1))
            same_top = (student.argmax(-1) == candidate.argmax(-1)).float()
            parts.append(torch.stack([kl, same_top, *token_figures(targets.rows(part), candidate)]).double())
        figures[name] = torch.cat(parts, -1).numpy()
    return figures


def _columns(rows: Sequence[np.ndarray], tokens: np.ndarray) -> TeacherForcedMetrics:
    kl, same_top, nll, teacher_top, kl_teacher = np.stack([row.mean(-1) for row in rows], -1)
    return TeacherForcedMetrics(kl, same_top, nll, teacher_top, kl_teacher, tokens, [row[3] > 0 for row in rows])


class TextCalibration(Calibration):
    """The calibration on train rows. rows: a function that reads them, called when they are first needed."""

    def __init__(self, source: Path, rows: Callable[[], ResponseRows]) -> None:
        super().__init__(source, torch.get_num_threads())
        self._rows = functools.cache(rows)

    def log_probs(self, folder: Path) -> np.ndarray:
        graph = open_generator(folder, self.threads)
        answers = [log_softmax(graph.score(*pair), axis=-1) for pair in islice(self._pairs(), TRIAL_ROWS)]
        return np.concatenate(answers)

    def feeds(self, path: Path) -> Iterator[Mapping[str, np.ndarray]]:
        graph = open_generator(self.source)
        return (graph.feeds(*pair)[path.name] for pair in self._pairs())

    def _pairs(self) -> Iterator[tuple[list[int], list[int]]]:
        rows = self._rows()
        return zip(rows.views, rows.responses, strict=True)
