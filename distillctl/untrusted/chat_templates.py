"""Render messages with a model's own chat template, which is untrusted code, in a sandbox.

A template may use everything that transformers offers: blocks, filters, functions and variables. In the environment of
transformers, a template of forty characters can fill the memory, when it is compiled or rendered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn, Protocol

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from distillctl.untrusted.templates import OutputBudgetExceeded, Sandbox


class ChatTokenizer(Protocol):
    """The part of a transformers tokenizer that holds the chat template."""

    chat_template: Any
    special_tokens_map: Mapping[str, str]

    def get_chat_template(self) -> str:
        """Return the source of the tokenizer's template."""


def text(
    tokenizer: ChatTokenizer,
    messages: Sequence[Mapping[str, str]],
    arguments: Mapping[str, object] | None = None,
    *,
    generation_prompt: bool = True,
) -> str:
    """Do what `apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt, **arguments)`
    does.

    Raise Jinja's or Python's errors if the template fails or exceeds its budget, and ValueError if there is no template
    or no message.
    """
    if not messages:
        raise ValueError("there is no message")
    given: dict[str, Any] = {"messages": list(map(dict, messages)), "tools": None, "documents": None}
    given |= {"add_generation_prompt": generation_prompt, **(arguments or {})}
    return _SANDBOX.render(_compiled(tokenizer.get_chat_template()), {**given, **tokenizer.special_tokens_map})


@lru_cache
def _compiled(source: str) -> jinja2.Template:
    return _SANDBOX.compiled(source)


class _Generation(Extension):
    """Accept `{% generation %}` … `{% endgeneration %}`, which marks the model's own words for training."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def _tojson(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    if len(format) > 200 or re.search(r"%[^a-zA-Z%]*\d", format):
        raise OutputBudgetExceeded("a date that is too long")
    return datetime.now().strftime(format)


def _sandbox() -> Sandbox:
    made = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.replace_filter("tojson", _tojson)
    made.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return made


_SANDBOX = _sandbox()
