"""Load a trained student for later stages: its model, or everything but the weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel

from distillctl import console
from distillctl.models import checkpoint_files, model_source
from distillctl.recipe import Recipe
from distillctl.run_dir.facts import VocabularyFacts
from distillctl.students import loading, tokenization
from distillctl.students.student import Student


def model(recipe: Recipe, folder: Path) -> PreTrainedModel:
    """Load the model that train saved in ``folder``, in float32."""
    trust = trusted(recipe)
    checkpoint_files.check_size(folder)
    with console.libraries_quiet():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
        loaded: PreTrainedModel = loading.auto_class(recipe.task, config, where="student").from_pretrained(
            folder, dtype="float32", use_safetensors=True, local_files_only=True, trust_remote_code=trust
        )
    return loaded


def trusted(recipe: Recipe) -> bool:
    """Tell whether code that comes with the model is run; train has warned about it."""
    return bool(getattr(recipe.student, "trust_remote_code", False))


def without_weights(recipe: Recipe, folder: Path, max_length: int, vocabulary: VocabularyFacts | None) -> Student:
    """Return the student that train saved in ``folder``, with its model on torch's meta device.

    The old ids of a trimmed vocabulary are found by the tokens' names in the tokenizer from which it started.
    """
    trust = trusted(recipe)
    checkpoint_files.check_size(folder)
    with console.libraries_quiet(), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
        auto = loading.auto_class(recipe.task, config, where="student")
        empty = auto.from_config(config, trust_remote_code=trust)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
    source, kept = model_source.student(recipe), None
    if vocabulary is not None and source is not None:
        before = tokenization.of(source, recipe.student.revision, trust).get_vocab()
        names = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        kept = np.array([before[token] for token, _ in names], np.int64)
    return Student(empty, tokenizer, max_length, kept, vocabulary, loading.response_room(recipe, config))
