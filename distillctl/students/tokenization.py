"""Load a student's tokenizer, set its special tokens for the task, or rebuild it around another backend."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from distillctl import console
from distillctl.models import checkpoint_files, from_pretrained
from distillctl.models.model_source import ModelSource
from distillctl.students import loading

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def of(source: ModelSource, revision: str | None, trust_remote_code: bool = False) -> Any:
    """Load the model's fast tokenizer. Raise UnavailableError if there is none."""
    with checkpoint_files.loading(lambda error: loading.unavailable(source, error)), console.libraries_quiet():
        return AutoTokenizer.from_pretrained(
            from_pretrained.folder(source), **from_pretrained.options(source, revision, trust_remote_code)
        )


def for_writing_on(tokenizer: Any, *, chat: bool) -> Any:
    """A decoder's tokenizer, so that the response goes on where the view ends, here and wherever it is deployed: no end
    token after the view; around a ``chat`` view nothing at all, its template has written the special tokens already."""
    ids = tokenizer("a").input_ids
    ends = ids[-1] == tokenizer.eos_token_id
    plain = tokenizer("a", add_special_tokens=False).input_ids
    if ids == plain or not (chat or ends):
        return tokenizer
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    begins = not chat and ids[0] == tokenizer.bos_token_id
    first = [(tokenizer.bos_token, tokenizer.bos_token_id)] if begins else []
    template = f"{tokenizer.bos_token} $A" if begins else "$A"
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=first)
    return with_backend(tokenizer, backend)


def with_backend(tokenizer: Any, backend: Tokenizer) -> PreTrainedTokenizerFast:
    """Rebuild a tokenizer around another backend, with the class that uses tokenizer.json unchanged."""
    vocabulary = backend.get_vocab()
    names = {name: token for name in _NAMES if (token := getattr(tokenizer, name, None)) in vocabulary}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **names,
        extra_special_tokens=[token for token in tokenizer.extra_special_tokens if token in vocabulary],
        chat_template=tokenizer.chat_template,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        model_input_names=tokenizer.model_input_names,
        clean_up_tokenization_spaces=tokenizer.clean_up_tokenization_spaces,
    )


def pad(tokenizer: Any) -> Any:
    """The tokenizer with a padding token and padding on the right. No token is added: the end token does, unseen."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    return tokenizer
