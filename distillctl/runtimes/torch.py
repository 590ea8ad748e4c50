"""Run the prompted teacher in PyTorch as a service would: one query at a time, text in, label or text out."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from distillctl.data.answer_place import AnswerPlace
from distillctl.teachers.exclusive import exclusive
from distillctl.teachers.huggingface import Teacher
from distillctl.teachers.label_scoring import distinct_stems
from distillctl.teachers.shared_context import common_prefix


def shared_context(teacher: Teacher, texts: Sequence[str], place: AnswerPlace) -> list[int]:
    """Return the tokens that all views start with. At least one token is left to each view."""
    views = [teacher.encode(place.before(text), chat=place.chat) for text in texts]
    return views[0][: common_prefix(views)]


class _Prompted:
    """Run views after a prompt that may be cached.

    With ``context`` (see `shared_context`) those tokens are run once, here, and a query runs only what follows. Without
    it a query runs its whole view. Either way the whole view is tokenized. place: where an answer follows the views, as
    collect found it.
    """

    def __init__(self, teacher: Teacher, place: AnswerPlace, context: Sequence[int]) -> None:
        self._teacher = teacher
        self._place = place
        self._context = list(context)
        self._prefix = self._run(self._context) if context else None

    def encode(self, text: str) -> list[int]:
        """Tokenize the view, and return the ids that follow the cached prompt."""
        return self._suffix(self._teacher.encode(self._place.before(text), chat=self._place.chat))

    def _suffix(self, ids: list[int]) -> list[int]:
        """Return those of a view's token ids that follow the cached prompt."""
        shared = len(self._context)
        if ids[:shared] != self._context or len(ids) == shared:
            raise ValueError("the view does not start with the cached context")
        return ids[shared:]

    def _past(self) -> DynamicCache | None:
        """Return a copy of the cached prompt's keys and values that can grow, or None without a prompt."""
        return None if self._prefix is None else _copy(self._prefix)

    @torch.inference_mode()
    def _run(self, ids: Sequence[int], past: DynamicCache | None = None) -> DynamicCache:
        """Return the keys and values after ``past`` and ``ids``."""
        past = self._empty() if past is None else past
        self._forward(torch.tensor([ids]), past, keep=1)
        return past

    def _empty(self) -> DynamicCache:
        """Return a new cache; the config says which layers slide."""
        return DynamicCache(config=self._teacher.model.config)

    def _forward(self, ids: Tensor, past: DynamicCache | None, keep: int) -> Tensor:
        """Return logits [B, keep, V] at the last positions."""
        model = self._teacher.model
        output = model(
            input_ids=ids.to(model.device), past_key_values=past, use_cache=past is not None, logits_to_keep=keep
        )
        logits: Tensor = output.logits
        return logits


class TeacherGenerator(_Prompted):
    """Answer greedily, one token after the other."""

    def __init__(
        self, teacher: Teacher, stop_ids: Sequence[int], place: AnswerPlace, context: Sequence[int] = ()
    ) -> None:
        """Cache the prompt. stop_ids: the tokens that end an answer."""
        super().__init__(teacher, place, context)
        self._stop_ids = frozenset(stop_ids)

    @torch.inference_mode()
    def stream(self, view: Sequence[int], max_new_tokens: int) -> Iterator[int]:
        """Yield the answer's token ids as they are decoded.

        The last one is a stop id, unless ``max_new_tokens`` came first. view: from `encode`.
        """
        past, following = self._past(), list(view)
        past = self._empty() if past is None else past
        for _ in range(max_new_tokens):
            logits = self._forward(torch.tensor([following]), past, keep=1)[0, -1]
            token = int(logits[: self._teacher.vocabulary].float().argmax())
            yield token
            if token in self._stop_ids:
                return
            following = [token]

    def kv_bytes(self, length: int) -> int:
        """Return the bytes of keys and values of ``length`` tokens, the prompt's included."""
        total = 0
        for layer in self._run([0]).layers:
            if isinstance(layer, DynamicLayer):  # others keep states of constant size
                assert layer.keys is not None
                assert layer.values is not None
                most = layer.sliding_window - 1 if isinstance(layer, DynamicSlidingWindowLayer) else length
                total += (layer.keys.nbytes + layer.values.nbytes) * min(length, most)
        return total


class TeacherClassifier(_Prompted):
    """Choose the label whose words are likeliest after the view.

    The view runs once, however many labels there are. If the label words do not share a single path, their ends follow
    in one small batch.
    """

    def __init__(
        self,
        teacher: Teacher,
        words: Sequence[str],
        place: AnswerPlace,
        context: Sequence[int] = (),
        log_prior: Sequence[float] | None = None,
    ) -> None:
        """Cache the prompt. words: the labels' words. log_prior: natural logs [K], subtracted before choosing."""
        super().__init__(teacher, place, context)
        self._words = list(words)
        self._stems = functools.cache(distinct_stems)
        self._vocabulary = len(teacher.tokenizer)  # logits beyond it are padding
        self._log_prior = np.zeros(len(words)) if log_prior is None else np.asarray(log_prior)

    def label(self, text: str) -> int:
        """Return the index of the chosen label."""
        return int((self.log_probs(text) - self._log_prior).argmax())

    @torch.inference_mode()
    def log_probs(self, text: str) -> np.ndarray:
        """Return log Pr(label words | view), float32 [K], of exclusive labels, not normalised over them."""
        whole = self._teacher.label_tokens(text, self._words, self._place)
        past, ids, stems = self._past(), self._suffix(whole.view), self._stems(whole.answers)
        if len(stems) > 1 and len(ids) > 1:
            past, ids = self._run(ids[:-1], past), ids[-1:]
        batch = pad_sequence([torch.tensor([*ids, *stem]) for stem in stems], batch_first=True)
        if past is not None and len(batch) > 1:
            past.batch_repeat_interleave(len(batch))
        logits = self._forward(batch, past, keep=batch.shape[1] - len(ids) + 1)
        log_probs = logits[:, :, : self._vocabulary].float().log_softmax(-1)
        paths = [next(i for i, s in enumerate(stems) if s[: len(a) - 1] == a[:-1]) for a in whole.answers]
        sums = [log_probs[path, range(len(a)), a].sum() for path, a in zip(paths, whole.answers, strict=True)]
        label_log_probs: np.ndarray = exclusive(torch.stack(sums).cpu().numpy()[None], whole.answers)[0]
        return label_log_probs


def _copy(cache: DynamicCache) -> DynamicCache:
    """Return a cache that can grow while the given one stays.

    A plain layer grows by concatenation into new tensors, so keys and values are shared, and a long context is not
    copied for each query. Other kinds of layer (sliding windows, states) change in place or count tokens.
    """
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        return copy.deepcopy(cache)
    fresh = copy.copy(cache)
    fresh.layers = [copy.copy(layer) for layer in cache.layers]
    return fresh
