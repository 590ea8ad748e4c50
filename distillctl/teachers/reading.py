"""Read a causal language model's tokenizer and sizes without its weights."""

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
from distillctl.errors import DataError, RecipeError, UnavailableError, first_line
from distillctl.models import checkpoint_files
from distillctl.models.from_pretrained import folder, options
from distillctl.models.model_source import ModelSource
from distillctl.recipe import HuggingFaceTeacher
from distillctl.run_dir.facts import TeacherSize
from distillctl.teachers.answer_tokens import AnswerTokenizer, InPlace
from distillctl.teachers.worker_pool import AnswerRequest, Answers, View


class LocalReader:
    """A local teacher without its weights: it encodes views and answers."""

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
        """Return the number of positions for which the model was made."""
        return int(getattr(self._config.get_text_config(), "max_position_embeddings", 0) or 2**31)

    @property
    def vocabulary(self) -> int:
        """Return the number of tokens, without the ids with which some models pad their output."""
        return min(len(self.tokenizer), int(self._config.get_text_config().vocab_size))

    def facts(self) -> TeacherSize:
        """Return the number of parameters and their bytes."""
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                self._config, dtype=getattr(torch, self.spec.dtype), trust_remote_code=self.spec.trust_remote_code
            )
        return sizes(model)

    def encode(self, text: str, *, chat: bool = False) -> list[int]:
        """Return the token ids of a view, without special tokens after it, because the answer follows.

        chat: the text comes from a chat template and has its special tokens already.
        """
        ids = self._ids(text, add_special_tokens=not chat)
        return ids if chat else ids[: len(ids) - self._behind]

    @cached_property
    def _behind(self) -> int:
        """Return how many special tokens the tokenizer adds after a text."""
        bare = self._ids("a", add_special_tokens=False)
        whole = self._ids("a", add_special_tokens=True)
        at = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), len(whole))
        return max(0, len(whole) - at - len(bare))

    def tokens(self, text: str) -> int:
        """Return the number of tokens of a text, without special tokens."""
        return len(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        with checkpoint_files.loading(lambda error: unavailable(self.spec, error)):
            ids = list(self.tokenizer(text, add_special_tokens=add_special_tokens).input_ids)
        rows = int(self._config.get_text_config().vocab_size)
        if ids and max(ids) >= rows:
            raise unavailable(self.spec, ValueError(f"its tokenizer has the id {max(ids)}, the model {rows:,} tokens"))
        return ids

    def in_place(self, text: str, words: Sequence[str], place: AnswerPlace) -> InPlace:
        """Return the tokens of a view and of each of ``words`` after it."""
        between, view = place.between(text), place.before(text)
        if place.prefix == "" and not place.chat and not view[-1:].isspace():
            # The recipe puts nothing between view and answer: the words keep tokens of their own, and do not continue
            # the view's last word.
            answers = tuple(tuple(self._ids(word, add_special_tokens=False)) for word in words)
            return InPlace(self.encode(view), answers, 0)
        return self._in_place[place.chat](view, [between + word for word in words])

    def label_tokens(self, text: str, words: Sequence[str], place: AnswerPlace) -> InPlace:
        """Do what `in_place` does for label words. Raise RecipeError if the tokenizer cannot write or distinguish
        them."""
        in_place = self.in_place(text, words, place)
        if (tuple(words), in_place.answers) not in self._checked:
            for label, ids in zip(words, in_place.answers, strict=True):
                self._check_label(label, ids, list(words)[in_place.answers.index(ids)])
            self._checked.add((tuple(words), in_place.answers))
        return in_place

    def _check_label(self, words: str, ids: Sequence[int], first: str) -> None:
        """Raise RecipeError for an unusable label. first: the first label with these tokens."""
        back = self.tokenizer.decode(ids)
        if self.tokenizer.unk_token_id in {*ids} - {None} or not "".join(back.split()).endswith("".join(words.split())):
            problem = f"the teacher's tokenizer cannot write {words!r} (it reads back as {back!r})"
            raise RecipeError(problem, where="task.labels")
        if first != words:
            problem = f"{first!r} and {words!r} are the same tokens to the teacher, which cannot tell them apart"
            raise RecipeError(problem, where="task.labels")

    def place(self, renderer: Renderer, example: Example, prefix: str | None) -> AnswerPlace:
        """Return where an answer begins after the context's views."""
        if renderer.where not in self._places:
            self._places[renderer.where] = renderer.answer_place(example, prefix, self.tokenizer)
        return self._places[renderer.where]

    def stop_ids(self, stop: Sequence[str]) -> list[int]:
        """Return the ids that end an answer, sorted: the model's own, and tokens that contain a string of ``stop``."""
        configured = getattr(self._generation_config, "eos_token_id", None)
        eos = {self.tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])} - {None}
        return responses.stop_ids(self.tokenizer, eos, stop)

    def text(self, renderer: Renderer, example: Example) -> str:
        """Return the row's text. Messages are rendered with the tokenizer's chat template."""
        return renderer.render(example, self.tokenizer)

    def view(self, renderer: Renderer, example: Example, request: AnswerRequest) -> View:
        """Return the row's text, its tokens, and its length with the limit."""
        text, place = self.text(renderer, example), self.place(renderer, example, request.prefix)
        if request.room:
            in_place = self.in_place(text, request.words, place) if request.words else None
        else:
            in_place = self.label_tokens(text, request.words, place)
        ids = self.encode(place.before(text), chat=renderer.is_chat) if in_place is None else in_place.view
        answers = () if in_place is None else in_place.answers
        limit = self.max_length - max([request.room, *map(len, answers)])
        if not ids:
            raise DataError(f"row {example.id}: the view is empty", where=renderer.where)
        length = Length(
            len(ids),
            Limit("the teacher", limit, f"the teacher takes {limit:,}, not counting its answer"),
            renderer.where,
        )
        return View(text, place.before(text), ids, answers, 0 if in_place is None else in_place.merged, length)


def sizes(model: torch.nn.Module) -> TeacherSize:
    """Return the number of a model's parameters and their bytes."""
    parameters = list(model.parameters())
    return TeacherSize(
        parameters=sum(p.numel() for p in parameters), bytes=sum(p.numel() * p.element_size() for p in parameters)
    )


def read(spec: HuggingFaceTeacher, source: ModelSource) -> LocalReader:
    """Load tokenizer and config, but no weights. Raise UnavailableError if they cannot be loaded."""
    arguments, place = options(source, spec.revision, spec.trust_remote_code), folder(source)
    with checkpoint_files.loading(lambda error: unavailable(spec, error)), console.libraries_quiet():
        tokenizer = AutoTokenizer.from_pretrained(place, **arguments)
        config = AutoConfig.from_pretrained(place, **arguments)
        try:
            generation_config = GenerationConfig.from_pretrained(place)
        except OSError:
            generation_config = GenerationConfig.from_model_config(config)
    return LocalReader(tokenizer, config, generation_config, spec)


def unavailable(spec: HuggingFaceTeacher, error: BaseException) -> UnavailableError:
    """Return the error that the teacher cannot be loaded, with the reason."""
    return UnavailableError(f"the teacher {spec.model} cannot be loaded: {first_line(error)}", where="teacher.model")
