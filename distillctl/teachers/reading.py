"""What has to be known of a causal language model before it answers: tokenizer and sizes, without the weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from distillctl import console
from distillctl.data import responses
from distillctl.data.answer_place import AnswerPlace
from distillctl.data.rows import Example
from distillctl.data.truncation import Length, Limit
from distillctl.data.views import Renderer
from distillctl.engines.worker_pool import Answers, Asked, View
from distillctl.errors import DataError, RecipeError, UnavailableError, first_line
from distillctl.models import checkpoint_files
from distillctl.models.from_pretrained import folder, options
from distillctl.models.model_source import ModelSource
from distillctl.recipe import HuggingFaceTeacher
from distillctl.teachers.answer_tokens import AnswerTokenizer, InPlace


class LocalReader:
    """Encodes views and answers."""

    def __init__(self, tokenizer: Any, config: Any, generation_config: Any, spec: HuggingFaceTeacher) -> None:
        self.tokenizer = tokenizer
        self.spec = spec
        self._config = config
        self._generation_config = generation_config
        self._in_place = {chat: AnswerTokenizer(partial(self.encode, chat=chat)) for chat in (False, True)}
        self._places: dict[str, AnswerPlace] = {}
        self._checked: set[tuple[tuple[str, ...], Answers]] = set()

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
        """Token ids of a view; a chat template has written its special tokens already. What a tokenizer puts after a
        text is left out: the answer goes on where the view ends."""
        ids = self._ids(text, add_special_tokens=not chat)
        return ids if chat else ids[: len(ids) - self._behind]

    @cached_property
    def _behind(self) -> int:
        """How many special tokens the tokenizer puts after a text."""
        bare = self._ids("a", add_special_tokens=False)
        whole = self._ids("a", add_special_tokens=True)
        at = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), len(whole))
        return max(0, len(whole) - at - len(bare))

    def tokens(self, text: str) -> int:
        """How many there are in a text, without special ones."""
        return len(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        with checkpoint_files.loading(lambda error: unavailable(self.spec, error)):
            ids = list(self.tokenizer(text, add_special_tokens=add_special_tokens).input_ids)
        rows = int(self._config.get_text_config().vocab_size)
        if ids and max(ids) >= rows:
            raise unavailable(self.spec, ValueError(f"its tokenizer has the id {max(ids)}, the model {rows:,} tokens"))
        return ids

    def in_place(self, text: str, words: Sequence[str], place: AnswerPlace) -> InPlace:
        """The tokens of a view and of each of ``words`` after it."""
        between, view = place.between(text), place.before(text)
        if place.prefix == "" and not place.chat and not view[-1:].isspace():
            # The recipe says that nothing stands between: the words keep tokens of their own, and do not become the
            # rest of the view's last word.
            answers = tuple(tuple(self._ids(one, add_special_tokens=False)) for one in words)
            return InPlace(self.encode(view), answers, 0)
        return self._in_place[place.chat](view, [between + one for one in words])

    def label_tokens(self, text: str, words: Sequence[str], place: AnswerPlace) -> InPlace:
        """As `in_place`, of label words; RecipeError when the vocabulary cannot say them, or not tell them apart."""
        found = self.in_place(text, words, place)
        if (tuple(words), found.answers) not in self._checked:
            for label, ids in zip(words, found.answers, strict=True):
                self._check_label(label, ids, list(words)[found.answers.index(ids)])
            self._checked.add((tuple(words), found.answers))
        return found

    def _check_label(self, words: str, ids: Sequence[int], first: str) -> None:
        """first: the first label of these tokens."""
        back = self.tokenizer.decode(ids)
        if self.tokenizer.unk_token_id in {*ids} - {None} or not "".join(back.split()).endswith("".join(words.split())):
            what = f"the teacher's tokenizer cannot write {words!r} (it reads back as {back!r})"
            raise RecipeError(what, where="task.labels")
        if first != words:
            what = f"{first!r} and {words!r} are the same tokens to the teacher, which cannot tell them apart"
            raise RecipeError(what, where="task.labels")

    def place(self, renderer: Renderer, example: Example, prefix: str | None) -> AnswerPlace:
        """Where an answer follows the context's views."""
        if renderer.where not in self._places:
            self._places[renderer.where] = renderer.answer_place(example, prefix, self.tokenizer)
        return self._places[renderer.where]

    def stop_ids(self, stop: Sequence[str]) -> list[int]:
        """The tokens at which an answer ends, sorted: the model's own, and those that contain a string of ``stop``."""
        own = getattr(self._generation_config, "eos_token_id", None)
        eos = {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
        return responses.stop_ids(self.tokenizer, eos, stop)

    def text(self, renderer: Renderer, example: Example) -> str:
        """The row's text, messages as the tokenizer's own chat template writes them."""
        return renderer.render(example, self.tokenizer)

    def view(self, renderer: Renderer, example: Example, asked: Asked) -> View:
        """The row's text, its tokens and how long it may be."""
        text, place = self.text(renderer, example), self.place(renderer, example, asked.prefix)
        if asked.room:
            found = self.in_place(text, asked.words, place) if asked.words else None
        else:
            found = self.label_tokens(text, asked.words, place)
        ids = self.encode(place.before(text), chat=renderer.is_chat) if found is None else found.view
        answers = () if found is None else found.answers
        limit = self.max_length - max([asked.room, *map(len, answers)])
        if not ids:
            raise DataError(f"row {example.id}: the view is empty", where=renderer.where)
        length = Length(
            len(ids), Limit("the teacher", limit, f"the teacher takes {limit:,} before the answer"), renderer.where
        )
        return View(text, place.before(text), ids, answers, 0 if found is None else found.merged, length)


def sizes(model: torch.nn.Module) -> dict[str, Any]:
    """Parameters and their bytes."""
    parameters = list(model.parameters())
    return {
        "parameters": sum(p.numel() for p in parameters),
        "bytes": sum(p.numel() * p.element_size() for p in parameters),
    }


def read(spec: HuggingFaceTeacher, source: ModelSource) -> LocalReader:
    """Tokenizer and config, of weights none. UnavailableError when they cannot be had."""
    given, place = options(source, spec.revision, spec.trust_remote_code), folder(source)
    with checkpoint_files.loading(lambda error: unavailable(spec, error)), console.libraries_quiet():
        tokenizer = AutoTokenizer.from_pretrained(place, **given)
        config = AutoConfig.from_pretrained(place, **given)
        try:
            generation_config = GenerationConfig.from_pretrained(place)
        except OSError:
            generation_config = GenerationConfig.from_model_config(config)
    return LocalReader(tokenizer, config, generation_config, spec)


def unavailable(spec: HuggingFaceTeacher, error: BaseException) -> UnavailableError:
    """That the teacher cannot be had, and why."""
    return UnavailableError(f"the teacher {spec.model} cannot be loaded: {first_line(error)}", where="teacher.model")
