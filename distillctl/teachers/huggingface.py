"""Run a causal language model with transformers as the teacher: from a hub id, a folder or a GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from distillctl import console
from distillctl.errors import UnavailableError, first_line
from distillctl.models import checkpoint_files, from_pretrained
from distillctl.models.model_source import ModelSource
from distillctl.recipe import HuggingFaceTeacher, Sampling
from distillctl.run_dir.facts import TeacherSize
from distillctl.teachers import generation, label_scoring, response_scoring
from distillctl.teachers.generation import Generated, Keep
from distillctl.teachers.label_scoring import Answers, LabelScores
from distillctl.teachers.reading import LocalReader, sizes, unavailable
from distillctl.teachers.response_scoring import Use
from distillctl.teachers.shared_context import SharedContext, UnsupportedAttention

SELF_CHECK = {"float32": 1e-4, "bfloat16": 0.3, "float16": 0.03}
"""Largest difference in nats when the shortest and the longest row are scored with and without the shared context. The
half-precision bounds leave room for rounding."""
CHECKED_TOKENS, CHECKED_TOP = 8, 32
"""For `generate`: numbers of compared answer tokens, and of the likeliest tokens at each."""


class Teacher(LocalReader):
    """A loaded teacher: it encodes views and answers, scores labels, and generates text."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, spec: HuggingFaceTeacher) -> None:
        super().__init__(tokenizer, model.config, model.generation_config, spec)
        self.model = model

    def facts(self) -> TeacherSize:
        """Return the number of parameters, and their bytes."""
        return sizes(self.model)

    # ── the shared context, if it can be trusted ─────────────────────────────────────────────────

    def prepare(self, views: Sequence[Sequence[int]], answers: Sequence[Answers], shared: int) -> SharedContext | None:
        """Run the first ``shared`` tokens of the views once. Return None if it is not worth it, or gives other results.

        views: the shortest and the longest. answers: the labels' token ids after each.
        """

        def difference(
            pair: Sequence[Sequence[int]], suffixes: Sequence[Sequence[int]], context: SharedContext
        ) -> float:
            split = self.score(suffixes, answers, context).log_probs
            return float(abs(split - self.score(pair, answers, None).log_probs).max())

        return self._prepare(views, shared, difference)

    def prepare_to_answer(
        self, views: Sequence[Sequence[int]], shared: int, max_new_tokens: int
    ) -> SharedContext | None:
        """Do what `prepare` does for generated text: generate with the context, and score the text without it."""

        def difference(
            pair: Sequence[Sequence[int]], suffixes: Sequence[Sequence[int]], context: SharedContext
        ) -> float:
            steps = min(max_new_tokens, CHECKED_TOKENS)
            answers = self.answer(
                suffixes, context, stop=(), max_new_tokens=steps, keep=lambda rows, _: {"log_probs": rows.numpy()}
            )
            tokens = [answer[0].token_ids for answer in answers]
            worst = 0.0

            def compare(row: int, plain: Tensor) -> None:
                nonlocal worst
                top = plain.topk(min(CHECKED_TOP, plain.shape[-1])).indices
                grown = torch.from_numpy(answers[row][0].labels["log_probs"])
                for other in (grown, forced[row]):
                    worst = max(worst, float((plain - other).gather(-1, top).abs().max()))

            forced: dict[int, Tensor] = {}
            self.score_responses(suffixes, tokens, forced.__setitem__, context)
            self.score_responses(pair, tokens, compare, None)
            return worst

        return self._prepare(views, shared, difference)

    def _prepare(
        self,
        views: Sequence[Sequence[int]],
        shared: int,
        difference: Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]], SharedContext], float],
    ) -> SharedContext | None:
        if not self.spec.share_context or shared < label_scoring.MIN_SHARED:
            return None
        pair = [min(views, key=len), max(views, key=len)]  # the longest may exceed a sliding window
        try:
            context = SharedContext(self.model, views[0][:shared])
            difference_in_nats = difference(pair, [view[shared:] for view in pair], context)
        except UnsupportedAttention as reason:
            console.note(f"the shared context is computed again for every row: {reason}")
            return None
        if difference_in_nats > SELF_CHECK[self.spec.dtype]:
            console.warn(
                "the shared context is computed again for every row: sharing it changes log-probabilities by "
                f"{difference_in_nats:.1g}"
            )
            return None
        return context

    # ── answers ─────────────────────────────────────────────────────────────────────────────

    def score(
        self, views: Sequence[Sequence[int]], answers: Sequence[Answers], context: SharedContext | None
    ) -> LabelScores:
        """Return raw log-probabilities of each view's labels. views: without the tokens of ``context``."""
        return label_scoring.score(
            self.model,
            views,
            answers,
            batch_tokens=self.spec.batch_tokens,
            vocabulary=len(self.tokenizer),
            context=context,
        )

    def answer(
        self,
        views: Sequence[Sequence[int]],
        context: SharedContext | None,
        *,
        stop: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling | None = None,
        seeds: Sequence[int] | None = None,
        keep: Keep | None = None,
    ) -> list[list[Generated]]:
        """Generate every view's responses (`generation.generate`). views: without the tokens of ``context``."""
        return generation.generate(
            self.model,
            views,
            stop=stop,
            max_new_tokens=max_new_tokens,
            batch_tokens=self.spec.batch_tokens,
            vocabulary=self.vocabulary,
            context=context,
            sampling=sampling,
            seeds=seeds,
            keep=keep,
        )

    def score_responses(
        self,
        views: Sequence[Sequence[int]],
        given: Sequence[Sequence[int]],
        use: Use,
        context: SharedContext | None,
    ) -> None:
        """Pass the distributions along given responses to ``use`` (`response_scoring.score`)."""
        response_scoring.score(
            self.model,
            views,
            given,
            use,
            batch_tokens=self.spec.batch_tokens,
            vocabulary=self.vocabulary,
            context=context,
        )


def load(spec: HuggingFaceTeacher, source: ModelSource) -> Teacher:
    """Load tokenizer and weights, from safetensors or GGUF but never pickle. Raise UnavailableError if they cannot be
    loaded."""
    if spec.threads:
        torch.set_num_threads(spec.threads)
    if spec.trust_remote_code:
        console.warn(f"teacher.trust_remote_code: Python code that comes with {spec.model} is run on this machine")
    arguments, place = (
        from_pretrained.options(source, spec.revision, spec.trust_remote_code),
        from_pretrained.folder(source),
    )
    with checkpoint_files.loading(lambda error: unavailable(spec, error)), console.libraries_quiet():
        tokenizer = AutoTokenizer.from_pretrained(place, **arguments)
        if source.path is not None and not spec.trust_remote_code:
            config = AutoConfig.from_pretrained(place, **arguments)
            from_pretrained.check_size(AutoModelForCausalLM, config, Path(place))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=getattr(torch, spec.dtype),
            use_safetensors=True,
            output_loading_info=True,
            **arguments,
        )
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise UnavailableError(
            f"{spec.model} is not a complete language model: it has no weights for {missing[0]}", where="teacher.model"
        )
    try:
        model.to(_device(spec.device)).eval()
    except (RuntimeError, AssertionError) as error:
        raise UnavailableError(
            f"{spec.device!r} cannot be used: {first_line(error)}", where="teacher.device"
        ) from error
    return Teacher(model, tokenizer, spec)


def _device(name: str) -> str:
    if name != "auto":
        return name
    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
