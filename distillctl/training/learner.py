"""Hold a model and its optimizer during training, whole on each rank (DDP) or in shards (FSDP2).

Ranks share the rows of every batch. The loss is a sum over positions divided by the step's total count. DDP and FSDP
average gradients over ranks; multiplying each rank's loss by their number makes sums of these averages.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel, get_scheduler

from distillctl import console, ranks
from distillctl.recipe import Train
from distillctl.training import collectives, precision

Batch = Sequence[int] | np.ndarray
"""Row numbers."""


class Loss(Protocol):
    """A differentiable sum over positions, to train on."""

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """Return the SUM of the loss over the positions of some train rows, in nats, as a differentiable scalar."""


class Learner:
    """A model with optimizer and schedule. ``model`` stays whole, for evaluation.

    With shards a copy of it is trained, and `measured` copies the weights back. steps: number of steps of the whole
    schedule.
    """

    def __init__(self, model: PreTrainedModel, objective: Loss, spec: Train, steps: int) -> None:
        self.mixed_precision = precision.chosen(spec)
        with console.libraries_quiet():
            self.accelerator = Accelerator(cpu=collectives.on_cpu(), mixed_precision=self.mixed_precision)
        self.device = self.accelerator.device
        self.model, self.clip_norm = model.to(self.device), spec.clip_norm
        self.in_shards = ranks.count() > 1 and parse_flag_from_env("ACCELERATE_USE_FSDP")
        step = _Step(copy.deepcopy(model) if self.in_shards else model, objective)
        self._trained = step.model
        self._step = self._spread(step)
        groups = _decay_groups(self._trained, spec.weight_decay)
        self._optimizer = torch.optim.AdamW(groups, lr=spec.learning_rate, fused=True)
        self._schedule = get_scheduler(spec.schedule, self._optimizer, round(spec.warmup * steps), steps)

    def _spread(self, step: _Step) -> nn.Module:
        if self.in_shards:
            mesh = init_device_mesh(self.device.type, (ranks.count(),))
            layers = set(step.model._no_split_modules or ())
            for module in list(step.modules()):
                if type(module).__name__ in layers:
                    fully_shard(module, mesh=mesh)
            fully_shard(step, mesh=mesh)
            return step
        if ranks.count() > 1:
            devices = None if self.device.type == "cpu" else [self.device]
            return DistributedDataParallel(step, device_ids=devices, find_unused_parameters=True)
        return step

    # ── a step ───────────────────────────────────────────────────────────────────────────────────

    def gradients(self, batches: Sequence[Batch], count: int) -> tuple[float, float]:
        """Compute the gradients of the mean over all ``count`` positions of ``batches``. Return (mean, their norm)."""
        self._step.train()
        total = 0.0
        for number, batch in enumerate(batches):
            mine: Batch = ranks.share(batch)
            counts = len(mine) > 0
            with self._unless_last(number == len(batches) - 1), self._quiet():
                with self.accelerator.autocast():
                    # All ranks must exchange gradients: one without rows runs a row with weight 0.
                    loss = self._step(mine if counts else batch[:1]) / count
                (loss * (ranks.count() if counts else 0)).backward()
            total += loss.item() if counts else 0.0
        norm: Any = nn.utils.clip_grad_norm_(self._trained.parameters(), self.clip_norm)
        return total, float(_whole(norm))

    def update(self) -> None:
        """Take the optimizer step."""
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()

    @property
    def rate(self) -> float:
        """Return the learning rate of the next step."""
        return float(self._schedule.get_last_lr()[0])

    @contextlib.contextmanager
    def measured(self) -> Iterator[PreTrainedModel]:
        """Yield the whole model as it is now, to evaluate it."""
        if self.in_shards:
            put(self.weights(), self.model)
        self.model.eval()
        with torch.inference_mode(), self.accelerator.autocast():
            yield self.model

    def _unless_last(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Let DDP exchange gradients only after the last batch of a step."""
        waits = isinstance(self._step, DistributedDataParallel) and not last
        return self._step.no_sync() if waits else contextlib.nullcontext()  # type: ignore[operator]

    def _quiet(self) -> contextlib.AbstractContextManager[None]:
        """Silence FSDP's warning about views that T5's layers return; they are not changed in place."""
        return console.libraries_quiet() if self.in_shards else contextlib.nullcontext()

    # ── state ────────────────────────────────────────────────────────────────────────────────────

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of the weights in main memory, unsharded, each tensor under one name; on every rank."""
        return {
            name: _whole(tensor).to("cpu", copy=True).contiguous() for name, tensor in _tensors(self._trained).items()
        }

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """Return weights, the optimizer's `name:key`, and the schedule as JSON; tensors unsharded, on the first rank
        only.
        """
        tensors = _tensors(self._trained)
        moments = {
            f"{name}:{key}": value
            for name, parameter in tensors.items()
            for key, value in self._optimizer.state.get(parameter, {}).items()
        }
        weights, optimizer = (_on_first(part) for part in (tensors, moments))
        return weights, optimizer, self._schedule.state_dict()

    def restore(self, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], schedule: dict[str, Any]) -> None:
        """Load what `state` returned, on any number of ranks."""
        put(weights, self._trained)
        tensors = _tensors(self._trained)
        for name, value in optimizer.items():
            name, _, key = name.rpartition(":")
            parameter = tensors[name]
            if key == "step":
                target = value.to(self.device)
            else:
                target = torch.zeros_like(parameter, requires_grad=False)
                _put(value, target)
            self._optimizer.state[parameter][key] = target
        self._schedule.load_state_dict(schedule)
        for group, rate in zip(self._optimizer.param_groups, self._schedule.get_last_lr(), strict=True):
            group["lr"] = rate


class _Step(nn.Module):
    """The loss as a forward pass, into which DDP and FSDP hook. The loss uses parts of the model inside."""

    def __init__(self, model: PreTrainedModel, objective: Loss) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> Tensor:
        return self.objective.loss(self.model, batch)


def put(weights: Mapping[str, Tensor], model: nn.Module) -> None:
    """Load weights from `Learner.weights` into a model, whole or in shards."""
    for name, tensor in _tensors(model).items():
        _put(weights[name], tensor)


@torch.no_grad()
def _put(value: Tensor, into: Tensor) -> None:
    if isinstance(into, DTensor):
        local = value.to(into.device)
        value = distribute_tensor(local, into.device_mesh, into.placements, src_data_rank=None)
    into.copy_(value)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers that are saved, each once: tied ones have several names."""
    names = {id(tensor): name for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
    return {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if names[id(tensor)] == name}


def _whole(tensor: Tensor) -> Tensor:
    whole: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach()


def _on_first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Unshard tensors, in which all ranks take part, and keep them on the first rank."""
    gathered = {}
    for name, tensor in tensors.items():
        whole = _whole(tensor)
        if ranks.is_first():
            gathered[name] = whole.cpu().contiguous()
    return gathered


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups with weight decay on matrices and none on biases and norms."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
