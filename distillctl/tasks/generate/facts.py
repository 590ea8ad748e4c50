"""The facts that manifests and report record only where the response is a text."""

from __future__ import annotations

from distillctl.metrics.context_decided import ContextDecided
from distillctl.run_dir.facts import Distance, Facts, Interval, StudentFacts, VocabularyFacts
from distillctl.tasks.base import KindReport

Corpus = dict[str, float]
"""Metric → its value over all texts."""


class Share(Interval):
    """A share of ``n`` rows."""

    n: int

    @property
    def rows(self) -> int:
        """Return how many rows the share is, of rows that count wholly or not at all."""
        return round(self.value * self.n)


class RightShare(Share):
    """A share of right values. recovered: how much of the way from floor to ceiling it is (`recovered_interval`); None
    for floor and ceiling, and where the two cannot be told apart."""

    recovered: Interval | None


class TextChecks(Facts):
    """What a user notices in answers at once (`text_checks.check`). A share is None where no row can show it."""

    placeholders: Share | None
    """Rows whose answer has exactly the placeholders of the input, of those whose input has any."""
    invented: int
    """Other rows whose answer has placeholders."""
    empty: float
    """Share of answers without text."""
    looping: float
    """Share of answers that repeat themselves without end, where the reference does not."""
    length_ratio: float | None
    """Characters of all answers over those of all references."""
    untranslated: Share | None
    """Answers in the input's language, of those that are long enough to be told."""


class BrokenPlaceholders(Facts):
    """An answer with other placeholders than its input."""

    input: str
    answer: str
    missing: list[str]
    extra: list[str]


class ProbeAnswers(Facts):
    """The prompted teacher's, the exported student's and the deployed model's answer to one of the recipe's probes."""

    input: str
    ceiling: str
    student: str
    deployed: str


class CapturedMass(Facts):
    """Probability of the tokens that are kept of a distribution, over all positions: the median and 5th percentile."""

    median: float
    p5: float


class ResponseFacts(Facts):
    """The ceiling's responses of both splits. What is None is not known."""

    count: int
    cut: int
    tokens: float | None
    """Mean of a response."""
    captured_mass: CapturedMass | None
    entropy: float | None
    bytes_per_token: float | None
    """Bytes on disk per token of the train rows."""
    eval_bytes: int | None = None
    eval_rows_measured: int | None = None
    """The first so many eval rows keep whole distributions; None: all or none."""


class ContextNeed(Facts):
    """KL(full ‖ simplified) of the tokens of the ceiling's answers, in nats."""

    mean: float
    median: float


class GenerateCollect(Facts):
    """Collect's part."""

    metrics: dict[str, Corpus]
    """Arm → its metrics."""
    responses: ResponseFacts
    necessity: ContextNeed | None
    field_references: dict[str, int] | None = None
    """Key of `task.fields` → eval rows where the data have a value."""


class TeacherTokens(Facts):
    """Collect's part that the student's tokens depend on."""

    stop_ids: list[int]
    """The teacher's ids that end an answer."""
    vocabulary: int | None
    teacher_tokenizer: str | None
    """Digest of the teacher's vocabulary; None where a server does not tell."""


class GenerateDistance(Distance):
    """nll: −log Q of the teacher's responses, in nats per token; metrics: of the model's own answers."""

    nll: float
    metrics: Corpus


class KlFacts(Facts):
    """The rows and tokens that a KL over response tokens covers."""

    kl_rows: int | None = None
    """Rows on which it is measured."""
    kl_lumped: bool | None = None
    """Whether the tokens that a server does not show count as one outcome."""
    dropped_mass: float | None = None
    """The teacher's mean mass outside the trimmed vocabulary; None: nothing was trimmed."""


class WriterFacts(KlFacts):
    """Train's part."""

    stop_ids: list[int]
    """The student's ids that end an answer."""
    encoder_decoder: bool
    shared_tokenizer: bool
    """Whether the student has the teacher's tokens, perhaps fewer."""
    vocabulary: VocabularyFacts | None
    cut_responses: dict[str, int] = {}
    context_decided: ContextDecided | None = None


class GenerateTrain(StudentFacts, WriterFacts):
    """Train's part, and what all kinds record of the student."""

    encoder_decoder: bool
    control: GenerateDistance | None = None


class TextParity(Facts):
    """Export's part: the graph against PyTorch."""

    max_logit_difference: float
    """The largest |Δlogit| of a row over its largest |logit|, of all rows."""
    rows: int
    prompts: int
    """Rows answered by both."""
    equal_prompts: int
    """With the same tokens."""
    ties: int = 0
    """Rows of the others, which part where PyTorch's logits of the two tokens are closer than allowed."""


class GenerateExport(TextParity):
    """Export's part: the graph's origin, too."""

    architecture: str
    builder: str


class GenerateQuantize(Facts):
    """Quantize's part."""

    context_decided: ContextDecided | None = None
    candidate_metrics: dict[str, Corpus] = {}
    """Candidate → the metrics of its answers; older versions did not record them."""
    candidate_checks: dict[str, TextChecks] = {}
    """Candidate → what a user notices in its answers; older versions did not record it."""
    probes: list[ProbeAnswers] = []
    """The answers to the recipe's probes."""


# ── the report ───────────────────────────────────────────────────────────────────────────────────


class KlMeasured(Facts):
    """The rows and tokens that the KL covers (`KlFacts`)."""

    rows: int | None
    lumped: bool | None
    dropped_mass: float | None


class PerToken(Facts):
    """KL from the teacher, −log Q of its response, and share of its first choices; None: not measured."""

    kl: float | None
    nll: float | None
    same_top: float | None


class NeedRange(Facts):
    """Tokens that need the context by ``low`` to ``high`` nats: their share of all tokens, and of all nats."""

    low: float
    high: float | None
    tokens: float
    nats: float


class NeedStretch(Facts):
    """The mean over the tokens at some positions of the responses, counted from 1."""

    first: int
    last: int
    mean: float


class NeedSpread(Facts):
    """The distribution of the context's effect over tokens and positions. Empty lists when there are no tokens."""

    tokens: int
    bins: list[NeedRange]
    positions: list[NeedStretch]


class ContextNeedSpread(ContextNeed, NeedSpread):
    """The tokens' need of the context, as a whole and by token."""


class PointingSpan(Facts):
    """Characters of a response that refer to the context, and what gave them away: "copied" or "phrase"."""

    start: int
    end: int
    why: str


class PointingResponse(Facts):
    """One of the teacher's responses that refer to the context."""

    split: str
    input: str
    text: str
    spans: list[PointingSpan]


class LeakageFacts(Facts):
    """The teacher's responses, of both splits, that refer to the context."""

    words: int
    """The shortest run of words that counts as copied."""
    responses: int
    leaking: int
    copied: int
    phrase: int
    own: dict[str, int]
    """The student's arm → how many of its answers do."""
    listed: list[PointingResponse]
    """The worst first."""


class TextVerdicts(Facts):
    """Answers of the deployed model that differ from the ceiling's, and from the fp32 student's; and their mean
    likeness to the ceiling's (chrF)."""

    rows: int
    different: int
    quantization: int
    likeness: float


class ShownAnswers(Facts):
    """A row's answers side by side: arm → text. cut: arms whose answer was cut off."""

    input: str
    reference: str | None
    likeness: float
    said: dict[str, str]
    cut: list[str]


class TextAgreement(Facts):
    """The graph against PyTorch (`TextParity`)."""

    max_logit_difference: float
    rows: int
    prompts: int
    equal_prompts: int


class GenerateReport(KindReport):
    """The report's part."""

    fields: dict[str, Corpus]
    """Key of the teacher's JSON → arm → share of the rows with the teacher's own value."""
    fields_by_reference: dict[str, dict[str, RightShare]]
    """Key of `task.fields` → arm → share of right values on the rows where the data have one."""
    builder: str
    genai: bool
    """Whether onnxruntime-genai runs the deployed graph."""
    begin: list[int]
    """The special tokens that begin a view."""
    stop: list[str]
    max_new_tokens: int
    placeholder: str | None = None
    """The regular expression that finds placeholders, if the recipe has `task.keep_placeholders`."""
    metrics: dict[str, Corpus]
    """Arm → its metrics over all texts."""
    like_ceiling: dict[str, Corpus]
    """The same against the ceiling's answers, where the data have references."""
    checks: dict[str, TextChecks] = {}
    """Arm → what a user notices in its answers."""
    broken_placeholders: list[BrokenPlaceholders] = []
    """The deployed model's answers with other placeholders than their input, the first of them."""
    candidate_metrics: dict[str, Corpus] = {}
    """Candidate → the metrics of its answers over all texts."""
    candidate_checks: dict[str, TextChecks] = {}
    """Candidate → what a user notices in its answers."""
    probes: list[ProbeAnswers] = []
    """The answers to the recipe's probes."""
    responses: ResponseFacts
    kl_measured: KlMeasured
    per_token: dict[str, PerToken]
    context_decided: dict[str, ContextDecided]
    necessity: ContextNeedSpread | None
    leakage: LeakageFacts
    verdicts: TextVerdicts
    sampled: list[ShownAnswers]
    furthest: list[ShownAnswers]
    parity: TextAgreement
