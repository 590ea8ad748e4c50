"""Load models from their references, with the Auto class that a task needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from distillctl import console
from distillctl.errors import RecipeError, UnavailableError, first_line
from distillctl.models import checkpoint_files
from distillctl.models.from_pretrained import check_size, folder, options
from distillctl.models.model_source import ModelSource
from distillctl.recipe import Recipe, Task


def auto_class(task: Task, config: Any, *, where: str) -> Any:
    """Return the transformers Auto class of a task's student. Raise RecipeError if the architecture has none."""
    auto: Any
    if task.answers:
        auto, ability = AutoModelForSequenceClassification, "classify"
    else:
        auto, ability = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM, "generate text"
    if type(config) not in auto._model_mapping and not hasattr(config, "auto_map"):
        raise RecipeError(f"{config.model_type} cannot {ability}", where=where)
    return auto


def response_room(recipe: Recipe, config: Any) -> int:
    """Return how many tokens a decoder keeps for its response, which follows the view; 0 for any other student."""
    return 0 if config.is_encoder_decoder else recipe.task.response_tokens


def warn_of_code(source: ModelSource) -> None:
    """Warn about ``trust_remote_code``."""
    console.warn(f"student.trust_remote_code: Python code that comes with {source.reference} is run on this machine")


def label_config(task: Task) -> dict[str, Any]:
    """Return the keys of a transformers config that name the outputs of the student's head, if it has one."""
    labels = list(task.answers)
    if not labels:
        return {}
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }


def model(recipe: Recipe, source: ModelSource, revision: str | None, trust_remote_code: bool) -> PreTrainedModel:
    """Load safetensors or GGUF weights: to classify, with a fresh head if the checkpoint has none; to generate, with
    its own.

    Raises UnavailableError if they cannot be loaded, RecipeError if they are of another kind.
    """
    if trust_remote_code:
        warn_of_code(source)
    arguments, place = options(source, revision, trust_remote_code), folder(source)
    with checkpoint_files.loading(lambda error: unavailable(source, error)):
        config = AutoConfig.from_pretrained(place, **arguments)
    auto = auto_class(recipe.task, config, where="student.model")
    fresh_head, labels = bool(recipe.task.answers), label_config(recipe.task)
    if source.path is not None and not trust_remote_code:
        with checkpoint_files.loading(lambda error: unavailable(source, error)), console.libraries_quiet():
            check_size(auto, config, Path(place))
    with checkpoint_files.loading(lambda error: unavailable(source, error)), console.libraries_quiet():
        loaded: tuple[PreTrainedModel, dict[str, Any]] = auto.from_pretrained(
            place,
            use_safetensors=True,
            ignore_mismatched_sizes=fresh_head,
            output_loading_info=True,
            dtype="float32",
            **arguments,
            **labels,
        )
    model, info = loaded
    drawn = [*info["missing_keys"], *(key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"])]
    body = [key for key in drawn if key.startswith(f"{model.base_model_prefix}.") and "pooler" not in key]
    if missing := body if fresh_head else drawn:
        raise UnavailableError(f"{source.reference} has no weights for {sorted(missing)[0]}", where="student.model")
    if response_room(recipe, model.config):
        look_back_only(model, where="student.model")
    return model


@torch.no_grad()
def look_back_only(model: PreTrainedModel, *, where: str) -> None:
    """Raise RecipeError for an encoder in a decoder's place (BERT also has a language model's head).

    In a decoder, a later token does not change an earlier one's logits.
    """
    rows = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=model.device) % model.config.get_text_config().vocab_size
    training = model.training
    before, after = model.eval()(input_ids=rows).logits[:, :3].float()
    model.train(training)
    if not torch.allclose(before, after, atol=1e-3 * float(before.abs().max())):
        raise RecipeError(f"{model.config.model_type} sees later tokens, so it is not a decoder", where=where)


def unavailable(source: ModelSource, error: BaseException) -> UnavailableError:
    """Return the error for a student that cannot be loaded."""
    return UnavailableError(f"the student {source.reference} cannot be loaded: {first_line(error)}", where="student")
