"""Keep chosen layers of a larger pretrained model (Sanh et al. 2019, "DistilBERT", section 3)."""

from __future__ import annotations

from optimum.utils import NormalizedConfigManager
from torch import nn
from transformers import PreTrainedModel

from distillctl.errors import RecipeError
from distillctl.recipe import Recipe, TruncatedStudent
from distillctl.students import pretrained
from distillctl.students.finalize import assemble
from distillctl.students.preflight import missing_layers
from distillctl.students.student import Corpus, Student


def build(spec: TruncatedStudent, recipe: Recipe, corpus: Corpus) -> Student:
    """Build the pretrained student with only ``spec.layers``, in that order."""
    model, tokenizer = pretrained.load(spec, recipe)
    keep_layers(model, spec.layers)
    return assemble(model, tokenizer, recipe, corpus, max_length=spec.max_length, vocabulary=spec.vocabulary)


def keep_layers(model: PreTrainedModel, layers: tuple[int, ...]) -> None:
    """Keep only ``layers`` (indices from 0) of the model's one stack, in place. Raise RecipeError if one is missing."""
    config = model.config
    key = _depth_key(model)
    depth = getattr(config, key)
    if not layers or max(layers) >= depth:
        raise missing_layers(layers, depth)
    stacks = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == depth
    ]
    if len(stacks) != 1:
        raise RecipeError(
            f"{config.model_type} has {len(stacks)} stacks of {depth} layers, not one", where="student.model"
        )
    parent, name, stack = stacks[0]
    kept = nn.ModuleList(stack[index] for index in layers)
    setattr(parent, name, kept)
    for index, layer in enumerate(kept):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]  # where the layer's keys and values go in a cache
    setattr(config, key, len(layers))
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[index] for index in layers]


def _depth_key(model: PreTrainedModel) -> str:
    """Return the architecture's name for its number of layers: from optimum's table, or the config's own name."""
    try:
        normalized = NormalizedConfigManager.get_normalized_config_class(model.config.model_type)
        return str(normalized(model.config).NUM_LAYERS)
    except KeyError:
        return "num_hidden_layers"
