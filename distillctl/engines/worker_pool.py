"""A task and what answers it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from distillctl.data.answer_place import AnswerPlace
from distillctl.data.rows import Example
from distillctl.data.truncation import Length
from distillctl.data.views import Renderer

Key = TypeVar("Key")


Answers = tuple[tuple[int, ...], ...]
"""The token ids of the answers that are scored after a view: of every label, or of the one response that is given."""


@dataclass(frozen=True)
class View:
    """One row as the teacher sees it. text: the rendered view, of messages that a server templates, their JSON; read:
    what of it the teacher reads before an answer; ids: the token ids before an answer, None where the server does the
    tokenizing; merged: how many of the text's own last tokens the answers have taken in (`teachers.answer_tokens`)."""

    text: str
    read: str = ""
    ids: list[int] | None = None
    answers: Answers = ()
    merged: int = 0
    length: Length | None = None
    """Of what the teacher reads, and its limit; None where only a server knows either."""


@dataclass(frozen=True)
class SharedPrefix:
    """What the views of one arm begin with."""

    arm: str
    shared: int
    """Tokens that all of them begin with; of text alone, 0."""
    shortest: list[int] = field(default_factory=list)
    longest: list[int] = field(default_factory=list)
    """Whole views, on which sharing the context is tried before it is trusted."""
    answers: tuple[Answers, Answers] = ((), ())
    """Of the shortest and the longest."""
    place: AnswerPlace = field(default_factory=AnswerPlace)
    """Where an answer follows these views."""


@dataclass(frozen=True)
class Views:
    """Some rows of one arm: ``ids``, the token ids after the opening's shared ones, or ``texts``; and each row's
    ``answers``, where they are known."""

    opening: SharedPrefix
    ids: list[list[int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    answers: list[Answers] = field(default_factory=list)


@dataclass(frozen=True)
class ContextComparison:
    """The ceiling's answers to a floor task's rows: its tokens are scored under both contexts."""

    token_ids: list[list[int]]
    views: Views


@dataclass(frozen=True)
class ShardTask:
    """One shard's rows, and all that their answers depend on besides the worker's own description."""

    arm: str
    split: str
    rows: list[str]
    """Ids."""
    views: Views
    seeds: list[int] = field(default_factory=list)
    """Of texts: one per row, for what is drawn."""
    given: list[list[int]] | None = None
    """Of texts: the tokens of the responses that the data give; None where the teacher answers."""
    compared: ContextComparison | None = None


@dataclass(frozen=True)
class Asked:
    """What is asked of every view: prefix, task.answer_prefix; words: what is scored after it, of every label, or the
    given response; room: tokens that an answer may take that the teacher writes."""

    prefix: str | None = None
    words: tuple[str, ...] = ()
    room: int = 0


class TeacherReader(Protocol):
    """A teacher without its weights: what has to be known of it before rows are answered."""

    def text(self, renderer: Renderer, example: Example) -> str:
        """The text of the row's view."""

    def view(self, renderer: Renderer, example: Example, asked: Asked) -> View:
        """The row's view and its length, which leaves room for the answer where it is within the limit."""

    def place(self, renderer: Renderer, example: Example, prefix: str | None) -> AnswerPlace:
        """Where an answer follows the context's views, by the look of one row's."""

    def tokens(self, text: str) -> int:
        """How many tokens a text has, near enough."""

    def facts(self) -> dict[str, Any]:
        """What collect's manifest says of it: ``parameters`` and ``bytes``, and what else its kind has to tell."""


class Worker(Protocol):
    """A teacher that answers tasks."""

    def label(self, task: ShardTask) -> Any:
        """The rows of one shard."""


class WorkerSpec(Protocol):
    """What a worker is made from, small and picklable."""

    def reader(self) -> Any:
        """The teacher without its weights."""

    def worker(self) -> Worker:
        """The teacher, loaded here; it is its own ``reader``'s equal."""


class WorkerPool(Protocol):
    """Workers at work on one teacher."""

    @property
    def reader(self) -> Any: ...

    def map(self, tasks: Iterable[tuple[Key, ShardTask]]) -> Iterator[tuple[Key, Any]]:
        """Each task's key with its answer as they are finished, in any order; a task is taken when it can be begun."""
