"""Find where a response ends, and which part of its text is the answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distillctl.data.rows import Dataset
from distillctl.errors import DataError, RecipeError
from distillctl.recipe import Generate, Given, Recipe


@dataclass(frozen=True)
class Response:
    """A response, its tokens and its soft labels.

    labels: the codec's columns, one entry per response token. context_kl: float32, one entry per token of the ceiling's
    response, or None.
    """

    token_ids: list[int]
    text: str
    cut: bool
    labels: dict[str, Any]
    context_kl: np.ndarray | None = None


def clean(text: str, stop: Sequence[str]) -> str:
    """Return the answer in a decoded response: the text before the first stop string, stripped."""
    return text[: min((at for s in stop if (at := text.find(s)) >= 0), default=len(text))].strip()


def stop_ids(tokenizer: object, eos: Iterable[int], stop: Sequence[str]) -> list[int]:
    """Return the tokens at which a response ends, sorted: ``eos`` and every token whose text contains a stop string.

    Raise RecipeError if no single token contains a stop string, because generation looks at one token at a time.
    """
    ids = set(eos)
    texts = token_texts(tokenizer) if stop else []
    for string in stop:
        ends = {token for token, text in enumerate(texts) if string in text}
        if not ends:
            raise RecipeError(
                f"no token of the tokenizer contains {string!r}",
                where="task.stop",
                next='use a shorter one, such as "\\n"',
            )
        ids |= ends
    return sorted(ids)


def check_given(recipe: Recipe, dataset: Dataset) -> None:
    """Raise DataError if the train rows' references are to be their responses, and one has none."""
    if isinstance(recipe.task, Generate) and isinstance(recipe.task.responses, Given):
        for example in dataset.train:
            if example.reference is None:
                raise DataError(
                    f"row {example.id} has no reference, which task.responses: given needs as the response",
                    where="data.reference",
                    next="set data.unreferenced: drop to leave such rows out, or let the teacher answer "
                    "(task.responses: greedy)",
                )


def ended(ids: Sequence[int], ends: Sequence[int], eos: int | None, max_new_tokens: int) -> list[int]:
    """End a given response as the model would: after the first of ``ends`` (`stop_ids`), or by adding the end token."""
    at = next((place for place, token in enumerate(ids) if token in set(ends)), None)
    whole = list(ids) if at is None else list(ids[: at + 1])
    if at is None and ends:
        whole.append(eos if eos in ends and eos is not None else ends[0])
    return whole[:max_new_tokens]


def token_texts(tokenizer: Any) -> list[str]:
    """Return every token's text inside a text, because some tokenizers drop the space of a text's first token."""
    anchor = tokenizer("a", add_special_tokens=False).input_ids[-1:]
    head = tokenizer.decode(anchor, clean_up_tokenization_spaces=False)
    pairs = tokenizer.batch_decode([[*anchor, i] for i in range(len(tokenizer))], clean_up_tokenization_spaces=False)
    return [pair.removeprefix(head) for pair in pairs]
