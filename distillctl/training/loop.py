"""Run the training loop: AdamW, length-bucketed batches, early stopping, exact resume. A `TrainingObjective` is
minimised.

The plan of batches depends on lengths and seed alone, randomness (dropout) on seed, step and rank, and everything else
is in the checkpoint. So a resumed run and an unbroken one end in the same bits on one device with the same threads. On
several ranks a step differs only by rounding and by its random draws.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, TextIO

import numpy as np
from accelerate.utils import set_seed
from torch import Tensor
from transformers import PreTrainedModel

from distillctl import cautions, console, interrupts, ranks
from distillctl.data import batching, split_checks
from distillctl.errors import GateFailed, Interrupted, UnavailableError
from distillctl.recipe import Train
from distillctl.run_dir.facts import FitFacts
from distillctl.training import collectives, metrics_log
from distillctl.training.checkpoints import Checkpoints, TrainingProgress
from distillctl.training.learner import Batch, Learner, Loss, put


class TrainingObjective(Loss, Protocol):
    """The objective of a training run: the loss of the train rows, and the figures of the held-out rows.

    A step minimises one mean over all positions of its batches, however the rows are batched.
    """

    @property
    def lengths(self) -> np.ndarray:
        """Return the tokens of each train row, int64 [N], for batching."""

    @property
    def positions(self) -> np.ndarray:
        """Return how many positions of each train row the mean covers, int64 [N]."""

    def held_out(self, model: PreTrainedModel) -> tuple[float, dict[str, float]]:
        """Return (criterion to minimise, metrics to log) on the held-out rows, identical on every rank."""


def hold_out(groups: Iterable[object], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Return row numbers to train on, and row numbers held out for early stopping; both in order.

    groups: the group of each row. A seeded share of the groups is held out with all its rows. Raises DataError if that
    is all of them.
    """
    groups = list(groups)
    names = list(dict.fromkeys(groups))
    order = np.random.default_rng(seed).permutation(len(names))
    held = {names[index] for index in order[: max(1, round(share * len(names)))]}
    if len(held) == len(names):
        raise split_checks.no_train_rows(len(names), share)
    return [row for row, name in enumerate(groups) if name not in held], [
        row for row, name in enumerate(groups) if name in held
    ]


class TrainingRun:
    """One training run of a model."""

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        objective: TrainingObjective,
        spec: Train,
        seed: int,
        checkpoints: Checkpoints,
    ) -> None:
        self.name, self.model, self.objective, self.spec, self.seed = name, model, objective, spec, seed
        self.checkpoints = checkpoints
        self.plan = _plan(objective.lengths, spec, seed)
        self.learner = Learner(model, objective, spec, len(self.plan))

    def fit(self, metrics: Path) -> FitFacts:
        """Train until the epochs are done or patience runs out. The model then has its best weights."""
        spec, lengths, plan = self.spec, self.objective.lengths, self.plan
        split_checks.check_steps(len(plan))
        steps_per_epoch = math.ceil(len(plan) / spec.epochs)
        evaluate_every = spec.evaluate_every or max(1, steps_per_epoch // 2)
        restored = self.checkpoints.restore(self.learner)
        progress, best = restored or (TrainingProgress(), None)
        resumed = progress.step if restored else None
        if resumed:
            console.note(f"train: {self.name} continues from step {resumed} of {len(plan)}")
        self._check_precision(progress)
        stopped, tokens, started = "epochs", 0, time.perf_counter()
        with (
            metrics_log.opened(metrics, self.name, progress.step) as log,
            console.progress(f"train {self.name}", len(plan), "steps") as bar,
            interrupts.deferred(),
        ):
            bar.skip(progress.step)
            fields: dict[str, str] = {}
            while progress.step < len(plan):
                epoch, batches = plan[progress.step]
                set_seed(_seed(self.seed, progress.step))
                loss, norm = self._step(batches)
                rate = self.learner.rate
                self._guard(loss, norm, progress)
                self.learner.update()
                progress.step += 1
                tokens += sum(int(lengths[row]) for batch in batches for row in batch)
                speed = tokens / (time.perf_counter() - started)
                metrics_log.write(
                    log, run=self.name, step=progress.step, epoch=round(epoch, 4), loss=loss, grad_norm=norm,
                    learning_rate=rate, tokens_per_second=round(speed, 1),
                )  # fmt: skip
                if progress.step % evaluate_every == 0 or progress.step == len(plan):
                    best, fields = self._evaluate(progress, best, log)
                    if progress.evals_without_improvement >= spec.patience:
                        stopped = "patience"
                        break
                stop = collectives.any_of(interrupts.pending())
                if stop or progress.step % spec.checkpoint_every == 0:
                    metrics_log.flush_to_disk(log)
                    self.checkpoints.save(self.learner, progress, best)
                if stop:
                    interrupts.raise_if_pending()
                    raise Interrupted(signal.SIGTERM)  # another rank received it
                bar.advance(1, loss=f"{loss:.3f}", **fields, tokens=f"{speed:,.0f}/s")
        if best is not None:
            put(best, self.model)
        speed_or_none = round(tokens / (time.perf_counter() - started), 1) if tokens else None
        return FitFacts(
            steps=progress.step,
            best_step=progress.best_step,
            resumed_from=resumed,
            stopped=stopped,
            tokens_per_second=speed_or_none,
            ranks=ranks.count(),
            mixed_precision=self.learner.mixed_precision,
        )

    def _check_precision(self, progress: TrainingProgress) -> None:
        """Caution where the run began on a device that computes in another precision."""
        precision = self.learner.mixed_precision
        if precision not in progress.precisions:
            progress.precisions.append(precision)
        if len(progress.precisions) > 1:
            cautions.add(
                "precision-changed",
                f"Some steps of {self.name} were computed with mixed_precision {progress.precisions[0]} and others "
                f"with {progress.precisions[1]}, because training went on on another device (train.mixed_precision: "
                "auto). An unbroken run would give other weights.",
            )

    def _step(self, batches: Sequence[Batch]) -> tuple[float, float]:
        """Compute the gradients of one optimizer step: one mean over all its positions, however they are batched."""
        count = sum(int(self.objective.positions[row]) for batch in batches for row in batch)
        loss, norm = self.learner.gradients(batches, count)
        return float(collectives.summed(np.array(loss))), norm

    def _guard(self, loss: float, norm: float, progress: TrainingProgress) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        named = self.model.named_parameters() if progress.step == 0 else ()
        if broken := next((name for name, weights in named if not weights.isfinite().all()), None):
            raise UnavailableError(
                f"the student's weights were not finite numbers from the start: {broken}",
                where=f"train ({self.name})",
                next="use another copy of the model (student.model)",
            )
        kept = self.checkpoints.latest()
        raise GateFailed(
            f"training diverged at step {progress.step + 1}: loss {loss}, gradient norm {norm}; "
            + (f"the last good checkpoint is {kept}" if kept else "there was no checkpoint yet"),
            where=f"train ({self.name})",
            next="lower train.learning_rate or train.clip_norm, or lengthen train.warmup",
        )

    def _evaluate(
        self, progress: TrainingProgress, best: dict[str, Tensor] | None, log: TextIO
    ) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """Evaluate the held-out rows, and keep the weights if they are the best so far."""
        with self.learner.measured() as model:
            criterion, figures = self.objective.held_out(model)
        if criterion < progress.best:
            progress.best, progress.best_step, progress.evals_without_improvement = criterion, progress.step, 0
            best = self.learner.weights()
        else:
            progress.evals_without_improvement += 1
        metrics_log.write(log, run=self.name, step=progress.step, **figures)
        return best, {name: f"{value:.3f}" for name, value in figures.items()}


Plan = list[tuple[float, list[np.ndarray]]]
"""One entry per optimizer step: (epoch reached, batches of row numbers)."""


def _plan(lengths: np.ndarray, spec: Train, seed: int) -> Plan:
    plan: Plan = []
    for epoch in range(spec.epochs):
        indices = batching.shuffled(
            lengths, max_rows=spec.batch_rows, max_tokens=spec.batch_tokens, seed=seed, epoch=epoch
        )  # fmt: skip
        batches = [np.array(batch, np.int32) for batch in indices]
        groups = [batches[i : i + spec.accumulate] for i in range(0, len(batches), spec.accumulate)]
        plan += [(epoch + (number + 1) / len(groups), group) for number, group in enumerate(groups)]
    return plan


def _seed(seed: int, step: int) -> int:
    """Return the random seed of a step on this rank, so that no generator state must be saved."""
    return int(np.random.SeedSequence([seed, step, ranks.number()]).generate_state(1)[0])
