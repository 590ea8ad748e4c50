"""Responses as they are stored, from what a server says: tokens, where they end, and what is known of each one's
distribution.

Most servers end a response at a stop string or at the model's end token and show neither: the token that ended it and
its distribution are not known. It is then stored as the first stop string's token (or the end token, where there is no
stop string) with all the mass: that the response ended there is what was seen. A student so learns to end; how likely
another word was there it does not learn. Where the server does show that token, it is stored as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distillctl.data.responses import Response, clean
from distillctl.recipe import Generate, TopK, implementation
from distillctl.teachers.openai.protocol import Choice, Position
from distillctl.teachers.openai.vocabulary import TokenBytes


class Unknown(Exception):
    """The tokens of a whole answer are not those of the recipe's tokenizer; asking again would not help."""


def response(choice: Choice, task: Generate, vocabulary: TokenBytes | None, ends: Sequence[int]) -> Response:
    """What to store of a choice: no token ids where the tokenizer is not known; the soft labels that the task keeps
    where the choice has positions. ends: the ids at which responses end. Unknown as it says."""
    stopped = min((at for s in task.stop if (at := choice.text.find(s)) >= 0), default=None)
    # A server may show its stop string, or not know of any.
    cut, text = choice.cut and stopped is None, choice.text[:stopped]
    said = clean(choice.text, task.stop)
    if vocabulary is None:
        return Response([], said, cut, {})
    end = end_id(vocabulary, task, ends)
    if not choice.positions or not isinstance(task.soft_labels, TopK):
        ids = list(vocabulary.tokenizer(text, add_special_tokens=False).input_ids)
        return Response(ids if cut else [*ids, end], said, cut, {})
    ids, shown = _aligned(choice.positions, text, vocabulary)
    tops = [_known(position, vocabulary) for position in choice.positions[:shown]]
    if not cut:
        last = choice.positions[shown : shown + 1]
        known = [token for position in last if (token := vocabulary.ids.get(position.token)) in ends]
        ids = [*ids, *(known or [end])]
        tops += [_known(position, vocabulary) for position in last] if known else [[(end, 0.0)]]
    profile: Any = implementation(task.soft_labels)(task.soft_labels)
    return Response(ids, said, cut, profile.of_shown(tops))


def given(ids: list[int], task: Generate, vocabulary: TokenBytes, ends: Sequence[int]) -> Response:
    """A response that the data give."""
    text = vocabulary.tokenizer.decode(ids, skip_special_tokens=True)
    return Response(ids, clean(text, task.stop), not ids or ids[-1] not in ends, {})


def end_id(vocabulary: TokenBytes, task: Generate, ends: Sequence[int]) -> int:
    """The token that stands for the end of a response."""
    if task.stop:
        first = vocabulary.tokenizer(task.stop[0], add_special_tokens=False).input_ids
        if first and first[0] in ends:
            return int(first[0])
    eos = vocabulary.tokenizer.eos_token_id
    return int(eos if eos in ends else ends[0])


def _known(position: Position, vocabulary: TokenBytes) -> list[tuple[int, float]]:
    """The likeliest tokens whose ids are known; the others join the tail."""
    return [(vocabulary.ids[token], value) for token, value in position.top if token in vocabulary.ids]


def _aligned(positions: Sequence[Position], text: str, vocabulary: TokenBytes) -> tuple[list[int], int]:
    """The ids of ``text``'s tokens, and how many of the positions they are; the next position, if any, is the end's.

    Unknown where they cannot be told. A token that is part of a character has no text of its own: where the server does
    not give its bytes, the response has to be tokenized as the model wrote it.
    """
    tokens = [position.token for position in positions]
    known = [vocabulary.ids.get(token) for token in tokens]
    certain = known.index(None) if None in known else len(known)
    said = [b"".join(tokens[:count]).decode(errors="replace") for count in range(len(tokens) + 1)]
    for count in range(certain, -1, -1):
        if said[count] == text:
            return [token for token in known[:count] if token is not None], count
    whole = list(vocabulary.tokenizer(text, add_special_tokens=False).input_ids)
    if len(whole) <= len(known) and all(own in (None, token) for own, token in zip(known, whole, strict=False)):
        return whole, len(whole)
    # The token that holds the stop string may begin with the end of the text.
    count = max(count for count in range(certain + 1) if text.startswith(said[count]))
    if count < len(tokens) and said[count + 1].startswith(text):
        return [token for token in known[:count] if token is not None], count
    raise Unknown(f"the tokens of {text!r} are not those of teacher.tokenizer")
