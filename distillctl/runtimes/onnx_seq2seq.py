"""Run an exported encoder–decoder as an app would: tokenizers and ONNX Runtime, no torch; one query at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from distillctl.runtimes import key_values
from distillctl.runtimes.key_values import SwappedOutputs
from distillctl.runtimes.onnxruntime import session
from distillctl.runtimes.text_folder import UNLIMITED, TextFolder


class OnnxSeq2Seq(TextFolder):
    """Decode greedily with a folder's `encoder_model.onnx` and `decoder_model_merged.onnx`.

    The decoder's graph computes the cross-attention's keys and values for those encoder positions that its past lacks:
    the first step computes all of them, later ones none.
    """

    def __init__(self, folder: Path, threads: int = 1, suffix: str = ".onnx") -> None:
        super().__init__(folder)
        self._start = int(self.config["decoder_start_token_id"])
        self._positions: int = self.config.get("max_position_embeddings") or UNLIMITED
        self._encoder = session(folder / f"encoder_model{suffix}", threads)
        self._decoder = session(folder / f"decoder_model_merged{suffix}", threads)
        caches = key_values.caches(self._decoder)
        self._self_attention = {name: cache for name, cache in caches.items() if ".decoder." in name}
        self._cross_attention = {name: cache for name, cache in caches.items() if ".encoder." in name}

    def stream(self, view: Sequence[int], max_new_tokens: int) -> Iterator[int]:
        """Yield the answer's token ids as they are decoded. Raise DataError if the view is too long.

        The first one comes after the encoder has run. The last one is a stop id, unless ``max_new_tokens`` or the last
        position came first.
        """
        if len(view) > self.max_length:
            raise self.too_long(view)
        binding, past = self._bound(view), SwappedOutputs(self._self_attention)
        token = int(self._first_step(binding, past, [self._start])[0, -1].argmax())
        yield token
        self._keep_cross(binding, past)
        steps = min(max_new_tokens, self._positions) - 1
        yield from key_values.greedy(self._decoder, binding, past, token, steps, self.stop_ids)

    def score(self, view: Sequence[int], response: Sequence[int]) -> np.ndarray:
        """Return the logits that predict each token of ``response`` to ``view``, float32 [R, V], in one pass."""
        ids = [self._start, *response[:-1]]
        logits: np.ndarray = self._first_step(self._bound(view), SwappedOutputs(self._self_attention), ids)[0]
        return logits.astype(np.float32, copy=False)

    def feeds(self, view: Sequence[int], response: Sequence[int]) -> dict[str, dict[str, np.ndarray]]:
        """Return the inputs of `score`'s two runs, by the graphs' file names."""
        encoder, decoder = self._encode(view)
        decoder["input_ids"] = np.array([[self._start, *response[:-1]]], np.int64)
        caches = self._self_attention | self._cross_attention
        decoder |= {name: cache.zeros(0).numpy() for name, cache in caches.items()}
        return {"encoder_model.onnx": encoder, "decoder_model_merged.onnx": decoder}

    def kv_bytes(self, length: int) -> int:
        """Return the bytes of keys and values of ``length`` tokens, of view and response together."""
        return sum(cache.bytes_per_token for cache in self._self_attention.values()) * length

    def _encode(self, view: Sequence[int]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Run the encoder, and return its inputs and the decoder's that all steps share."""
        ids = np.array([view], np.int64)
        encoder = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        (states,) = self._encoder.run(["last_hidden_state"], encoder)
        return encoder, {"encoder_hidden_states": states, "encoder_attention_mask": encoder["attention_mask"]}

    def _bound(self, view: Sequence[int]) -> ort.IOBinding:
        """Run the encoder, and return the decoder's binding with the inputs that all steps share."""
        binding = self._decoder.io_binding()
        for name, value in self._encode(view)[1].items():
            binding.bind_cpu_input(name, value)
        return binding

    def _first_step(self, binding: ort.IOBinding, past: SwappedOutputs, ids: Sequence[int]) -> np.ndarray:
        """Return logits [1, T, V] of ``ids`` after an empty past, and fill the cross-attention's cache."""
        past.bind(binding)
        for name, cache in self._cross_attention.items():
            binding.bind_ortvalue_input(name, cache.zeros(0))
            binding.bind_output(key_values.present(name))
        binding.bind_output("logits")
        binding.bind_cpu_input("input_ids", np.array([ids], np.int64))
        self._decoder.run_with_iobinding(binding)
        logits: np.ndarray = binding.get_outputs()[-1].numpy()
        return logits

    def _keep_cross(self, binding: ort.IOBinding, past: SwappedOutputs) -> None:
        """Make the first step's cross-attention outputs the later steps' past, and bind them no more."""
        outputs = binding.get_outputs()
        binding.clear_binding_outputs()
        past.take(binding, outputs)
        for name, value in zip(
            self._cross_attention, outputs[len(self._self_attention) :], strict=False
        ):  # logits follow
            binding.bind_ortvalue_input(name, value)
