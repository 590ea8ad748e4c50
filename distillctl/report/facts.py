"""The report's facts: the JSON of `report --format json`, which the page, the CI summary and the bounds read."""

from __future__ import annotations

from pydantic import Field

from distillctl.data.view_template import ViewTemplate
from distillctl.phone.devices import DeviceFigures
from distillctl.run_dir.bench_facts import AlsoMeasured, MachineFacts, TimedModel
from distillctl.run_dir.facts import (
    ArmFacts,
    ArmScore,
    Candidate,
    Caution,
    ControlRows,
    DataFacts,
    Distance,
    Facts,
    Fp32Facts,
    Interval,
    TrainedFacts,
)


class StageCaution(Caution):
    """A caution, and the stage that gave it."""

    stage: str


class ControlLeads(ControlRows):
    """The models' lead over controls that cost nothing, paired over rows: control → arm → arm − control."""

    leads: dict[str, dict[str, Interval]]


class FailedGate(Facts):
    """The gate at which the run ended. nearest: the candidate that exceeds it least; why: by how much."""

    stage: str
    nearest: str
    why: str


class DevicesFacts(Facts):
    """Phones that ran the deployed graph in their browsers. earlier: how many ran another graph."""

    measured: list[DeviceFigures]
    earlier: int


class GateFacts(Facts):
    """The recipe's `quantize.gate`."""

    max_kl: float | None
    min_same_top: float | None
    max_score_drop: float
    max_score_drop_high: float | None = None
    max_bytes: int | None


class Made(Facts):
    """A stage's commit. created: Unix time; seconds: that it took."""

    fingerprint: str
    created: float
    seconds: float


class UsageFacts(Facts):
    """The facts that the code to ask the deployed graph needs; missing where nothing is deployed."""

    template: ViewTemplate | None = None
    """The template that makes a view of an input."""
    view_limit: int | None = None
    """Tokens that a view may have."""
    sample: str | None = None
    """A held-out row's input; its view where the code has to be given that."""


class ReportFacts(ArmFacts, DataFacts, AlsoMeasured, UsageFacts):
    """The facts that every kind's report has; a kind adds its own part (`tasks.base.KindReport`)."""

    cautions: list[StageCaution]
    name: str
    title: str
    task: str
    """The kind: "classify", "generate" …"""
    ceiling_by_construction: bool
    """True if the ceiling is compared with itself."""
    arms: dict[str, ArmScore] = Field(description="Arm → score; the ceiling first, the floor last.")
    recovered: dict[str, Interval | None]
    """Arm → (arm − floor) / (ceiling − floor); None where that cannot be told."""
    controls: ControlLeads
    models: dict[str, TimedModel]
    """Timed model → its figures; empty where nothing was timed."""
    ratios: dict[str, float]
    """Model → its median query over the deployed model's."""
    machine: MachineFacts
    threads: int | None
    timed_agreement: dict[str, float | None]
    """Model → share of its timed queries with the answer on record."""
    failed_gate: FailedGate | None
    devices: DevicesFacts
    shared_tokens: int
    """Tokens with which every view of the full context begins."""
    student: TrainedFacts
    control: Distance | None
    """The student that was trained on bare answers."""
    soft_labels_bought: Interval | None
    """Student − control: the gain from the teacher's probabilities over its bare answers."""
    fp32: Fp32Facts
    candidates: list[Candidate]
    not_tried: list[str]
    gate: GateFacts
    objective: str
    provenance: dict[str, Made]
    versions: dict[str, str]
    snippets: list[str] = []
    """Files of code that the page shows."""
    artifact: str | None
    """Path of the deployed graph; None where nothing is deployed."""
    subject: str
    """The arm that the report is about."""
    headline: str
