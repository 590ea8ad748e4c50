"""Guess the next tokens of an answer, so that one run of the graph can check several (speculative decoding).

A run reads all weights, whether for one token or for a few. So `greedy` runs the tokens that are likely to come next
together with the last one, and keeps those that the graph itself chooses: the answer is the greedy one (Leviathan et
al. 2023, "Fast Inference from Transformers via Speculative Decoding", at temperature 0). Where ONNX Runtime rounds
activations to int8, logits differ a little between one run of several tokens and several runs of one, and near ties may
fall otherwise. `bench` measures it: onnxruntime-genai runs the same graph one token at a time.

The guesses come from a table of the tokens that usually follow in the training answers (n-gram drafts, Ou et al. 2024,
"Lossless Acceleration of Large Language Model via Adaptive N-gram Parallel Decoding"). Where answers have a form, such
as JSON with the same keys, most of their tokens are guessed. Where they are free text, hardly any are, and the table is
empty.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from distillctl.untrusted import limits

FILE = "drafts.json"
"""In a model's folder: `{"next": {"tokens": token}}`, the context's token ids separated by spaces."""
START = -1
"""The first token of every context that reaches the beginning of the answer."""
LONGEST = 8
"""Tokens of the longest context."""
MOST = 12
"""Tokens of the longest guess."""
LIKELY = 0.5
"""Share of the context's occurrences in which a token must follow, to be guessed."""
FREQUENT = 0.01
"""Occurrences of a context per answer, below which nothing is guessed: they would make the table long."""
ANSWERS = 10_000
"""Largest number of answers that a table is learned from."""

Context = tuple[int, ...]


class Drafts:
    """A table from contexts, the last tokens of an answer, to the token that usually follows."""

    def __init__(self, usual: Mapping[Context, int] | None = None) -> None:
        self.usual = dict(usual or {})

    @classmethod
    def learn(cls, answers: Iterable[Sequence[int]], stop_ids: Collection[int]) -> Drafts:
        """Return the table of these answers. Stop ids are left out: nothing may follow them."""
        lines = [[START, *(token for token in answer if token not in stop_ids)] for answer in islice(answers, ANSWERS)]
        drafts = cls()
        frequent: set[Context] = {()}
        for length in range(1, LONGEST + 1):
            following: defaultdict[Context, Counter[int]] = defaultdict(Counter)
            for line in lines:
                for end in range(length, len(line)):
                    context = tuple(line[end - length : end])
                    if context[1:] in frequent:  # a context is at most as frequent as its end
                        following[context][line[end]] += 1
            least = max(2.0, FREQUENT * len(lines))
            frequent = {context for context, tokens in following.items() if tokens.total() >= least}
            for context in frequent:
                [(token, count)] = following[context].most_common(1)
                if count >= LIKELY * following[context].total() and drafts._next(context[1:]) != token:
                    drafts.usual[context] = token
        return drafts

    @classmethod
    def read(cls, folder: Path) -> Drafts:
        """Return the table in a model's folder, empty if it has none. Raise ValueError if the file is malformed."""
        path = folder / FILE
        if not path.exists():
            return cls()
        try:
            usual = limits.read_json(path, limits.TEXT_BYTES)["next"]
            return cls({tuple(map(int, context.split())): int(token) for context, token in usual.items()})
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a table of drafts") from error

    def dumps(self) -> str:
        """Return the file's text. An empty table needs no file."""
        usual = {" ".join(map(str, context)): token for context, token in sorted(self.usual.items())}
        return json.dumps({"next": usual}, indent=0) + "\n"

    def after(self, answer: Sequence[int], most: int) -> list[int]:
        """Return the tokens that are likely to follow the beginning of an answer, no more than ``most`` or `MOST`."""
        line = [START, *answer]
        for _ in range(min(most, MOST)):
            token = self._next(line)
            if token is None:
                break
            line.append(token)
        return line[1 + len(answer) :]

    def runs(self, answer: Sequence[int], most: int) -> int:
        """Return the number of runs in which `greedy` decodes an answer of at most ``most`` tokens."""
        runs = done = 0
        while done < len(answer):
            done += 1 + _accepted(self.after(answer[:done], most - done - 1), answer[done:])
            runs += 1
        return runs

    def _next(self, line: Sequence[int]) -> int | None:
        """Return what usually follows the longest known context at the end of a line."""
        for length in range(min(LONGEST, len(line)), 0, -1):
            token = self.usual.get(tuple(line[-length:]))
            if token is not None:
                return token
        return None


def greedy(
    run: Callable[[list[int], int], np.ndarray],
    first: Sequence[int],
    most: int,
    stop_ids: Collection[int],
    drafts: Drafts,
) -> Iterator[int]:
    """Yield the likeliest token at each step, up to and including a stop id, and at most ``most``.

    run(ids, length): the logits [T, V] that follow each of T ids, which come after the first ``length`` tokens of the
    earlier runs; later ones were rejected. first: the tokens of the first run, such as the view's.
    """
    answer: list[int] = []
    new, length = list(first), 0
    while len(answer) < most:
        guess = drafts.after(answer, most - len(answer) - 1)
        best = run([*new, *guess], length)[len(new) - 1 :].argmax(-1).tolist()
        accepted = _accepted(guess, best)
        for token in best[: accepted + 1]:
            answer.append(token)
            yield token
            if token in stop_ids:
                return
        length += len(new) + accepted
        new = answer[-1:]


def _accepted(guess: Sequence[int], tokens: Sequence[int]) -> int:
    """Return how many tokens of a guess are right, up to the first wrong one."""
    pairs = zip(guess, tokens, strict=False)
    return next(
        (place for place, (guessed, token) in enumerate(pairs) if guessed != token), min(len(guess), len(tokens))
    )
