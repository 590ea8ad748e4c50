"""Responses as they are stored, from what a server says: tokens, where they end, and what is known of each one's
distribution.

Most servers end a response at a stop string or at the model's end token and show neither: the token that ended it and
its distribution are not known. It is then stored as the first stop string's token (or the end token, where there is no
stop string) with all the mass: that the response ended there is what was seen. A student so learns to end; how likely
another word was there it does not learn. Where the server does show that token, it is stored as it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distillctl.data.responses import clean, given_ids
from distillctl.recipe import Generate, TopK
from distillctl.soft_labels.columns import short
from distillctl.teachers.served.protocol import Choice, Malformed, Position
from distillctl.teachers.served.vocabulary import Vocabulary


@dataclass(frozen=True)
class Served:
    """One response. token_ids: with the one that ended it unless it was ``cut``; none where the tokenizer is not known;
    labels: the columns of `soft_labels.top_k`, one entry per token."""

    text: str
    token_ids: list[int]
    cut: bool
    labels: dict[str, Any]


def response(choice: Choice, task: Generate, vocabulary: Vocabulary | None, ends: Sequence[int]) -> Served:
    """What to store of a choice; ends: the ids at which the student's responses end. Malformed where the tokens are
    not those of the text, or cannot be told."""
    stopped = min((at for s in task.stop if (at := choice.text.find(s)) >= 0), default=None)
    # A server may show its stop string, or not know of any.
    cut, text = choice.cut and stopped is None, choice.text[:stopped]
    said = clean(choice.text, task.stop)
    if vocabulary is None:
        return Served(said, [], cut, {})
    end = end_id(vocabulary, task, ends)
    if not isinstance(task.soft_labels, TopK):
        ids = list(vocabulary.tokenizer(text, add_special_tokens=False).input_ids)
        return Served(said, ids if cut else [*ids, end], cut, {})
    ids, shown = _aligned(choice.positions, text, vocabulary)
    labels = _top_k(choice.positions[:shown], vocabulary, task.soft_labels.k)
    if not cut:
        last = choice.positions[shown : shown + 1]
        known = [vocabulary.ids.get(position.token) for position in last]
        if known and known[0] in ends:
            ids, more = [*ids, *known], _top_k(last, vocabulary, task.soft_labels.k)
        else:
            ids, more = [*ids, end], {
                "ids": [np.array([end], np.int32)],
                "log_probs": [np.zeros(1, np.float32)],
                "log_tail": np.array([-np.inf], np.float32),
            }
        labels = {name: [*labels[name], *more[name]] for name in labels}
    return Served(said, ids, cut, labels | {"log_tail": np.array(labels["log_tail"], np.float32)})


def given(text: str, task: Generate, vocabulary: Vocabulary | None, ends: Sequence[int]) -> Served:
    """A response that the data give, as the model would write it."""
    if vocabulary is None:
        return Served(clean(text, task.stop), [], False, {})
    ids = given_ids(vocabulary.tokenizer, text, task.stop, ends, task.max_new_tokens)
    whole = vocabulary.tokenizer.decode(ids, skip_special_tokens=True)
    return Served(clean(whole, task.stop), ids, not ids or ids[-1] not in ends, {})


def end_id(vocabulary: Vocabulary, task: Generate, ends: Sequence[int]) -> int:
    """The token that stands for the end of a response."""
    if task.stop:
        first = vocabulary.tokenizer(task.stop[0], add_special_tokens=False).input_ids
        if first and first[0] in ends:
            return int(first[0])
    eos = vocabulary.tokenizer.eos_token_id
    return int(eos if eos in ends else ends[0])


def _top_k(positions: Sequence[Position], vocabulary: Vocabulary, k: int) -> dict[str, Any]:
    """The columns of `soft_labels.top_k`, without draws and further temperatures. Tokens whose id is not known, and all
    that the server does not show, are the tail."""
    ids, log_probs, tails = [], [], []
    for position in positions:
        known = [(vocabulary.ids[token], value) for token, value in position.top if token in vocabulary.ids][:k]
        left = 1.0 - math.fsum(math.exp(value) for _, value in known)
        ids.append(np.array([token for token, _ in known], np.int32))
        log_probs.append(short(np.array([value for _, value in known], np.float32)))
        tails.append(math.log(left) if left > 0 else -math.inf)
    return {"ids": ids, "log_probs": log_probs, "log_tail": short(np.array(tails, np.float32))}


def _aligned(positions: Sequence[Position], text: str, vocabulary: Vocabulary) -> tuple[list[int], int]:
    """The ids of ``text``'s tokens, and how many of the positions they are; the next position, if any, is the end's.

    A token that is part of a character may have no text of its own: where the response is tokenized as the model wrote
    it, all ids are known all the same. Otherwise every token has to be found by its bytes.
    """
    whole = list(vocabulary.tokenizer(text, add_special_tokens=False).input_ids)
    if len(whole) <= len(positions) and all(
        position.token == vocabulary.tokens[token] or position.token not in vocabulary.ids
        for token, position in zip(whole, positions, strict=False)
    ):
        return whole, len(whole)
    ids: list[int] = []
    left = text.encode()
    for position in positions:
        if not left or not left.startswith(position.token):
            break
        if position.token not in vocabulary.ids:
            raise Malformed(f"{position.token.decode(errors='replace')!r} is not in teacher.tokenizer")
        ids.append(vocabulary.ids[position.token])
        left = left[len(position.token) :]
    # What is left may be the beginning of the token that also holds the stop string.
    if left and not (len(ids) < len(positions) and positions[len(ids)].token.startswith(left)):
        raise Malformed("its tokens are not its text")
    return ids, len(ids)
