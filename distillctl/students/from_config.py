"""Build a new small model of a known architecture, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from distillctl.errors import RecipeError
from distillctl.models import model_source
from distillctl.recipe import FromConfigStudent, NewTokenizer, Recipe
from distillctl.students import loading, new_tokenizer, preflight, tokenization
from distillctl.students.finalize import assemble
from distillctl.students.student import Corpus, Student


def build(spec: FromConfigStudent, recipe: Recipe, corpus: Corpus) -> Student:
    """Build the student.

    ``spec.config`` may set any of the architecture's sizes; vocabulary and special ids are the tokenizer's. Raises
    RecipeError for an unknown architecture, size or value, or one that cannot do the task.
    """
    try:
        known = AutoConfig.for_model(spec.model_type)
    except ValueError as error:
        raise RecipeError(
            f"transformers has no architecture {spec.model_type!r}", where="student.model_type"
        ) from error
    auto = loading.auto_class(recipe.task, known, where="student.model_type")
    if unknown := sorted(set(spec.config) - set(known.to_dict())):  # a config keeps any key it is given
        raise RecipeError(f"{spec.model_type} has no {unknown[0]!r}", where="student.config")
    preflight.check_sizes(spec)
    tokenizer = tokenization.pad(_tokenizer(spec, recipe, corpus, known))
    labels = loading.label_config(recipe.task)
    try:
        config = AutoConfig.for_model(spec.model_type, **_vocabulary(known, tokenizer) | spec.config | labels)
        _check_memory(auto, config)
        model = auto.from_config(config)
    except (ValueError, KeyError, TypeError, RuntimeError, AssertionError, StrictDataclassError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()  # the first may name a validator
        raise RecipeError(f"the model cannot be built: {why}", where="student.config") from error
    if model.get_input_embeddings().weight.shape[0] < len(tokenizer):
        raise RecipeError(f"the tokenizer has more tokens: {len(tokenizer)}", where="student.config.vocab_size")
    if loading.response_room(recipe, config):
        loading.look_back_only(model, where="student.model_type")
    return assemble(model, tokenizer, recipe, corpus, max_length=spec.max_length)


def _check_memory(auto: Any, config: Any) -> None:
    """Raise RecipeError if the weights alone exceed this machine's memory."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in auto.from_config(config).parameters())
    preflight.check_memory(count)


def _tokenizer(spec: FromConfigStudent, recipe: Recipe, corpus: Corpus, config: object) -> Any:
    if isinstance(spec.tokenizer, NewTokenizer):
        return new_tokenizer.train(spec.tokenizer, corpus.texts, new_tokenizer.frame_for(recipe.task, config))
    source = model_source.student(recipe)
    assert source is not None
    return tokenization.of(source, spec.revision)


def _vocabulary(known: Any, tokenizer: Any) -> dict[str, Any]:
    """Return size and special ids for a new model. An encoder–decoder starts with the padding token, as in T5 and
    Marian.

    Other things that an architecture would force upon answers (Marian: an end token at the longest length) are omitted.
    """
    defaults = known.to_dict()
    settings = {
        key: getattr(tokenizer, key, None) if key[:3] in ("bos", "eos", "pad", "cls", "sep", "unk") else None
        for key in defaults
        if key.endswith("_token_id")
    }
    settings |= {"vocab_size": len(tokenizer)}
    if known.is_encoder_decoder:
        settings |= {"decoder_start_token_id": tokenizer.pad_token_id}
    if "decoder_vocab_size" in defaults:
        settings |= {"decoder_vocab_size": len(tokenizer)}
    return settings
