"""Writes corpus/models, corpus/cards, and of corpus/checkpoints and corpus/answers what is binary: `python -m tests.hostile.make_models`."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
BOMB = "{{ 'a' * 9999999999 }}"


class Runs:
    """Unpickled, it runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("touch ../outside/pwned",)


def torch_file(pickled: bytes, records: dict[str, bytes] | None = None) -> bytes:
    """What torch.save writes: a zip around a pickle."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as made:
        for name, data in {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little", **(records or {})}.items():
            made.writestr(zipfile.ZipInfo(f"archive/{name}"), data)
    return sink.getvalue()


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[Any], start: int, end: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


def weights() -> dict[str, bytes]:
    """Safetensors files: lies in the header."""
    name = "model.embed_tokens.weight"
    return {
        "empty": b"",
        "header-length-beyond": safetensors({}, length=2**62),
        "header-length-of-a-gigabyte": safetensors({}, length=2**30),
        "header-of-nothing": safetensors(b""),
        "header-not-json": safetensors(b"x" * 64),
        "header-a-list": safetensors([]),
        "header-deep": safetensors(b"[" * 2000 + b"]" * 2000),
        "header-of-no-utf8": safetensors(b'{"\xff": 1}'),
        "header-int-of-5000-digits": safetensors(b'{"a": ' + b"9" * 5000 + b"}"),
        "header-lone-surrogate": safetensors(b'{"\\ud800": 1}'),
        "tensor-a-number": safetensors({name: 3}),
        "tensor-without-shape": safetensors({name: {"dtype": "F32"}}),
        "tensor-shape-beyond": safetensors({name: tensor([2**40, 2**40], 0, 16)}, b"\0" * 16),
        "tensor-shape-that-wraps": safetensors({name: tensor([2**32, 2**32], 0, 0)}),
        "tensor-shape-below-nothing": safetensors({name: tensor([-1, 4], 0, 16)}, b"\0" * 16),
        "tensor-shape-a-text": safetensors({name: tensor(["a"], 0, 16)}, b"\0" * 16),
        "tensor-shape-true": safetensors({name: tensor([True], 0, 4)}, b"\0" * 4),
        "tensor-shape-deep": safetensors({name: tensor([[1]], 0, 4)}, b"\0" * 4),
        "tensor-outside": safetensors({name: tensor([4], 2**40, 2**40 + 16)}),
        "tensor-ends-before-it-starts": safetensors({name: tensor([4], 16, 0)}, b"\0" * 16),
        "tensor-kind-unknown": safetensors({name: tensor([4], 0, 16, "OBJECT")}, b"\0" * 16),
        "tensors-overlapping": safetensors({f"t{n}": tensor([4], 0, 16) for n in range(60)}, b"\0" * 16),
        "tensors-of-other-names": safetensors({"../../outside/x": tensor([4], 0, 16)}, b"\0" * 16),
        "tensors-of-other-shapes": safetensors({name: tensor([4], 0, 16)}, b"\0" * 16),
        "a-pickle": pickle.dumps(Runs()),
        "a-torch-file": torch_file(pickle.dumps(Runs())),
    }


def configs() -> dict[str, Any]:
    """config.json of the teacher; a text is written as it is."""
    whole = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 23, "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 128, "dtype": "float32", "tie_word_embeddings": False,
    }  # fmt: skip
    return {
        "empty": "",
        "nothing": {},
        "list": [],
        "not-json": "x",
        "deep": "[" * 2000 + "]" * 2000,
        "int-of-5000-digits": '{"model_type": "llama", "vocab_size": ' + "9" * 5000 + "}",
        "nan": '{"model_type": "llama", "vocab_size": NaN}',
        "lone-surrogate": '{"model_type": "\\ud800"}',
        "kind-unknown": {"model_type": "klingon"},
        "kind-a-list": {"model_type": ["llama"]},
        "kind-a-path": {"model_type": "../../outside/secret"},
        "code-of-its-own": {**whole, "model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}},
        "code-of-its-own-beside-a-known-kind": {**whole, "auto_map": {"AutoModelForCausalLM": "evil.Model"}},
        "attention-from-a-kernel-hub": {**whole, "_attn_implementation": "evil/kernel"},
        "quantized-by-code": {**whole, "quantization_config": {"quant_method": "../../evil"}},
        "layers-beyond": {**whole, "num_hidden_layers": 10**9},
        "layers-below-nothing": {**whole, "num_hidden_layers": -1},
        "layers-three": {**whole, "num_hidden_layers": 3},
        "width-beyond": {**whole, "hidden_size": 2**40},
        "width-zero": {**whole, "hidden_size": 0},
        "vocabulary-beyond": {**whole, "vocab_size": 10**12},
        "vocabulary-small": {**whole, "vocab_size": 3},
        "heads-zero": {**whole, "num_attention_heads": 0},
        "heads-a-text": {**whole, "num_attention_heads": "four"},
        "positions-beyond": {**whole, "max_position_embeddings": 10**15},
        "rope-unknown": {**whole, "rope_parameters": {"rope_type": "evil"}},
        "activation-unknown": {**whole, "hidden_act": "__import__"},
        "dtype-unknown": {**whole, "dtype": "os.system"},
    }  # fmt: skip


def tokenizers() -> dict[str, Any]:
    """tokenizer.json of the teacher."""
    words = {"[PAD]": 0, "[UNK]": 1, "who": 2, "where": 3, "many": 4}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"}
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
             "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None, "model": model}  # fmt: skip
    return {
        "empty": "",
        "nothing": {},
        "deep": "[" * 2000 + "]" * 2000,
        "model-unknown": {**whole, "model": {"type": "Evil"}},
        "ok-vocabulary-ids-beyond": {**whole, "model": {**model, "vocab": {**words, "x": 2**31}}},
        "vocabulary-ids-beyond-and-used": {**whole, "model": {**model, "vocab": {**words, "who": 2**31}}},
        "vocabulary-ids-beyond-32-bits": {**whole, "model": {**model, "vocab": {**words, "x": 2**40}}},
        "vocabulary-ids-below-nothing": {**whole, "model": {**model, "vocab": {"a": -1}}},
        "vocabulary-ids-twice": {**whole, "model": {**model, "vocab": {"a": 1, "b": 1, "[UNK]": 1}}},
        "vocabulary-of-nothing": {**whole, "model": {**model, "vocab": {}}},
        "pattern-catastrophic": {**whole, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(([a-z ])+.)+[0-9]$"}, "behavior": "Isolated", "invert": False}},
        "pattern-that-is-none": {**whole, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(((("}, "behavior": "Isolated", "invert": False}},
        "replace-nothing-by-much": {**whole, "normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 5000}},
        "truncation-to-nothing": {**whole, "truncation": {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 9}},
        "template-of-unknown-tokens": {**whole, "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}], "pair": [], "special_tokens": {}}},
        "merges-that-are-none": {**whole, "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b c"]}},
        "ok-sequence-in-itself": {**whole, "normalizer": {"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": []}] * 120}},
    }  # fmt: skip


def named() -> dict[str, Any]:
    """tokenizer_config.json of the teacher."""
    return {
        "empty": "",
        "deep": "[" * 2000 + "]" * 2000,
        "ok-class-unknown": {"tokenizer_class": "os.system"},
        "code-of-its-own": {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Slow", "evil.Fast"]}},
        "ok-length-nan": '{"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": NaN}',
        "tokens-a-number": {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": 3},
        "ok-tokens-six-hundred": {"tokenizer_class": "PreTrainedTokenizerFast", "extra_special_tokens": [f"<{n}>" for n in range(600)]},
    }  # fmt: skip


def chats() -> dict[str, Any]:
    """chat_template.jinja of the teacher."""
    return {
        "bomb": BOMB,
        "without-end": "{% for i in range(100000) %}{% for j in range(100000) %}{% for k in range(9) %}{% endfor %}{% endfor %}{% endfor %}",
        "class-of-a-text": '{{ "".__class__.__mro__[1].__subclasses__() }}',
        "unclosed": "{% for x in messages %}",
        "refuses": "{{ raise_exception('\x1b[2Jno') }}",
        "include": '{% include "../outside/secret.txt" %}',
        "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "bomb-of-filters": "{{ 'aaaaaaaa'|center(9999999999)|replace('a', 'a' * 999999) }}",
        "tuples-doubled": "{% set n = namespace(x=(1,)) %}{% for i in range(45) %}{% set n.x = (n.x, n.x) %}{% endfor %}{{ n.x == n.x }}",
        "json-padded": "{{ range(100000)|list|tojson(separators=('x' * 1000000, '')) }}",
        "date-padded": "{{ strftime_now('%999Y' * 3000000) }}",
        "refuses-at-length": "{{ raise_exception('x' * 16000000) }}",
        "changes-what-it-was-given": "{% for k in messages[0] %}{{ dict.update(messages[0], {loop.index: 1}) }}{% endfor %}",
        "doubled": "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x|length }}",
    }


def indexes() -> dict[str, Any]:
    """model.safetensors.index.json, with no model.safetensors beside it."""
    return {
        "goes-up": {"metadata": {}, "weight_map": {"model.norm.weight": "../../outside/weights.bin"}},
        "absolute": {"metadata": {}, "weight_map": {"model.norm.weight": "/etc/passwd"}},
        "nothing": {},
        "list": [],
        "deep": "[" * 2000 + "]" * 2000,
    }


def pickles() -> dict[str, bytes]:
    """pytorch_model.bin, with no model.safetensors beside it."""
    return {"runs": pickle.dumps(Runs()), "torch-file-runs": torch_file(pickle.dumps(Runs()))}


def states() -> dict[str, bytes]:
    """Files of a checkpoint, by the first word."""
    moment = "classifier.bias:exp_avg"
    return {
        "model-empty": b"",
        "model-header-beyond": safetensors({}, length=2**62),
        "model-of-nothing": safetensors({}),
        "model-of-other-shapes": safetensors({"classifier.bias": tensor([4], 0, 16)}, b"\0" * 16),
        "model-a-pickle": pickle.dumps(Runs()),
        "model-a-torch-file": torch_file(pickle.dumps(Runs())),
        "optimizer-header-beyond": safetensors({}, length=2**62),
        "optimizer-of-another-model": safetensors({"x:exp_avg": tensor([4], 0, 16)}, b"\0" * 16),
        "optimizer-of-other-shapes": safetensors({moment: tensor([4], 0, 16)}, b"\0" * 16),
        "optimizer-of-an-empty-name": safetensors({":": tensor([4], 0, 16)}, b"\0" * 16),
        "optimizer-ok-of-private-keys": safetensors({"classifier.bias:__class__": tensor([3], 0, 12)}, b"\0" * 12),
        "optimizer-a-pickle": pickle.dumps(Runs()),
        "best-header-beyond": safetensors({}, length=2**62),
        "best-of-nothing": safetensors({}),
        "best-of-other-shapes": safetensors({"classifier.bias": tensor([4], 0, 16)}, b"\0" * 16),
        "best-a-pickle": pickle.dumps(Runs()),
    }


def write(folder: str, made: dict[str, Any], ending: str, first: str = "", start: int = 1) -> int:
    """The files, numbered; the number after the last."""
    (CORPUS / folder).mkdir(parents=True, exist_ok=True)
    for number, (what, data) in enumerate(made.items(), start):
        text = data if isinstance(data, (str, bytes)) else json.dumps(data)
        whole = text.encode() if isinstance(text, str) else text
        assert len(whole) < 20_000, (what, len(whole))
        (CORPUS / folder / f"{number:03d}-{first}{what}.{ending}").write_bytes(whole)
    return start + len(made)


def larger() -> dict[str, Any]:
    """config.json of the teacher that asks for more memory than its weights explain; written after all others."""
    whole = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 23, "hidden_size": 32,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 128, "dtype": "float32", "tie_word_embeddings": False,
    }  # fmt: skip
    return {
        "vocabulary-of-60-million": {**whole, "vocab_size": 60_000_000},
        "vocabulary-of-a-million": {**whole, "vocab_size": 1_000_000},
        "vocabulary-within-a-part": {**whole, "text_config": {**whole, "vocab_size": 60_000_000}},
        "width-of-60000": {**whole, "hidden_size": 60_000, "intermediate_size": 60_000},
        "inner-of-a-billion": {**whole, "intermediate_size": 10**9},
        "heads-of-a-million": {**whole, "num_attention_heads": 1_000_000},
        "heads-wide": {**whole, "num_attention_heads": 40_000, "head_dim": 40_000},
        "labels-of-a-billion": {**whole, "num_labels": 10**9},
        "experts-of-a-million": {**whole, "model_type": "mixtral", "num_local_experts": 1_000_000},
        "experts-wide": {**whole, "model_type": "qwen3_moe", "num_experts": 60_000, "moe_intermediate_size": 60_000},
        "layers-of-a-million": {**whole, "model_type": "qwen3", "num_hidden_layers": 1_000_000},
        "positions-of-a-table": {
            **whole,
            "model_type": "gpt2",
            "n_positions": 2_000_000_000,
            "n_embd": 32,
            "n_layer": 2,
        },
        "all-somewhat-larger": {**whole, "vocab_size": 60_000, "hidden_size": 30_000, "intermediate_size": 60_000},
    }


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
MERGES = "m0: &m0 {a: 1}\n" + "".join(
    f"m{n}: &m{n}\n  <<: [{', '.join([f'*m{n - 1}'] * 9)}]\n  k{n}: 1\n" for n in range(1, 12)
)


def cards() -> dict[str, str]:
    """README.md of a model's folder."""
    return {
        "aliases": f"---\n{LAUGHS}license: mit\n---\n",
        "merges": f"---\n{MERGES}license: mit\n---\n",
        "alias-of-itself": "---\na: &a [*a]\nlicense: *a\n---\n",
        "deep": "---\nlicense: mit\na: " + "[" * 5000 + "]" * 5000 + "\n---\n",
        "deep-blocks": "---\nlicense: mit\n" + "".join(" " * n + "- \n" for n in range(180)) + "---\n",
        "an-object": "---\nlicense: !!python/object/apply:os.system [touch pwned]\n---\n",
        "a-module": "---\nlicense: !!python/module:os\n---\n",
        "twice": "---\nlicense: mit\nlicense: gpl\n---\n",
        "unclosed-quote": "---\nlicense: 'mit\n---\n",
        "digits": "---\nlicense: " + "9" * 9999 + "\n---\n",
        "sexagesimal": "---\nlicense: " + ":".join(["59"] * 6000) + "\n---\n",
        "date-that-is-none": "---\nlicense: 2001-99-99\n---\n",
        "binary-that-is-none": "---\nlicense: !!binary x\n---\n",
        "a-list": "---\n- license\n---\n",
        "anchors-thousands": "---\nlicense: {" + ", ".join(f"k{n}: &k{n} x" for n in range(1000)) + "}\n---\n",
        "tabs": "---\n\tlicense: mit\n---\n",
        "nothing": "",
        "ok-a-list-of-licences": "---\nlicense: [mit, apache-2.0]\n---\n# Model\n",
        "ok-an-alias": "---\nbase: &l mit\nlicense: *l\n---\n# Model\n",
        "ok-long": "---\nlicense: " + "x" * 9000 + "\n---\n",
    }


def main() -> None:
    number = 1
    makers: list[tuple[Callable[[], dict[str, Any]], str, str]] = [
        (configs, "config", "json"), (tokenizers, "tokenizer", "json"), (named, "named", "json"), (chats, "chat", "jinja"),
        (indexes, "index", "json"), (pickles, "pickle", "bin"), (weights, "weights", "safetensors"),
    ]  # fmt: skip
    for maker, first, ending in makers:
        number = write("models", maker(), ending, f"{first}-", number)
    write("models", larger(), "json", "config-", number)
    write("cards", cards(), "md")
    write("checkpoints", states(), "safetensors", start=101)


if __name__ == "__main__":
    main()
