"""One training run: AdamW on the objective, length-bucketed batches, early stopping, exact resume.

The plan of batches depends on the lengths and the seed alone, and everything else a step depends on is in the
checkpoint, so a resumed run and an unbroken one end in the same bits (on one device, with the same threads).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import get_scheduler

from distillctl import console
from distillctl.data import batching
from distillctl.errors import GateFailed
from distillctl.losses.objective import objective
from distillctl.metrics import scores
from distillctl.recipe import LossTerm, Train
from distillctl.students.student import Student
from distillctl.training.checkpoints import Checkpoints, Progress
from distillctl.workspace import writable, write_text


@dataclass(frozen=True)
class Rows:
    """ids: token ids per row; teacher: normalised label log-probabilities, float32 [N, K]."""

    ids: list[list[int]]
    teacher: np.ndarray

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.ids]


@dataclass(frozen=True)
class Fit:
    """How a run went."""

    steps: int
    best_step: int
    resumed_from: int | None
    stopped: str
    tokens_per_second: float | None


class Run:
    """A student under training."""

    def __init__(
        self, name: str, student: Student, terms: Sequence[LossTerm], spec: Train, seed: int, checkpoints: Checkpoints
    ) -> None:
        self.name, self.student, self.terms, self.spec, self.seed = name, student, terms, spec, seed
        self.checkpoints = checkpoints
        self.accelerator = Accelerator(mixed_precision=spec.mixed_precision)

    def fit(self, train: Rows, validation: Rows, metrics: Path) -> Fit:
        """Train until the epochs are done or patience is out; the student is left with its best weights."""
        spec = self.spec
        plan = self._plan(train)
        steps_per_epoch = math.ceil(len(plan) / spec.epochs)
        every = spec.evaluate_every or max(1, steps_per_epoch // 2)
        groups = _decay_groups(self.student.model, spec.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=spec.learning_rate, fused=True)
        schedule = get_scheduler(spec.schedule, optimizer, round(spec.warmup * len(plan)), len(plan))
        model, optimizer, schedule = self.accelerator.prepare(self.student.model, optimizer, schedule)
        restored = self.checkpoints.restore(self.accelerator)
        progress, best = restored or (Progress(), None)
        resumed = progress.step if restored else None
        if resumed:
            console.note(f"train: {self.name} goes on from step {resumed} of {len(plan)}")
        stopped, tokens, started = "epochs", 0, time.perf_counter()
        keep_lines(metrics, self.name, progress.step)
        with (
            writable(metrics),
            metrics.open("a", encoding="utf-8") as log,
            console.progress(f"train {self.name}", total=len(plan)) as bar,
        ):
            bar.advance(progress.step)
            fields: dict[str, str] = {}
            while progress.step < len(plan):
                epoch, batches = plan[progress.step]
                loss, norm = self._step(model, train, batches)
                rate = schedule.get_last_lr()[0]
                self._guard(loss, norm, progress)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                progress.step += 1
                tokens += sum(len(train.ids[row]) for batch in batches for row in batch)
                speed = tokens / (time.perf_counter() - started)
                _log(
                    log, run=self.name, step=progress.step, epoch=round(epoch, 4), loss=loss, grad_norm=norm,
                    learning_rate=rate, tokens_per_second=round(speed, 1),
                )  # fmt: skip
                if progress.step % every == 0 or progress.step == len(plan):
                    best, fields = self._look(model, validation, progress, best, log)
                    if progress.looks_without_better >= spec.patience:
                        stopped = "patience"
                        break
                if progress.step % spec.checkpoint_every == 0:
                    log.flush()
                    self.checkpoints.save(self.accelerator, progress, best)
                bar.advance(1, loss=f"{loss:.3f}", **fields, tokens=f"{speed:,.0f}/s")
        if best is not None:
            self.student.model.load_state_dict(best)
        speed_or_none = round(tokens / (time.perf_counter() - started), 1) if tokens else None
        return Fit(progress.step, progress.best_step, resumed, stopped, speed_or_none)

    @torch.inference_mode()
    def predict(self, rows: Rows) -> np.ndarray:
        """Normalised label log-probabilities of the student, float32 [N, K], in the order of ``rows``."""
        return predict(self.student.model, self.student.tokenizer, rows, self.spec)

    def _plan(self, train: Rows) -> list[tuple[float, list[list[int]]]]:
        """Every optimizer step: (epoch reached, its batches)."""
        spec, plan = self.spec, []
        for epoch in range(spec.epochs):
            batches = batching.shuffled(
                train.lengths, max_rows=spec.batch_rows, max_tokens=spec.batch_tokens, seed=self.seed, epoch=epoch
            )
            groups = [batches[i : i + spec.accumulate] for i in range(0, len(batches), spec.accumulate)]
            plan += [(epoch + (number + 1) / len(groups), group) for number, group in enumerate(groups)]
        return plan

    def _step(self, model: torch.nn.Module, train: Rows, batches: list[list[int]]) -> tuple[float, float]:
        """Gradients of one optimizer step: one mean over all its rows, however they are batched."""
        model.train()
        count = sum(map(len, batches))
        total = 0.0
        for batch in batches:
            inputs, teacher = collate(self.student.tokenizer, train, batch, self.accelerator.device)
            logits = model(**inputs).logits
            loss = objective(self.terms, teacher, logits).sum() / count
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
        self, model: torch.nn.Module, validation: Rows, progress: Progress, best: dict[str, Tensor] | None, log: TextIO
    ) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """Measure the held-out rows; keep the weights if they are the best so far."""
        found = self.predict(validation)
        kl, agreement = scores.kl(validation.teacher, found), scores.same_top(validation.teacher, found)
        criterion = self._criterion(validation, found)
        if criterion < progress.best:
            progress.best, progress.best_step, progress.looks_without_better = criterion, progress.step, 0
            weights = self.accelerator.unwrap_model(model).state_dict()
            best = {name: value.detach().cpu().clone().contiguous() for name, value in weights.items()}
        else:
            progress.looks_without_better += 1
        _log(log, run=self.name, step=progress.step, kl=kl, agreement=agreement)
        return best, {"kl": f"{kl:.3f}", "agreement": f"{agreement:.3f}"}

    def _criterion(self, validation: Rows, found: np.ndarray) -> float:
        """Held-out KL; for a run on hard labels alone, which knows no distribution, its own loss."""
        if all(term.kind == "cross_entropy" for term in self.terms):  # type: ignore[attr-defined]
            return float(-np.take_along_axis(found, validation.teacher.argmax(-1)[:, None], -1).mean())
        return scores.kl(validation.teacher, found)


@torch.inference_mode()
def predict(model: torch.nn.Module, tokenizer: Any, rows: Rows, spec: Train) -> np.ndarray:
    """Normalised label log-probabilities float32 [N, K]; batches by length, results in the order of ``rows``."""
    model.eval()
    device = next(model.parameters()).device
    out = np.empty(rows.teacher.shape, dtype=np.float32)
    for batch in batching.by_length(rows.lengths, max_rows=spec.batch_rows, max_tokens=spec.batch_tokens):
        inputs, _ = collate(tokenizer, rows, batch, device)
        out[batch] = model(**inputs).logits.float().log_softmax(-1).cpu().numpy()
    return out


def collate(tokenizer: Any, rows: Rows, batch: list[int], device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Right-padded model inputs, int64 [B, T], and the teacher's log-probabilities [B, K]."""
    padded = tokenizer.pad({"input_ids": [rows.ids[row] for row in batch]}, return_tensors="pt")
    return {name: value.to(device) for name, value in padded.items()}, torch.from_numpy(rows.teacher[batch]).to(device)


def _decay_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices, none on biases and norms."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _log(log: TextIO, **line: Any) -> None:
    log.write(json.dumps(line) + "\n")


def keep_lines(metrics: Path, run: str, step: int) -> None:
    """Drop the run's lines after ``step``, which will be written again."""
    if not metrics.exists():
        return
    kept = []
    for text in metrics.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue  # torn by a kill
        if line["run"] != run or line["step"] <= step:
            kept.append(text + "\n")
    write_text(metrics, "".join(kept))
