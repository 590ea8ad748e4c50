"""What lies beside a graph: config and tokenizer, in words that other tools know too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_COPIED = ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja")
_TOKENIZER_KEYS = (
    "model_max_length",
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def copy(source: Path, target: Path, inputs: Sequence[str], *, max_length: int | None = None) -> None:
    """From the model folder ``source`` to the graph's. inputs: the graph's names of what the tokenizer makes;
    max_length: tokens the model takes, where the tokenizer's own figure is not it."""
    for name in _COPIED:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    written = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    # The class that transformers 5 names is not known to 4; tokenizer.json holds the tokenizer itself.
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": list(inputs),
        "padding_side": "right",
    }
    config |= {key: written[key] for key in _TOKENIZER_KEYS if key in written}
    config |= {} if max_length is None else {"model_max_length": max_length}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (target / "tokenizer_config.json").write_text(text, encoding="utf-8")
