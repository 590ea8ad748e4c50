"""What graphs that answer with text have in common: what lies beside them, and that they answer token by token."""

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
    """`tokenizer.json`, `config.json`, `generation_config.json` and `tokenizer_config.json` of an exported model.

    stop_ids: `eos_token_id`, one or several. max_length: tokens of view and response together for a decoder, of the
    view for an encoder–decoder.
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
        """The answer's token ids, each as soon as it is known."""

    def generate(self, view: Sequence[int], max_new_tokens: int) -> list[int]:
        """`stream`, whole."""
        return list(self.stream(view, max_new_tokens))

    def encode(self, text: str) -> list[int]:
        """The view's token ids, with the special tokens that the tokenizer puts around it."""
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def too_long(self, view: Sequence[int]) -> DataError:
        """Return the error for a view that the model cannot take."""
        return DataError(f"the view has {len(view)} tokens, the model takes {self.max_length}")


def begin(folder: Path) -> list[int]:
    """The special tokens with which its tokenizer begins a decoder's view."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    ids: list[int] = tokenizer.encode("").ids
    return ids


def window(genai: Mapping[str, Any]) -> int:
    """Of what `genai_config.json` says, the sliding window: buffers of keys and values have room for so many tokens at
    least. 0 where no layer has one."""
    size: int = genai["model"]["decoder"].get("sliding_window", {}).get("window_size", 0)
    return size


def read_json(path: Path) -> dict[str, Any]:
    """A file's object; empty where there is no such file."""
    found: dict[str, Any] = limits.read_json(path, limits.TEXT_BYTES) if path.exists() else {}
    return found
