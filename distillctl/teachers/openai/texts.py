"""Convert a server's answers to stored responses: their tokens, their end, and each token's distribution.

Most servers end a response at a stop string or at the model's end token and show neither, so the final token and its
distribution are unknown. It is then stored as the first stop string's token (or the end token, without a stop string)
with all the mass, because the response did end there. A student then learns to end, but not how likely another word
was. If the server shows that token, it is stored like the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distillctl.data.responses import Response, clean
from distillctl.recipe import Generate, TopK, implementation
from distillctl.teachers.openai.protocol import Choice, Position
from distillctl.teachers.openai.vocabulary import TokenBytes


class Unknown(Exception):
    """An answer's tokens are not those of the recipe's tokenizer. Sending the request again would not help."""


def response(choice: Choice, task: Generate, vocabulary: TokenBytes | None, ends: Sequence[int]) -> Response:
    """Return the response to store.

    Without a tokenizer it has no token ids; with positions it has the task's soft labels. ends: the ids at which
    responses end. Raises Unknown.
    """
    stopped = min((at for s in task.stop if (at := choice.text.find(s)) >= 0), default=None)
    # A server may show the stop string, or not support any.
    cut, text = choice.cut and stopped is None, choice.text[:stopped]
    answer = clean(choice.text, task.stop)
    if vocabulary is None:
        return Response([], answer, cut, {})
    end = end_id(vocabulary, task, ends)
    if not choice.positions or not isinstance(task.soft_labels, TopK):
        ids = list(vocabulary.tokenizer(text, add_special_tokens=False).input_ids)
        return Response(ids if cut else [*ids, end], answer, cut, {})
    ids, shown = _aligned(choice.positions, text, vocabulary)
    tops = [_known(position, vocabulary) for position in choice.positions[:shown]]
    if not cut:
        last = choice.positions[shown : shown + 1]
        known = [token for position in last if (token := vocabulary.ids.get(position.token)) in ends]
        ids = [*ids, *(known or [end])]
        tops += [_known(position, vocabulary) for position in last] if known else [[(end, 0.0)]]
    codec: Any = implementation(task.soft_labels)(task.soft_labels)
    return Response(ids, answer, cut, codec.of_shown(tops))


def given(ids: list[int], task: Generate, vocabulary: TokenBytes, ends: Sequence[int]) -> Response:
    """Return the stored form of a response from the data."""
    text = vocabulary.tokenizer.decode(ids, skip_special_tokens=True)
    return Response(ids, clean(text, task.stop), not ids or ids[-1] not in ends, {})


def end_id(vocabulary: TokenBytes, task: Generate, ends: Sequence[int]) -> int:
    """Return the token that stands for the end of a response."""
    if task.stop:
        first = vocabulary.tokenizer(task.stop[0], add_special_tokens=False).input_ids
        if first and first[0] in ends:
            return int(first[0])
    eos = vocabulary.tokenizer.eos_token_id
    return int(eos if eos in ends else ends[0])


def _known(position: Position, vocabulary: TokenBytes) -> list[tuple[int, float]]:
    """Return the likeliest tokens whose ids are known; the others join the tail."""
    return [(vocabulary.ids[token], value) for token, value in position.top if token in vocabulary.ids]


def _aligned(positions: Sequence[Position], text: str, vocabulary: TokenBytes) -> tuple[list[int], int]:
    """Return the ids of ``text``'s tokens, and how many positions they cover; the next position, if any, is the end's.

    A token that is part of a character has no text. If the server does not give its bytes, the response is tokenized,
    which must give the model's own tokens. Raises Unknown if the ids cannot be determined.
    """
    tokens = [position.token for position in positions]
    known = [vocabulary.ids.get(token) for token in tokens]
    certain = known.index(None) if None in known else len(known)
    texts = [b"".join(tokens[:count]).decode(errors="replace") for count in range(len(tokens) + 1)]
    for count in range(certain, -1, -1):
        if texts[count] == text:
            return [token for token in known[:count] if token is not None], count
    whole = list(vocabulary.tokenizer(text, add_special_tokens=False).input_ids)
    if len(whole) <= len(known) and all(
        known_id in (None, token) for known_id, token in zip(known, whole, strict=False)
    ):
        return whole, len(whole)
    # The token that holds the stop string may begin with the end of the text.
    count = max(count for count in range(certain + 1) if text.startswith(texts[count]))
    if count < len(tokens) and texts[count + 1].startswith(text):
        return [token for token in known[:count] if token is not None], count
    raise Unknown(f"the tokens of {text!r} are not those of teacher.tokenizer")
