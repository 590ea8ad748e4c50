"""A causal language model run here by transformers: from a hub id, a folder, or a GGUF file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel

from distillctl import console
from distillctl.errors import RecipeError, Unavailable, first_line
from distillctl.recipe import HuggingFaceTeacher
from distillctl.references import ModelSource
from distillctl.teachers import label_scoring
from distillctl.teachers.label_scoring import LabelScores
from distillctl.teachers.shared_context import SharedContext, Unsupported
from distillctl.workspace import digest, file_digest, replacing_folder

SELF_CHECK = {"float32": 1e-4, "bfloat16": 0.3, "float16": 0.03}
"""Nats; the shortest and the longest row are scored both ways before the shared context is trusted. The half-precision
bounds leave room for rounding in either way of computing."""


class Teacher:
    """A loaded teacher: encodes views and answers, scores labels."""

    def __init__(self, model: PreTrainedModel, tokenizer: Any, spec: HuggingFaceTeacher) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.spec = spec

    @property
    def max_length(self) -> int:
        """Positions the model was made for."""
        config = self.model.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", 0) or 2**31)

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def encode(self, text: str, *, chat: bool = False) -> list[int]:
        """Token ids of a view; a chat template has written its special tokens already."""
        ids = list(self.tokenizer(text, add_special_tokens=not chat).input_ids)
        if not chat and len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id and not text.endswith("</s>"):
            ids.pop()  # the answer goes on where the view ends
        return ids

    def encode_answer(self, words: str) -> list[int]:
        """Token ids of label words; RecipeError when the vocabulary cannot say them."""
        ids = list(self.tokenizer(words, add_special_tokens=False).input_ids)
        unknown = self.tokenizer.unk_token_id
        back = self.tokenizer.decode(ids) if ids else ""
        if not ids or (unknown is not None and unknown in ids) or back.strip() != words.strip():
            raise RecipeError(
                f"the teacher's tokenizer cannot write {words!r} (it reads back as {back!r})", where="task.labels"
            )
        return ids

    def prepare(
        self, views: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], shared: int
    ) -> SharedContext | None:
        """Run the first ``shared`` tokens of the views once; None where it does not pay or does not hold."""
        if not self.spec.share_context or shared < label_scoring.MIN_SHARED:
            return None
        try:
            context = SharedContext(self.model, views[0][:shared])
            pair = [min(views, key=len), max(views, key=len)]  # the longest may be too long for a sliding window
            split = self.score([view[shared:] for view in pair], answers, context).log_probs
        except Unsupported as reason:
            console.note(f"the shared context is run for every row: {reason}")
            return None
        plain = self.score(pair, answers, None).log_probs
        if (difference := abs(split - plain).max()) > SELF_CHECK[self.spec.dtype]:
            console.warn(
                f"the shared context is run for every row: sharing it changes log-probabilities by {difference:.1g}"
            )
            return None
        return context

    def score(
        self, views: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], context: SharedContext | None
    ) -> LabelScores:
        """Raw label log-probabilities; ``views`` without the tokens of ``context``."""
        return label_scoring.score(
            self.model,
            views,
            answers,
            batch_tokens=self.spec.batch_tokens,
            vocabulary=len(self.tokenizer),
            context=context,
        )


def load(spec: HuggingFaceTeacher, source: ModelSource) -> Teacher:
    """Load weights (safetensors or GGUF, never pickle) and tokenizer. Unavailable when they cannot be had."""
    if spec.threads:
        torch.set_num_threads(spec.threads)
    if spec.trust_remote_code:
        console.warn(f"teacher.trust_remote_code: Python code that comes with {spec.model} is run on this machine")
    folder = str(dequantized(source.path)) if source.is_gguf and source.path else source.name
    options: dict[str, Any] = {"trust_remote_code": spec.trust_remote_code}
    if source.path is None and spec.revision:
        options["revision"] = spec.revision
    try:
        with console.libraries_quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=getattr(torch, spec.dtype), use_safetensors=True, output_loading_info=True, **options
            )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
        raise Unavailable(
            f"the teacher {spec.model} cannot be loaded: {first_line(error)}", where="teacher.model"
        ) from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise Unavailable(
            f"{spec.model} is no whole language model: it has no weights for {missing[0]}", where="teacher.model"
        )
    try:
        model.to(_device(spec.device)).eval()
    except (RuntimeError, AssertionError) as error:
        raise Unavailable(f"{spec.device!r} cannot be used: {first_line(error)}", where="teacher.device") from error
    return Teacher(model, tokenizer, spec)


def _device(name: str) -> str:
    if name != "auto":
        return name
    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"


def dequantized(path: Path) -> Path:
    """A folder with the GGUF file's weights as safetensors and its tokenizer, cached by content and versions."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise Unavailable("not a GGUF file", where=str(path))
    key = digest([file_digest(path), transformers.__version__])[:24]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distillctl" / "gguf" / key
    if not (cache / "config.json").is_file():
        console.note(f"dequantizing {path.name} once (kept in {cache})")
        try:
            with console.libraries_quiet():
                tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
                model = AutoModelForCausalLM.from_pretrained(
                    path.parent,
                    gguf_file=path.name,
                    quantization_config=GgufConfig(dequantize=True),
                    dtype=torch.float32,
                )
        except (OSError, ValueError, ImportError, KeyError, RuntimeError, IndexError) as error:
            raise Unavailable(f"cannot be read: {first_line(error)}", where=str(path)) from error
        with replacing_folder(cache) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    return cache
