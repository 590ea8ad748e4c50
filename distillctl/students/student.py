"""A student: a sequence classifier whose labels have names, and its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel

from distillctl import console
from distillctl.errors import DataError, Unavailable, first_line
from distillctl.references import ModelSource


@dataclass(frozen=True)
class Student:
    """model: logits [B, K] in label order; max_length: tokens its simplified view may have."""

    model: PreTrainedModel
    tokenizer: Any
    max_length: int

    def encode(self, texts: Sequence[str], ids: Sequence[str], *, cut: bool) -> list[list[int]]:
        """Token ids per simplified view. Too long: DataError naming the row, or (``cut``) its end is cut."""
        encoded: list[list[int]] = self.tokenizer(list(texts), truncation=cut, max_length=self.max_length).input_ids
        for row, tokens in zip(ids, encoded, strict=True):
            if len(tokens) > self.max_length:
                raise DataError(
                    f"row {row}: the simplified view has {len(tokens)} tokens, the student takes {self.max_length}",
                    where="contexts.simplified",
                    next="shorten it, raise student.max_length, or set contexts.truncate: input",
                )
        return encoded


def label_config(labels: Sequence[str]) -> dict[str, Any]:
    """Label names as transformers configs carry them."""
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }


def tokenizer_of(source: ModelSource, revision: str | None, trust_remote_code: bool = False) -> Any:
    """The model's fast tokenizer; Unavailable when there is none."""
    options = {"revision": revision} if revision and source.path is None else {}
    try:
        with console.libraries_quiet():
            return AutoTokenizer.from_pretrained(source.name, trust_remote_code=trust_remote_code, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise _unavailable(source, error) from error


def finish(model: PreTrainedModel, tokenizer: Any, max_length: int | None) -> Student:
    """Agree on the padding token and on the longest view."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    model.config.pad_token_id = tokenizer.pad_token_id
    allowed = getattr(model.config, "max_position_embeddings", None) or 2**31
    longest = min(allowed, tokenizer.model_max_length)
    if model.config.model_type in ("roberta", "xlm-roberta", "camembert"):
        longest = min(longest, allowed - model.config.pad_token_id - 1)  # their positions start after the padding id
    return Student(model, tokenizer, min(max_length or longest, longest))


def load_classifier(
    auto: Any, source: ModelSource, revision: str | None, trust_remote_code: bool, **config: Any
) -> Any:
    """`from_pretrained` of safetensors weights, with a fresh head where the checkpoint has none."""
    options = {"revision": revision} if revision and source.path is None else {}
    if trust_remote_code:
        console.warn(
            f"student.trust_remote_code: Python code that comes with {source.reference} is run on this machine"
        )
    try:
        with console.libraries_quiet():
            model, info = auto.from_pretrained(
                source.name,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                trust_remote_code=trust_remote_code,
                dtype="float32",
                **options,
                **config,
            )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unavailable(source, error) from error
    drawn = [*info["missing_keys"], *(key[0] if isinstance(key, tuple) else key for key in info["mismatched_keys"])]
    body = [key for key in drawn if key.startswith(f"{model.base_model_prefix}.") and "pooler" not in key]
    if body:
        raise Unavailable(f"{source.reference} has no weights for {sorted(body)[0]}", where="student.model")
    return model


def _unavailable(source: ModelSource, error: Exception) -> Unavailable:
    return Unavailable(f"the student {source.reference} cannot be loaded: {first_line(error)}", where="student")
