"""Build one graph from text to logits, with the tokenizer inside, as onnxruntime-extensions' operators.

These are other programs than the tokenizer that the student learned with, so they are not trusted: every held-out row
must get the same ids (`check_ids`).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

from distillctl.data.view_template import BARE, WHITESPACE, ViewTemplate
from distillctl.errors import GateFailed, RecipeError, UnavailableError, first_line
from distillctl.runtimes import onnxruntime
from distillctl.snippets.reading import Reading

FILE = "model_text_in.onnx"
EXTENSIONS = "onnxruntime-extensions"
_DOMAIN = "ai.onnx.contrib"
_WHERE = "bundle.text_in"
_PREFIX = "text_in/"
_VIEW = f"{_PREFIX}view"
_WITHOUT = "omit --text-in (bundle.text_in)"
_SPACE = "[" + "".join(f"\\x{{{ord(character):x}}}" for character in WHITESPACE) + "]+"
_AT_ENDS = f"^{_SPACE}|{_SPACE}$"
"""The part of a text that is dropped, as a regular expression of RE2."""
_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
_PROBE = "a"
ODD_TEXTS = (
    "",
    "  two  spaces,\ta tab\nand a new line ",
    "don't we'll 12345 3.14 $5 30%",
    "naïve Ångström “quoted” — dash",
    "e\u0301 combined, İstanbul, ﬁne",
    "中文と日本語",
    "emoji 😀👍🏽",
    "[CLS] [SEP] [MASK] <s> </s> <|endoftext|>",
)
"""Texts that tokenizers may read differently; held-out rows seldom have such texts."""


def library() -> str:
    """Return the path of onnxruntime-extensions' operators. Raise UnavailableError if it is not installed."""
    package = importlib.util.find_spec("onnxruntime_extensions")
    if package is None:
        raise UnavailableError(f"{EXTENSIONS} is not installed", where=_WHERE, next="pip install 'distillctl[text-in]'")
    # As in its get_library_path(). Importing the package would import torch if that is installed.
    operators = PathFinder.find_spec("_extensions_pydll", package.submodule_search_locations)
    if operators is None or operators.origin is None:
        raise UnavailableError(f"this {EXTENSIONS} has no library of operators", where=_WHERE)
    return operators.origin


def is_installed() -> bool:
    """Tell whether onnxruntime-extensions is installed, without importing it."""
    return importlib.util.find_spec("onnxruntime_extensions") is not None


def session(graph: Path | bytes) -> ort.InferenceSession:
    """Return a CPU session that knows the tokenizers' operators."""
    return onnxruntime.session(graph, 1, library())


# ── building ─────────────────────────────────────────────────────────────────────────────────────


def build(folder: Path, max_length: int, template: ViewTemplate = BARE) -> None:
    """Write `model_text_in.onnx`: `text` (one string, the bare input) → `logits` [1, K], `label` (int64 [1], the
    argmax).

    The template is put around the text, and the end of a text beyond ``max_length`` tokens is cut. Raises RecipeError
    if onnxruntime-extensions lacks the tokenizer, or the template is more than text around the input.
    """
    reading = Reading(template, max_length, folder)
    tokenizer, tail = reading.tokenizer, reading.tail
    if tail is None:
        message = (
            "a text that is too long cannot be cut: its end shares a token with the template's text after it"
            if template.form == "text"
            else "the template of contexts.simplified is more than text around the input, so no graph can apply it"
        )
        raise RecipeError(message, where=_WHERE, next=_WITHOUT)
    model = onnx.load(folder / "model.onnx")
    graph = model.graph
    inputs = [value.name for value in graph.input]
    if unknown := sorted({*inputs} - _INPUTS):
        raise RecipeError(f"the graph also takes {', '.join(unknown)}, which no tokenizer returns", where=_WHERE)
    operator = _operator(tokenizer, folder)
    nodes, constants = _front(operator, _Frame.of(tokenizer, operator), max_length, tail, inputs)
    before, texts = _around_text(template)
    nodes, constants = before + nodes, texts + constants
    label = helper.make_node("ArgMax", ["logits"], ["label"], name=f"{_PREFIX}label", axis=-1, keepdims=0)
    body = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes, *body, label])
    graph.initializer.extend(constants)
    graph.input.append(helper.make_tensor_value_info("text", TensorProto.STRING, [1]))
    graph.output.append(helper.make_tensor_value_info("label", TensorProto.INT64, [1]))
    model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    onnx.save(model, folder / FILE)


def _operator(tokenizer: Tokenizer, folder: Path) -> onnx.NodeProto:
    """Return the tokenizer as one operator: `text` → ids, with special tokens before and after."""
    document = json.loads(tokenizer.to_str())
    model = document["model"]
    if model["type"] == "WordPiece":
        attributes = _bert(document)
        outputs = [f"{_PREFIX}{name}" for name in ("ids", "types", "mask")]  # it needs all three
        node = helper.make_node("BertTokenizer", [_VIEW], outputs, domain=_DOMAIN, **attributes)
    elif model["type"] == "BPE":
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        attributes = {
            "tokenizer_vocab": json.dumps(document, ensure_ascii=False),
            "tokenizer_config": json.dumps(config, ensure_ascii=False),
        }
        outputs = [f"{_PREFIX}ids", f"{_PREFIX}mask"]
        node = helper.make_node("HfJsonTokenizer", [_VIEW], outputs, domain=_DOMAIN, **attributes)
    else:
        raise _no_such_tokenizer(f"of the kind {model['type']}; it knows WordPiece (BERT's) and BPE")
    node.name = f"{_PREFIX}tokenizer"
    return node


def _bert(document: dict[str, Any]) -> dict[str, Any]:
    """Return BertTokenizer's attributes. Its special tokens are cut off again, so any token will do for them."""
    model, normalizer = document["model"], document["normalizer"] or {}
    splits = (document["pre_tokenizer"] or {}).get("type")
    if normalizer.get("type") != "BertNormalizer" or splits != "BertPreTokenizer":
        raise _no_such_tokenizer("with WordPiece, but another normalizer or pre-tokenizer than BERT's")
    vocabulary = sorted(model["vocab"], key=model["vocab"].__getitem__)
    if [model["vocab"][token] for token in vocabulary] != list(range(len(vocabulary))):
        raise _no_such_tokenizer("whose ids have gaps")
    strip = normalizer["strip_accents"]
    names = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
    return {
        "vocab_file": "\n".join(vocabulary),
        "do_lower_case": int(normalizer["lowercase"]),
        "strip_accents": int(normalizer["lowercase"] if strip is None else strip),
        "tokenize_chinese_chars": int(normalizer["handle_chinese_chars"]),
        "suffix_indicator": model["continuing_subword_prefix"],
        **dict.fromkeys(names, model["unk_token"]),
    }


def _no_such_tokenizer(kind: str) -> RecipeError:
    return RecipeError(f"{EXTENSIONS} has no tokenizer {kind}", where=_WHERE, next=_WITHOUT)


@dataclass(frozen=True)
class _Frame:
    """Special tokens. strip: how many the operator puts before and after; begin, end: the tokenizer's own."""

    strip: tuple[int, int]
    begin: list[int]
    end: list[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, operator: onnx.NodeProto) -> _Frame:
        plain = tokenizer.encode(_PROBE, add_special_tokens=False).ids
        begin, end = _around(tokenizer.encode(_PROBE).ids, plain)
        try:
            ids = _probe(operator)
        except Exception as error:
            raise _no_such_tokenizer(f"like the student's ({first_line(error)})") from error
        first, last = _around(ids, plain)
        return cls((len(first), len(last)), begin, end)


def _around(ids: list[int], plain: list[int]) -> tuple[list[int], list[int]]:
    """Split ``ids`` into the parts before and after ``plain``."""
    for at in range(len(ids) - len(plain) + 1):
        if ids[at : at + len(plain)] == plain:
            return ids[:at], ids[at + len(plain) :]
    raise _no_such_tokenizer(f"like the student's: {_PROBE!r} gives the ids {ids}, not {plain}")


def _probe(operator: onnx.NodeProto) -> list[int]:
    """Return the operator's ids for a short text."""
    text = helper.make_tensor_value_info(_VIEW, TensorProto.STRING, [1])
    ids = helper.make_tensor_value_info(operator.output[0], TensorProto.INT64, None)
    graph = helper.make_graph([operator], "probe", [text], [ids])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(_DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    ids = session(model.SerializeToString()).run(None, {_VIEW: [_PROBE]})[0]
    return [int(token) for token in ids.reshape(-1)]


def _around_text(template: ViewTemplate) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """Return nodes that turn `text` into its view: strip whitespace, add prefix and suffix."""
    given = {"at_ends": _AT_ENDS, "nothing": "", "prefix": template.prefix or "", "suffix": template.suffix or ""}
    constants = [numpy_helper.from_array(np.array([text], object), f"{_PREFIX}{name}") for name, text in given.items()]
    stripped, begun = f"{_PREFIX}stripped", f"{_PREFIX}begun"
    steps = [
        ("StringRegexReplace", ["text", f"{_PREFIX}at_ends", f"{_PREFIX}nothing"], stripped),
        ("StringConcat", [f"{_PREFIX}prefix", stripped], begun),
        ("StringConcat", [begun, f"{_PREFIX}suffix"], _VIEW),
    ]
    nodes = [
        helper.make_node(kind, taken, [given], name=f"{given}/{kind}", domain=_DOMAIN) for kind, taken, given in steps
    ]
    return nodes, constants


def _front(
    operator: onnx.NodeProto, frame: _Frame, max_length: int, tail: list[int], inputs: Sequence[str]
) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """Return nodes that turn the view into the classifier's inputs, int64 [1, T].

    The tokenizer's ids get the special tokens. If they are too many, the first ones stay, and ``tail``, which ends
    every view.
    """
    constants: list[TensorProto] = []

    def constant(name: str, values: list[int]) -> str:
        constants.append(numpy_helper.from_array(np.array(values, np.int64), f"{_PREFIX}{name}"))
        return f"{_PREFIX}{name}"

    def node(kind: str, taken: list[str], given: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(
            kind, taken, [given], name=f"{_PREFIX}{kind}/{given.removeprefix(_PREFIX)}", **attributes
        )

    first, last = frame.strip
    flat, size, stop, plain, framed, length, over, room, kept, behind, cut = (
        f"{_PREFIX}{name}"
        for name in ("flat", "size", "stop", "plain", "framed", "length", "over", "room", "kept", "behind", "cut")
    )
    most = constant("most", [max_length])
    nodes = [
        operator,
        node("Reshape", [operator.output[0], constant("in_a_row", [-1])], flat),
        node("Shape", [flat], size),
        node("Sub", [size, constant("last", [last])], stop),
        node("Slice", [flat, constant("first", [first]), stop], plain),
        node("Concat", [constant("begin", frame.begin), plain, constant("end", frame.end)], framed, axis=0),
        node("Shape", [framed], length),
        node("Greater", [length, most], over),
        # Too many ids: the first ones and the tail. Otherwise: all ids, and no tail.
        node("Where", [over, constant("before_tail", [max_length - len(tail)]), length], room),
        node("Slice", [framed, constant("start", [0]), room], kept),
        node("Where", [over, constant("whole", [len(tail)]), constant("none", [0])], f"{_PREFIX}so_many"),
        node("Slice", [constant("tail", tail), constant("tail_start", [0]), f"{_PREFIX}so_many"], behind),
        node("Concat", [kept, behind], cut, axis=0),
        node("Unsqueeze", [cut, constant("batch", [0])], "input_ids"),
        node("Shape", ["input_ids"], f"{_PREFIX}shape"),
    ]
    for name, value in (("attention_mask", 1), ("token_type_ids", 0)):
        if name in inputs:
            filler = numpy_helper.from_array(np.array([value], np.int64), "value")
            nodes.append(node("ConstantOfShape", [f"{_PREFIX}shape"], name, value=filler))
    return nodes, constants


# ── checking ─────────────────────────────────────────────────────────────────────────────────────


def check_ids(
    folder: Path, max_length: int, ids: Sequence[str], texts: Sequence[str], template: ViewTemplate = BARE
) -> np.ndarray:
    """Return the text-in graph's logits, float32 [N, K]. Raise GateFailed for the first row with other ids than the
    tokenizer's.

    texts: bare inputs.
    """
    reading = Reading(template, max_length, folder)
    rows = []
    for row, text, (tokens, logits) in zip(ids, texts, _answers(folder, texts), strict=True):
        wanted = reading.encode(text)
        if tokens != wanted or any(reading.tokenizer.encode(template.view(text)).type_ids):
            raise GateFailed(
                f"the text-in graph's tokenizer gives {_first_difference(tokens, wanted)}; nothing is committed",
                where=f"row {row}",
                next=_WITHOUT,
            )
        rows.append(logits)
    return np.array(rows, np.float32)


def other_ids(
    folder: Path, max_length: int, texts: Sequence[str] = ODD_TEXTS, template: ViewTemplate = BARE
) -> list[str]:
    """Return those of ``texts`` that get other token ids in the text-in graph than from the tokenizer.

    If BERT's operator of onnxruntime-extensions 0.15 does not know a piece of a word, it keeps the pieces before it;
    tokenizers gives one unknown token for the whole word.
    """
    reading = Reading(template, max_length, folder)
    answers = zip(texts, _answers(folder, texts), strict=True)
    return [text for text, (tokens, _) in answers if tokens != reading.encode(text)]


def _answers(folder: Path, texts: Sequence[str]) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yield each text's token ids and logits, from the file as it will be shipped."""
    model = onnx.load(folder / FILE)
    model.graph.output.append(helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, None]))
    opened = session(model.SerializeToString())
    for text in texts:
        tokens, logits = opened.run(["input_ids", "logits"], {"text": [text]})
        yield tokens[0].tolist(), logits[0]


def _first_difference(ids: list[int], wanted: list[int]) -> str:
    at = next((at for at, (a, b) in enumerate(zip(ids, wanted, strict=False)) if a != b), min(len(ids), len(wanted)))
    return (
        f"{ids[at : at + 4]} from token {at} on, and the student's {wanted[at : at + 4]} "
        f"({len(ids)} and {len(wanted)} tokens)"
    )
