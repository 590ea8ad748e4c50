"""Run an exported decoder as an app would: tokenizers and ONNX Runtime, no torch; one query at a time, greedily."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distillctl.runtimes import key_values
from distillctl.runtimes.drafts import Drafts, greedy
from distillctl.runtimes.key_values import Past, SharedBuffers, SwappedOutputs
from distillctl.runtimes.onnxruntime import session
from distillctl.runtimes.text_folder import TextFolder, read_json, window


class OnnxDecoder(TextFolder):
    """Decode greedily with a folder's `model.onnx`: tokens in, tokens out.

    Past and present share their memory if `genai_config.json` says that the graph allows it. Queries share it too, so
    run one at a time.
    """

    def __init__(self, folder: Path, threads: int = 1, suffix: str = ".onnx") -> None:
        super().__init__(folder)
        self.drafts = Drafts.read(folder)
        self._session = session(folder / f"model{suffix}", threads)
        self._has_positions = "position_ids" in {value.name for value in self._session.get_inputs()}
        genai = read_json(folder / "genai_config.json")
        built: dict[str, Any] = genai["model"]["decoder"] if genai else {}
        self._shares = bool(genai) and genai["search"]["past_present_share_buffer"]
        self._window = window(genai) if genai else 0
        self._caches = key_values.caches(self._session, built.get("head_size"))
        self._buffers: SharedBuffers | None = None

    def stream(self, view: Sequence[int], max_new_tokens: int) -> Iterator[int]:
        """Yield the answer's token ids as they are decoded. Raise DataError if the view leaves no room.

        The first one comes after the whole view has run. The last one is a stop id, unless ``max_new_tokens`` or
        `max_length` came first.
        """
        steps = min(max_new_tokens, self.max_length - len(view))
        if steps < 1:
            raise self.too_long(view)
        yield from greedy(self._run(len(view) + steps), view, steps, self.stop_ids, self.drafts)

    def score(self, view: Sequence[int], response: Sequence[int]) -> np.ndarray:
        """Return the logits that predict each token of ``response`` after ``view``, float32 [R, V], in one pass."""
        ids = [*view, *response[:-1]]
        logits = self._run(len(ids))(ids, 0)
        return logits[len(view) - 1 :].astype(np.float32, copy=False)

    def feeds(self, view: Sequence[int], response: Sequence[int]) -> dict[str, dict[str, np.ndarray]]:
        """Return the inputs of `score`'s run, by the graph's file name."""
        ids = np.array([[*view, *response[:-1]]], np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        feed |= {name: cache.zeros(0).numpy() for name, cache in self._caches.items()}
        return {"model.onnx": feed | ({"position_ids": np.arange(ids.size)[None]} if self._has_positions else {})}

    def kv_bytes(self, length: int) -> int:
        """Return the bytes of keys and values of ``length`` tokens."""
        return sum(cache.bytes_per_token for cache in self._caches.values()) * length

    def _past(self, length: int) -> Past:
        """Return an empty past with room for ``length`` tokens.

        Shared buffers are kept from query to query. Sliding-window layers refuse buffers shorter than their window.
        """
        if not self._shares:
            return SwappedOutputs(self._caches)
        if self._buffers is None or self._buffers.length < length:
            self._buffers = SharedBuffers(self._caches, max(length, self._window))
        return self._buffers

    def _run(self, room: int) -> Callable[[Sequence[int], int], np.ndarray]:
        """Return the function that `greedy` decodes with. room: the number of tokens in all."""
        binding, past = self._session.io_binding(), self._past(room)

        def run(ids: Sequence[int], length: int) -> np.ndarray:
            if length:
                past.keep(binding, length)
            else:
                past.bind(binding)
            binding.bind_output("logits")
            binding.bind_cpu_input("input_ids", np.array([ids], np.int64))
            binding.bind_cpu_input("attention_mask", np.ones((1, length + len(ids)), np.int64))
            if self._has_positions:
                binding.bind_cpu_input("position_ids", np.arange(length, length + len(ids), dtype=np.int64)[None])
            self._session.run_with_iobinding(binding)
            logits: np.ndarray = binding.get_outputs()[-1].numpy()[0]
            return logits

        return run
