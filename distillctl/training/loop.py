"""One training run: AdamW, length-bucketed batches, early stopping, exact resume. What is learnt is a `Problem`.

The plan of batches depends on the lengths and the seed alone, and everything else a step depends on is in the
checkpoint, so a resumed run and an unbroken one end in the same bits (on one device, with the same threads).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel, get_scheduler

from distillctl import console, interrupts
from distillctl.data import batching
from distillctl.errors import GateFailed
from distillctl.recipe import Train
from distillctl.training import metrics_log
from distillctl.training.checkpoints import Checkpoints, Progress
from distillctl.workspace import writable


class Problem(Protocol):
    """What is learnt: the train rows with their loss, and the held-out rows with their figures.

    A step minimises one mean over all positions of its batches, however the rows are batched.
    """

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each train row, for batching."""

    @property
    def positions(self) -> Sequence[int]:
        """Of each train row, the positions that the mean is over."""

    def loss(self, model: PreTrainedModel, batch: Sequence[int]) -> Tensor:
        """The SUM of the loss over the positions of some train rows, in nats; a scalar to differentiate."""

    def held_out(self, model: PreTrainedModel) -> tuple[float, dict[str, float]]:
        """What the best weights have least of, and figures for the log; of the held-out rows."""


@dataclass(frozen=True)
class Fit:
    """How a run went."""

    steps: int
    best_step: int
    resumed_from: int | None
    stopped: str
    tokens_per_second: float | None

    @property
    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def hold_out(of: Sequence[Any], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Row numbers to train on, and those held out for early stopping; both in order.

    ``of``: what each row belongs to; a seeded share of that is held out with all its rows.
    """
    names = list(dict.fromkeys(of))
    order = np.random.default_rng(seed).permutation(len(names))
    held = {names[index] for index in order[: max(1, round(share * len(names)))]}
    return [row for row, name in enumerate(of) if name not in held], [
        row for row, name in enumerate(of) if name in held
    ]


class Run:
    """A model under training."""

    def __init__(
        self, name: str, model: PreTrainedModel, problem: Problem, spec: Train, seed: int, checkpoints: Checkpoints
    ) -> None:
        self.name, self.model, self.problem, self.spec, self.seed = name, model, problem, spec, seed
        self.checkpoints = checkpoints
        self.accelerator = Accelerator(mixed_precision=spec.mixed_precision)

    def fit(self, metrics: Path) -> Fit:
        """Train until the epochs are done or patience is out; the model is left with its best weights."""
        spec, lengths = self.spec, self.problem.lengths
        plan = self._plan()
        steps_per_epoch = math.ceil(len(plan) / spec.epochs)
        every = spec.evaluate_every or max(1, steps_per_epoch // 2)
        groups = _decay_groups(self.model, spec.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=spec.learning_rate, fused=True)
        schedule = get_scheduler(spec.schedule, optimizer, round(spec.warmup * len(plan)), len(plan))
        model, optimizer, schedule = self.accelerator.prepare(self.model, optimizer, schedule)
        restored = self.checkpoints.restore(self.accelerator)
        progress, best = restored or (Progress(), None)
        resumed = progress.step if restored else None
        if resumed:
            console.note(f"train: {self.name} goes on from step {resumed} of {len(plan)}")
        stopped, tokens, started = "epochs", 0, time.perf_counter()
        metrics_log.keep_lines(metrics, self.name, progress.step)
        with (
            writable(metrics),
            metrics.open("a", encoding="utf-8") as log,
            console.progress(f"train {self.name}", total=len(plan)) as bar,
            interrupts.deferred(),
        ):
            bar.advance(progress.step)
            fields: dict[str, str] = {}
            while progress.step < len(plan):
                epoch, batches = plan[progress.step]
                loss, norm = self._step(model, batches)
                rate = schedule.get_last_lr()[0]
                self._guard(loss, norm, progress)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                progress.step += 1
                tokens += sum(lengths[row] for batch in batches for row in batch)
                speed = tokens / (time.perf_counter() - started)
                metrics_log.write(
                    log, run=self.name, step=progress.step, epoch=round(epoch, 4), loss=loss, grad_norm=norm,
                    learning_rate=rate, tokens_per_second=round(speed, 1),
                )  # fmt: skip
                if progress.step % every == 0 or progress.step == len(plan):
                    best, fields = self._look(model, progress, best, log)
                    if progress.looks_without_better >= spec.patience:
                        stopped = "patience"
                        break
                if progress.step % spec.checkpoint_every == 0 or interrupts.pending():
                    log.flush()
                    self.checkpoints.save(self.accelerator, progress, best)
                    interrupts.check()
                bar.advance(1, loss=f"{loss:.3f}", **fields, tokens=f"{speed:,.0f}/s")
        # What is measured from here on is what will be deployed: without mixed precision.
        self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        if best is not None:
            self.model.load_state_dict(best)
        speed_or_none = round(tokens / (time.perf_counter() - started), 1) if tokens else None
        return Fit(progress.step, progress.best_step, resumed, stopped, speed_or_none)

    def _plan(self) -> list[tuple[float, list[list[int]]]]:
        """Every optimizer step: (epoch reached, its batches)."""
        spec, plan = self.spec, []
        for epoch in range(spec.epochs):
            batches = batching.shuffled(
                self.problem.lengths, max_rows=spec.batch_rows, max_tokens=spec.batch_tokens, seed=self.seed,
                epoch=epoch,
            )  # fmt: skip
            groups = [batches[i : i + spec.accumulate] for i in range(0, len(batches), spec.accumulate)]
            plan += [(epoch + (number + 1) / len(groups), group) for number, group in enumerate(groups)]
        return plan

    def _step(self, model: Any, batches: list[list[int]]) -> tuple[float, float]:
        """Gradients of one optimizer step: one mean over all its positions, however they are batched."""
        model.train()
        count = sum(self.problem.positions[row] for batch in batches for row in batch)
        total = 0.0
        for batch in batches:
            with self.accelerator.autocast():
                loss = self.problem.loss(model, batch) / count
            self.accelerator.backward(loss)
            total += loss.item()
        norm = self.accelerator.clip_grad_norm_(model.parameters(), self.spec.clip_norm)
        return total, float(norm)

    def _guard(self, loss: float, norm: float, progress: Progress) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        kept = self.checkpoints.latest()
        raise GateFailed(
            f"training diverged at step {progress.step + 1}: loss {loss}, gradient norm {norm}; "
            + (f"the last good checkpoint is {kept}" if kept else "there was no checkpoint yet"),
            where=f"train ({self.name})",
            next="lower train.learning_rate or train.clip_norm, or lengthen train.warmup",
        )

    def _look(
        self, model: Any, progress: Progress, best: dict[str, Tensor] | None, log: TextIO
    ) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """Measure the held-out rows; keep the weights if they are the best so far."""
        model.eval()
        with torch.inference_mode(), self.accelerator.autocast():
            criterion, figures = self.problem.held_out(model)
        if criterion < progress.best:
            progress.best, progress.best_step, progress.looks_without_better = criterion, progress.step, 0
            weights = self.accelerator.unwrap_model(model).state_dict()
            best = {name: value.detach().cpu().clone().contiguous() for name, value in weights.items()}
        else:
            progress.looks_without_better += 1
        metrics_log.write(log, run=self.name, step=progress.step, **figures)
        return best, {name: f"{value:.3f}" for name, value in figures.items()}


def _decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices, none on biases and norms."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
