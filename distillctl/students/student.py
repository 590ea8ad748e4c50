"""The student: a model that classifies or generates, its tokenizer, and the limit of its views."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from transformers import PreTrainedModel

from distillctl.data.truncation import Length, Limit
from distillctl.errors import DataError, UnavailableError
from distillctl.run_dir.facts import VocabularyFacts
from distillctl.run_dir.workspace import replacing_folder
from distillctl.students.preflight import longest_view, view_limit
from distillctl.students.tokenization import pad

T = TypeVar("T")


@dataclass(frozen=True)
class Reiterable(Iterable[T], Generic[T]):
    """An iterable that calls ``start`` for each iteration, to read its files again."""

    start: Callable[[], Iterator[T]]

    def __iter__(self) -> Iterator[T]:
        return self.start()


@dataclass(frozen=True)
class Corpus:
    """The texts that a student's vocabulary must cover: the train rows, and separately the eval rows. It is iterated
    several times.

    texts: simplified views; to generate, also the responses. token_ids: the teacher's response tokens.
    teacher_tokenizer: its `vocabulary_digest`; token ids are only useful to a student with the same one (None: it has
    the same). held_out: the eval rows' corpus. Trimming also keeps what that needs, so that eval rows can be scored,
    and reports how much of it the train rows lacked; a new tokenizer is trained without it.
    """

    texts: Iterable[str]
    token_ids: Iterable[list[int]]
    held_out: Corpus | None = None
    teacher_tokenizer: str | None = None


@dataclass(frozen=True)
class Student:
    """A model with its tokenizer and limits.

    model: to classify, logits [B, K] in label order; to generate, a decoder or an encoder–decoder with its head.
    max_length: maximal tokens of a simplified view; for a decoder that generates, of view and response, of which
    ``response_length`` are kept for the response. kept_ids: int64 [V_new], the old id of each token of a trimmed
    vocabulary. vocabulary_facts: from `vocabulary.trim`. vocabulary_digest: of the tokenizer before trimming; equal to
    the teacher's if both have the same token ids.
    """

    model: PreTrainedModel
    tokenizer: Any
    max_length: int
    kept_ids: np.ndarray | None = None
    vocabulary_facts: VocabularyFacts | None = None
    response_length: int = 0
    vocabulary_digest: str | None = None

    @property
    def is_encoder_decoder(self) -> bool:
        """Tell whether the model has an encoder and a decoder."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def max_view(self) -> int:
        """Return the maximal number of tokens of a simplified view."""
        return self.max_length - self.response_length

    @property
    def remap(self) -> np.ndarray | None:
        """Return int64 [V_old], the new id of each old one, −1 if it was dropped; None if nothing was trimmed."""
        if self.kept_ids is None or self.vocabulary_facts is None:
            return None
        new_ids = np.full(self.vocabulary_facts.tokens_before, -1, np.int64)
        new_ids[self.kept_ids] = np.arange(len(self.kept_ids))
        return new_ids

    @property
    def limit(self) -> Limit:
        """Return the limit of a simplified view, for errors."""
        return view_limit(self.max_length, self.response_length)

    def save(self, folder: Path) -> None:
        """Write model and tokenizer durably. The tokenizer neither pads nor truncates.

        Truncation would cut the end of the view, where the template may continue after the input. Inputs that are too
        long are cut inside their views (`data.truncation`).
        """
        self.tokenizer.backend_tokenizer.no_padding()
        self.tokenizer.backend_tokenizer.no_truncation()
        with replacing_folder(folder) as temporary:
            self.model.save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)

    def encode(self, parts: Iterable[tuple[Sequence[str], ...]]) -> Iterator[tuple[str, list[int]]]:
        """Yield row and token ids of every simplified view. parts: ids and texts, some rows at a time.

        If views are too long, DataError names the longest one and counts the others, after all rows were seen.
        """
        known = int(self.model.config.get_text_config().vocab_size)
        too_long, longest, worst = 0, 0, ""
        for ids, texts in parts:
            for row, tokens in zip(ids, self.tokenizer(list(texts)).input_ids, strict=True):
                if not tokens:
                    raise DataError(f"row {row}: the simplified view has no tokens", where="contexts.simplified")
                if max(tokens) >= known:
                    raise UnavailableError(
                        f"the student's tokenizer makes the id {max(tokens)} of row {row}, its model has "
                        f"{known:,} tokens",
                        where="student.model",
                    )
                if len(tokens) > self.max_view:
                    too_long += 1
                    longest, worst = max((longest, worst), (len(tokens), row))
                else:
                    yield row, tokens
        if too_long:
            limit = replace(self.limit, next=_LONGER)
            raise Length(longest, limit, "contexts.simplified", "simplified view").error(worst, too_long - 1)


_LONGER = (
    "shorten the view, or raise student.max_length as far as the model allows (a new model as far as student.config "
    "says); contexts.truncate: input cuts the inputs in collect, unless the student's tokenizer is a new one, which is "
    "not there before train"
)


def finish(model: PreTrainedModel, tokenizer: Any, max_length: int | None, response_length: int = 0) -> Student:
    """Set the padding token and the longest view. Raise RecipeError if the response leaves no room for a view."""
    pad(tokenizer)
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            config.pad_token_id = tokenizer.pad_token_id
    longest = longest_view(model.config, tokenizer, max_length, response_length)
    return Student(model, tokenizer, longest, response_length=response_length)
