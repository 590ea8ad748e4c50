"""Find the tokens that a trimmed tokenizer must keep so that it still forms every token it should keep.

Each kind of tokenizer model has its own rule; what they promise is the same. Let K be the kept tokens. A text whose
tokens under the full tokenizer all lie in K has the same tokens under the trimmed one:

- BPE merges, again and again, the leftmost pair of lowest rank. What happens inside the span of a final token t does
  not depend on its neighbours, since no merge ever crosses t's edges: it is the derivation of t alone. K holds every
  token of that derivation, and with them the merges that it uses. So by induction both tokenizers are in the same state
  before each step: the pair the full one takes is kept, and the trimmed one, whose merges are a part of the full one's
  in the same order, can find none of lower rank. In the end none is left for the full one, hence none for the trimmed.
- WordPiece takes the longest piece that fits. It is in K, and a part of the vocabulary cannot have a longer one.
- Unigram takes the segmentation of highest score. It is made of K, and a part of the vocabulary has no better one; the
  price of an unknown character hangs on the lowest score there is, so the piece that has it is in K.

K also holds a safety set, with which any text can still be written: bytes, or single characters, and frequent pieces.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tokenizers import pre_tokenizers

from distillctl.errors import RecipeError

Rule = Callable[[Iterable[str]], set[str]]
"""Tokens → these and all that must stay with them; for no tokens, the safety set."""

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPARE = re.compile(r"[<\[]\|?(unused|reserved)[\w ]*\|?[>\]]")
"""Tokens reserved for later use: `<unused7>`, `[unused7]`, `<|reserved_special_token_7|>`."""


def is_spare(token: str) -> bool:
    """Tell whether a token's name says that it is unused."""
    return _SPARE.fullmatch(token) is not None


def rule(document: dict[str, Any], safety: int) -> Rule:
    """Return the rule of a tokenizer.json. Raise RecipeError without one. safety: number of frequent merges or pieces
    to keep."""
    model = document["model"]
    kind = model.get("type")
    if kind == "BPE":
        return _bpe(document, safety)
    if kind == "WordPiece":
        return _word_piece(model, safety)
    if kind == "Unigram":
        return _unigram(model, safety)
    raise _cannot(f"a tokenizer of the kind {kind}")


def merges(model: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield a BPE model's merges, the most frequent first; older files write a pair as one string."""
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right


def _bpe(document: dict[str, Any], safety: int) -> Rule:
    model = document["model"]
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _cannot("a BPE tokenizer that marks the parts of words")
    vocabulary = model["vocab"]
    parts = json.dumps([document.get("normalizer"), document.get("pre_tokenizer")])
    if '"ByteLevel"' in parts:
        single = {token for token in pre_tokenizers.ByteLevel.alphabet() if token in vocabulary}
    elif model.get("byte_fallback"):
        single = {t for t in vocabulary if _BYTE.fullmatch(t) or (len(t) == 1 and (t.isascii() or t == "▁"))}
    else:
        raise _cannot("a BPE tokenizer without bytes to fall back on")
    ranks = {pair: rank for rank, pair in enumerate(merges(model))}
    frequent = {token for pair in list(ranks)[:safety] for token in (*pair, "".join(pair))}

    def keep(asked: Iterable[str]) -> set[str]:
        kept = {*single, *frequent, *asked}
        return kept.union(*(_derivation(token, ranks) for token in kept))

    return keep


def _derivation(token: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Return every token that occurs while BPE forms ``token`` from its characters, ``token`` last."""
    symbols, seen = list(token), list(token)
    while len(symbols) > 1:
        rank, at = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(itertools.pairwise(symbols)))
        if rank == len(ranks):
            return [token]  # BPE does not form it: a special token, or one that only `ignore_merges` can give
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        seen.append(symbols[at])
    return seen


def _word_piece(model: dict[str, Any], safety: int) -> Rule:
    prefix = model["continuing_subword_prefix"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    single = {piece for piece in pieces if len(piece.removeprefix(prefix)) == 1}
    frequent = [piece for piece in pieces if piece not in single and not is_spare(piece)][:safety]
    always = {*single, *frequent, model["unk_token"]}
    return lambda asked: always.union(asked)


def _unigram(model: dict[str, Any], safety: int) -> Rule:
    pieces = [piece for piece, score in sorted(model["vocab"], key=lambda entry: -entry[1])]
    always = {piece for piece in pieces if len(piece) == 1 or _BYTE.fullmatch(piece)}
    always.update(pieces[:safety], pieces[-1:])
    if model.get("unk_id") is not None:
        always.add(model["vocab"][model["unk_id"]][0])
    return lambda asked: always.union(asked)


def _cannot(problem: str) -> RecipeError:
    return RecipeError(
        f"{problem} cannot be trimmed; BPE over bytes, WordPiece and unigram can",
        where="student.vocabulary",
        next="remove student.vocabulary, or choose another student.model",
    )
