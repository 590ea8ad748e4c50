"""Attention as one operator of ONNX Runtime, asked for while the model is traced rather than found in its graph.

transformers lets attention be replaced by name. Under `fused` an encoder's becomes a `MultiHeadAttention` with the
padding mask as it came in; traced as it is, its mask alone takes some thirty operators, and ONNX Runtime's optimizers,
which know attention by its pattern, fuse nothing. Layers that mask or bias in another way are traced as before.
What that and `tracing.keep_norms` bring against optimum's graph: `make bench-peers`, the row "+ our graph".
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
    """While the model is traced. It cannot be run meanwhile; one that knows no such replacement stays as it is."""
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
    """Bool [B, S], true where a key is no padding, where that is all there is to mask; else [B, 1, T, S]."""
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
    """query, key, value: float32 [B, H, T, d]. Returns [B, T, H, d] and no weights, as transformers' functions do."""
    as_it_is = position_bias is not None or key.shape[1] != query.shape[1]
    if as_it_is or attention_mask is None or attention_mask.dim() != 2:
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
