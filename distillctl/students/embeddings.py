"""Cut rows out of a model's embeddings on both ends, and renumber the token ids in its configs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from distillctl.errors import RecipeError

_LISTS = ("suppress_tokens", "begin_suppress_tokens")


def rows(model: PreTrainedModel) -> int:
    """Return the number of rows of the input embedding; a padded one has more than the tokenizer has tokens."""
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def token_ids(model: PreTrainedModel) -> set[int]:
    """Return the ids that the model's configs name, which must stay."""
    values = [value for config in _configs(model) for key, value in _id_keys(config)]
    flat = {token for value in values for token in (value if isinstance(value, list) else [value])}
    return {token for token in flat if token is not None and 0 <= token < rows(model)}


def cut(model: PreTrainedModel, kept: np.ndarray) -> int:
    """Keep only the rows ``kept`` (old ids, int64 [V_new]), in this order, in place; tied weights stay tied.

    Returns the number of removed parameters. Raises RecipeError if the model has another table of the vocabulary.
    """
    before, old = _parameters(model), rows(model)
    index = torch.from_numpy(kept)
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    tables: list[nn.Parameter] = [embedding.weight]
    if head is not None:
        tables += [tensor for tensor in (head.weight, head.bias) if tensor is not None]
    if any(len(table) != old for table in tables):
        raise _refused(model, "its input and its output have different vocabularies")
    new = {id(table): nn.Parameter(table.detach()[index].clone(), table.requires_grad) for table in tables}
    for module in model.modules():
        _cut_module(module, new, index, old)
    if left := next((name for name, tensor in model.named_parameters() if _is_table(tensor, old, new)), None):
        raise _refused(model, f"{left} also has a row for each token")
    _renumber(model, {int(token): position for position, token in enumerate(kept)}, old)
    return before - _parameters(model)


def _cut_module(module: nn.Module, new: dict[int, nn.Parameter], index: torch.Tensor, old: int) -> None:
    for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
        if id(parameter) in new:
            setattr(module, name, new[id(parameter)])
            if isinstance(module, nn.Embedding):
                module.num_embeddings = len(index)
                if module.padding_idx is not None:
                    module.padding_idx = int((index == module.padding_idx).nonzero()[0])
            elif isinstance(module, nn.Linear):
                module.out_features = len(index)
    if "final_logits_bias" in module._buffers:  # Marian's and BART's, [1, V]
        module._buffers["final_logits_bias"] = module.get_buffer("final_logits_bias")[:, index].clone()
    if getattr(module, "vocab_size", None) == old:
        module.vocab_size = len(index)  # type: ignore[assignment]


def _is_table(tensor: torch.Tensor, old: int, new: dict[int, nn.Parameter]) -> bool:
    return tensor.dim() == 2 and len(tensor) == old and all(tensor is not parameter for parameter in new.values())


def _renumber(model: PreTrainedModel, new_ids: dict[int, int], old: int) -> None:
    for config in _configs(model):
        for key, value in _id_keys(config):
            setattr(config, key, _new(value, new_ids))
        for key in _LISTS:
            if getattr(config, key, None):
                setattr(config, key, [new_ids[token] for token in getattr(config, key) if token in new_ids])
        if banned := getattr(config, "bad_words_ids", None):
            config.bad_words_ids = [[new_ids[t] for t in word] for word in banned if all(t in new_ids for t in word)]
        for key in ("vocab_size", "decoder_vocab_size"):
            if getattr(config, key, None) == old:
                setattr(config, key, len(new_ids))


def _new(value: Any, new_ids: dict[int, int]) -> Any:
    return [new_ids[token] for token in value if token in new_ids] if isinstance(value, list) else new_ids.get(value)


def _configs(model: PreTrainedModel) -> Iterator[Any]:
    yield model.config
    if (generation := getattr(model, "generation_config", None)) is not None:  # a classifier has none
        yield generation


def _id_keys(config: Any) -> Iterator[tuple[str, Any]]:
    """Yield keys such as `eos_token_id` and `forced_bos_token_id`, with one id or several."""
    for key, value in config.to_dict().items():
        if key.endswith(("_token_id", "_token_ids")) and value is not None:
            yield key, value


def _parameters(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _refused(model: PreTrainedModel, why: str) -> RecipeError:
    return RecipeError(
        f"the vocabulary of {model.config.model_type} cannot be trimmed: {why}", where="student.vocabulary"
    )
