"""What a manifest says was found: looked at before a later stage works with it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

from distillctl.errors import UpstreamError

_Number = Annotated[float, Field(allow_inf_nan=False)]
_Figures = dict[str, _Number]


class _Interval(TypedDict):
    value: _Number
    low: _Number
    high: _Number


class _Arm(TypedDict):
    score: _Number
    low: _Number
    high: _Number
    n: int
    metric: str


class _Caution(TypedDict):
    code: str
    text: str


class _Tokens(TypedDict):
    teacher: _Number
    student: _Number


class _Teacher(TypedDict):
    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    reference: str


class _Known(TypedDict, total=False):
    """What later stages read, whichever stage says it; all else is as it is."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]
    cautions: list[_Caution]
    metric: str
    labels: list[str]
    log_prior: list[_Number] | None
    counts: dict[str, int | dict[str, int]]
    arms: dict[str, _Arm]
    gaps: dict[str, _Interval]
    context_tokens: _Tokens
    shared_tokens: _Number
    context_text: str
    teacher: _Teacher
    stop_ids: list[int]
    vocabulary: int | dict[str, Any] | None
    kl: _Number | None
    agreement: _Number | dict[str, _Number | None]
    max_length: Annotated[int, Field(ge=1)] | None
    control: dict[str, Any] | None
    inputs: list[str]
    fp32: dict[str, Any]
    candidates: list[dict[str, Any]]
    not_tried: list[Any]
    models: dict[str, dict[str, Any]]
    ratios: _Figures
    machine: dict[str, Any]
    threads: int
    artifact: str
    folder: str
    archive: str


_ADAPTER = TypeAdapter(_Known)


class Facts(dict[str, Any]):
    """UpstreamError for what is not in them: they are then not those of a stage of this version."""

    def __missing__(self, key: str) -> Any:
        raise UpstreamError(
            f"the manifest has no {key!r}, so another version wrote it", next="distillctl run RECIPE --force"
        )


def checked(found: dict[str, Any]) -> Facts:
    """ValueError where a known fact is of another kind."""
    _ADAPTER.validate_python(found)
    return _guarded(found)


def _guarded(found: dict[str, Any]) -> Facts:
    return Facts({key: _guarded(value) if isinstance(value, dict) else value for key, value in found.items()})
