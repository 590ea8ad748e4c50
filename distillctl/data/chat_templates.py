"""Messages as the text that a model was trained on: its own chat template, a stranger's program, in our sandbox.

What such a template is given, and which blocks, filters and functions it may use, is what transformers gives it; but
its environment would let a template of forty characters fill the memory, while it is compiled or when it is rendered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import jinja2

from distillctl.data.sandbox import Sandbox


class ChatTokenizer(Protocol):
    """The part of a transformers tokenizer that knows how messages are written."""

    chat_template: Any
    special_tokens_map: Mapping[str, str]

    def get_chat_template(self) -> str: ...


def text(tokenizer: ChatTokenizer, messages: Sequence[Mapping[str, str]]) -> str:
    """As `apply_chat_template(messages, tokenize=False, add_generation_prompt=True)`.

    Jinja's errors, or Python's, where the template fails or is wasteful; ValueError where the tokenizer has none.
    """
    given = {"messages": list(map(dict, messages)), "tools": None, "documents": None, "add_generation_prompt": True}
    template = _compiled(tokenizer.get_chat_template())
    return _sandbox().render(template, {**given, **tokenizer.special_tokens_map})


@lru_cache
def _compiled(source: str) -> jinja2.Template:
    return _sandbox().compiled(source)


@lru_cache
def _sandbox() -> Sandbox:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs = _compile_jinja_template("").environment
    extensions = [type(extension) for extension in theirs.extensions.values()]
    ours = Sandbox(extensions=extensions, trim_blocks=theirs.trim_blocks, lstrip_blocks=theirs.lstrip_blocks)
    ours.adopt(theirs)
    return ours
