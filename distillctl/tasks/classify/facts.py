"""The facts that manifests and report record only where the response is one of several labels."""

from __future__ import annotations

from distillctl.run_dir.facts import Facts
from distillctl.soft_labels.coverage import CoverageFacts
from distillctl.tasks.base import KindReport


class ClassifyCollect(CoverageFacts):
    """Collect's part."""

    labels: list[str]
    log_prior: list[float] | None
    """Log-probability of each label whatever the input, which is subtracted; None: the recipe asks for none."""
    without_prior: dict[str, float] | None = None
    """Arm → its score where no prior is subtracted; None without a prior."""
    label_mass: dict[str, float] = {}
    """Context → the median of the labels' joint probability."""


class LabelParity(Facts):
    """Export's part: the graph against PyTorch. max_logit_difference: max |Δlogit|."""

    max_logit_difference: float
    same_top: float
    """Share of rows with the same top label."""
    ties: int = 0
    """Rows where it differs, PyTorch's two highest logits being closer than the allowed difference."""
    rows: int


# ── the report ───────────────────────────────────────────────────────────────────────────────────


class LabelVerdicts(Facts):
    """The rows on which the top labels of ceiling and deployed model differ, and which was right when only one was."""

    rows: int
    different: int
    only_teacher_right: int
    only_deployed_right: int


class TopLabel(Facts):
    """The likeliest label of a distribution."""

    label: str
    probability: float


class Disagreement(Facts):
    """A row on which teacher and deployed model differ. distance: in total variation, ½ Σ|P − Q|."""

    input: str
    reference: str | None
    distance: float
    teacher: TopLabel
    deployed: TopLabel


class LabelAgreement(Facts):
    """The graph against PyTorch (`LabelParity`)."""

    max_logit_difference: float
    same_top: float
    rows: int


class ClassifyReport(KindReport):
    """The report's part."""

    labels: list[str]
    inputs: list[str]
    """Names of the graph's inputs."""
    parity: LabelAgreement
    verdicts: LabelVerdicts
    disagreements: list[Disagreement]
    """The furthest first."""
