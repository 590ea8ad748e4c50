"""Run the prompted teacher in onnxruntime-genai with its prompt cached: one query at a time, without torch.

The prompt's tokens run once. A query rewinds to their end and runs its own tokens, whatever the query before it has
written. The teacher's own tokenizer provides these tokens (`Prompted`); a query tokenizes its text all the same,
because a service would have to, and that time counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai
from tokenizers import Tokenizer

from distillctl.runtimes import genai
from distillctl.teachers.exclusive import exclusive


@dataclass(frozen=True)
class Prompted:
    """Views as the teacher reads them.

    context: the token ids that all of them begin with. suffixes: text → the ids that follow. answers: text → the token
    ids of each label after it; empty for `generate`.
    """

    context: Sequence[int]
    suffixes: Mapping[str, Sequence[int]]
    answers: Mapping[str, Sequence[Sequence[int]]]

    @property
    def longest(self) -> int:
        """Return the number of tokens of the longest view with the longest of its labels."""
        return len(self.context) + max(
            len(ids) + max(map(len, self.answers.get(text, ())), default=0) for text, ids in self.suffixes.items()
        )


class _Cached:
    def __init__(self, folder: Path, threads: int, prompted: Prompted, answer_tokens: int) -> None:
        """Load the model. answer_tokens: number of positions after the longest view."""
        self._prompted = prompted
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._model, self._config = genai.load(folder, threads)
        parameters = onnxruntime_genai.GeneratorParams(self._model)
        parameters.set_search_options(do_sample=False, max_length=prompted.longest + answer_tokens)
        self._generator = onnxruntime_genai.Generator(self._model, parameters)

    def read_prompt(self) -> None:
        """Run the shared tokens once."""
        if self._prompted.context:
            self._generator.append_tokens(list(self._prompted.context))

    def encode(self, text: str) -> list[int]:
        """Tokenize the text, and return the ids that follow the cached prompt."""
        self._tokenizer.encode(text)
        return list(self._prompted.suffixes[text])

    def _start(self, ids: Sequence[int]) -> None:
        """Run a view's own tokens after the cached prompt."""
        self._generator.rewind_to(len(self._prompted.context))
        self._generator.append_tokens(list(ids))


class GenaiTeacherGenerator(_Cached):
    """Answer greedily, one token after the other."""

    def __init__(
        self, folder: Path, threads: int, prompted: Prompted, stop_ids: Sequence[int], max_new_tokens: int
    ) -> None:
        """Load the model. stop_ids: the tokens that end an answer."""
        super().__init__(folder, threads, prompted, max_new_tokens)
        self._stop_ids = frozenset(stop_ids)

    def stream(self, view: Sequence[int], max_new_tokens: int) -> Iterator[int]:
        """Yield the answer's token ids as they are decoded.

        The last one is a stop id, unless ``max_new_tokens`` came first. view: from `encode`.
        """
        self._start(view)
        for _ in range(max_new_tokens):
            self._generator.generate_next_token()
            token = int(self._generator.get_next_tokens()[0])
            yield token
            if token in self._stop_ids or self._generator.is_done():
                return

    def kv_bytes(self, length: int) -> int:
        """Return the bytes of keys and values of ``length`` tokens, the prompt's included."""
        return genai.kv_bytes_per_token(self._config) * length


class GenaiTeacherClassifier(_Cached):
    """Choose the label whose words are likeliest after the view.

    The view's own tokens run once. All tokens of every label but its last one follow one by one.
    """

    def __init__(
        self, folder: Path, threads: int, prompted: Prompted, vocabulary: int, log_prior: Sequence[float] | None
    ) -> None:
        """Load the model.

        vocabulary: number of logits; those beyond it are padding. log_prior: natural logs [K], subtracted before
        choosing.
        """
        super().__init__(folder, threads, prompted, 1)
        self._vocabulary = vocabulary
        self._log_prior = None if log_prior is None else np.asarray(log_prior)

    def label(self, text: str) -> int:
        """Return the index of the chosen label."""
        log_probs = self.log_probs(text)
        return int((log_probs if self._log_prior is None else log_probs - self._log_prior).argmax())

    def log_probs(self, text: str) -> np.ndarray:
        """Return log Pr(label words | view), float32 [K], of exclusive labels, not normalised over them."""
        self._start(self.encode(text))
        answers = [tuple(answer) for answer in self._prompted.answers[text]]
        after: dict[tuple[int, ...], np.ndarray] = {(): self._next_log_probs()}
        view = self._generator.token_count()
        for stem in sorted({answer[:-1] for answer in answers}):
            self._generator.rewind_to(view)
            for length in range(1, len(stem) + 1):
                self._generator.append_tokens([stem[length - 1]])
                after[stem[:length]] = self._next_log_probs()
        sums = [sum(after[answer[:place]][token] for place, token in enumerate(answer)) for answer in answers]
        log_probs: np.ndarray = exclusive(np.array([sums]), answers)[0]
        return log_probs

    def _next_log_probs(self) -> np.ndarray:
        """Return natural logs over the vocabulary, float64 [V], after the tokens so far."""
        logits: Any = self._generator.get_logits()
        last: np.ndarray = np.asarray(logits, np.float64).reshape(-1, logits.shape[-1])[-1, : self._vocabulary]
        last -= last.max()
        last -= np.log(np.exp(last).sum())
        return last
