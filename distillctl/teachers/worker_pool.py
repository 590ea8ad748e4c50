"""The tasks of labelling, and the interfaces of the workers that answer them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from distillctl.data.answer_place import AnswerPlace
from distillctl.data.rows import Example
from distillctl.data.truncation import Length
from distillctl.data.views import Renderer
from distillctl.run_dir.facts import TeacherSize

Key = TypeVar("Key")
Answers = tuple[tuple[int, ...], ...]
"""Token ids of the answers to score after a view: one tuple per label, or the given response."""


@dataclass(frozen=True)
class View:
    """One row as the teacher sees it.

    text: the rendered view, or the JSON of messages that a server templates. read: the part that the teacher reads
    before an answer. ids: its token ids, None if the server tokenizes. merged: how many of the text's last tokens
    merged with the first token of the answers (`teachers.answer_tokens`).
    """

    text: str
    read: str = ""
    ids: list[int] | None = None
    answers: Answers = ()
    merged: int = 0
    length: Length | None = None
    """Length of what the teacher reads, and its limit. None if only the server knows them."""


@dataclass(frozen=True)
class SharedPrefix:
    """The tokens with which all views of one arm begin."""

    arm: str
    shared: int
    """Number of shared tokens; 0 if only texts are known."""
    shortest: list[int] = field(default_factory=list)
    longest: list[int] = field(default_factory=list)
    """Whole views, on which sharing the context is tested before it is used."""
    answers: tuple[Answers, Answers] = ((), ())
    """Answers of the shortest and the longest view."""
    place: AnswerPlace = field(default_factory=AnswerPlace)
    """Where an answer begins after these views."""


@dataclass(frozen=True)
class Views:
    """Some rows of one arm: ``ids`` (the token ids after the shared prefix) or ``texts``, and the ``answers`` if
    known."""

    prefix: SharedPrefix
    ids: list[list[int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    answers: list[Answers] = field(default_factory=list)


@dataclass(frozen=True)
class ContextComparison:
    """The ceiling's answers to the rows of a floor task, to be scored under both contexts."""

    token_ids: list[list[int]]
    views: Views


@dataclass(frozen=True)
class ShardTask:
    """The rows of one shard, with everything but the teacher on which their answers depend."""

    arm: str
    split: str
    rows: list[str]
    """Row ids."""
    views: Views
    seeds: list[int] = field(default_factory=list)
    """For `generate`: the random seed of each row."""
    given: list[list[int]] | None = None
    """For `generate`: token ids of the responses in the data. None if the teacher answers."""
    compared: ContextComparison | None = None


@dataclass(frozen=True)
class AnswerRequest:
    """The answers to score or to generate after a view.

    prefix: task.answer_prefix. words: the texts to score after it, one per label, or the given response. room: maximal
    number of tokens of the teacher's own answer.
    """

    prefix: str | None = None
    words: tuple[str, ...] = ()
    room: int = 0


class TeacherReader(Protocol):
    """A teacher without its weights, for everything that must be known before rows are answered."""

    def text(self, renderer: Renderer, example: Example) -> str:
        """Return the text of the row's view."""

    def view(self, renderer: Renderer, example: Example, request: AnswerRequest) -> View:
        """Return the row's view with its length. A view within the limit leaves room for the answer."""

    def place(self, renderer: Renderer, example: Example, prefix: str | None) -> AnswerPlace:
        """Return where an answer begins after this context's views, judged by one example."""

    def tokens(self, text: str) -> int:
        """Return the approximate number of a text's tokens."""

    def facts(self) -> TeacherSize:
        """Return the facts about the teacher for collect's manifest."""


class Worker(Protocol):
    """A teacher that answers tasks."""

    def label(self, task: ShardTask) -> Any:
        """Answer the rows of one shard."""


class WorkerSpec(Protocol):
    """A small, picklable value from which a worker is made."""

    def reader(self) -> Any:
        """Return the teacher without its weights."""

    def worker(self) -> Worker:
        """Load the teacher in this process. It agrees with ``reader``."""


class WorkerPool(Protocol):
    """Running workers with the same teacher."""

    @property
    def reader(self) -> Any:
        """Return the teacher without its weights."""

    def map(self, tasks: Iterable[tuple[Key, ShardTask]]) -> Iterator[tuple[Key, Any]]:
        """Yield each task's key and answer as they finish. Take a task only when a worker is free."""
