"""What has to be known of a causal language model before it answers: tokenizer and sizes, without the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from distillctl import console, model_files
from distillctl.data import responses
from distillctl.data.examples import Example
from distillctl.data.views import Renderer
from distillctl.engines.tasks import View
from distillctl.errors import DataError, RecipeError, Unavailable, first_line
from distillctl.pretrained import folder, options
from distillctl.recipe import Classify, HuggingFaceTeacher
from distillctl.references import ModelSource


class Reader:
    """Encodes views and answers."""

    def __init__(self, tokenizer: Any, config: Any, generation_config: Any, spec: HuggingFaceTeacher) -> None:
        self.tokenizer = tokenizer
        self.spec = spec
        self._config = config
        self._generation_config = generation_config

    @property
    def max_length(self) -> int:
        """Positions the model was made for."""
        return int(getattr(self._config.get_text_config(), "max_position_embeddings", 0) or 2**31)

    @property
    def vocabulary(self) -> int:
        """Tokens that exist: what some models pad their output with is none."""
        return min(len(self.tokenizer), int(self._config.get_text_config().vocab_size))

    def facts(self) -> dict[str, Any]:
        """Parameters and their bytes."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                self._config, dtype=getattr(torch, self.spec.dtype), trust_remote_code=self.spec.trust_remote_code
            )
        return sizes(model)

    def encode(self, text: str, *, chat: bool = False) -> list[int]:
        """Token ids of a view; a chat template has written its special tokens already."""
        ids = self._ids(text, add_special_tokens=not chat)
        if not chat and len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id and not text.endswith("</s>"):
            ids.pop()  # the answer goes on where the view ends
        return ids

    def tokens(self, text: str) -> int:
        """How many there are in a text, without special ones."""
        return len(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        with model_files.loading(lambda error: unavailable(self.spec, error)):
            ids = list(self.tokenizer(text, add_special_tokens=add_special_tokens).input_ids)
        rows = int(self._config.get_text_config().vocab_size)
        if ids and max(ids) >= rows:
            raise unavailable(self.spec, ValueError(f"its tokenizer has the id {max(ids)}, the model {rows:,} tokens"))
        return ids

    def encode_answer(self, words: str) -> list[int]:
        """Token ids of label words; RecipeError when the vocabulary cannot say them."""
        ids = self._ids(words, add_special_tokens=False)
        unknown = self.tokenizer.unk_token_id
        back = self.tokenizer.decode(ids) if ids else ""
        if not ids or (unknown is not None and unknown in ids) or back.strip() != words.strip():
            raise RecipeError(
                f"the teacher's tokenizer cannot write {words!r} (it reads back as {back!r})", where="task.labels"
            )
        return ids

    def answers(self, task: Classify) -> list[list[int]]:
        """The labels' words as token ids."""
        return [self.encode_answer(task.answer_prefix + words) for words in task.labels.values()]

    def stop_ids(self, stop: Sequence[str]) -> list[int]:
        """The tokens at which an answer ends, sorted: the model's own, and those that contain a string of ``stop``."""
        own = getattr(self._generation_config, "eos_token_id", None)
        eos = {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
        return responses.stop_ids(self.tokenizer, eos, stop)

    def view(self, renderer: Renderer, example: Example, *, answer_tokens: int, cut: bool) -> View:
        """The row's text and tokens; too long is an error, or the end of the input is cut."""
        text = renderer.render(example, self.tokenizer)
        ids, limit = self.encode(text, chat=renderer.is_chat), self.max_length - answer_tokens
        if not ids:
            raise DataError(f"row {example.id}: the view is empty", where=renderer.where)
        if len(ids) <= limit:
            return View(text, ids)
        words = self._ids(example.input, add_special_tokens=False)
        keep = len(words) - (len(ids) - limit)
        if not cut or keep < 1:
            raise DataError(
                f"row {example.id}: the view has {len(ids)} tokens, the teacher takes {limit} before the answer",
                where=renderer.where,
                next="shorten the context, or set contexts.truncate: input",
            )
        shorter = Example(example.id, self.tokenizer.decode(words[:keep]), example.reference, example.documents)
        return self.view(renderer, shorter, answer_tokens=answer_tokens, cut=cut)


def sizes(model: torch.nn.Module) -> dict[str, Any]:
    """Parameters and their bytes."""
    parameters = list(model.parameters())
    return {
        "parameters": sum(p.numel() for p in parameters),
        "bytes": sum(p.numel() * p.element_size() for p in parameters),
    }


def read(spec: HuggingFaceTeacher, source: ModelSource) -> Reader:
    """Tokenizer and config, of weights none. Unavailable when they cannot be had."""
    given, place = options(source, spec.revision, spec.trust_remote_code), folder(source)
    with model_files.loading(lambda error: unavailable(spec, error)), console.libraries_quiet():
        tokenizer = AutoTokenizer.from_pretrained(place, **given)
        config = AutoConfig.from_pretrained(place, **given)
        try:
            generation_config = GenerationConfig.from_pretrained(place)
        except OSError:
            generation_config = GenerationConfig.from_model_config(config)
    return Reader(tokenizer, config, generation_config, spec)


def unavailable(spec: HuggingFaceTeacher, error: BaseException) -> Unavailable:
    """That the teacher cannot be had, and why."""
    return Unavailable(f"the teacher {spec.model} cannot be loaded: {first_line(error)}", where="teacher.model")
