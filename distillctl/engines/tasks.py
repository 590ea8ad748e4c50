"""A task and what answers it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from distillctl.data.examples import Example
from distillctl.data.views import Renderer

Key = TypeVar("Key")


@dataclass(frozen=True)
class View:
    """One row as the teacher sees it. text: of messages that a server templates, their JSON; ids: token ids, None where
    the server does the tokenizing."""

    text: str
    ids: list[int] | None


@dataclass(frozen=True)
class Opening:
    """What the views of one arm begin with."""

    arm: str
    shared: int
    """Tokens that all of them begin with; of text alone, 0."""
    shortest: list[int] = field(default_factory=list)
    longest: list[int] = field(default_factory=list)
    """Whole views, on which sharing the context is tried before it is trusted."""


@dataclass(frozen=True)
class Views:
    """Some rows of one arm: ``ids``, the token ids after the opening's shared ones, or ``texts``."""

    opening: Opening
    ids: list[list[int]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Compared:
    """The ceiling's answers to a floor task's rows: its tokens are scored under both contexts."""

    token_ids: list[list[int]]
    views: Views


@dataclass(frozen=True)
class Task:
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
    compared: Compared | None = None


class Reader(Protocol):
    """A teacher without its weights: what has to be known of it before rows are answered."""

    def view(self, renderer: Renderer, example: Example, *, answer_tokens: int, cut: bool) -> View:
        """The row's view. DataError where it leaves no room for ``answer_tokens`` and the input may not be ``cut``."""

    def tokens(self, text: str) -> int:
        """How many tokens a text has, near enough."""

    def facts(self) -> dict[str, Any]:
        """What collect's manifest says of it: ``parameters`` and ``bytes``, and what else its kind has to tell."""


class Worker(Protocol):
    """A teacher that answers tasks."""

    def label(self, task: Task) -> Any:
        """The rows of one shard."""


class Description(Protocol):
    """What a worker is made from, small and picklable."""

    def reader(self) -> Any:
        """The teacher without its weights."""

    def worker(self) -> Any:
        """The teacher, loaded here; it is its own ``reader``'s equal."""


class Crew(Protocol):
    """Workers at work on one teacher."""

    @property
    def reader(self) -> Any: ...

    def map(self, tasks: Iterable[tuple[Key, Task]]) -> Iterator[tuple[Key, Any]]:
        """Each task's key with its answer as they are finished, in any order; a task is taken when it can be begun."""
