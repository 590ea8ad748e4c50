"""Turn GGUF files into folders of safetensors: dequantize each once, and keep it in the user's cache."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from distillctl import console
from distillctl.errors import UnavailableError, first_line
from distillctl.models import cached_folders, gguf_header


def dequantized(path: Path) -> Path:
    """Return a folder with the GGUF file's weights as safetensors and its tokenizer.

    It is cached by content and versions, and the cache is verified each time.
    """
    cache = cached_folders.place("gguf", gguf_header.cache_key(path))
    if not cached_folders.is_whole(cache):
        try:
            gguf_header.read(path)
        except (OSError, ValueError) as error:
            raise UnavailableError(f"cannot be read: {first_line(error)}", where=str(path)) from None
        console.note(f"dequantizing {path.name} once (kept in {cache})")
        try:
            with console.libraries_quiet():
                tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
                model = AutoModelForCausalLM.from_pretrained(
                    path.parent,
                    gguf_file=path.name,
                    quantization_config=GgufConfig(dequantize=True),
                    dtype=torch.float32,
                    trust_remote_code=False,
                )
        except Exception as error:  # the file is untrusted, and many libraries read it
            raise UnavailableError(f"cannot be read: {first_line(error)}", where=str(path)) from error
        with cached_folders.filling(cache) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    return cache
