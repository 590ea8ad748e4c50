"""The facts of the manifests: one model for each stage, checked before a later stage works with it.

A stage's facts are one JSON object. The models here declare the facts that every kind of task records; a kind declares
its own part in `tasks/<kind>/facts.py`, and reads it from the same object. A part keeps the keys of the other parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distillctl.errors import UpstreamError


class Facts(BaseModel):
    """Findings of a stage, or a part of them."""

    model_config = ConfigDict(
        frozen=True, strict=True, extra="allow", allow_inf_nan=False, use_attribute_docstrings=True
    )

    def as_json(self) -> dict[str, Any]:
        """Return what was set, as JSON has it."""
        return self.model_dump(mode="json", exclude_unset=True)

    @property
    def given(self) -> dict[str, Any]:
        """Return what was set, to build a larger part from it."""
        return {name: value for name, value in self if name in self.model_fields_set}

    def part(self, model: type[FactsT]) -> FactsT:
        """Return the part that ``model`` declares."""
        return read(model, self.as_json())

    def part_if_any(self, model: type[FactsT]) -> FactsT | None:
        """Return the part that ``model`` declares; None if these facts are of another kind of task."""
        needed = {name for name, field in model.model_fields.items() if field.is_required()}
        return self.part(model) if needed <= self.model_fields_set else None

    def __or__(self, other: Facts) -> Facts:
        """Return both parts as one; keys of ``other`` take precedence."""
        return Facts(**self.given | other.given)


FactsT = TypeVar("FactsT", bound=Facts)


class Interval(Facts):
    """A value and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


class ArmScore(Facts):
    """An arm's mean score over ``n`` held-out rows, and the bounds of its 95 % interval."""

    score: float
    low: float
    high: float
    n: int
    metric: str


class Caution(Facts):
    """A reason to doubt a figure (`distillctl.cautions`)."""

    code: str
    """A fixed name in kebab-case, for programs to filter by."""
    text: str
    """Whole sentences, for people."""


class StageFacts(Facts):
    """The facts that every stage records."""

    cautions: list[Caution] = []


# ── collect ──────────────────────────────────────────────────────────────────────────────────────


class Counts(Facts):
    """Rows of the data (`data.rows.Dataset.counts`)."""

    train: int
    eval: int
    shots: int = 0
    duplicates: int = 0
    overlap: int = 0
    shots_in_splits: int = 0
    blank: int = 0
    unreferenced: int = 0
    excluded: int = 0
    contradictory: int = 0
    cut_inputs: dict[str, int] | None = None
    """Split → rows whose input was cut; older versions did not count them."""


class ViewTokens(Facts):
    """Tokens of the median view."""

    teacher: int
    student: int


class PlaceFacts(Facts):
    """The place where an answer begins in one context's views (`data.answer_place.AnswerPlace`)."""

    prefix: str | None = None
    gap: str | None = None
    chat: bool = False
    strip_newline: bool = True


class ServerTokens(Facts):
    """Tokens that a server counted."""

    read: int
    written: int


class RequestTimes(Facts):
    """Percentiles of the milliseconds of ``n`` requests; None without any."""

    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    n: int = 0


class AskedFacts(Facts):
    """A server's capabilities, and the requests that it answered.

    tokens, cost and request_ms cover the run directory, all else the last run.
    """

    granted: Facts | None = None
    """`teachers.openai.server_capabilities.ServerCapabilities`."""
    system_fingerprints: dict[str, int] = {}
    requests: int | None = None
    """None: all answers were stored already."""
    kept_answers: int = 0
    faults: dict[str, int] = {}
    """Kind of failure → requests that failed so."""
    tokens: ServerTokens | None = None
    cost: float | None = None
    request_ms: RequestTimes | None = None
    concurrency: int | None = None


class ServedFacts(AskedFacts):
    """The server behind which the teacher is."""

    base_url: str
    api: str


class TeacherSize(Facts):
    """The teacher's weights. Both are None of a served one."""

    parameters: int | None = None
    bytes: int | None = None
    served: ServedFacts | None = None


class TeacherFacts(TeacherSize):
    """The teacher."""

    reference: str
    fingerprint: str = ""


class ContextEffect(Facts):
    """The difference that the full context makes against another context."""

    disagreement: Interval
    """Share of the rows whose answers differ."""
    kl: float | None
    """Mean KL(full ‖ other) in nats; None where it is not known."""


class DataFacts(Facts):
    """The rows, the length of their views, and the teacher."""

    counts: Counts
    context_tokens: ViewTokens
    teacher: TeacherFacts


class PlacesFacts(Facts):
    """Context → where an answer begins in its views."""

    answer_place: dict[str, PlaceFacts]


class ViewedFacts(DataFacts, PlacesFacts):
    """The views, too."""

    shared_tokens: int
    """Tokens with which every view of the full context begins."""
    context_text: str
    """The text of these tokens."""


class MetricFacts(Facts):
    """metric: of the arms' scores."""

    metric: str


class ArmFacts(MetricFacts):
    """The scores of the teacher's arms. gaps: ceiling − arm."""

    arms: dict[str, ArmScore]
    gaps: dict[str, Interval]
    context_effects: dict[str, ContextEffect]


class LabellingFacts(Facts):
    """The work of labelling in the last run."""

    scored_rows: int
    reused_rows: int
    tokens_per_second: float | None


class CollectFacts(ViewedFacts, ArmFacts, LabellingFacts, StageFacts):
    """The facts that collect records."""


# ── train, export ────────────────────────────────────────────────────────────────────────────────


class Distance(Facts):
    """The distance of a model from the teacher on the held-out rows, per row of labels or token of a response."""

    kl: float | None
    """KL(teacher ‖ model) in nats; None where the teacher's distributions are not known."""
    agreement: float
    """Share of the teacher's first choices."""


class StudentFacts(Distance):
    """The trained student, as later stages use it."""

    encoder_decoder: bool = False
    max_length: int = Field(ge=1)
    """Tokens that it takes: of the view, and for a decoder of view and response."""


class FitFacts(Facts):
    """The result of a training run."""

    steps: int
    best_step: int
    resumed_from: int | None
    stopped: str
    tokens_per_second: float | None
    ranks: int = 1
    mixed_precision: Literal["no", "bf16"] = "no"


class VocabularyFacts(Facts):
    """The savings of a trimmed student vocabulary (`students.vocabulary.trim`)."""

    tokens_before: int
    tokens_after: int
    bytes_saved: int
    """In fp32."""
    share_saved: float
    """Share of the model's bytes that is saved."""
    unseen_share: float | None = None
    """Share of the held-out rows' tokens that neither the train rows nor the safety set had: what trimming would have
    cost on them, had it not known them. None without held-out rows."""


class ControlRows(Facts):
    """The number of train rows that the controls learned from."""

    train_rows: int


class TrainedFacts(StudentFacts, FitFacts, StageFacts):
    """The student and its training."""

    parameters: int
    cut_inputs: dict[str, int] | None = None
    controls: ControlRows


class TrainFacts(TrainedFacts):
    """The facts that train records."""

    control: Distance | None
    """The student trained on bare answers; None where the recipe asks for none."""


class GraphInputs(Facts):
    """Names of the graph's inputs."""

    inputs: list[str]


class GraphFacts(GraphInputs):
    """A graph as export wrote it. bytes: graphs and weights together, in all files."""

    opset: int
    bytes: int


class Origin(Facts):
    """The origin of the graph."""

    builder: str = "trace"


class ExportFacts(GraphFacts, Origin, StageFacts):
    """The facts that export records.

    max_logit_difference: from PyTorch, over ``rows`` held-out rows.
    """

    max_logit_difference: float
    rows: int


# ── quantize ─────────────────────────────────────────────────────────────────────────────────────


class Fp32Facts(Facts):
    """The graph before quantization. score: None without references; p50_ms: of one answer."""

    bytes: int
    score: float | None
    p50_ms: float


class Candidate(Facts):
    """A smaller graph's figures (`quantizers.search.Figures`; None where not finite, too)."""

    name: str
    bytes: int
    kl: float | None
    kl_percentiles: list[float | None]
    kl_teacher: float | None
    same_top: float
    score: float | None
    score_drop: Interval | None = None
    """The fp32 graph's score minus this one's, paired over the rows; older versions did not record it."""
    p50_ms: float
    why: str | None = None
    """The bounds of the gate that it breaks, with the recipe's keys."""
    excess: float | None = None
    """The largest ratio of a figure to the bound it breaks; None where not finite."""
    inside: bool = True
    front: bool = False
    """On the front of bytes, KL and milliseconds."""
    chosen: bool = False


class SearchFacts(StageFacts):
    """All candidates, whether or not one was chosen. metric: of the scores."""

    fp32: Fp32Facts
    metric: str
    candidates: list[Candidate]
    not_tried: list[str]
    """Candidates for which the budget did not reach."""


class DeployedFacts(Facts):
    """The chosen candidate, and the graph that it was made from."""

    chosen: str
    bytes: int
    kl: float | None
    same_top: float
    score: float | None
    fp32: Fp32Facts
    metric: str


class QuantizeFacts(SearchFacts, DeployedFacts):
    """The facts that quantize records."""


class FailedSearch(SearchFacts):
    """A search in which no candidate is inside the gate. nearest: the candidate that exceeds it least."""

    nearest: str
    why: str


# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def check(model: type[Facts], facts: Mapping[str, Any]) -> None:
    """Raise ValueError if a fact has the wrong type. A missing one is told where it is read (`read`)."""
    try:
        model.model_validate(facts)
    except ValidationError as error:
        problems = [problem for problem in error.errors() if problem["type"] != "missing"]
        if problems:
            raise ValueError(f"{_name(problems[0]['loc'])}: {problems[0]['msg']}") from None


def read(model: type[FactsT], facts: Mapping[str, Any], command: str = "run") -> FactsT:
    """Return the part of the facts that ``model`` declares. Raise UpstreamError if it is not all there.

    command: the command that writes the facts again; a stage's name where it is known.
    """
    try:
        return model.model_validate(facts)
    except ValidationError as error:
        problem = error.errors()[0]
        fact = _name(problem["loc"])
        finding = f"has no {fact!r}" if problem["type"] == "missing" else f"has a damaged {fact!r} ({problem['msg']})"
        raise UpstreamError(
            f"the manifest {finding}, so another version wrote it", next=f"distillctl {command} RECIPE --force"
        ) from None


def _name(place: tuple[int | str, ...]) -> str:
    return ".".join(map(str, place))
