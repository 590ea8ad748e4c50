"""Caution about a teacher's labels that make no sense, before a student learns them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from distillctl import cautions

SMALL_MASS = 0.1
"""Median label mass below which the teacher would mostly write something else. The prompted teacher of
recipes/demo.yaml has 0.89; without its prompt, 0.00001."""
NEARLY_EVERY = 0.9
"""Share of rows with the same label above which the labels carry hardly any information."""


def check_mass(mass: np.ndarray, likeliest: Sequence[tuple[str, str, float]]) -> None:
    """Add a caution if the labels have little of the ceiling's probability.

    mass: float32 [N], Σ_k Pr(label k | view). likeliest: (row id, likeliest token after the view, its probability) of
    some rows.
    """
    median = float(np.median(mass))
    if median >= SMALL_MASS:
        return
    written = ", ".join(f"{token!r} ({probability:.0%}, row {row})" for row, token, probability in likeliest)
    cautions.add(
        "label-mass",
        f"Under the full context the labels have {median:.2g} of the teacher's probability in the median: it would "
        f"rather write something else{f', such as {written}' if written else ''}. Look at the end of the template, at "
        "task.answer_prefix, and at the labels' words; for a reasoning teacher, at teacher.chat_template_kwargs.",
    )


def check_labels(
    names: Sequence[str], train: np.ndarray, held_out: np.ndarray, references: Sequence[str | None]
) -> None:
    """Add cautions if the ceiling gives a label to nearly every row or to none, or if a constant answer beats it.

    train, held_out: the ceiling's normalised label log-probabilities, [N, K]. references: of the held-out rows.
    """
    top = held_out.argmax(-1)
    counts = np.bincount(top, minlength=len(names))
    known = [reference for reference in references if reference is not None]
    wanted, most = Counter(known).most_common(1)[0] if known else ("", 0)
    usual = most / len(known) if known else 0.0
    share = counts.max() / len(top)
    if share >= NEARLY_EVERY and share > usual + 0.05:
        cautions.add(
            "one-label",
            f"The prompted teacher answers {names[int(counts.argmax())]!r} on {share:.0%} of the eval rows. A student "
            "of such labels learns to say one word.",
        )
    if len(known) == len(references):
        right = float(np.mean([names[k] == reference for k, reference in zip(top.tolist(), references, strict=True)]))
        if right < usual:
            cautions.add(
                "below-majority",
                f"The prompted teacher is right on {right:.1%} of the eval rows. Answering {wanted!r} every time would "
                f"be right on {usual:.1%}.",
            )
    given = np.bincount(train.argmax(-1), minlength=len(names))
    if never := [name for name, count in zip(names, given.tolist(), strict=True) if not count]:
        cautions.add(
            "labels-never-given",
            f"The prompted teacher gives no train row the label{'s' * (len(never) > 1)} {', '.join(never)}: the "
            "student sees no example of it.",
        )
