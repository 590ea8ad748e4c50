"""Trim the vocabulary: remove the tokens that data and safety do not need from tokenizer and embeddings."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from distillctl.errors import RecipeError
from distillctl.recipe import TrimmedVocabulary
from distillctl.run_dir.facts import VocabularyFacts
from distillctl.run_dir.workspace import digest
from distillctl.students import embeddings, vocabulary_closure
from distillctl.students.student import Corpus
from distillctl.students.tokenization import with_backend

_BATCH = 1000


def vocabulary_digest(tokenizer: Any) -> str:
    """Return the SHA-256 of token → id, which is equal for tokenizers whose token ids mean the same."""
    return digest(tokenizer.get_vocab())


def trim(
    model: PreTrainedModel, tokenizer: Any, spec: TrimmedVocabulary, corpus: Corpus
) -> tuple[Any, np.ndarray, VocabularyFacts]:
    """Keep special tokens, the safety set, the corpus's tokens and everything needed to form them
    (`vocabulary_closure`).

    The corpus tokenizes as before, ids aside; every text can still be written, with more tokens. ``model`` is cut in
    place. Returns the new tokenizer, its tokens' old ids (int64, ascending) and what was saved. Raises RecipeError for
    tokenizers that cannot be trimmed.
    """
    document = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    full = Tokenizer.from_str(json.dumps(document))
    known = min(embeddings.rows(model), len(tokenizer))
    shared = corpus.teacher_tokenizer in (None, vocabulary_digest(tokenizer))
    keep = vocabulary_closure.rule(document, spec.merges)
    special = embeddings.token_ids(model) | {
        token["id"] for token in document["added_tokens"] if not vocabulary_closure.is_spare(token["content"])
    }

    def needed(ids: Iterable[int]) -> set[int]:
        tokens = (full.id_to_token(token) for token in special.union(ids))
        kept_ids = (full.token_to_id(token) for token in keep(token for token in tokens if token is not None))
        return {token for token in kept_ids if token is not None and token < known}

    seen = _used(full, corpus, shared)
    unseen = _used(full, corpus.held_out, shared) if corpus.held_out else set()
    kept = np.array(sorted(needed(seen | unseen)), np.int64)
    trimmed = Tokenizer.from_str(json.dumps(_renumbered(document, {int(old): new for new, old in enumerate(kept)})))
    for part in (corpus, corpus.held_out):
        if part is not None:
            _check(full, trimmed, kept, part.texts)
    before = model.num_parameters()
    gone = embeddings.cut(model, kept)
    return (
        with_backend(tokenizer, trimmed),
        kept,
        VocabularyFacts(
            tokens_before=known,
            tokens_after=len(kept),
            bytes_saved=4 * gone,
            share_saved=gone / before,
            unseen_share=_unseen_share(full, corpus, needed(seen)),
        ),
    )


def _used(tokenizer: Tokenizer, corpus: Corpus, shared: bool) -> set[int]:
    """Return the tokens of a corpus, with the teacher's ids if both mean the same tokens."""
    used = {token for ids in _encoded(tokenizer, corpus.texts) for token in ids}
    return used.union(itertools.chain.from_iterable(corpus.token_ids)) if shared else used


def _encoded(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterable[list[int]]:
    left = iter(texts)
    while batch := list(itertools.islice(left, _BATCH)):
        for encoding in tokenizer.encode_batch_fast(batch):
            yield encoding.ids


def _unseen_share(tokenizer: Tokenizer, corpus: Corpus, known: set[int]) -> float | None:
    if corpus.held_out is None:
        return None
    total = unknown = 0
    for ids in _encoded(tokenizer, corpus.held_out.texts):
        total += len(ids)
        unknown += sum(token not in known for token in ids)
    return unknown / total if total else None


def _renumbered(document: dict[str, Any], new_ids: dict[int, int]) -> dict[str, Any]:
    """Return a tokenizer.json with only the tokens of ``new_ids`` (old id → new)."""
    model = dict(document["model"])
    if model["type"] == "Unigram":
        model["vocab"] = [model["vocab"][old] for old in new_ids if old < len(model["vocab"])]
        if model.get("unk_id") is not None:
            model["unk_id"] = new_ids[model["unk_id"]]
    else:
        model["vocab"] = {token: new_ids[old] for token, old in model["vocab"].items() if old in new_ids}
    if model["type"] == "BPE":
        kept = model["vocab"].keys()
        model["merges"] = [
            [a, b] for a, b in vocabulary_closure.merges(model) if a in kept and b in kept and a + b in kept
        ]
    added = [token | {"id": new_ids[token["id"]]} for token in document["added_tokens"] if token["id"] in new_ids]
    frame = _renumbered_frame(document["post_processor"], new_ids)
    return document | {"model": model, "added_tokens": added, "post_processor": frame}


def _renumbered_frame(frame: object, new_ids: dict[int, int]) -> Any:
    """Renumber a post-processor: a template's `ids`, and `["[SEP]", 102]` of BERT's and RoBERTa's, also in
    sequences."""
    if isinstance(frame, dict):
        return {
            key: [new_ids[token] for token in value] if key == "ids" else _renumbered_frame(value, new_ids)
            for key, value in frame.items()
        }
    if isinstance(frame, list):
        if len(frame) == 2 and isinstance(frame[0], str) and isinstance(frame[1], int):
            return [frame[0], new_ids[frame[1]]]
        return [_renumbered_frame(value, new_ids) for value in frame]
    return frame


def _check(full: Tokenizer, trimmed: Tokenizer, kept: np.ndarray, texts: Iterable[str]) -> None:
    """Check that the corpus tokenizes as before, because a tokenizer may have parts that are not handled here."""
    for text, before, after in zip(texts, _encoded(full, texts), _encoded(trimmed, texts), strict=True):
        if kept[after].tolist() != before:
            raise RecipeError(
                f"this tokenizer cannot be trimmed: {text[:60]!r} would get other tokens",
                where="student.vocabulary",
                next="remove student.vocabulary",
            )
