"""What a student that writes is trained on: its view's tokens, the response's, and what was kept of the teacher there.

Where both tokenizers have the same ids, the teacher's response tokens and their distributions are the student's too
(under new ids if its vocabulary was trimmed). Otherwise the response's text is tokenized again, and what is left of
the distributions can only be compared by rank (`losses.cross_tokenizer`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from distillctl.data.view_table import ViewTable
from distillctl.errors import DataError, RecipeError
from distillctl.losses.cross_tokenizer import align
from distillctl.losses.targets import DenseTargets, Targets, TopKTargets
from distillctl.recipe import LossTerm
from distillctl.soft_labels.responses import Profile, Responses
from distillctl.students.student import Student


@dataclass(frozen=True)
class ResponseRows:
    """One row a response. views, responses: the student's token ids, the responses' with the token that ended them;
    targets: of some rows, for all their response tokens in order; vocabulary: how many ids are tokens."""

    views: list[list[int]]
    responses: list[list[int]]
    targets: Callable[[Sequence[int]], Targets]
    vocabulary: int

    def take(self, rows: Sequence[int]) -> ResponseRows:
        """Some of the rows, in that order."""
        return ResponseRows(
            [self.views[row] for row in rows],
            [self.responses[row] for row in rows],
            lambda some: self.targets([rows[row] for row in some]),
            self.vocabulary,
        )

    @property
    def lengths(self) -> list[int]:
        """Tokens of view and response."""
        return [len(view) + len(response) for view, response in zip(self.views, self.responses, strict=True)]

    @property
    def positions(self) -> list[int]:
        """Tokens of the response."""
        return [len(response) for response in self.responses]


def rows(
    student: Student, views: ViewTable, responses: Responses, profile: Profile, *, shared_tokenizer: bool, cut: bool
) -> ResponseRows:
    """One row for each of ``responses``, whose ids are among those of ``views``.

    ``profile``: of the soft labels; ``shared_tokenizer``: whether the teacher's token ids mean the same to the student.
    What is too long for the student, or (a trimmed vocabulary) cannot be said by it: DataError naming the row; with
    ``cut`` what is too long loses its end.
    """
    encoded = dict(zip(views.id, student.encode(views.simplified, views.id, cut=cut), strict=True))
    own = [encoded[row] for row in responses.id]
    said = _remapped(student, responses) if shared_tokenizer else _tokenized_again(student, responses)
    said = [
        _fitted(student, row, view, response, cut=cut)
        for row, view, response in zip(responses.id, own, said, strict=True)
    ]

    def targets(some: Sequence[int]) -> Targets:
        # In shared tokens a response that was cut here is a beginning of the teacher's.
        ends = {row: len(said[row]) if shared_tokenizer else len(responses.token_ids[row]) for row in some}
        token_ids = [responses.token_ids[row][: ends[row]] for row in some]
        labels = {name: [column[row][: ends[row]] for row in some] for name, column in responses.labels.items()}
        found = profile.targets(labels, token_ids, student.remap if shared_tokenizer else None)
        if shared_tokenizer:
            return found
        if isinstance(found, DenseTargets | TopKTargets):
            return align(found, [len(ids) for ids in token_ids], [said[row] for row in some])
        return Targets(found.token_ids.new_tensor([token for row in some for token in said[row]]))

    return ResponseRows(own, said, targets, len(student.tokenizer))


def check_terms(terms: Sequence[LossTerm], *, shared_tokenizer: bool) -> None:
    """RecipeError for a loss that compares token by token where the tokenizers differ."""
    for index, term in enumerate(terms):
        kind = term.kind
        if not shared_tokenizer and kind not in ("cross_entropy", "uld"):
            raise RecipeError(
                f"{kind} compares the probabilities of each token, but teacher and student have different tokenizers",
                where=f"train.loss[{index}]",
                next="use uld or cross_entropy, or a student with the teacher's tokenizer",
            )


def end_token(student: Student) -> int:
    """The id that ends what the student writes; RecipeError when its tokenizer has none."""
    token: int | None = student.tokenizer.eos_token_id
    if token is None:
        raise RecipeError("the student's tokenizer has no end token", where="student", next="choose another tokenizer")
    return token


def decoder_positions(student: Student) -> int:
    """How long an encoder–decoder's response may be; where positions are relative (T5), there is no bound."""
    return getattr(student.model.config, "max_position_embeddings", None) or 2**31


def _remapped(student: Student, responses: Responses) -> list[list[int]]:
    """The teacher's response tokens under the student's ids."""
    remap = student.remap
    if remap is None:
        return [[int(token) for token in ids] for ids in responses.token_ids]
    found = [remap[np.asarray(ids)] for ids in responses.token_ids]
    for row, before, after in zip(responses.id, responses.token_ids, found, strict=True):
        if (after < 0).any():
            token = int(np.asarray(before)[after < 0][0])
            raise DataError(f"row {row}: token {token} of the response is not in the trimmed vocabulary")
    return [ids.tolist() for ids in found]


def _tokenized_again(student: Student, responses: Responses) -> list[list[int]]:
    """The responses' texts in the student's tokens, with its end token unless the response was cut off."""
    end = end_token(student)
    encoded = student.tokenizer(text_target=responses.text, add_special_tokens=False).input_ids
    return [list(ids) if was_cut and ids else [*ids, end] for ids, was_cut in zip(encoded, responses.cut, strict=True)]


def _fitted(student: Student, row: str, view: list[int], response: list[int], *, cut: bool) -> list[int]:
    room = decoder_positions(student) if student.is_encoder_decoder else student.max_length - len(view)
    if len(response) <= room:
        return response
    if cut:
        return response[:room]
    raise DataError(
        f"row {row}: the response has {len(response)} tokens, the student has room for {room}",
        where="student.max_length",
        next="raise it where the model allows it, or set contexts.truncate: input",
    )
