"""The facts that collect records about labels that a served teacher did not show (`measured`)."""

from __future__ import annotations

from distillctl.run_dir.facts import Facts


class LeftOutRows(Facts):
    """Rows of a split that were not measured."""

    rows: int
    share: float


class UnseenLabels(Facts):
    """Share of an arm's (eval row, label) pairs that the server did not show, and their mean share of a row's label
    mass, as upper bounds."""

    pairs: float
    mass: float


class CoverageFacts(Facts):
    """The labels that a served teacher did not show. Both are None if all labels are exact."""

    unmeasured: dict[str, LeftOutRows] | None = None
    """Split → the rows that were left out."""
    unseen: dict[str, UnseenLabels] | None = None
    """Context → the labels of the eval rows."""
