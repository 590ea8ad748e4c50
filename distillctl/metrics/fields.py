"""Compare JSON answers value by value.

The fields of a JSON object are its values by their path: nested objects are taken apart (`{"a": {"b": 1}}` has the
field `a.b`), lists are compared whole. Values are equal if their JSON is: 1 and 1.0 are equal, 1 and true are not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

_MOST_CHARACTERS = 1 << 20
"""Longer texts are not parsed."""


def parse(text: str) -> dict[str, str] | None:
    """Return path → canonical JSON of each value, or None if the text is not a JSON object."""
    if len(text) > _MOST_CHARACTERS:
        return None
    try:
        value = json.loads(text, parse_float=_number)
        return dict(_leaves(value)) if isinstance(value, dict) else None
    except (ValueError, RecursionError):
        return None


def canonical(value: object) -> str:
    """Return the JSON by which values are compared."""
    return json.dumps(_number(value) if isinstance(value, float) else value, sort_keys=True, ensure_ascii=False)


def share_equal(text: str, target: str) -> float:
    """Return the share of equal values over all fields of either text, from 0 to 1.

    Unless both are JSON objects, it is 1 for equal texts and 0 for others.
    """
    parsed, wanted = parse(text), parse(target)
    if parsed is None or wanted is None:
        return float(text.strip() == target.strip())
    paths = {*parsed, *wanted}
    return sum(parsed.get(path) == wanted.get(path) for path in paths) / len(paths) if paths else 1.0


def keys(texts: Sequence[str]) -> list[str]:
    """Return the paths that at least half of the texts have, in order of appearance."""
    counts: dict[str, int] = {}
    for text in texts:
        for path in parse(text) or ():
            counts[path] = counts.get(path, 0) + 1
    return [path for path, count in counts.items() if 2 * count >= len(texts)]


def values(texts: Sequence[str], key: str) -> list[str | None]:
    """Return each text's value of ``key`` as canonical JSON; None if it is missing."""
    return [(parse(text) or {}).get(key) for text in texts]


def _number(text: str | float) -> float | int:
    value = float(text)
    return int(value) if value.is_integer() else value


def _leaves(value: dict[str, object], path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    for key, child in value.items():
        if isinstance(child, dict) and child:
            yield from _leaves(child, (*path, key))
        else:
            yield ".".join((*path, key)), canonical(child)
