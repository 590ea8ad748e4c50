"""Trace attention as one operator of ONNX Runtime, instead of searching for its pattern in the graph.

transformers lets attention be replaced by name. Under `fused` an encoder's attention becomes a `MultiHeadAttention`
with the original padding mask. Without it the mask alone takes about thirty operators, and ONNX Runtime's optimizers,
which recognise attention by its pattern, fuse nothing. Layers with other masks or biases are traced as they are. The
row "+ our graph" of `make bench-peers` shows the gain over optimum's graph, together with `tracing.keep_norms`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, bidirectional_mask_function, sdpa_mask
from transformers.modeling_utils import AttentionInterface

_NAME = "distillctl_onnxruntime"


@contextmanager
def fused(model: PreTrainedModel) -> Iterator[None]:
    """Replace the model's attention within the block, for tracing only: the model cannot run meanwhile.

    A model that supports no replacement stays as it is.
    """
    before = model.config._attn_implementation
    if not getattr(model, "_supports_attention_backend", False):
        yield
        return
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, _mask)
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _mask(*, mask_function: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Return bool [B, S], true except for padding, if padding is all that is masked; else [B, 1, T, S]."""
    if mask_function is bidirectional_mask_function and attention_mask is not None:
        return attention_mask
    return sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, **kwargs)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Take float32 [B, H, T, d]; return [B, T, H, d] and no weights, as transformers' functions do."""
    unsupported = position_bias is not None or key.shape[1] != query.shape[1]
    if unsupported or attention_mask is None or attention_mask.dim() != 2:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, position_bias=position_bias, **kwargs
        )
    batch, heads, length, size = query.shape
    inputs = [states.transpose(1, 2).reshape(batch, states.shape[2], heads * size) for states in (query, key, value)]
    output = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        [*inputs, None, attention_mask.to(torch.int32)],  # the fourth is for biases of the projections
        {"num_heads": heads, "scale": size**-0.5 if scaling is None else float(scaling)},
        dtype=query.dtype,
        shape=(batch, length, heads * size),
        version=1,
    )
    return output.reshape(batch, length, heads, size), None
