"""The files and the token-by-token interface that all generating graphs have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from distillctl.errors import DataError
from distillctl.untrusted import limits

UNLIMITED = 2**31


class TextFolder(ABC):
    """An exported model's `tokenizer.json`, `config.json`, `generation_config.json` and `tokenizer_config.json`.

    stop_ids: `eos_token_id`, one or several. max_length: maximal number of tokens, of view and response together for a
    decoder, of the view for an encoder–decoder.
    """

    def __init__(self, folder: Path) -> None:
        config, tokenizer_config = read_json(folder / "config.json"), read_json(folder / "tokenizer_config.json")
        self.config: dict[str, Any] = config | read_json(folder / "generation_config.json")
        self.tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        stop: list[int] | int | None = self.config.get("eos_token_id")
        self.stop_ids: set[int] = set(stop) if isinstance(stop, list) else set() if stop is None else {stop}
        limits = (config.get("max_position_embeddings"), tokenizer_config.get("model_max_length"), UNLIMITED)
        self.max_length: int = min(limit for limit in limits if limit is not None)

    @abstractmethod
    def stream(self, view: Sequence[int], max_new_tokens: int) -> Iterator[int]:
        """Yield the answer's token ids as they are decoded."""

    def generate(self, view: Sequence[int], max_new_tokens: int) -> list[int]:
        """Return all token ids of `stream`."""
        return list(self.stream(view, max_new_tokens))

    def encode(self, text: str) -> list[int]:
        """Return the view's token ids, with the special tokens that the tokenizer adds."""
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text without special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def too_long(self, view: Sequence[int]) -> DataError:
        """Return the error for a view that the model cannot take."""
        return DataError(f"the view has {len(view)} tokens, the model takes {self.max_length}")


def begin(folder: Path) -> list[int]:
    """Return the special tokens with which the folder's tokenizer begins a decoder's view."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    ids: list[int] = tokenizer.encode("").ids
    return ids


def window(genai: Mapping[str, Any]) -> int:
    """Return the size of the sliding window, or 0. Buffers of keys and values need at least this length.

    genai: the content of `genai_config.json`.
    """
    size: int = genai["model"]["decoder"].get("sliding_window", {}).get("window_size", 0)
    return size


def read_json(path: Path) -> dict[str, Any]:
    """Return a file's JSON object; empty if there is no such file."""
    content: dict[str, Any] = limits.read_json(path, limits.TEXT_BYTES) if path.exists() else {}
    return content
