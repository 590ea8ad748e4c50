"""Run an exported encoder–decoder as an app would: tokenizers and ONNX Runtime, no torch; one query at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from distillctl.runtimes import key_values
from distillctl.runtimes.drafts import Drafts, greedy
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
        self.drafts = Drafts.read(folder)
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
        steps = min(max_new_tokens, self._positions)
        yield from greedy(self._run(view), [self._start], steps, self.stop_ids, self.drafts)

    def score(self, view: Sequence[int], response: Sequence[int]) -> np.ndarray:
        """Return the logits that predict each token of ``response`` to ``view``, float32 [R, V], in one pass."""
        ids = [self._start, *response[:-1]]
        return self._run(view)(ids, 0).astype(np.float32, copy=False)

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

    def _run(self, view: Sequence[int]) -> Callable[[Sequence[int], int], np.ndarray]:
        """Run the encoder, and return the function that `greedy` decodes with.

        The first run fills the cross-attention's cache. Its outputs are the inputs of all later runs.
        """
        binding, past = self._decoder.io_binding(), SwappedOutputs(self._self_attention)
        for name, value in self._encode(view)[1].items():
            binding.bind_cpu_input(name, value)
        past.bind(binding)
        for name, cache in self._cross_attention.items():
            binding.bind_ortvalue_input(name, cache.zeros(0))
            binding.bind_output(key_values.present(name))

        def run(ids: Sequence[int], length: int) -> np.ndarray:
            if length:
                outputs = binding.get_outputs()
                binding.clear_binding_outputs()
                past.take(binding, outputs, length)
                # Present after the first run only: between the self-attention's outputs and the logits.
                for name, value in zip(self._cross_attention, outputs[len(self._self_attention) : -1], strict=False):
                    binding.bind_ortvalue_input(name, value)
            binding.bind_output("logits")
            binding.bind_cpu_input("input_ids", np.array([ids], np.int64))
            self._decoder.run_with_iobinding(binding)
            logits: np.ndarray = binding.get_outputs()[-1].numpy()[0]
            return logits

        return run
