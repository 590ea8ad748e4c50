"""Compute head and loss together, a few rows at a time, so that no [N, V] tensor is ever complete.

With a vocabulary of 150 000 the logits of one batch are larger than the student, and the plain way keeps several such
tensors for the backward pass. Here each chunk of rows computes its logits, its loss and at once its gradient; only its
contributions to the gradients of the hidden states and of the head are kept (as in Liger Kernel's fused linear
cross-entropy, Hsu et al. 2024). All weights of rows must therefore be inside the loss, and the differentiable result is
the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distillctl.losses.heads import Head

Rows = Tensor | tuple[Tensor, ...]
RowLoss = Callable[[Tensor, slice], Rows]
"""Logits [n, V] of the rows in the slice → their loss [n], alone or followed by further values [n, …] to report."""

CHUNK_LOGITS = 2**24
"""Logits alive at once (64 MB in float32; the loss needs a few times that)."""


def rows_at_once(vocabulary: int) -> int:
    """Return a chunk size that is large enough for fast matrix products and small compared with the head's gradient."""
    return max(16, CHUNK_LOGITS // vocabulary)


def chunked(hidden: Tensor, head: Head, loss: RowLoss, chunk: int | None = None) -> tuple[Tensor, ...]:
    """Return Σ_n loss_n, a differentiable scalar, and the detached values that ``loss`` returned for all N rows.

    hidden: [N, D], as the head expects it. loss: called for one chunk after the other, of at most ``chunk`` rows
    (default: `rows_at_once`). Gradients reach hidden, weight and bias, and only once; without gradients only values are
    computed. Under autocast products use its type, and sums of gradients the weight's.
    """
    chunk = chunk or rows_at_once(len(head.weight))
    if torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (hidden, head.weight, head.bias)
    ):
        total, *rows = _Chunked.apply(hidden, head.weight, head.bias, head, loss, chunk)  # type: ignore[no-untyped-call]
    else:
        total, *rows = _run(_Pass(hidden, head, (False, False, False)), loss, chunk)
    return total, *rows


class _Pass:
    """One pass over the rows, and the gradients it accumulates."""

    def __init__(self, hidden: Tensor, head: Head, needs: tuple[bool, bool, bool]) -> None:
        kind = hidden.device.type
        lower = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else head.weight.dtype
        self.hidden = hidden.detach().to(lower)
        self.weight = head.weight.detach().to(lower)
        self.bias = None if head.bias is None else head.bias.detach().to(lower)
        self.head = head
        self.of_hidden = torch.empty_like(hidden) if needs[0] else None
        self.of_weight = torch.zeros_like(head.weight) if needs[1] else None
        self.of_bias = torch.zeros_like(head.bias) if needs[2] and head.bias is not None else None

    def logits(self, rows: slice) -> Tensor:
        hidden = self.hidden[rows] * self.head.scale if self.head.scale != 1 else self.hidden[rows]
        return torch.nn.functional.linear(hidden, self.weight, self.bias)

    def add(self, rows: slice, gradient: Tensor) -> None:
        """Add the gradient of the rows' logits before the softcap, [n, V]."""
        scale = self.head.scale
        if self.of_hidden is not None:
            self.of_hidden[rows] = (gradient @ self.weight) * scale
        if self.of_weight is not None:
            if self.of_weight.dtype == gradient.dtype:
                self.of_weight.addmm_(gradient.T, self.hidden[rows], alpha=scale)
            else:
                self.of_weight.add_(gradient.T @ self.hidden[rows], alpha=scale)
        if self.of_bias is not None:
            self.of_bias += gradient.sum(0)

    @property
    def gradients(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return self.of_hidden, self.of_weight, self.of_bias


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, loss: RowLoss, chunk: int
    ) -> tuple[Tensor, ...]:
        once = _Pass(hidden, head, ctx.needs_input_grad[:3])
        total, *rows = _run(once, loss, chunk)
        ctx.gradients = once.gradients
        ctx.mark_non_differentiable(*rows)
        return total, *rows

    @staticmethod
    def backward(ctx: Any, of_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the chunked head allows only one backward pass")
        # Scaled in place: the head's gradient is the one large tensor here.
        gradients, ctx.gradients = ctx.gradients, None
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(of_total)
        return *gradients, None, None, None


def _run(once: _Pass, loss: RowLoss, chunk: int) -> tuple[Tensor, ...]:
    size = len(once.hidden)
    with torch.autocast(once.hidden.device.type, enabled=False):
        starts = range(0, max(size, 1), chunk)
        chunks = [_chunk(once, loss, slice(start, min(start + chunk, size))) for start in starts]
    values = [torch.cat(parts) for parts in zip(*chunks, strict=True)]
    return values[0].sum(), *values


def _chunk(once: _Pass, loss: RowLoss, rows: slice) -> tuple[Tensor, ...]:
    wanted = any(gradient is not None for gradient in once.gradients)
    logits = once.logits(rows).requires_grad_(wanted)
    with torch.set_grad_enabled(wanted):
        result = loss(once.head.capped(logits), rows)
        values = result if isinstance(result, tuple) else (result,)
        gradients = torch.autograd.grad(values[0].sum(), logits) if wanted else ()
    for gradient in gradients:
        once.add(rows, gradient)
    return tuple(value.detach() for value in values)
