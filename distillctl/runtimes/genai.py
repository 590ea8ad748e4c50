"""Run an exported decoder as onnxruntime-genai's packages for phones do: their tokenizer and their loop, no torch."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai

from distillctl.runtimes.text_folder import read_json, window

CONFIG = "genai_config.json"
"""A folder with this file can be run by onnxruntime-genai."""
_VALUE_BYTES = 4
"""Bytes of a key's or value's element: on CPUs the builder keeps them in float32, whatever the weights are."""


def load(folder: Path, threads: int) -> tuple[Any, dict[str, Any]]:
    """Return the model, running in ``threads`` threads, and the content of genai_config.json."""
    onnxruntime_genai.disable_telemetry_events()
    config = onnxruntime_genai.Config(str(folder))
    options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    return onnxruntime_genai.Model(config), read_json(folder / CONFIG)


def kv_bytes_per_token(config: Mapping[str, Any]) -> int:
    """Return the bytes of keys and values per token. config: the content of genai_config.json."""
    decoder = config["model"]["decoder"]
    size: int = decoder["num_hidden_layers"] * decoder["num_key_value_heads"] * decoder["head_size"]
    return 2 * size * _VALUE_BYTES


class GenaiDecoder:
    """Decode greedily with the graph that a folder's `genai_config.json` names: tokens in, tokens out."""

    def __init__(self, folder: Path, threads: int = 1, max_view: int | None = None, begin: Sequence[int] = ()) -> None:
        """Set what its tokenizer does not take from `tokenizer.json`.

        max_view: number of tokens at which a view is cut. begin: special tokens with which a view begins.
        """
        self._max_view, self._begin = max_view, list(begin)
        self._model, config = load(folder, threads)
        self._context: int = config["model"]["context_length"]
        self._pad: int = config["model"]["pad_token_id"]
        ends: int | list[int] = config["model"]["eos_token_id"]
        self._ends = {ends} if isinstance(ends, int) else {*ends}
        self._window, self._per_token = window(config), kv_bytes_per_token(config)
        self._tokenizer = onnxruntime_genai.Tokenizer(self._model)

    def encode(self, text: str) -> list[int]:
        """Return the view's token ids."""
        ids: list[int] = self._begin + self._tokenizer.encode(text).tolist()
        return ids[: self._max_view]

    def stream(self, view: Sequence[int], max_new_tokens: int) -> Iterator[int]:
        """Yield the answer's token ids as they are decoded.

        The last one is a stop id, unless ``max_new_tokens`` or the last position came first.
        """
        most = min(len(view) + max_new_tokens, self._context)
        parameters = onnxruntime_genai.GeneratorParams(self._model)
        # It is also the size of the buffers of keys and values, which have to hold a sliding window.
        parameters.set_search_options(do_sample=False, max_length=max(most, self._window))
        generator = onnxruntime_genai.Generator(self._model, parameters)
        generator.append_tokens(list(view))
        while not generator.is_done() and generator.token_count() < most:
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    def generate_together(self, views: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Return the answers to several views, decoded at once, without the stop id that ends one of `stream`."""
        longest = max(map(len, views))
        most = min(longest + max_new_tokens, self._context)
        parameters = onnxruntime_genai.GeneratorParams(self._model)
        parameters.set_search_options(do_sample=False, max_length=max(most, self._window), batch_size=len(views))
        generator = onnxruntime_genai.Generator(self._model, parameters)
        generator.append_tokens(np.array([[*view, *[self._pad] * (longest - len(view))] for view in views], np.int32))
        while not generator.is_done() and generator.token_count() < most:
            generator.generate_next_token()
        return [self._answer(generator.get_sequence(row)[longest:].tolist()) for row in range(len(views))]

    def _answer(self, ids: list[int]) -> list[int]:
        """Return the ids before the stop id. genai leaves out the stop id of the answer that ends last.

        Padding follows the stop id of every other answer.
        """
        return list(itertools.takewhile(lambda token: token not in self._ends, ids))

    def kv_bytes(self, length: int) -> int:
        """Return the bytes of keys and values of ``length`` tokens."""
        return self._per_token * length
