"""README.md beside a graph that writes; `card` has the frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distillctl.graphs import card
from distillctl.recipe import Recipe

_START = """import json

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

text = "…"
ends = np.atleast_1d(json.load(open("generation_config.json"))["eos_token_id"])
tokenizer = Tokenizer.from_file("tokenizer.json")
ids = tokenizer.encode(text).ids
"""

_DECODER = """session = onnxruntime.InferenceSession("model.onnx")
shapes = {value.name: value.shape for value in session.get_inputs()}
past = [name for name in shapes if name.startswith("past_key_values.")]
present = [name.replace("past_key_values.", "present.") for name in past]
feed = {name: np.zeros((1, shapes[name][1], 0, HEAD_SIZE), np.float32) for name in past}
answer, length = [], 0
while len(answer) < LIMIT and not (answer and answer[-1] in ends):
    feed["input_ids"] = np.array([ids])
    feed["position_ids"] = np.arange(length, length + len(ids))[None]
    length += len(ids)
    feed["attention_mask"] = np.ones((1, length), np.int64)
    logits, *values = session.run(["logits", *present], {name: feed[name] for name in shapes})
    feed |= zip(past, values)
    ids = [int(logits[0, -1].argmax())]
    answer += ids
"""

_SEQ2SEQ = """mask = np.ones((1, len(ids)), np.int64)
encoder = onnxruntime.InferenceSession("encoder_model.onnx")
(states,) = encoder.run(["last_hidden_state"], {"input_ids": np.array([ids]), "attention_mask": mask})
session = onnxruntime.InferenceSession("decoder_model_merged.onnx")
shapes = {value.name: value.shape for value in session.get_inputs()}
past = [name for name in shapes if name.startswith("past_key_values.")]
present = [name.replace("past_key_values.", "present.") for name in past]
feed = {name: np.zeros((1, shapes[name][1], 0, shapes[name][3]), np.float32) for name in past}
feed |= {"encoder_hidden_states": states, "encoder_attention_mask": mask}
ids, answer = [json.load(open("config.json"))["decoder_start_token_id"]], []
while len(answer) < LIMIT and not (answer and answer[-1] in ends):
    logits, *values = session.run(["logits", *present], feed | {"input_ids": np.array([ids])})
    feed |= zip(past, values)
    ids = [int(logits[0, -1].argmax())]
    answer += ids
"""

_GENAI = """

With onnxruntime-genai, which keeps keys and values in one buffer and has packages for phones:
"""

_GENAI_LOOP = """import onnxruntime_genai

model = onnxruntime_genai.Model(".")
tokenizer = onnxruntime_genai.Tokenizer(model)
ids = ENCODED
parameters = onnxruntime_genai.GeneratorParams(model)
parameters.set_search_options(max_length=len(ids) + LIMIT)
generator = onnxruntime_genai.Generator(model, parameters)
generator.append_tokens(ids)
while not generator.is_done():
    generator.generate_next_token()
"""

_OPTIMUM = {
    "trace": '\n\nWith optimum: `ORTModelForCausalLM.from_pretrained(".")`.',
    "seq2seq": '\n\nWith optimum: `ORTModelForSeq2SeqLM.from_pretrained(".")`.',
}


def render(
    recipe: Recipe,
    collect: Mapping[str, Any],
    train: Mapping[str, Any],
    measured: Sequence[Mapping[str, str]],
    builder: str,
    begin: Sequence[int] = (),
) -> str:
    """The card as Markdown. collect, train: facts of those manifests; measured: one row per graph, column → value as
    shown; builder: "genai", "trace" or "seq2seq"; begin: the special tokens that begin a view, which
    onnxruntime-genai's tokenizer leaves out. No row of the data is quoted: the card is there to be published."""
    about = description(collect, train)
    return card.page(recipe, task(builder), about, use(recipe, builder, begin) + card.form(recipe), measured)


def task(builder: str) -> str:
    """The hub's name for what it does."""
    return "text2text-generation" if builder == "seq2seq" else "text-generation"


def description(collect: Mapping[str, Any], train: Mapping[str, Any]) -> str:
    """A model that writes, in a few sentences."""
    tokens, counts = collect["context_tokens"], collect["counts"]
    apart = "" if train["kl"] is None else f", with a KL divergence of {train['kl']:.4f} nats per token"
    return f"""A model that writes. It does without a prompt what {collect["teacher"]["reference"]} does with one:
{tokens["student"]} tokens of input here (median), {tokens["teacher"]} there. It learned from that model's answers to
{counts["train"]:,} inputs. In its answers to {counts["eval"]:,} held-out inputs the two agree on the likeliest token
for {train["agreement"]:.1%} of the tokens{apart} (in PyTorch, before export)."""


def use(recipe: Recipe, builder: str, begin: Sequence[int]) -> str:
    """How to ask it, with ONNX Runtime and with what else there is."""
    text = f"```python\n{code(recipe, builder)}```"
    if builder == "genai":
        text += f"{_GENAI}\n```python\n{genai_code(recipe, begin)}```"
    return text + _OPTIMUM.get(builder, "")


def code(recipe: Recipe, builder: str) -> str:
    """With ONNX Runtime alone; the text is in its line `text = "…"`."""
    head_size = "shapes[name][3]"
    if builder == "genai":
        head_size = 'json.load(open("genai_config.json"))["model"]["decoder"]["head_size"]'
    loop = _SEQ2SEQ if builder == "seq2seq" else _DECODER.replace("HEAD_SIZE", head_size)
    return f"{_START}{loop}{_end(recipe, 'answer')}".replace("LIMIT", str(recipe.generate.max_new_tokens))


def genai_code(recipe: Recipe, begin: Sequence[int]) -> str:
    """With onnxruntime-genai; ``text`` is set before."""
    encoded = f"{list(begin)} + list(tokenizer.encode(text))" if begin else "tokenizer.encode(text)"
    end = _end(recipe, "generator.get_sequence(0)[len(ids) :]")
    loop = _GENAI_LOOP.replace("ENCODED", encoded).replace("LIMIT", str(recipe.generate.max_new_tokens))
    return f"{loop}{end}"


def _end(recipe: Recipe, ids: str) -> str:
    """The answer's text ends before the first stop string."""
    cut = "".join(f".split({stop!r})[0]" for stop in recipe.generate.stop)
    return f"print(tokenizer.decode({ids}){cut}.strip())\n"
