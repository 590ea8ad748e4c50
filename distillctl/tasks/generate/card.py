"""The README.md next to a generating graph; `bundle.model_card` has the parts that all kinds share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distillctl.bundle import model_card
from distillctl.metrics import placeholders
from distillctl.recipe import Recipe
from distillctl.run_dir.facts import DataFacts
from distillctl.snippets import code
from distillctl.snippets.reading import Reading
from distillctl.tasks.generate.facts import GenerateTrain
from distillctl.untrusted.markdown import plain

_GENAI = "With onnxruntime-genai, which keeps keys and values in one buffer and has packages for phones:"

_OPTIMUM = {
    "trace": ['With optimum: `ORTModelForCausalLM.from_pretrained(".")`.'],
    "seq2seq": ['With optimum: `ORTModelForSeq2SeqLM.from_pretrained(".")`.'],
}


def render(
    recipe: Recipe,
    collect: DataFacts,
    train: GenerateTrain,
    reading: Reading,
    measured: Sequence[Mapping[str, str]],
    builder: str,
    begin: Sequence[int] = (),
) -> str:
    """Return the card as Markdown.

    collect, train: facts of those manifests; measured: one row per graph, column → value as shown; builder: "genai",
    "trace" or "seq2seq"; begin: the special tokens that begin a view, which onnxruntime-genai's tokenizer leaves out.
    No row of the data is quoted: the card is there to be published.
    """
    about = description(collect, train)
    return model_card.page(recipe, task(builder), about, use(recipe, reading, builder, begin), measured)


def task(builder: str) -> str:
    """Return the hub's name for the task."""
    return "text2text-generation" if builder == "seq2seq" else "text-generation"


def description(collect: DataFacts, train: GenerateTrain) -> str:
    """Describe a generating model in a few sentences."""
    tokens, counts = collect.context_tokens, collect.counts
    teacher = plain(collect.teacher.reference)
    divergence = (
        "" if train.kl is None else f", with a KL divergence of {train.kl:.4f} nats per token over the tokens it has"
    )
    decided = train.context_decided
    sentence = (
        ""
        if decided is None
        else (
            f"\nThe context decides {decided.share:.1%} of these tokens; on them the two agree for "
            f"{decided.agreement:.1%}."
        )
    )
    return f"""A text generator. It does without a prompt what {teacher} does with one:
{tokens.student} tokens of input here (median), {tokens.teacher} there. It learned from that model's answers to
{counts.train:,} inputs. In its answers to {counts.eval:,} held-out inputs the two agree on the likeliest token
for {train.agreement:.1%} of the tokens{divergence} (in PyTorch, before export).{sentence}"""


def use(recipe: Recipe, reading: Reading, builder: str, begin: Sequence[int]) -> str:
    """Describe how to run the model with ONNX Runtime, and with the libraries that its builder allows."""
    blocks = [_block("answer.py", recipe, reading, builder, begin)]
    if builder == "genai":
        blocks += [_GENAI, _block("answer_genai.py", recipe, reading, builder, begin)]
    return "\n\n".join([*blocks, *_OPTIMUM.get(builder, ()), model_card.form(reading)])


def _block(file: str, recipe: Recipe, reading: Reading, builder: str, begin: Sequence[int]) -> str:
    return f"```python\n{code.render(file, reading, 'card', **known(recipe, builder, begin))}```"


def known(recipe: Recipe, builder: str, begin: Sequence[int]) -> dict[str, Any]:
    """Return the values that Python and Kotlin snippets take in addition to the reading (`code.render`)."""
    task = recipe.generate
    return {
        "builder": builder,
        "begin": [*begin],
        "stop": task.stop,
        "max_new_tokens": task.max_new_tokens,
        "placeholder": placeholders.PATTERN if task.keep_placeholders else None,
    }
