"""Render views for a teacher behind a server, and tokenize as far as the recipe names its tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from distillctl import console
from distillctl.data import responses
from distillctl.data.answer_place import AnswerPlace
from distillctl.data.rows import Example
from distillctl.data.views import MESSAGE, Renderer
from distillctl.errors import DataError, UnavailableError, first_line
from distillctl.models import checkpoint_files
from distillctl.models.model_source import ServedSource
from distillctl.run_dir.facts import AskedFacts, ServedFacts, TeacherSize
from distillctl.teachers.answer_tokens import AnswerTokenizer
from distillctl.teachers.openai.protocol import Prompt
from distillctl.teachers.openai.vocabulary import TokenBytes
from distillctl.teachers.worker_pool import AnswerRequest, Answers, View

CHARACTERS_PER_TOKEN = 4.0
"""Mean for English text under common vocabularies; used only if neither tokenizer nor server counts."""


class ServedReader:
    """A served teacher without its weights: it renders views, and the server tokenizes them."""

    def __init__(self, source: ServedSource) -> None:
        self.source = source
        self._characters = self._tokens = 0
        self._places: dict[str, AnswerPlace] = {}
        self.asked: Callable[[], AskedFacts] = AskedFacts
        """Returns the server's capabilities and the requests so far; empty if all answers were stored already."""

    @cached_property
    def known(self) -> TokenBytes | None:
        """Return the tokenizer that the recipe names, or None. Raise UnavailableError if it cannot be loaded."""
        source = self.source.tokenizer
        if source is None:
            return None
        from transformers import AutoTokenizer  # imports torch, which a server's client does not need

        from distillctl.models.from_pretrained import folder

        def unavailable(error: BaseException) -> UnavailableError:
            problem = f"the tokenizer {source.reference} cannot be loaded: {first_line(error)}"
            return UnavailableError(problem, where="teacher.tokenizer")

        with checkpoint_files.loading(unavailable), console.libraries_quiet():
            return TokenBytes(AutoTokenizer.from_pretrained(folder(source), trust_remote_code=False))

    @property
    def tokenizer(self) -> Any:
        """Return the teacher's tokenizer, if the recipe names it."""
        return None if self.known is None else self.known.tokenizer

    @property
    def vocabulary(self) -> int | None:
        """Return the size of the vocabulary, if it is known."""
        return None if self.known is None else len(self.known.tokenizer)

    def facts(self) -> TeacherSize:
        """Return the facts for the manifest: no sizes of weights, but address, API and requests."""
        served = ServedFacts(base_url=self.source.base_url, api=self.source.api, **self.asked().given)
        return TeacherSize(parameters=None, bytes=None, served=served)

    def place(self, renderer: Renderer, example: Example, prefix: str | None) -> AnswerPlace:
        """Return where an answer begins after the context's views. In a chat it begins a message."""
        if self.source.api == "chat":
            return AnswerPlace(prefix, chat=True)
        if renderer.where not in self._places:
            self._places[renderer.where] = renderer.answer_place(example, prefix)
        return self._places[renderer.where]

    def text(self, renderer: Renderer, example: Example) -> str:
        """Return the row's text, or its messages as one text, which `prompt` parses again."""
        return renderer.as_text(example)

    def view(self, renderer: Renderer, example: Example, request: AnswerRequest) -> View:
        """Return the row's text, and the tokens of a given response. Only the server knows the limit."""
        text = self.text(renderer, example)
        if not text.strip():
            raise DataError(f"row {example.id}: the view is empty", where=renderer.where)
        place = self.place(renderer, example, request.prefix)
        given = self._given(text, place, request.words) if request.room and request.words else ()
        return View(text, place.before(text), None, given)

    def _given(self, text: str, place: AnswerPlace, words: Sequence[str]) -> Answers:
        """Return the tokens of a given response after the view. In a chat it begins a message."""
        view, between = ("", "") if place.chat else (place.before(text), place.between(text))
        return self._in_place(view, [between + word for word in words]).answers

    @cached_property
    def _in_place(self) -> AnswerTokenizer:
        tokenizer = self.tokenizer
        return AnswerTokenizer(lambda text: list(tokenizer(text, add_special_tokens=False).input_ids))

    def tokens(self, text: str) -> int:
        """Return the number of tokens of a text: counted, or estimated from the server's counts so far."""
        if self.known is not None:
            return len(self.known.tokenizer(text, add_special_tokens=False).input_ids)
        rate = self._characters / self._tokens if self._tokens else CHARACTERS_PER_TOKEN
        return round(len(text) / rate)

    def counted(self, characters: int, tokens: int) -> None:
        """Learn from a server's count."""
        self._characters += characters
        self._tokens += tokens

    def stop_ids(self, stop: Sequence[str]) -> list[int]:
        """Return the ids that end an answer; none if they are unknown."""
        if self.known is None:
            return []
        eos = self.known.tokenizer.eos_token_id
        return responses.stop_ids(self.known.tokenizer, [] if eos is None else [eos], stop)


def prompt(text: str) -> Prompt:
    """Return the prompt or the messages to send for a view's text."""
    if not text.startswith(MESSAGE):
        return text
    parts = (part.split("\n", 1) for part in text.split(MESSAGE)[1:])
    return [{"role": role, "content": content.removesuffix("\n")} for role, content in parts]
