"""The token rows a generating student is trained on: view, response, and the stored distributions of the teacher.

Where both tokenizers have the same ids, the teacher's response tokens and their distributions are the student's too
(under new ids if its vocabulary was trimmed). Otherwise the response's text is tokenized again, and the distributions
can only be compared by rank (`losses.cross_tokenizer`).
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distillctl.data.disk_rows import DiskRows, Subset, lengths
from distillctl.errors import DataError, RecipeError, UpstreamError
from distillctl.losses.cross_tokenizer import align
from distillctl.losses.targets import DenseTargets, Targets, TopKTargets
from distillctl.recipe import EvalSoftLabels, HuggingFaceTeacher, LossTerm, Recipe, Spec, Text, implementation
from distillctl.soft_labels.response_shards import Responses, SoftLabelCodec
from distillctl.soft_labels.spooled import SpooledLabels
from distillctl.students.student import Student
from distillctl.tasks.generate import token_weights
from distillctl.tasks.generate.token_weights import Needs
from distillctl.training.learner import Batch


@dataclass(frozen=True)
class ResponseRows:
    """The token ids of a split's views and responses, one row a response.

    views, responses: the student's token ids, the responses' with the token that ended them; targets: a function from
    rows to the targets of all their response tokens, in order; vocabulary: the number of ids that are tokens; examples:
    the number of the view that each row answers; cut: the number of responses whose end was cut off because the student
    has no room for it.
    """

    views: Sequence[list[int]]
    responses: Sequence[list[int]]
    targets: Callable[[Batch], Targets]
    vocabulary: int
    examples: Batch = ()
    cut: int = 0
    weights: Callable[[Batch], np.ndarray] | None = None
    """A function from rows to the weights of all their response tokens in the loss, float32, in order."""

    def take(self, rows: Batch) -> ResponseRows:
        """Return some of the rows, in that order."""
        weights = self.weights
        return ResponseRows(
            Subset(self.views, rows),
            Subset(self.responses, rows),
            lambda some: self.targets([rows[row] for row in some]),
            self.vocabulary,
            weights=weights and (lambda some: weights([rows[row] for row in some])),
        )

    @property
    def lengths(self) -> np.ndarray:
        """Return the tokens of view and response together, int64 [N]."""
        total: np.ndarray = lengths(self.views) + lengths(self.responses)
        return total

    @property
    def positions(self) -> np.ndarray:
        """Return the tokens of the response, int64 [N]."""
        return lengths(self.responses)


def rows(
    student: Student,
    views: Iterable[tuple[Sequence[str], ...]],
    responses: Iterable[Responses],
    codec: SoftLabelCodec,
    folder: Path,
    *,
    shared_tokenizer: bool,
    cut: bool,
    needs: Needs | None = None,
) -> ResponseRows:
    """Return one row for each response, in the order of the views they answer, samples ascending.

    views: ids and simplified texts, in parts; responses: in parts, in any order, read with the soft labels'
    ``codec``; folder: where the rows' files are kept; needs: of the tokens, from which their weights follow;
    shared_tokenizer: whether the teacher's token ids mean the same to the student. Raise DataError, naming the row,
    where a response is too long for the student or has a token that a trimmed vocabulary lacks; with ``cut`` a
    response that is too long in the student's own tokens loses its end instead.
    """
    number: dict[str, int] = {}
    view_ids, response_ids, teacher_ids = (DiskRows(folder, np.int32) for _ in range(3))
    labels, token_needs, need_sum = SpooledLabels(folder, codec.fields), DiskRows(folder, np.float32), 0.0
    for name, ids in student.encode(views):
        number[name] = len(number)
        view_ids.append(ids)
    room, example, sample, shortened = view_ids.lengths, array("q"), array("q"), 0
    for part in responses:
        encoded = _remapped(student, part) if shared_tokenizer else _tokenized_again(student, part)
        part_needs = needs(part) if needs else ()
        for row, name in enumerate(part.id):
            response = _fitted(student, name, int(room[number[name]]), encoded[row], cut=cut)
            shortened += len(response) < len(encoded[row])
            # In shared tokens a response that was cut here is a beginning of the teacher's.
            end = len(response) if shared_tokenizer else len(part.token_ids[row])
            response_ids.append(response)
            teacher_ids.append(part.token_ids[row][:end])
            labels.append({column: values[row][:end] for column, values in part.labels.items()})
            if needs:
                token_needs.append(part_needs[row][:end])
                need_sum += float(part_needs[row][:end].sum(dtype=np.float64))
            example.append(number[name])
            sample.append(part.sample[row])
    if len(missing := np.setdiff1d(np.arange(len(number)), example)):
        name = list(number)[missing[0]]
        raise UpstreamError(f"row {name} has no response", where=str(folder), next="distillctl collect RECIPE")
    order, remap = np.lexsort((sample, example)), student.remap if shared_tokenizer else None

    def targets(some: Batch) -> Targets:
        places = order[np.asarray(some)].tolist()
        token_ids = [teacher_ids[place] for place in places]
        teacher_targets = codec.targets(labels.some(places), token_ids, remap)
        if shared_tokenizer:
            return teacher_targets
        retokenized = [response_ids[place].tolist() for place in places]
        if isinstance(teacher_targets, DenseTargets | TopKTargets):
            return align(teacher_targets, [len(ids) for ids in token_ids], retokenized)
        return Targets(teacher_targets.token_ids.new_tensor([token for ids in retokenized for token in ids]))

    mean_need = need_sum / max(1, int(token_needs.lengths.sum())) if needs else 0.0

    def weights(some: Batch) -> np.ndarray:
        places = order[np.asarray(some)].tolist()
        return np.concatenate([token_weights.weights(token_needs[place], mean_need) for place in places])

    examples = np.array(example)[order]
    return ResponseRows(
        Subset(view_ids, examples, np.ndarray.tolist),
        Subset(response_ids, order, np.ndarray.tolist),
        targets,
        len(student.tokenizer),
        examples,
        shortened,
        weights if needs else None,
    )


def kept(recipe: Recipe, split: str, *, shared_tokenizer: bool) -> SoftLabelCodec:
    """Return the codec that reads a split's soft labels.

    KL on eval rows needs distributions over the same tokens: with different tokenizers only the texts are read.
    """
    spec: Spec = recipe.generate.kept(split, served=not isinstance(recipe.teacher, HuggingFaceTeacher))
    spec = Text() if isinstance(spec, EvalSoftLabels) and not shared_tokenizer else spec
    codec: SoftLabelCodec = implementation(spec)(spec)
    return codec


def check_terms(terms: Sequence[LossTerm], *, shared_tokenizer: bool) -> None:
    """Raise RecipeError for a loss that compares token by token where the tokenizers differ."""
    for index, term in enumerate(terms):
        kind = term.kind
        if not shared_tokenizer and kind not in ("cross_entropy", "uld"):
            raise RecipeError(
                f"{kind} compares the probabilities of each token, but teacher and student have different tokenizers",
                where=f"train.loss[{index}]",
                next="use uld or cross_entropy, or a student with the teacher's tokenizer",
            )


def end_token(student: Student) -> int:
    """Return the id that ends the student's answers. Raise RecipeError when its tokenizer has none."""
    token: int | None = student.tokenizer.eos_token_id
    if token is None:
        raise RecipeError("the student's tokenizer has no end token", where="student", next="choose another tokenizer")
    return token


def decoder_positions(student: Student) -> int:
    """Return the longest response of an encoder–decoder; relative positions (T5) set no bound."""
    return getattr(student.model.config, "max_position_embeddings", None) or 2**31


def _remapped(student: Student, responses: Responses) -> list[list[int]]:
    """Return the teacher's response tokens under the student's ids."""
    remap = student.remap
    if remap is None:
        return [[int(token) for token in ids] for ids in responses.token_ids]
    remapped = [remap[np.asarray(ids)] for ids in responses.token_ids]
    for row, before, after in zip(responses.id, responses.token_ids, remapped, strict=True):
        if (after < 0).any():
            token = int(np.asarray(before)[after < 0][0])
            raise DataError(f"row {row}: token {token} of the response is not in the trimmed vocabulary")
    return [ids.tolist() for ids in remapped]


def _tokenized_again(student: Student, responses: Responses) -> list[list[int]]:
    """Return the responses in the student's tokens, with its end token unless the response was cut off."""
    end = end_token(student)
    encoded = student.tokenizer(text_target=responses.text, add_special_tokens=False).input_ids
    return [list(ids) if was_cut and ids else [*ids, end] for ids, was_cut in zip(encoded, responses.cut, strict=True)]


def _fitted(student: Student, row: str, view: int, response: list[int], *, cut: bool) -> list[int]:
    """Return the response, cut to the student's room where ``cut`` allows it. view: the number of its tokens."""
    room = decoder_positions(student) if student.is_encoder_decoder else student.max_length - view
    if len(response) <= room:
        return response
    if cut:
        return response[:room]
    raise DataError(
        f"row {row}: the response has {len(response)} tokens, the student has room for {room}",
        where="student.max_length",
        next="raise it where the model allows it, or set contexts.truncate: input",
    )
