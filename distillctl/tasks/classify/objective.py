"""The objective of learning label distributions: one position a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from distillctl import ranks
from distillctl.data import batching
from distillctl.data.disk_rows import Subset, lengths
from distillctl.losses.objective import objective
from distillctl.metrics import scores
from distillctl.recipe import LossTerm, Train
from distillctl.training import collectives
from distillctl.training.learner import Batch


@dataclass(frozen=True)
class LabelRows:
    """The rows of one split, in memory or in files.

    ids: token ids per row; teacher: normalised label log-probabilities, float32 [N, K].
    """

    ids: Sequence[Sequence[int]] | Sequence[np.ndarray]
    teacher: Sequence[np.ndarray] | np.ndarray

    def take(self, rows: Sequence[int]) -> LabelRows:
        return LabelRows(Subset(self.ids, rows), Subset(self.teacher, rows))  # type: ignore[arg-type]

    def distributions(self, rows: Iterable[int] | None = None) -> np.ndarray:
        """Return the teacher's log-probabilities of some rows, or of all, float32 [N, K]."""
        return np.stack([self.teacher[row] for row in (range(len(self.ids)) if rows is None else rows)])


class Classification:
    """A `TrainingObjective` of the loop."""

    def __init__(
        self, train: LabelRows, validation: LabelRows, terms: Sequence[LossTerm], tokenizer: object, spec: Train
    ) -> None:
        self.train, self.validation, self.terms = train, validation, terms
        self.tokenizer, self.spec = tokenizer, spec
        self.lengths = lengths(train.ids)
        self.positions = np.ones_like(self.lengths)

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        inputs, teacher = collate(self.tokenizer, self.train, batch, model.device)
        return objective(self.terms, teacher, model(**inputs).logits).sum()

    def held_out(self, model: PreTrainedModel) -> tuple[float, dict[str, float]]:
        """Return the held-out KL and all figures; a run on hard labels alone is led by its own loss."""
        teacher, student = self.validation.distributions(), predict(model, self.tokenizer, self.validation, self.spec)
        figures = {"kl": scores.kl(teacher, student), "agreement": scores.same_top(teacher, student)}
        if any(term.needs_distribution for term in self.terms):
            return figures["kl"], figures
        return float(-np.take_along_axis(student, teacher.argmax(-1)[:, None], -1).mean()), figures


@torch.inference_mode()
def predict(model: PreTrainedModel, tokenizer: object, rows: LabelRows, spec: Train) -> np.ndarray:
    """Return the model's normalised label log-probabilities, float32 [N, K], in the order of ``rows``.

    Rows run in batches by length. Ranks share the batches, and all get all results.
    """
    model.eval()
    out = np.zeros((len(rows.ids), len(rows.teacher[0])), dtype=np.float32)
    batches = batching.by_length(lengths(rows.ids), max_rows=spec.batch_rows, max_tokens=spec.batch_tokens)
    for batch in ranks.share(batches):
        inputs, _ = collate(tokenizer, rows, batch, model.device)
        out[batch] = model(**inputs).logits.float().log_softmax(-1).cpu().numpy()
    return collectives.summed(out)


def collate(tokenizer: Any, rows: LabelRows, batch: Batch, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Return right-padded model inputs, int64 [B, T], and the teacher's log-probabilities [B, K]."""
    padded = tokenizer.pad({"input_ids": [np.asarray(rows.ids[row]).tolist() for row in batch]}, return_tensors="pt")
    teacher = torch.from_numpy(rows.distributions(batch))
    return {name: value.to(device) for name, value in padded.items()}, teacher.to(device)
