"""Format the findings that only a run with generated text has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from distillctl.commands.output import Line
from distillctl.metrics import names
from distillctl.tasks.generate.facts import ContextNeed, Corpus, GenerateReport, ResponseFacts, TextChecks
from distillctl.terminal.text_table import TextTable


def responses(found: ResponseFacts, need: ContextNeed | None) -> Iterator[str]:
    """Yield how many responses there are, how much of them is kept, and how much they depend on the context."""
    mass = found.captured_mass
    kept = f", {mass.median:.2%} of the probability kept in the median ({mass.p5:.2%} at p5)" if mass else ""
    if found.tokens is None:  # the tokens of a served text are not known
        yield f"{found.count:,} responses, {found.cut:,} cut off"
    else:
        yield (
            f"{found.count:,} responses of {found.tokens:.1f} tokens in the mean, "
            f"{found.cut:,} cut off; {found.bytes_per_token:.0f} bytes per token on disk{kept}"
        )
    if need is None:
        return
    yield (
        f"each token needs the context by {need.mean:.3f} nats in the mean, "
        f"{need.median:.3f} in the median (KL of full to simplified)"
    )


def corpus(metrics: Mapping[str, Corpus]) -> TextTable:
    """Return a table of every arm's metrics over the whole corpus."""
    columns = list(next(iter(metrics.values())))
    table = TextTable(("over the corpus", *map(names.named, columns)))
    for arm, values in metrics.items():
        table.add_row(arm, *(f"{values[name]:.3f}" for name in columns))
    return table


def _noticed(checks: Mapping[str, TextChecks]) -> TextTable:
    """Return a table of what a user notices at once: placeholders kept, answers without text, and so on."""
    table = TextTable(("arm", "placeholders", "invented", "empty", "looping", "length", "untranslated"))
    for arm, found in checks.items():
        kept = "-" if found.placeholders is None else f"{found.placeholders.rows} of {found.placeholders.n}"
        untranslated = "-" if found.untranslated is None else f"{found.untranslated.value:.3f}"
        length = "-" if found.length_ratio is None else f"{found.length_ratio:.2f}×"
        counts = (f"{found.invented:,}", f"{found.empty:.3f}", f"{found.looping:.3f}")
        table.add_row(arm, kept, *counts, length, untranslated)
    return table


def report(facts: GenerateReport, subject: str) -> Iterator[Line]:
    """Yield how near the answers are to the teacher's, what a user notices in them, and key by key what they say."""
    if like := facts.like_ceiling:
        name = next(iter(like["ceiling"]))
        yield f"{names.named(name)} over the corpus, against the teacher's answers: " + ", ".join(
            f"{arm} {metrics[name]:.3f}" for arm, metrics in like.items() if arm != "ceiling"
        )
    if facts.checks:
        yield _noticed(facts.checks)
    leakage = facts.leakage
    yield (
        f"{leakage.leaking:,} of {leakage.responses:,} labelled responses point at the context, "
        f"{leakage.own[subject]} answers of the {subject} model do"
    )
    for key, equal in facts.fields.items():
        described = ", ".join(f"{arm} {share:.3f}" for arm, share in equal.items() if arm != "ceiling")
        yield f"{key}, equal to the teacher's: {described}"
    for key, right in facts.fields_by_reference.items():
        described = ", ".join(f"{arm} {share.value:.3f}" for arm, share in right.items())
        rows = right["ceiling"].n if right else 0
        yield f"{key}, as the data have it on {rows} rows: {described}" if rows else f"{key}: no row has a reference"
        if rows and (kept := right[subject].recovered):
            yield f"{key} recovered by {subject}: {kept.value:.3f}  ({kept.low:.3f} … {kept.high:.3f})"
