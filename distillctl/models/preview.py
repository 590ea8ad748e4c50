"""Read token counts, the longest input and the chat template from a model's files on this machine.

This is for --dry-run, which imports neither torch nor transformers. What is unknown is None; ``unknown`` says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from distillctl.errors import UnavailableError, first_line
from distillctl.models import checkpoint_files, gguf_header
from distillctl.models.model_source import ModelSource
from distillctl.untrusted import limits

CHARACTERS_PER_TOKEN = 4.0
"""Mean for English text under common vocabularies of 32k to 150k tokens. Used only without a tokenizer.json."""
_POSITIONS_ALIAS = ("gpt2", "gptj", "codegen", "openai-gpt", "gpt_bigcode", "ctrl")
"""Architectures whose config has ``n_positions`` instead of ``max_position_embeddings``."""


class ModelPreview:
    """A model's tokenizer and config, if they are on this machine. source: None if there is no such model."""

    def __init__(self, source: ModelSource | None) -> None:
        self._source = source
        self._folder = None if source is None else source.local_folder
        self.config = _json(self._folder, "config.json")
        self._tokenizer_config = _json(self._folder, "tokenizer_config.json")

    @cached_property
    def _tokenizer(self) -> Any:
        if self._folder is None or not (file := self._folder / "tokenizer.json").is_file():
            return None
        from tokenizers import Tokenizer

        with checkpoint_files.loading(lambda error: _unreadable(error, file)):
            checkpoint_files.check_files(self._folder)
            tokenizer = Tokenizer.from_file(str(file))
            tokenizer.no_truncation()  # sentence-transformers saves both, and transformers ignores them
            tokenizer.no_padding()
        return tokenizer

    @property
    def counts(self) -> bool:
        """Tell whether tokens are counted; otherwise they are estimated from characters."""
        return self._tokenizer is not None

    @property
    def vocabulary(self) -> int | None:
        """Return the number of tokens in the vocabulary."""
        return self._tokenizer.get_vocab_size() if self.counts else None

    def tokens(self, text: str, *, special: bool = True) -> int:
        """Return the number of tokens of a text.

        special: count the tokenizer's special tokens. The text of a chat template has them already.
        """
        if self._tokenizer is None:
            return round(len(text) / CHARACTERS_PER_TOKEN)
        assert self._folder is not None
        with checkpoint_files.loading(lambda error: _unreadable(error, Path(str(self._folder)) / "tokenizer.json")):
            return len(self._tokenizer.encode(text, add_special_tokens=special).ids)

    @cached_property
    def positions(self) -> int | None:
        """Return the number of positions for which the model was made, or None if it is unknown or unbounded."""
        text = self.config.get("text_config") or self.config
        positions = text.get("max_position_embeddings")
        if text.get("model_type") in _POSITIONS_ALIAS:
            positions = positions or text.get("n_positions")
        if positions is None and self._source is not None and self._source.is_gguf:
            positions = _gguf_positions(self._source)
        return positions if isinstance(positions, int) and positions > 0 else None

    @property
    def tokenizer_limit(self) -> int:
        """Return the tokenizer's own limit; very large if it states none, as in transformers."""
        limit = self._tokenizer_config.get("model_max_length")
        return int(limit) if isinstance(limit, int | float) and 0 < limit < 2**31 else 2**31

    @property
    def unknown(self) -> str | None:
        """Return why the longest input is unknown, or None if it is known."""
        if self._source is None or self.config or self.positions is not None:
            return None
        if self._source.path is None:
            return f"{self._source.reference} is not on this machine yet; its limits are known once it is downloaded"
        return f"{self._source.reference} has no config that says how long its input may be"

    @property
    def chat(self) -> Chat | None:
        """Return the chat template, or None without one."""
        template = self._tokenizer_config.get("chat_template")
        if self._folder is not None and (file := self._folder / "chat_template.jinja").is_file():
            template = _template(file)
        if isinstance(template, list):  # several, by name
            template = {entry.get("name"): entry.get("template") for entry in template}.get("default")
        return Chat(template, _special_tokens(self._tokenizer_config)) if isinstance(template, str) else None


@dataclass
class Chat:
    """The part of a tokenizer that turns messages into one text (`untrusted.chat_templates.ChatTokenizer`)."""

    chat_template: Any
    special_tokens_map: Mapping[str, str]
    """Name → text, such as ``bos_token``."""

    def get_chat_template(self) -> str:
        """Return the template, as transformers tokenizers do."""
        return str(self.chat_template)


def _special_tokens(config: Mapping[str, object]) -> dict[str, str]:
    tokens = {key: value for key, value in config.items() if key.endswith("_token")}
    texts = {key: value.get("content") if isinstance(value, dict) else value for key, value in tokens.items()}
    return {key: value for key, value in texts.items() if isinstance(value, str)}


def _json(folder: Path | None, name: str) -> dict[str, Any]:
    """Read a JSON object from a file. Return an empty one on any error, which loading the model will explain."""
    try:
        document = limits.read_json(folder / name) if folder is not None else {}
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _template(file: Path) -> str | None:
    try:
        return limits.read_bytes(file, limits.TEXT_BYTES).decode("utf-8")
    except (OSError, ValueError):
        return None


def _gguf_positions(source: ModelSource) -> int | None:
    assert source.path is not None
    try:
        header = gguf_header.read(source.path)
        positions: int | None = header.keys.get(f"{header.architecture}.context_length")
    except (OSError, ValueError, KeyError):
        return None
    return positions


def _unreadable(error: BaseException, file: Path) -> UnavailableError:
    return UnavailableError(f"the tokenizer cannot be read: {first_line(error)}", where=str(file))
