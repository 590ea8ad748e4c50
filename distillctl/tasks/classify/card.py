"""The README.md next to a classifier's graph; `bundle.model_card` has the parts that all kinds share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distillctl.bundle import model_card
from distillctl.recipe import Recipe
from distillctl.run_dir.facts import DataFacts, StudentFacts
from distillctl.snippets import code
from distillctl.snippets.reading import Reading
from distillctl.untrusted import markdown


def render(
    recipe: Recipe,
    collect: DataFacts,
    train: StudentFacts,
    reading: Reading,
    measured: Sequence[Mapping[str, str]],
) -> str:
    """Return the card as Markdown.

    collect, train: facts of those manifests; measured: one row per graph, column → value as shown. No row of the data
    is quoted: the card is there to be published.
    """
    use = f"""```python
{code.render("classify.py", reading, "card")}```

{model_card.form(reading)}

With optimum: `ORTModelForSequenceClassification.from_pretrained(".")`."""
    return model_card.page(recipe, "text-classification", description(recipe, collect, train), use, measured)


def description(recipe: Recipe, collect: DataFacts, train: StudentFacts) -> str:
    """Describe a classifier in a few sentences."""
    tokens, counts, labels = collect.context_tokens, collect.counts, markdown.plain(", ".join(recipe.task.names))
    return f"""A text classifier with the labels {labels}. It does without a prompt what
{markdown.plain(collect.teacher.reference)} does with
one: {tokens.student} tokens of input here (median), {tokens.teacher} there. It learned from that model's answers,
as distributions over the labels, to {counts.train:,} inputs. On {counts.eval:,} held-out inputs the two agree on
the label for {train.agreement:.1%}, with a KL divergence of {train.kl:.4f} nats (in PyTorch, before export)."""
