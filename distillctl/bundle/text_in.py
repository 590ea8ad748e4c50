"""One file from text to logits: the tokenizer inside the graph, as onnxruntime-extensions' operators.

Those are other programs than the tokenizer that the student learned with, so nothing is believed of them: every
held-out row has to give the very same ids (`check`).
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

from distillctl.errors import GateFailed, RecipeError, Unavailable, first_line

FILE = "model_text_in.onnx"
EXTENSIONS = "onnxruntime-extensions"
_DOMAIN = "ai.onnx.contrib"
_WHERE = "bundle.text_in"
_PREFIX = "text_in/"
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
"""Texts that programs read differently, where they do; held-out rows seldom have such."""


def library() -> str:
    """Path of onnxruntime-extensions' operators; Unavailable where it is not installed."""
    package = importlib.util.find_spec("onnxruntime_extensions")
    if package is None:
        raise Unavailable(f"{EXTENSIONS} is not installed", where=_WHERE, next="pip install 'distillctl[text-in]'")
    # As its get_library_path() has it; but importing the package imports torch where that is installed.
    found = PathFinder.find_spec("_extensions_pydll", package.submodule_search_locations)
    if found is None or found.origin is None:
        raise Unavailable(f"this {EXTENSIONS} has no library of operators", where=_WHERE)
    return found.origin


def is_installed() -> bool:
    return importlib.util.find_spec("onnxruntime_extensions") is not None


def session(graph: Path | bytes, threads: int = 1) -> ort.InferenceSession:
    """A CPU session in which the tokenizers' operators are known."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what does not load is told by its error
    options.register_custom_ops_library(library())
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


# ── building ─────────────────────────────────────────────────────────────────────────────────────


def build(folder: Path, max_length: int) -> None:
    """`model_text_in.onnx` beside `model.onnx`: `text` (one string) → `logits` [1, K], `label` (int64 [1], their
    largest). Texts of more than ``max_length`` tokens are cut as the tokenizer does it.

    RecipeError where onnxruntime-extensions has no such tokenizer.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    model = onnx.load(folder / "model.onnx")
    graph = model.graph
    inputs = [value.name for value in graph.input]
    if unknown := sorted({*inputs} - _INPUTS):
        raise RecipeError(f"the graph takes {', '.join(unknown)} too, which no tokenizer makes", where=_WHERE)
    operator = _operator(tokenizer, folder)
    nodes, constants = _front(operator, _Frame.of(tokenizer, operator), max_length, inputs)
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
    """The tokenizer as one operator: `text` → ids, among them special tokens in front and behind."""
    document = json.loads(tokenizer.to_str())
    model = document["model"]
    if model["type"] == "WordPiece":
        attributes = _bert(document)
        outputs = [f"{_PREFIX}{name}" for name in ("ids", "types", "mask")]  # it writes to all, asked or not
        node = helper.make_node("BertTokenizer", ["text"], outputs, domain=_DOMAIN, **attributes)
    elif model["type"] == "BPE":
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        attributes = {
            "tokenizer_vocab": json.dumps(document, ensure_ascii=False),
            "tokenizer_config": json.dumps(config, ensure_ascii=False),
        }
        outputs = [f"{_PREFIX}ids", f"{_PREFIX}mask"]
        node = helper.make_node("HfJsonTokenizer", ["text"], outputs, domain=_DOMAIN, **attributes)
    else:
        raise _no_such_tokenizer(f"of the kind {model['type']}; it knows WordPiece (BERT's) and BPE")
    node.name = f"{_PREFIX}tokenizer"
    return node


def _bert(document: dict[str, Any]) -> dict[str, Any]:
    """BertTokenizer's attributes. Its special tokens are cut off again, so any token will do for them."""
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
    return RecipeError(
        f"{EXTENSIONS} has no tokenizer {kind}", where=_WHERE, next="leave --text-in (bundle.text_in) out"
    )


@dataclass(frozen=True)
class _Frame:
    """strip: special tokens that the operator puts in front and behind; begin, end: those of the tokenizer."""

    strip: tuple[int, int]
    begin: list[int]
    end: list[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, operator: onnx.NodeProto) -> _Frame:
        plain = tokenizer.encode(_PROBE, add_special_tokens=False).ids
        begin, end = _around(tokenizer.encode(_PROBE).ids, plain)
        try:
            found = _probe(operator)
        except Exception as error:
            raise _no_such_tokenizer(f"like the student's ({first_line(error)})") from error
        first, last = _around(found, plain)
        return cls((len(first), len(last)), begin, end)


def _around(ids: list[int], plain: list[int]) -> tuple[list[int], list[int]]:
    """What stands before and after ``plain`` in ``ids``."""
    for at in range(len(ids) - len(plain) + 1):
        if ids[at : at + len(plain)] == plain:
            return ids[:at], ids[at + len(plain) :]
    raise _no_such_tokenizer(f"like the student's: {_PROBE!r} gives the ids {ids}, not {plain}")


def _probe(operator: onnx.NodeProto) -> list[int]:
    """What the operator alone makes of a text."""
    text = helper.make_tensor_value_info("text", TensorProto.STRING, [1])
    ids = helper.make_tensor_value_info(operator.output[0], TensorProto.INT64, None)
    graph = helper.make_graph([operator], "probe", [text], [ids])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(_DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    found = session(model.SerializeToString()).run(None, {"text": [_PROBE]})[0]
    return [int(token) for token in found.reshape(-1)]


def _front(
    operator: onnx.NodeProto, frame: _Frame, max_length: int, inputs: Sequence[str]
) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """From `text` to the classifier's inputs, int64 [1, T]: plain ids, cut, framed."""
    constants: list[TensorProto] = []

    def constant(name: str, values: list[int]) -> str:
        constants.append(numpy_helper.from_array(np.array(values, np.int64), f"{_PREFIX}{name}"))
        return f"{_PREFIX}{name}"

    def node(kind: str, taken: list[str], given: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(
            kind, taken, [given], name=f"{_PREFIX}{kind}/{given.removeprefix(_PREFIX)}", **attributes
        )

    room = max_length - len(frame.begin) - len(frame.end)
    first, last = frame.strip
    flat, size, whole, stop, kept, framed = (
        f"{_PREFIX}{name}" for name in ("flat", "size", "whole", "stop", "kept", "framed")
    )
    nodes = [
        operator,
        node("Reshape", [operator.output[0], constant("in_a_row", [-1])], flat),
        node("Shape", [flat], size),
        node("Sub", [size, constant("behind", [last])], whole),
        node("Min", [whole, constant("longest", [first + room])], stop),
        node("Slice", [flat, constant("in_front", [first]), stop], kept),
        node("Concat", [constant("begin", frame.begin), kept, constant("end", frame.end)], framed, axis=0),
        node("Unsqueeze", [framed, constant("batch", [0])], "input_ids"),
        node("Shape", ["input_ids"], f"{_PREFIX}shape"),
    ]
    for name, value in (("attention_mask", 1), ("token_type_ids", 0)):
        if name in inputs:
            filler = numpy_helper.from_array(np.array([value], np.int64), "value")
            nodes.append(node("ConstantOfShape", [f"{_PREFIX}shape"], name, value=filler))
    return nodes, constants


# ── checking ─────────────────────────────────────────────────────────────────────────────────────


def check(folder: Path, max_length: int, ids: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """Logits of the text-in graph, float32 [N, K]; GateFailed names the first row whose token ids are not the
    tokenizer's."""
    tokenizer = cutting_tokenizer(folder, max_length)
    found = []
    for row, text, (tokens, logits) in zip(ids, texts, _answers(folder, texts), strict=True):
        wanted = tokenizer.encode(text)
        if tokens != wanted.ids or any(wanted.type_ids):
            raise GateFailed(
                f"the text-in graph's tokenizer gives {_first_difference(tokens, wanted.ids)}, nothing is committed",
                where=f"row {row}",
                next="leave --text-in (bundle.text_in) out",
            )
        found.append(logits)
    return np.array(found, np.float32)


def other_ids(folder: Path, max_length: int, texts: Sequence[str] = ODD_TEXTS) -> list[str]:
    """Those of ``texts`` that get other token ids in the text-in graph than from the tokenizer.

    BERT's operator of onnxruntime-extensions 0.15 keeps the pieces that it found of a word before the one that it does
    not know; tokenizers gives one unknown token for the whole word.
    """
    tokenizer = cutting_tokenizer(folder, max_length)
    found = zip(texts, _answers(folder, texts), strict=True)
    return [text for text, (tokens, _) in found if tokens != tokenizer.encode(text).ids]


def _answers(folder: Path, texts: Sequence[str]) -> Iterator[tuple[list[int], np.ndarray]]:
    """Each text's token ids and logits, out of the file as it will be shipped."""
    model = onnx.load(folder / FILE)
    model.graph.output.append(helper.make_tensor_value_info("input_ids", TensorProto.INT64, [1, None]))
    opened = session(model.SerializeToString())
    for text in texts:
        tokens, logits = opened.run(["input_ids", "logits"], {"text": [text]})
        yield tokens[0].tolist(), logits[0]


def cutting_tokenizer(folder: Path, max_length: int) -> Tokenizer:
    """The bundle's tokenizer, for one text at a time."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


def _first_difference(found: list[int], wanted: list[int]) -> str:
    at = next(
        (at for at, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted))
    )
    return (
        f"{found[at : at + 4]} from token {at} on, the student's gives {wanted[at : at + 4]} "
        f"({len(found)} and {len(wanted)} tokens)"
    )
